"""Messages between patterns and weights as natural parameters, and one flooding sweep of them.

A message to a binary weight is a field u, for exp(u w); one to a real weight is a precision A and a
field B, for exp(-A w^2 / 2 + B w). Messages compose by addition, so what a pattern sees of a
weight is the weight's total minus the pattern's own message.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from entropix._gaussian import log_tail
from entropix.committee import _nodes
from entropix.committee._model import Committee

Node = Literal["gaussian", "relaxed", "exact"]
# The least precision a real weight is seen with; messages of sign units may have negative ones.
SMALLEST_PRECISION = 1e-2
# Of 1 - v x^2 Gamma, the factor by which a pattern narrows a weight.
SMALLEST_NARROWING = 0.05


class Normal(NamedTuple):
    """Natural parameters of a real weight.

    Attributes:
      precision: A, may be negative in a message. # shape=(..., K, n)
      field: B. # shape=(..., K, n)
    """

    precision: jax.Array
    field: jax.Array


class Problem(NamedTuple):
    """Examples as the sweeps read them, a batch at a time.

    Attributes:
      patterns: x, of any real type. # shape=(M, N)
      labels: sigma. # shape=(M,)
    """

    patterns: Float[Array, "*batch M N"]
    labels: Float[Array, "*batch M"]


def no_messages(model: Committee, num_patterns: int, dtype: Any) -> Any:
    """Messages that say nothing: natural parameters 0."""
    zeros = jnp.zeros((num_patterns, *model.shape), dtype)
    return zeros if model.weights == "binary" else Normal(zeros, zeros)


def moments(natural: Any) -> tuple[jax.Array, jax.Array]:
    """Mean and variance of weights with these natural parameters."""
    if isinstance(natural, Normal):
        precision = jnp.maximum(natural.precision, SMALLEST_PRECISION)
        return natural.field / precision, 1 / precision
    mean = jnp.tanh(natural)
    return mean, 1 - mean**2


def log_partition(natural: Any) -> jax.Array:
    """Logarithm of the sum (the integral) over one weight, for each."""
    if isinstance(natural, Normal):
        precision = jnp.maximum(natural.precision, SMALLEST_PRECISION)
        scale = jnp.log(jnp.asarray(2 * jnp.pi, precision.dtype))
        return (scale - jnp.log(precision) + natural.field**2 / precision) / 2
    return jnp.abs(natural) + jnp.log1p(jnp.exp(-2 * jnp.abs(natural)))


class _Batch(NamedTuple):
    """Some patterns; the last batch overlaps the one before, whose rows are not fresh."""

    start: jax.Array
    inputs: jax.Array
    labels: jax.Array
    messages: Any
    fresh: jax.Array


def _to_weights(model: Committee, node: Node, batch: _Batch, natural: Any) -> tuple[Any, jax.Array]:
    """All messages of some patterns, and the log probability of each one's right output.

    Args:
      model: the network.
      node: how the sums over inputs are treated.
      batch: the patterns.
      natural: of the weights as each pattern sees them. # shape=(M, K, n)
    """
    inputs = batch.inputs
    if node == "exact":
        fields, log_z = _nodes.exact_node(inputs, natural, model.output, batch.labels)
        return jnp.clip(fields, -_nodes.CLIP, _nodes.CLIP), log_z
    mean, variance = moments(natural)
    sums, down, log_z = _evidence(model, batch, mean, variance)
    if model.weights == "binary" and node == "gaussian":
        fields = _nodes.gaussian_fields(sums, inputs, mean, variance, down)
        return jnp.clip(fields, -_nodes.CLIP, _nodes.CLIP), log_z
    slope, curvature = (part[:, :, None] for part in _nodes.channel(sums, down))
    if model.weights == "binary":
        fields = inputs * slope + mean * curvature
        return jnp.clip(fields, -_nodes.CLIP, _nodes.CLIP), log_z
    bend = inputs**2 * curvature
    narrowing = jnp.maximum(1 - variance * bend, SMALLEST_NARROWING)
    return Normal(bend / narrowing, (inputs * slope + mean * bend) / narrowing), log_z


def _evidence(
    model: Committee, batch: _Batch, mean: jax.Array, variance: jax.Array
) -> tuple[_nodes.Sums, jax.Array | None, jax.Array]:
    """Sums, fields on the hidden signs (None: the output is the sign), log P(right output)."""
    binary = model.weights == "binary"
    smallest = _nodes.SMALLEST_VARIANCE_OF_SIGNS if binary else _nodes.SMALLEST_VARIANCE
    sums = _nodes.field_sums(batch.inputs, mean, variance, smallest)
    return sums, *output_evidence(model, sums, batch.labels)


def output_evidence(
    model: Committee, sums: _nodes.Sums, labels: jax.Array
) -> tuple[jax.Array | None, jax.Array]:
    """Fields on the hidden signs (None: the output is the sign), log P(right output)."""
    if model.num_hidden == 1:
        return None, log_tail(-sums.scaled)[:, 0]
    return _nodes.output_node(model.output, _nodes.gaussian_up(sums), labels)


def _batch(
    model: Committee, problem: Problem, messages: Any, index: jax.Array, size: int
) -> _Batch:
    """Cuts out the batch of that index."""
    start = jnp.minimum(index * size, problem.labels.shape[0] - size)

    def cut(array: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(array, start, size)

    mine = jax.tree.map(cut, messages)
    dtype = jax.tree.leaves(messages)[0].dtype
    inputs, labels = (cut(part).astype(dtype) for part in problem)
    inputs = gauged(model, inputs, labels)
    fresh = start + jnp.arange(size, dtype=jnp.int32) >= index * size
    return _Batch(start, model.unit_inputs(inputs), labels, mine, fresh[:, None, None])


def gauged(model: Committee, patterns: jax.Array, labels: jax.Array) -> jax.Array:
    """Patterns times labels, so that every right output is +1; a parity's as they are."""
    if model.output == "majority" or model.num_hidden == 1:
        return patterns * labels[:, None]
    return patterns


def _seen(total: Any, messages: Any) -> Any:
    """Natural parameters of the weights as each pattern sees them."""
    return jax.tree.map(lambda all_, own: all_[None] - own, total, messages)


def sweep(
    model: Committee,
    node: Node,
    problem: Problem,
    total: Any,
    messages: Any,
    damping: jax.Array,
    batch_size: int,
) -> tuple[Any, Any]:
    """Renews every message from the totals of the sweep before.

    Args:
      model: the network.
      node: how the sums over inputs are treated.
      problem: the examples.
      total: natural parameters of the weights. # shape=(K, n)
      messages: from patterns to weights. # shape=(M, K, n)
      damping: share of the old message that is kept.
      batch_size: patterns at a time; the answer does not depend on it.

    Returns:
      The new messages, written over the old ones where XLA can, and their sums over patterns.
    """

    def renew(index: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        messages, sums = carry
        batch = _batch(model, problem, messages, index, batch_size)
        answers, _ = _to_weights(model, node, batch, _seen(total, batch.messages))

        def damped(old: jax.Array, new: jax.Array) -> jax.Array:
            return jnp.where(batch.fresh, new + damping * (old - new), old)

        mine = jax.tree.map(damped, batch.messages, answers)
        messages = jax.tree.map(
            lambda every, some: jax.lax.dynamic_update_slice_in_dim(every, some, batch.start, 0),
            messages, mine,
        )  # fmt: skip
        # Summed as they were written: else XLA computes them again, from the old messages, which
        # then cannot be written over.
        written = _batch(model, problem, messages, index, batch_size).messages
        sums = jax.tree.map(
            lambda before, some: before + jnp.sum(jnp.where(batch.fresh, some, 0), axis=0),
            sums, written,
        )  # fmt: skip
        return messages, sums

    batches = -(-problem.labels.shape[0] // batch_size)
    return jax.lax.fori_loop(0, batches, renew, (messages, jax.tree.map(jnp.zeros_like, total)))


def bethe(
    model: Committee,
    node: Node,
    problem: Problem,
    total: Any,
    messages: Any,
    batch_size: int,
) -> tuple[jax.Array, jax.Array]:
    r"""Bethe free entropy, and the least log Z of a pattern.

    .. math:: F = \sum_\mu \log Z_\mu + \sum_i \psi(H_i) - \sum_{\mu i} [\psi(H_i) -
       \psi(H_i - u_{\mu i})]

    with psi the log partition function of a weight.

    Args:
      model: as for `sweep`, like the other arguments.
      node: see there.
      problem: see there.
      total: see there.
      messages: see there.
      batch_size: see there.

    Returns:
      F and the least of the log Z. # shapes=(), ()
    """
    weights = log_partition(total)

    def add(index: jax.Array, found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        batch = _batch(model, problem, messages, index, batch_size)
        seen = _seen(total, batch.messages)
        _, log_z = _to_weights(model, node, batch, seen)
        edges = jnp.sum(weights[None] - log_partition(seen), axis=(1, 2))
        free_entropy, least = found
        free_entropy = free_entropy + jnp.sum(jnp.where(batch.fresh[:, 0, 0], log_z - edges, 0))
        return free_entropy, jnp.minimum(least, jnp.min(log_z))

    batches = -(-problem.labels.shape[0] // batch_size)
    start = jnp.sum(weights), jnp.zeros([], weights.dtype)
    return jax.lax.fori_loop(0, batches, add, start)
