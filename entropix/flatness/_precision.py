"""In which precision a loss is looked at: what is measured is small beside the loss itself."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree


def widened(loss: Callable[[Any, Any], jax.Array], params: PyTree, data: PyTree) -> PyTree:
    """The parameters with leaves of half precision in float32, where the loss accepts that.

    A perturbation, or a step of a line search, is far smaller than the weights: added to a
    bfloat16 weight, of 8 bits, it is rounded to nothing or to twice its size.

    Args:
      loss: f(params, batch) -> scalar.
      params: a pytree of float arrays.
      data: a batch of the loss.

    Returns:
      The widened parameters; ``params`` as they are where the loss raises on those, for instance
      because it hands them to a kernel of one precision.
    """
    wide = jax.tree.map(
        lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)),
        jax.tree.map(jnp.asarray, params),
    )
    try:
        jax.eval_shape(loss, wide, data)
    except (TypeError, ValueError):
        return jax.tree.map(jnp.asarray, params)
    return wide


def resolution(value: jax.Array) -> jax.Array:
    """The rounding error of a loss of this dtype and size: what a bar is never below."""
    return jnp.abs(value) * jnp.finfo(value.dtype).eps
