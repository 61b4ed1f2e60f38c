"""Curvature of a potential over the reach of a coupling, from differences of its gradient."""

from typing import Any

import jax
import jax.numpy as jnp

from entropix.flatness._chains import Potential

_CURVATURE_STEPS = 16


def largest_curvature(
    potential: Potential, dimension: int, key: jax.Array, gamma: jax.Array
) -> jax.Array:
    """The largest curvature of U met within the reach of the coupling, gamma at least.

    A power iteration on differences of the gradient over a distance that shrinks from gamma^-1/2
    by halves, and is never above kappa^-1/2: a loss may be flat at the center and steep at reach
    (a quartic), or flat at reach and steep at the center (a narrow hole).
    """
    direction = jax.random.normal(key, (dimension,), gamma.dtype)

    def refine(carry: tuple[jax.Array, jax.Array], i: jax.Array) -> tuple[Any, None]:
        kappa, direction = carry
        reach = jnp.minimum(kappa**-0.5, gamma**-0.5 * 0.5 ** i.astype(gamma.dtype))
        ends = jnp.stack([reach * direction, -reach * direction])
        gradients = jax.vmap(potential)(ends)[1]
        change = (gradients[0] - gradients[1]) / (2 * reach)
        size = jnp.linalg.norm(change)
        usable = jnp.isfinite(size) & (size > 0)
        direction = jnp.where(usable, change / jnp.where(usable, size, 1), direction)
        return (jnp.where(usable, jnp.maximum(kappa, size), kappa), direction), None

    start = (gamma, direction / jnp.linalg.norm(direction))
    (kappa, _), _ = jax.lax.scan(refine, start, jnp.arange(_CURVATURE_STEPS))
    return kappa


def stiff_modes(
    potential: Potential, dimension: int, key: jax.Array, kappa: jax.Array, num_modes: int
) -> tuple[jax.Array, jax.Array]:
    """Ritz values of U's mean curvature over the reach kappa^-1/2, at least 0, and Ritz vectors.

    Lanczos with full orthogonalization, on differences of the gradient. That the pairs have not
    converged does no harm: they shape the proposals, and Metropolis corrects for those.
    """
    reach = kappa**-0.5

    def product(vector: jax.Array) -> jax.Array:
        gradients = jax.vmap(potential)(jnp.stack([reach * vector, -reach * vector]))[1]
        change = (gradients[0] - gradients[1]) / (2 * reach)
        return jnp.where(jnp.isfinite(change), change, 0)

    def extend(carry: tuple[jax.Array, jax.Array], i: jax.Array) -> tuple[Any, jax.Array]:
        basis, vector = carry
        for _ in range(2):
            overlap = jnp.matmul(basis, vector, precision="highest")
            vector = vector - jnp.matmul(overlap, basis, precision="highest")
        length = jnp.linalg.norm(vector)
        # Where the Krylov space ends, what is left is rounding.
        is_new = length > 1e-3 * kappa
        vector = jnp.where(is_new, vector / jnp.where(is_new, length, 1), 0)
        image = product(vector)
        return (basis.at[i].set(vector), image), image

    start = jax.random.normal(key, (dimension,), kappa.dtype)
    start = kappa * start / jnp.linalg.norm(start)
    basis = jnp.zeros((num_modes, dimension), kappa.dtype)
    (basis, _), images = jax.lax.scan(extend, (basis, start), jnp.arange(num_modes))
    matrix = jnp.matmul(basis, images.T, precision="highest")
    values, vectors = jnp.linalg.eigh((matrix + matrix.T) / 2)
    return jnp.maximum(values, 0), jnp.matmul(vectors.T, basis, precision="highest")
