"""A growing orthonormal basis, in place.

The basis of a Krylov method is the one large array it needs, m vectors of N numbers, and reading it
is the larger part of its cost beside the products. It is held as a tuple of blocks of rows: a loop
updates the blocks in place, and skips those that hold no vector yet.
"""

import functools
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

# Accelerators multiply in fewer bits unless told otherwise, and orthogonality would be lost.
matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)

# A block is read twice in each orthogonalization, and should fit the cache for the second; but
# small ones cost time of their own, and a program of very many is long to compile.
_ROWS_AT_LEAST, _BLOCKS_AT_MOST = 16, 16

Basis: TypeAlias = tuple[jax.Array, ...]


def empty_basis(num_vectors: int, size: int, dtype: Any) -> Basis:
    """Room for ``num_vectors`` vectors of ``size`` numbers; vectors not yet written are 0."""
    rows = max(_ROWS_AT_LEAST, -(-num_vectors // _BLOCKS_AT_MOST))
    starts = range(0, num_vectors, rows)
    return tuple(jnp.zeros((min(rows, num_vectors - start), size), dtype) for start in starts)


def write(basis: Basis, index: jax.Array, vector: jax.Array) -> Basis:
    """The basis with its vector ``index`` replaced."""
    rows = basis[0].shape[0]

    def replace(number: int, block: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_index_in_dim(block, vector, index - number * rows, 0)

    return tuple(
        jax.lax.cond(
            index // rows == number, functools.partial(replace, number), lambda block: block, block
        )
        for number, block in enumerate(basis)
    )


def orthogonalize(basis: Basis, count: jax.Array, vector: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What is left of a vector beside its projections on the first ``count`` basis vectors.

    Classical Gram-Schmidt inside a block, modified from block to block, done again where the
    first pass took away more than it left: twice is enough (Kahan and Parlett).

    Returns:
      What is left, and its norm.
    """
    rows = basis[0].shape[0]
    zero = jnp.zeros([], vector.dtype)

    def project(
        block: jax.Array, carry: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        vector, taken = carry
        components = matmul(block, vector)
        return vector - _weighted_sum(components, block), taken + jnp.sum(components**2)

    def once(vector: jax.Array) -> tuple[jax.Array, jax.Array]:
        carry = vector, zero
        for number, block in enumerate(basis):
            carry = jax.lax.cond(
                count > number * rows, project, lambda _, carry: carry, block, carry
            )
        return carry

    left, taken = once(vector)
    norm = jnp.linalg.norm(left)

    def again() -> tuple[jax.Array, jax.Array]:
        final, _ = once(left)
        return final, jnp.linalg.norm(final)

    return jax.lax.cond(norm**2 < taken, again, lambda: (left, norm))


def _weighted_sum(weights: jax.Array, rows: jax.Array) -> jax.Array:
    """The rows times their weights, added; one fused loop where XLA's CPU matmul takes longer."""
    if len(rows) > _ROWS_AT_LEAST:
        return matmul(weights, rows)
    return functools.reduce(
        jnp.add, (weight * row for weight, row in zip(weights, rows, strict=True))
    )


def combine(basis: Basis, coefficients: jax.Array) -> jax.Array:
    """Linear combinations of the basis vectors: (k, m) coefficients to (k, N) vectors."""
    rows = basis[0].shape[0]
    vectors = matmul(coefficients[:, :rows], basis[0])
    for number, block in enumerate(basis[1:], start=1):
        vectors = vectors + matmul(coefficients[:, number * rows : (number + 1) * rows], block)
    return vectors
