"""Binary weights in the fields of a reference, typical of some measure."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from entropix.replica_theory._quadrature import gaussian_quadrature, log_2cosh

SPACING, REACH = 0.1, 7.0


class Reference(NamedTuple):
    """Where the others are near to: the overlap q of two references, and its conjugate qhat."""

    q: jax.Array
    conjugate: jax.Array


class Fields(NamedTuple):
    """The unknowns: conjugates of p and t, and what the field's variance exceeds that^2 / qhat by.

    In these unknowns the covariances of all overlaps are positive wherever the search goes.
    """

    p: jax.Array
    t: jax.Array
    log_excess: jax.Array

    def variance(self, reference: Reference) -> jax.Array:
        """q1hat, the conjugate of the mutual overlap."""
        return self.t**2 / reference.conjugate + jnp.exp(self.log_excess)


class Overlaps(NamedTuple):
    """Overlaps p (with the reference), t (with other references), q1 (mutual)."""

    p: jax.Array
    t: jax.Array
    q1: jax.Array


def binary_moments(
    fields: Fields, reference: Reference, spacing: float = SPACING
) -> tuple[Overlaps, jax.Array]:
    """Overlaps and entropy of weights +-1 in the fields of a reference W, by symmetry W = +1.

    The spacing is that of the field z that all references share, in which the reference's tanh has
    the width 1 / sqrt(qhat).
    """
    shared, own = gaussian_quadrature(spacing, REACH), gaussian_quadrature(SPACING, REACH)
    z, y = shared.nodes[:, None], own.nodes[None]
    field_of_reference = jnp.sqrt(reference.conjugate) * z
    weights = 2 * shared.weights[:, None] * own.weights[None]
    weights = weights * jax.nn.sigmoid(2 * field_of_reference)
    field = fields.t * z / jnp.sqrt(reference.conjugate) + fields.p - fields.t
    field = field + jnp.exp(fields.log_excess / 2) * y
    m = jnp.tanh(field)
    overlaps = Overlaps(
        jnp.sum(weights * m),
        jnp.sum(weights * m * jnp.tanh(field_of_reference)),
        jnp.sum(weights * m**2),
    )
    free = jnp.sum(weights * log_2cosh(field))
    return overlaps, free + _legendre(fields, reference, overlaps)


def _legendre(fields: Fields, reference: Reference, overlaps: Overlaps) -> jax.Array:
    """-phat p + that t - q1hat (1 - q1) / 2."""
    coupled = -fields.p * overlaps.p + fields.t * overlaps.t
    return coupled - fields.variance(reference) * (1 - overlaps.q1) / 2
