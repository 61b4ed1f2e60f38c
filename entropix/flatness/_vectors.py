"""Pytrees as flat vectors, the form that Krylov methods work on."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from entropix._canary import warn_if_backend_is_faulty
from entropix._checks import check_float_leaves

MatVec: TypeAlias = Callable[[Any], Any]


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


def check_operator(matvec: MatVec, like: Any) -> jax.tree_util.Partial:
    """The operator as a pytree, so that compiled functions take its arrays as arguments.

    Raises:
      TypeError: ``matvec`` is not callable, or ``like`` holds anything but float arrays.
      ValueError: ``like`` is empty, or ``matvec`` answers in another structure or other shapes.
    """
    warn_if_backend_is_faulty()
    if not callable(matvec):
        raise TypeError(f"matvec must be a function of a pytree, got {matvec!r}")
    check_float_leaves("like", like)
    if not jax.tree.leaves(like):
        raise ValueError(f"like must hold at least one array, got {like!r}")
    like = jax.eval_shape(lambda tree: tree, like)
    answer = jax.eval_shape(matvec, like)
    expected, got = (jax.tree.map(lambda leaf: leaf.shape, tree) for tree in (like, answer))
    if expected != got:
        raise ValueError(f"matvec must answer in the shapes of its argument, {expected}, got {got}")
    return matvec if isinstance(matvec, jax.tree_util.Partial) else jax.tree_util.Partial(matvec)
