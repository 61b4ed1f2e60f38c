"""A growing orthonormal basis, in place.

The basis of a Krylov method is the one large array it needs, m vectors of N numbers, and reading it
is the larger part of its cost beside the products. It is held as a tuple of blocks of rows: a loop
updates the blocks in place, and skips those that hold no vector yet.
"""

import functools
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from entropix.flatness._space import Parts, Space, matmul, norm

# A block is read twice in each orthogonalization, and should fit the cache for the second; but
# small ones cost time of their own, and a program of very many is long to compile.
_ROWS_AT_LEAST, _BLOCKS_AT_MOST = 16, 16
# Columns that a rotation of the basis holds beside it, for each vector.
_COLUMNS = 16384

Basis: TypeAlias = tuple[Parts, ...]


def empty_basis(num_vectors: int, space: Space) -> Basis:
    """Room for ``num_vectors`` vectors; vectors not yet written are 0."""
    rows = max(_ROWS_AT_LEAST, -(-num_vectors // _BLOCKS_AT_MOST))
    starts = range(0, num_vectors, rows)
    return tuple(space.zeros(min(rows, num_vectors - start)) for start in starts)


def write(basis: Basis, index: jax.Array | int, vector: Parts) -> Basis:
    """The basis with its vector ``index`` replaced."""
    rows = len(basis[0][0])

    def replace(number: int, block: Parts) -> Parts:
        return tuple(
            jax.lax.dynamic_update_index_in_dim(part, row, index - number * rows, 0)
            for part, row in zip(block, vector, strict=True)
        )

    return tuple(
        jax.lax.cond(
            index // rows == number, functools.partial(replace, number), lambda block: block, block
        )
        for number, block in enumerate(basis)
    )


def read(basis: Basis, index: jax.Array | int) -> Parts:
    """The vector ``index``."""
    rows = len(basis[0][0])

    def take(block: Parts) -> Parts:
        return tuple(jax.lax.dynamic_index_in_dim(p, index % rows, 0, False) for p in block)

    if len(basis) == 1:
        return take(basis[0])
    found = [take(block) for block in basis]
    return tuple(jax.lax.select_n(index // rows, *parts) for parts in zip(*found, strict=True))


def first(basis: Basis, count: int) -> Parts:
    """The first ``count`` vectors, a leading axis of them."""
    rows = len(basis[0][0])
    blocks = [
        tuple(part[: count - number * rows] for part in block)
        for number, block in enumerate(basis)
        if number * rows < count
    ]
    return tuple(jnp.concatenate(parts) for parts in zip(*blocks, strict=True))


def components(block: Parts, vector: Parts) -> Float[Array, " rows"]:
    """The scalar products of a block's vectors with a vector."""
    products = (
        matmul(rows, part)
        if part.ndim == 1
        else jnp.tensordot(rows, part, part.ndim, precision=jax.lax.Precision.HIGHEST)
        for rows, part in zip(block, vector, strict=True)
    )
    return functools.reduce(jnp.add, products)


def all_components(basis: Basis, vector: Parts) -> Float[Array, " m"]:
    """The scalar products of all vectors with a vector."""
    return jnp.concatenate([components(block, vector) for block in basis])


def orthogonalize(
    basis: Basis, count: jax.Array | int, vector: Parts
) -> tuple[Parts, Float[Array, ""]]:
    """What is left of a vector beside its projections on the first ``count`` basis vectors.

    Classical Gram-Schmidt inside a block, modified from block to block, done again where the
    first pass took away more than it left: twice is enough (Kahan and Parlett).

    Returns:
      What is left, and its norm.
    """
    rows = len(basis[0][0])

    def project(block: Parts, carry: tuple[Parts, jax.Array]) -> tuple[Parts, jax.Array]:
        vector, taken = carry
        along = components(block, vector)
        left = tuple(
            part - _weighted_sum(along, lines) for part, lines in zip(vector, block, strict=True)
        )
        return left, taken + jnp.sum(along**2)

    def once(vector: Parts) -> tuple[Parts, jax.Array]:
        carry = vector, jnp.zeros([], vector[0].dtype)
        for number, block in enumerate(basis):
            carry = jax.lax.cond(
                count > number * rows, project, lambda _, carry: carry, block, carry
            )
        return carry

    left, taken = once(vector)
    length = norm(left)

    def again() -> tuple[Parts, jax.Array]:
        final, _ = once(left)
        return final, norm(final)

    return jax.lax.cond(length**2 < taken, again, lambda: (left, length))


def _weighted_sum(
    weights: Float[Array, " rows"], rows: Float[Array, " rows *shape"]
) -> Float[Array, "*shape"]:
    """The rows times their weights, added; one fused loop where XLA's CPU matmul takes longer."""
    if len(rows) > _ROWS_AT_LEAST:
        return jnp.tensordot(weights, rows, 1, precision=jax.lax.Precision.HIGHEST)
    return functools.reduce(
        jnp.add, (weight * row for weight, row in zip(weights, rows, strict=True))
    )


def rotate(basis: Basis, coefficients: Float[Array, "m m"]) -> Basis:
    """The basis with linear combinations of its vectors in their place.

    In place, a few columns at a time; parts that are spread over devices are small on each of
    them, and are replaced as a whole.

    Args:
      basis: m vectors.
      coefficients: row i gives the new vector i. # shape=(m, m)
    """
    lengths = [len(block[0]) for block in basis]
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    parts = [_rotate_part(blocks, coefficients, ends) for blocks in zip(*basis, strict=True)]
    return tuple(zip(*parts, strict=True))


def _rotate_part(
    blocks: tuple[jax.Array, ...], coefficients: jax.Array, ends: list[int]
) -> tuple[jax.Array, ...]:
    """`rotate` for one part of the vectors."""

    def combined(rows: list[jax.Array]) -> list[jax.Array]:
        new = jnp.tensordot(
            coefficients, jnp.concatenate(rows), 1, precision=jax.lax.Precision.HIGHEST
        )
        return jnp.split(new, ends[:-1])

    if blocks[0].ndim > 2 or blocks[0].shape[1] <= _COLUMNS:
        return tuple(combined(list(blocks)))

    def at(start: jax.Array | int, blocks: tuple[jax.Array, ...], width: int) -> Any:
        slices = [jax.lax.dynamic_slice_in_dim(block, start, width, 1) for block in blocks]
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(block, new, start, 1)
            for block, new in zip(blocks, combined(slices), strict=True)
        )

    count, rest = divmod(blocks[0].shape[1], _COLUMNS)
    blocks = jax.lax.fori_loop(
        0, count, lambda i, blocks: at(i * _COLUMNS, blocks, _COLUMNS), tuple(blocks)
    )
    return at(count * _COLUMNS, blocks, rest) if rest else blocks
