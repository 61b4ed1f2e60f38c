"""Sweeps until the messages no longer move, with or without a constraint on the weights' norm."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from entropix.committee._messages import (
    Node,
    Normal,
    Problem,
    bethe,
    moments,
    sweep,
)
from entropix.committee._model import Committee

# Halvings of the bracket of the norm's multiplier.
_HALVINGS = 60
# The share of the new messages that is taken falls by the first factor in a sweep whose residual
# grows and recovers by the second in others; it stays above the third times the share asked for.
_SHORTEN, _LENGTHEN, _SHORTEST = 0.7, 1.1, 0.05
# Log probability of a pattern below which its weights are frozen to signs that get it wrong, where
# sums are taken as normal: it is 27 where one of frozen signs is wrong by the least amount.
IMPOSSIBLE = -20.0


class Stop(NamedTuple):
    """When to stop sweeping.

    Attributes:
      damping: share of the old message that is kept, at least. # shape=()
      max_steps: # shape=(), dtype=int32
      tolerance: of the residual. # shape=()
    """

    damping: Float[Array, "*batch"]
    max_steps: Int[Array, "*batch"]
    tolerance: Float[Array, "*batch"]


class FixedPoint(NamedTuple):
    """Where the sweeps ended.

    Attributes:
      messages: from patterns to weights. # shape=(M, K, n)
      sums: of the messages over patterns. # shape=(K, n)
      total: natural parameters of the weights. # shape=(K, n)
      multiplier: lambda, the precision that holds the norm; 0 for binary weights. # shape=()
      mean: of the weights. # shape=(K, n)
      steps: # shape=(), dtype=int32
      residual: largest change of a mean in the last sweep over 1 - damping. # shape=()
      damping: share of the old message kept in the next sweep. # shape=()
    """

    messages: Any
    sums: Any
    total: Any
    multiplier: Float[Array, "*batch"]
    mean: Float[Array, "*batch K n"]
    steps: Int[Array, "*batch"]
    residual: Float[Array, "*batch"]
    damping: Float[Array, "*batch"]


# (sums of the messages, multiplier of the sweep before) -> (totals of the weights, multiplier)
Prior = Callable[[Any, jax.Array], tuple[Any, jax.Array]]


def external(field: jax.Array) -> Prior:
    """A field on each weight, and for real weights the multiplier of the norm."""

    def prior(sums: Any, multiplier: jax.Array) -> tuple[Any, jax.Array]:
        if isinstance(sums, Normal):
            return normalized(Normal(sums.precision, field + sums.field))
        return field + sums, multiplier

    return prior


def normalized(natural: Normal) -> tuple[Normal, jax.Array]:
    """Adds the precision that gives the weights their norm; that precision as well."""
    multiplier = norm_multiplier(natural.precision, natural.field)
    return Normal(multiplier + natural.precision, natural.field), multiplier


def norm_multiplier(
    precision: jax.Array, field: jax.Array, fluctuation: float | jax.Array = 1.0
) -> jax.Array:
    r"""The lambda with :math:`\sum_i m_i^2 + f v_i = K n`, the one field all weights share.

    Where :math:`v_i = 1 / (\lambda + A_i)` and :math:`m_i = B_i v_i`, by bisection: the sum falls
    with lambda.

    Args:
      precision: A. # shape=(K, n)
      field: B. # shape=(K, n)
      fluctuation: f, at most 1; 0 for weights that do not fluctuate. Default 1.

    Returns:
      # shape=()
    """
    lowest = jnp.min(precision)
    rest = precision - lowest
    # Of lambda + min A: the sum is at most the one with all A equal.
    highest = (1 + jnp.sqrt(1 + 4 * jnp.mean(field**2))) / 2

    def halve(_: jax.Array, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bracket
        middle = (low + high) / 2
        variance = 1 / (middle + rest)
        too_long = jnp.mean((field * variance) ** 2 + fluctuation * variance) > 1
        return jnp.where(too_long, middle, low), jnp.where(too_long, high, middle)

    low, high = jax.lax.fori_loop(0, _HALVINGS, halve, (jnp.zeros_like(highest), highest))
    return (low + high) / 2 - lowest


def start(prior: Prior, messages: Any, damping: jax.Array) -> FixedPoint:
    """Before the first sweep."""
    sums = jax.tree.map(lambda every: jnp.sum(every, axis=0), messages)
    zero = jnp.zeros([], jax.tree.leaves(messages)[0].dtype)
    total, multiplier = prior(sums, zero)
    mean, _ = moments(total)
    steps, residual = jnp.zeros([], jnp.int32), jnp.full_like(zero, jnp.inf)
    return FixedPoint(messages, sums, total, multiplier, mean, steps, residual, damping)


def iterate(
    model: Committee,
    node: Node,
    problem: Problem,
    prior: Prior,
    begin: FixedPoint,
    stop: Stop,
    batch_size: int,
) -> FixedPoint:
    """Sweeps until the residual is within the tolerance, the steps are spent, or it is nan.

    The damping rises while the residual grows, and falls back to what was asked for.
    """

    def goes_on(at: FixedPoint) -> jax.Array:
        return (at.residual > stop.tolerance) & (at.steps < stop.max_steps)

    def step(at: FixedPoint) -> FixedPoint:
        messages, sums = sweep(model, node, problem, at.total, at.messages, at.damping, batch_size)
        total, multiplier = prior(sums, at.multiplier)
        mean, _ = moments(total)
        residual = jnp.max(jnp.abs(mean - at.mean)) / (1 - at.damping)
        damping = adapted(at.damping, stop.damping, residual > at.residual)
        return FixedPoint(messages, sums, total, multiplier, mean, at.steps + 1, residual, damping)

    return jax.lax.while_loop(goes_on, step, begin)


def adapted(damping: jax.Array, least: jax.Array, grows: jax.Array) -> jax.Array:
    """The damping of the next sweep, after one whose residual grows or not."""
    share = (1 - damping) * jnp.where(grows, _SHORTEN, _LENGTHEN)
    return 1 - jnp.clip(share, _SHORTEST * (1 - least), 1 - least)


class FreeEntropy(NamedTuple):
    """What the messages count.

    Attributes:
      value: log of the number of solutions, or of their share of the sphere, tilted by the field;
        nan where ``contradicted``. # shape=()
      contradicted: whether binary weights are frozen to signs with which a pattern is wrong.
        # shape=(), dtype=bool
    """

    value: Float[Array, "*batch"]
    contradicted: Bool[Array, "*batch"]


def free_entropy(
    model: Committee, node: Node, problem: Problem, at: FixedPoint, batch_size: int
) -> FreeEntropy:
    """Bethe's free entropy, with its norm for spherical weights."""
    found, least = bethe(model, node, problem, at.total, at.messages, batch_size)
    if isinstance(at.total, Normal):
        log_2pi = jnp.log(jnp.asarray(2 * jnp.pi, found.dtype))
        found = found + model.num_weights * (at.multiplier - 1 - log_2pi) / 2
        return FreeEntropy(found, jnp.zeros([], bool))
    # Exact probabilities may be as small as the type knows.
    smallest = float(np.log(jnp.finfo(found.dtype).tiny)) + 1
    contradicted = ~(least > (smallest if node == "exact" else IMPOSSIBLE))
    return FreeEntropy(jnp.where(contradicted, jnp.nan, found), contradicted)
