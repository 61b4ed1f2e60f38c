"""Rayleigh and Ritz's method on a few pytrees and their products."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from entropix.flatness._critical_sharpness import inner, norm

# What is left of a vector without its part along others is rounding if it is shorter than this.
_DEPENDENT = 1e-3


class Pair(NamedTuple):
    """A vector x and its product H x, both pytrees."""

    vector: PyTree
    product: PyTree


def scaled(vector: PyTree) -> PyTree:
    """The vector at length 1; 0 stays 0."""
    length = norm(vector)
    factor = jnp.where(length > 0, 1 / jnp.where(length > 0, length, 1), 0)
    return jax.tree.map(lambda x: x * factor.astype(x.dtype), vector)


def combined(coefficients: Array, pairs: list[Pair]) -> Pair:
    """The sum of multiples of pairs."""

    def total(*leaves: Array) -> Array:
        terms = [c.astype(x.dtype) * x for c, x in zip(coefficients, leaves, strict=True)]
        return sum(terms[1:], terms[0])

    return jax.tree.map(total, *pairs)


def orthonormal(pairs: list[Pair]) -> list[Pair]:
    """Gram and Schmidt's basis of the same space; a vector that depends on others becomes 0."""
    basis: list[Pair] = []
    for pair in pairs:
        start = norm(pair.vector)
        # The second pass removes what rounding left of the first.
        for _ in range(2):
            for other in basis:
                overlap = inner(other.vector, pair.vector)
                pair = combined(jnp.stack([jnp.ones_like(overlap), -overlap]), [pair, other])
        length = norm(pair.vector)
        is_new = length > _DEPENDENT * start
        factor = jnp.where(is_new, 1 / jnp.where(is_new, length, 1), 0)
        basis.append(combined(factor[None], [pair]))
    return basis


def rayleigh_ritz(pairs: list[Pair]) -> tuple[Array, Pair, Pair]:
    """The largest Ritz value of the pairs, its vector, and the part not of the first of them."""
    basis = orthonormal(pairs)
    rows = [jnp.stack([inner(p.vector, q.product) for q in basis]) for p in basis]
    matrix = jnp.stack(rows)
    is_zero = jnp.stack([inner(p.vector, p.vector) for p in basis]) < 0.5
    # A vector that is 0 must not be taken for one of curvature 0.
    floor = -jnp.finfo(matrix.dtype).max / 4
    matrix = (matrix + matrix.T) / 2 + jnp.diag(jnp.where(is_zero, floor, 0))
    values, vectors = jnp.linalg.eigh(matrix)
    best = vectors[:, -1]
    return values[-1], combined(best, basis), combined(best.at[0].set(0), basis)
