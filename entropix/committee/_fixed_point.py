"""Sweeps until the messages no longer move, with or without a constraint on the weights' norm."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from entropix.committee._messages import (
    Node,
    Normal,
    Problem,
    bethe,
    moments,
    sweep,
)
from entropix.committee.model import Committee

# Halvings of the bracket of the norm's multiplier.
_HALVINGS = 60


class Stop(NamedTuple):
    """When to stop sweeping.

    Attributes:
      damping: share of the old message that is kept. # shape=()
      max_steps: # shape=(), dtype=int32
      tolerance: of the residual. # shape=()
    """

    damping: jax.Array
    max_steps: jax.Array
    tolerance: jax.Array


class FixedPoint(NamedTuple):
    """Where the sweeps ended.

    Attributes:
      messages: from patterns to weights. # shape=(M, K, n)
      sums: of the messages over patterns. # shape=(K, n)
      total: natural parameters of the weights. # shape=(K, n)
      mean: of the weights. # shape=(K, n)
      steps: # shape=(), dtype=int32
      residual: largest change of a mean in the last sweep over 1 - damping. # shape=()
    """

    messages: Any
    sums: Any
    total: Any
    mean: jax.Array
    steps: jax.Array
    residual: jax.Array


def with_prior(field: jax.Array, sums: Any) -> Any:
    """Totals of the weights: an external field, and for real weights the multiplier of the norm."""
    if isinstance(sums, Normal):
        total_field = field + sums.field
        multiplier = norm_multiplier(sums.precision, total_field)
        return Normal(multiplier + sums.precision, total_field)
    return field + sums


def norm_multiplier(precision: jax.Array, field: jax.Array) -> jax.Array:
    r"""The lambda with :math:`\sum_i m_i^2 + v_i = K n`, the one field all weights share.

    Where :math:`v_i = 1 / (\lambda + A_i)` and :math:`m_i = B_i v_i`, by bisection: the sum falls
    with lambda.

    Args:
      precision: A. # shape=(K, n)
      field: B. # shape=(K, n)

    Returns:
      # shape=()
    """
    size = precision.size
    lowest = jnp.min(precision)
    rest = precision - lowest
    # With c = lambda + min A, the sum is at least 1 / c and at most the one with all A equal.
    strength = jnp.mean(field**2)
    bracket = (
        jnp.asarray(1 / size, field.dtype),
        (1 + jnp.sqrt(1 + 4 * strength)) / 2,
    )

    def halve(_: jax.Array, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bracket
        middle = (low + high) / 2
        variance = 1 / (middle + rest)
        too_long = jnp.mean((field * variance) ** 2 + variance) > 1
        return jnp.where(too_long, middle, low), jnp.where(too_long, high, middle)

    low, high = jax.lax.fori_loop(0, _HALVINGS, halve, bracket)
    return (low + high) / 2 - lowest


def start(field: jax.Array, messages: Any) -> FixedPoint:
    """Before the first sweep."""
    sums = jax.tree.map(lambda every: jnp.sum(every, axis=0), messages)
    total = with_prior(field, sums)
    mean, _ = moments(total)
    residual = jnp.full_like(mean[0, 0], jnp.inf)
    return FixedPoint(messages, sums, total, mean, jnp.zeros([], jnp.int32), residual)


def iterate(
    model: Committee,
    node: Node,
    problem: Problem,
    field: jax.Array,
    begin: FixedPoint,
    stop: Stop,
    batch_size: int,
) -> FixedPoint:
    """Sweeps until the residual is within the tolerance, the steps are spent, or it is nan."""

    def goes_on(at: FixedPoint) -> jax.Array:
        return (at.residual > stop.tolerance) & (at.steps < stop.max_steps)

    def step(at: FixedPoint) -> FixedPoint:
        messages, sums = sweep(
            model, node, problem, at.total, at.messages, stop.damping, batch_size
        )
        total = with_prior(field, sums)
        mean, _ = moments(total)
        residual = jnp.max(jnp.abs(mean - at.mean)) / (1 - stop.damping)
        return FixedPoint(messages, sums, total, mean, at.steps + 1, residual)

    return jax.lax.while_loop(goes_on, step, begin)


def free_entropy(
    model: Committee, node: Node, problem: Problem, at: FixedPoint, batch_size: int
) -> jax.Array:
    """Log of the number of solutions, or of their share of the sphere, tilted by the field."""
    found = bethe(model, node, problem, at.total, at.messages, batch_size)
    if isinstance(at.total, Normal):
        multiplier = at.total.precision[0, 0] - at.sums.precision[0, 0]
        log_2pi = jnp.log(jnp.asarray(2 * jnp.pi, found.dtype))
        return found + model.num_weights * (multiplier - 1 - log_2pi) / 2
    return found
