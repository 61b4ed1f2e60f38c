"""Pytrees as flat vectors, the form that dense matrices and chains work on."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Vectors(NamedTuple):
    """The vector space of a pytree of float arrays.

    Attributes:
      size: its dimension N.
      dtype: that of the flat vectors: the widest of the leaves', at least float32.
      flatten: pytree -> vector (N,).
      unflatten: vector (N,) -> pytree, each leaf in its own dtype.
    """

    size: int
    dtype: Any
    flatten: Callable[[Any], jax.Array]
    unflatten: Callable[[jax.Array], Any]


def vectors_like(like: Any) -> Vectors:
    """The vector space that ``like``, a pytree of float arrays or of their shapes, belongs to."""
    leaves, structure = jax.tree.flatten(like)
    shapes = [jnp.shape(leaf) for leaf in leaves]
    dtypes = [jnp.result_type(leaf) for leaf in leaves]
    ends = np.cumsum([np.prod(shape, dtype=int) for shape in shapes])
    widest = max(dtypes, key=lambda dtype: dtype.itemsize)
    dtype = widest if widest.itemsize > 4 else np.dtype(np.float32)

    def flatten(tree: Any) -> jax.Array:
        return jnp.concatenate([leaf.astype(dtype).ravel() for leaf in jax.tree.leaves(tree)])

    def unflatten(vector: jax.Array) -> Any:
        pieces = jnp.split(vector, ends[:-1])
        return jax.tree.unflatten(
            structure,
            [
                piece.reshape(shape).astype(leaf_dtype)
                for piece, shape, leaf_dtype in zip(pieces, shapes, dtypes, strict=True)
            ],
        )

    return Vectors(int(ends[-1]), dtype, flatten, unflatten)
