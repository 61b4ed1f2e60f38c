"""Belief propagation: the number of solutions of a committee machine, and the mean solution."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Real

from entropix.committee._arguments import message_passing, stop_when
from entropix.committee._contradiction import unless_opposed
from entropix.committee._fixed_point import Stop, external, free_entropy, iterate, start
from entropix.committee._messages import Node, Problem, moments, no_messages
from entropix.committee._model import Committee, check_weights


class Beliefs(NamedTuple):
    r"""Answer of `belief_propagation`.

    Attributes:
      mean: of each weight over the solutions; the magnetisations of binary weights.
        # shape=(K, n)
      variance: of each weight. # shape=(K, n)
      free_entropy: Bethe's, :math:`\log \sum_W e^{h \cdot W}` over the solutions; for spherical
        weights the average of :math:`e^{h \cdot W}` over the sphere instead of the sum.
        # shape=()
      entropy: ``free_entropy`` less h times the mean: without a field the log of the number of
        solutions, or of the share of the sphere that they fill. Of binary weights below 0 where
        less than one solution is expected. # shape=()
      steps: sweeps made. # shape=(), dtype=int32
      residual: largest change of a mean in the last sweep, divided by 1 - damping. # shape=()
      converged: whether the residual is within the tolerance and nothing is contradicted; where
        not, the rest is what the last sweep left. # shape=(), dtype=bool
      contradicted: whether two patterns contradict each other, equal ones with opposite labels for
        instance, or binary weights are frozen to signs with which some pattern is all but surely
        wrong. Nothing is counted then, and the entropies are nan. That a problem has no solution
        for any other reason is not known: the messages may then settle. # shape=(), dtype=bool
      messages: natural parameters of what each pattern says of each weight, to start from again:
        fields, or for spherical weights precisions and fields. # shape=(M, K, n)
    """

    mean: Float[Array, "*batch K n"]
    variance: Float[Array, "*batch K n"]
    free_entropy: Float[Array, "*batch"]
    entropy: jax.Array
    steps: Int[Array, "*batch"]
    residual: Float[Array, "*batch"]
    converged: Bool[Array, "*batch"]
    contradicted: Bool[Array, "*batch"]
    messages: Any


def belief_propagation(
    model: Committee,
    patterns: Real[ArrayLike, "patterns inputs"],
    labels: Real[ArrayLike, " patterns"],
    *,
    field: Float[ArrayLike, "units n"] | None = None,
    init: Any = None,
    node: Node | None = None,
    damping: float | jax.Array = 0.5,
    max_steps: int | jax.Array = 1000,
    tolerance: float | jax.Array = 1e-4,
    batch_size: int | None = None,
) -> Beliefs:
    r"""Counts the solutions of a committee machine by passing messages until they agree.

    .. math:: m_{i\mu} = \tanh\Big(h_i + \sum_{\nu \ne \mu} u_{\nu i}\Big), \qquad
       u_{\mu i} \leftarrow \lambda u_{\mu i} + (1 - \lambda) \tfrac12 \log
       \frac{P(\text{pattern } \mu \text{ is right} \mid w_i = +1, m_{\cdot \mu})}
            {P(\text{pattern } \mu \text{ is right} \mid w_i = -1, m_{\cdot \mu})}

    for binary weights. Messages about spherical weights are normal, a precision and a field
    matched to mean and variance, and one multiplier shared by all weights holds the sum of their
    squares at K n. All messages are renewed at once (flooding). A field toward some weights
    confines the count to their neighborhood (see `local_entropy_curve`).

    The answer is exact where the factor graph is a tree, and in the limit of many inputs for
    random patterns below the load where their solutions come apart. Without a field or messages
    that differ between the units, a network with shared inputs stays symmetric under their
    exchange.

    Args:
      model: the network.
      patterns: x; +-1 for binary weights, any real numbers for spherical ones. May be of an integer
        type; the messages have the floating-point type of the patterns, else jax's default.
        # shape=(M, N)
      labels: sigma, each +1 or -1. # shape=(M,)
      field: h, external field on each weight. Default none. # shape=(K, n)
      init: messages to start from. Default 0. # shape=(M, K, n)
      node: how the sum over a unit's inputs is treated. ``"gaussian"`` takes it as normal without
        the weight that the message is for; ``"relaxed"``, for binary weights of many inputs, also
        expands in that weight, which costs a fraction and errs by 1 / n; ``"exact"``, for binary
        weights of few inputs, convolves and needs the memory of n messages for each message.
        Spherical weights know only ``"gaussian"``. Default exact for binary weights of units with
        25 inputs or fewer, else gaussian.
      damping: lambda, share of the old message that is kept. At least 0, below 1. It rises by
        itself while the residual grows, and falls back. Default 0.5.
      max_steps: sweeps at most. Default 1000.
      tolerance: of the residual. Default 1e-4.
      batch_size: patterns of which the messages are computed at a time; the answer does not depend
        on it. Default those with a million messages, beyond which what a sweep needs besides the
        messages themselves would not fit a CPU's cache.

    Returns:
      `Beliefs`.

    Raises:
      TypeError: a number is of the wrong type.
      ValueError: a number is out of its range; a shape does not fit; a label, or a pattern of
        binary weights, is not of +-1; the node is not known for the model's weights.

    Examples:
      One pattern leaves half of the weights right:

      >>> import jax.numpy as jnp
      >>> found = belief_propagation(
      ...     Committee(5), jnp.ones((1, 5)), jnp.ones(1), node="exact"
      ... )
      >>> bool(found.converged), round(float(jnp.exp(found.entropy)))
      (True, 16)

    Reference:
      Braunstein and Zecchina, Learning by message passing in networks of discrete synapses, Phys.
      Rev. Lett. 96 (2006); Mézard, The space of interactions in neural networks: Gardner's
      computation with the cavity method, J. Phys. A 22 (1989).
    """
    problem, dtype, node, batch_size = message_passing(
        model, patterns, labels, node=node, batch_size=batch_size
    )
    stop = stop_when(damping, max_steps, tolerance, dtype)
    if field is None:
        field = jnp.zeros(model.shape, dtype)
    check_weights("field", model, field)
    if init is not None:
        _check_messages(model, problem.labels.shape[0], init, dtype)
    found = _belief_propagation(
        problem, jnp.asarray(field, dtype), init, stop,
        model=model, node=node, batch_size=batch_size,
    )  # fmt: skip
    return unless_opposed(found, model, problem)


@functools.partial(jax.jit, static_argnames=("model", "node", "batch_size"))
def _belief_propagation(
    problem: Problem,
    field: jax.Array,
    init: Any,
    stop: Stop,
    *,
    model: Committee,
    node: Node,
    batch_size: int,
) -> Beliefs:
    """The compiled part of `belief_propagation`."""
    if init is None:
        init = no_messages(model, problem.labels.shape[0], field.dtype)
    prior = external(field)
    end = iterate(model, node, problem, prior, start(prior, init, stop.damping), stop, batch_size)
    mean, variance = moments(end.total)
    found = free_entropy(model, node, problem, end, batch_size)
    return Beliefs(
        mean=mean,
        variance=variance,
        free_entropy=found.value,
        entropy=found.value - jnp.sum(field * mean),
        steps=end.steps,
        residual=end.residual,
        converged=(end.residual <= stop.tolerance) & ~found.contradicted,
        contradicted=found.contradicted,
        messages=end.messages,
    )


def _check_messages(model: Committee, num_patterns: int, messages: Any, dtype: Any) -> None:
    """Raises unless the messages are of the structure, shape and type that the sweeps keep."""
    expected = jax.eval_shape(lambda: no_messages(model, num_patterns, dtype))
    wanted, got = (
        jax.tree.map(lambda leaf: (np.shape(leaf), jnp.result_type(leaf)), tree)
        for tree in (expected, messages)
    )
    if wanted != got:
        raise ValueError(f"init must hold messages of shapes and types {wanted}, got {got}")
