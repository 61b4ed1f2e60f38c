"""The tail of the normal distribution and its hazard: finite everywhere, in every type."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

LOG_SQRT_2PI = 0.5 * float(np.log(2 * np.pi))
# Beyond it the continued fraction with these numbers of terms is exact to the rounding of single
# and of double precision; before it erfc is, and does not underflow in either.
_FAR = 10.0
_TERMS_SINGLE, _TERMS_DOUBLE = 4, 16


@jax.custom_jvp
def log_tail(x: Float[Array, "..."]) -> Float[Array, "..."]:
    r"""Logarithm of the probability that a normal variable exceeds x.

    .. math:: \log H(x), \qquad H(x) = \int_x^\infty Dz = \tfrac12 \mathrm{erfc}(x / \sqrt 2)

    to the absolute rounding error of the type where H is near 1, to the relative one elsewhere;
    ``jax.scipy.special.log_ndtr``, which keeps the relative accuracy everywhere, costs several
    times as much.
    """
    far = -(x**2) / 2 - LOG_SQRT_2PI - jnp.log(_far_hazard(x))
    return jnp.where(x > _FAR, far, jnp.log(_near_tail(x)))


@log_tail.defjvp
def _log_tail_jvp(primals: tuple[jax.Array], tangents: tuple[Any]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    return log_tail(x), -hazard(x) * dx


@jax.custom_jvp
def hazard(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """G(x) / H(x), the normal density over its tail: -d log H / dx; about x for large x."""
    near = jnp.exp(-(x**2) / 2 - LOG_SQRT_2PI) / _near_tail(x)
    return jnp.where(x > _FAR, _far_hazard(x), near)


@hazard.defjvp
def _hazard_jvp(primals: tuple[jax.Array], tangents: tuple[Any]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    h = hazard(x)
    return h, h * (h - x) * dx


def _near_tail(x: jax.Array) -> jax.Array:
    """H(x) where it does not underflow, its value at _FAR beyond."""
    return jax.lax.erfc(jnp.minimum(x, _FAR) / 2**0.5) / 2


def _far_hazard(x: jax.Array) -> jax.Array:
    """G / H for x > _FAR by Laplace's continued fraction x + 1/(x + 2/(x + 3/(x + ...)))."""
    x = jnp.maximum(x, _FAR)
    fraction = x
    for order in range(_TERMS_SINGLE if x.dtype.itemsize <= 4 else _TERMS_DOUBLE, 0, -1):
        fraction = x + order / fraction
    return fraction
