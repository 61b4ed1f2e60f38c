"""The patterns' side of infinitely many coupled replicas, for finitely many hidden units."""

from typing import Literal

import jax
import jax.numpy as jnp

from entropix.replica_theory._replicas import Shift, best_shift, log_slope
from entropix.replica_theory._units import log_even_parity, log_majority

Output = Literal["majority", "parity"]

SWEEPS = 12
# Where no pattern turns on a unit, its share has a logarithm all the same.
TINY = 1e-300


def best_shifts(h: jax.Array, log_delta: jax.Array, variance: jax.Array, output: Output) -> Shift:
    """How far the center's K fields move to make the output right, at the cost |s|^2 / (2 delta).

    The maximum over s of log P(u / sqrt V) - |s|^2 / (2 delta), u = h + s, from the fields with the
    fewest and smallest changes of sign that make the output right. Given the other units, P is
    linear in the probability of one unit's sign tau, so that s_k = tau delta c lambda(tau u_k): the
    equation of a single unit, with the share c of the patterns that turn on this unit.

    Args:
      h: fields. # shape=(K,)
      log_delta: logarithm of delta.
      variance: V, of the units' noise.
      output: how the signs of the units make the output.

    Returns:
      The maximum, and the norm of the shift there.
    """
    scale = jnp.sqrt(variance)
    probability = log_majority if output == "majority" else log_even_parity

    def log_probability(u: jax.Array) -> jax.Array:
        return probability(u / scale)

    def sweep(_: jax.Array, u: jax.Array) -> jax.Array:
        pull = jax.grad(log_probability)(u)
        sign = jnp.where(pull < 0, -1.0, 1.0)
        log_share = jnp.log(jnp.abs(pull) + TINY) - log_slope(sign * u, scale)
        return h + sign * best_shift(sign * h, log_delta + log_share, variance).shift

    sign, moves = _least_changed(h, output)
    alone = best_shift(sign * h, log_delta, variance).shift
    u = jax.lax.fori_loop(0, SWEEPS, sweep, jnp.where(moves, h + sign * alone, h))
    cost = jnp.sum((u - h) ** 2)
    return Shift(log_probability(u) - cost * jnp.exp(-log_delta) / 2, jnp.sqrt(cost))


def _least_changed(h: jax.Array, output: Output) -> tuple[jax.Array, jax.Array]:
    """Signs of the units that make the output right at the least change, and who has to move."""
    if output == "parity":
        turned = (jnp.abs(h) == jnp.min(jnp.abs(h))) & (jnp.prod(jnp.sign(h)) < 0)
        return jnp.where(turned, -jnp.sign(h), jnp.sign(h)), jnp.ones(h.shape, bool)
    rank = jnp.argsort(jnp.argsort(-h))
    return jnp.ones_like(h), rank <= h.shape[0] // 2
