"""The patterns' side of the limit of infinitely many coupled replicas."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from entropix._gaussian import LOG_SQRT_2PI, hazard, log_tail

NEWTON_STEPS = 30


class Shift(NamedTuple):
    """The maximum over the shift s of a field.

    Attributes:
      value: M = max_s -s^2 / (2 delta) + log H(-(h + s) / sqrt V).
      shift: where it is.
    """

    value: jax.Array
    shift: jax.Array


def log_slope(u: jax.Array, scale: jax.Array) -> jax.Array:
    """Logarithm of the slope lambda of log H(-u / scale) in u."""
    u = u / scale
    return -(u**2) / 2 - LOG_SQRT_2PI - log_tail(-u) - jnp.log(scale)


def best_shift(h: jax.Array, log_delta: jax.Array, variance: jax.Array) -> Shift:
    """How far the center's field h moves toward the right sign, at the cost s^2 / (2 delta).

    The maximum is where w = log s solves w = log delta + log lambda(h + e^w), lambda being the
    slope of log H(-u / sqrt V) in u. In logarithms the equation keeps its precision for any delta,
    which reaches e^50 and more at small distances. Newton's method starts at an upper bound, from
    which it descends monotonically: the right side falls with w, ever faster.
    """
    scale = jnp.sqrt(variance)

    def step(_: jax.Array, w: jax.Array) -> jax.Array:
        shift = jnp.exp(w)
        u = h + shift
        excess = w - log_delta - log_slope(u, scale)
        return w - excess / (1 + shift * (hazard(-u / scale) + u / scale) / scale)

    # delta lambda(u) < 0.3 sqrt V at this u, and lambda falls with u.
    enough = scale * jnp.sqrt(2 * jnp.maximum(0, log_delta - jnp.log(variance) + 1))
    bound = jnp.log(jnp.maximum(enough - h, 0.3 * scale))
    w = jax.lax.fori_loop(
        0, NEWTON_STEPS, step, jnp.minimum(log_delta + log_slope(h, scale), bound)
    )
    shift = jnp.exp(w)
    value = log_tail(-(h + shift) / scale) - shift * jnp.exp(w - log_delta) / 2
    return Shift(value, shift)
