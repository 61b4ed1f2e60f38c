"""Points at which a saddle point is sought: flat and padded, so that few programs serve all."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

# Compiling takes seconds, so every number of points up to a power of it shares a program.
_STRIDE = 8


class Points(NamedTuple):
    """Arguments of the saddle points, one after the other.

    Attributes:
      arguments: each of the same shape (P,), P a power of 8.
      wanted: whether a point is asked for; the last ones repeat. # shape=(P,), dtype=bool
    """

    arguments: tuple[jax.Array, ...]
    wanted: Bool[Array, "*batch P"]


def padded(*arguments: jax.Array) -> Points:
    """Points of arrays of one shape."""
    count = arguments[0].size
    size = min(count, 1)
    while size < count:
        size *= _STRIDE
    flat = tuple(
        jnp.pad(array.ravel(), (0, size - count), mode="edge" if count else "constant")
        for array in arguments
    )
    return Points(flat, jnp.arange(size) < count)


def shaped(answers: Any, shape: tuple[int, ...]) -> Any:
    """What was asked for, in the shape of the arguments."""
    count = 1
    for axis in shape:
        count *= axis
    return jax.tree.map(lambda x: x[:count].reshape(shape), answers)


def one_by_one(solve: Callable[..., Any], points: Points) -> Any:
    """Solves point after point: together, all would take the steps of the slowest."""
    example = [jax.ShapeDtypeStruct((), array.dtype) for array in points.arguments]
    nothing = jax.eval_shape(solve, *example)

    def skip(*_: jax.Array) -> Any:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), nothing)

    return jax.lax.map(
        lambda point: jax.lax.cond(point.wanted, solve, skip, *point.arguments), points
    )
