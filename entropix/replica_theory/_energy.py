"""The energetic term of the replica calculation: what the patterns cost at a given overlap."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from entropix._gaussian import hazard, log_tail
from entropix.replica_theory._quadrature import Quadrature
from entropix.replica_theory._units import log_majority, symmetric_nodes

# Points of the quasi-Monte-Carlo rule for more than three hidden units.
SEQUENCE = 2**14


class Overlap(NamedTuple):
    """An overlap q with its complement, which rounding would lose near q = 1.

    Attributes:
      q: cosine of the angle between two weight vectors.
      complement: 1 - q.
    """

    q: jax.Array
    complement: jax.Array


def output_overlap(overlap: Overlap, num_hidden: float) -> Overlap:
    """Q, the correlation of the fields at the output: q, or (2/pi) arcsin q where K is infinite.

    With infinitely many hidden units the sum of their signs is a normal variable, and two signs
    whose fields have the correlation q are themselves correlated by (2/pi) arcsin q.
    """
    if num_hidden != math.inf:
        return overlap
    complement = 4 / jnp.pi * jnp.arcsin(jnp.sqrt(overlap.complement / 2))
    return Overlap(2 / jnp.pi * jnp.arcsin(overlap.q), complement)


def output_slope(overlap: Overlap, num_hidden: float) -> jax.Array:
    """dQ/dq."""
    if num_hidden != math.inf:
        return jnp.ones_like(overlap.q)
    return 2 / jnp.pi / jnp.sqrt(overlap.complement * (1 + overlap.q))


def energy(overlap: Overlap, margin: jax.Array, num_hidden: float, z: Quadrature) -> jax.Array:
    """E(q): mean log-probability of a pattern, whose conditional mean field has the variance q.

    int Dz log H((kappa - sqrt(Q) z) / sqrt(1 - Q)) for K = 1 and K infinite, and
    int prod_k Dz_k log P_majority(sqrt(q / (1 - q)) z) between.
    """
    if num_hidden in (1, math.inf):
        Q = output_overlap(overlap, num_hidden)
        return z.weights @ log_tail((margin - jnp.sqrt(Q.q) * z.nodes) / jnp.sqrt(Q.complement))
    return _committee_energy(jnp.sqrt(overlap.q / overlap.complement), int(num_hidden))


def energy_slope(
    overlap: Overlap, margin: jax.Array, num_hidden: float, z: Quadrature
) -> jax.Array:
    """dE/dq, after one integration by parts: -1/2 dQ/dq / (1 - Q) int Dz (G / H)^2."""
    if num_hidden in (1, math.inf):
        Q = output_overlap(overlap, num_hidden)
        field = (margin - jnp.sqrt(Q.q) * z.nodes) / jnp.sqrt(Q.complement)
        slope = output_slope(overlap, num_hidden)
        return -slope / (2 * Q.complement) * (z.weights @ hazard(field) ** 2)
    gain = jnp.sqrt(overlap.q / overlap.complement)
    slope = jax.jvp(
        lambda g: _committee_energy(g, int(num_hidden)), (gain,), (jnp.ones_like(gain),)
    )[1]
    return slope / (2 * gain * overlap.complement**2)


def _committee_energy(gain: jax.Array, num_hidden: int) -> jax.Array:
    """Mean log-probability of a right majority: int prod_k Dz_k log P_majority(gain z)."""
    nodes, weights = symmetric_nodes(num_hidden, None if num_hidden <= 3 else SEQUENCE)
    return weights @ jax.vmap(log_majority)(gain * nodes)
