"""The check that an estimator of a loss at a point makes before any work."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from entropix._checks import check_float_leaves, check_integer
from entropix.flatness._chunks import num_examples


def check_problem(
    loss: Callable[[Any, Any], jax.Array], params: Any, data: Any, batch_size: int | None
) -> None:
    """Raises unless ``loss(params, data)`` is a scalar of finite, floating-point parameters.

    Args:
      loss: f(params, batch).
      params: a pytree of arrays; tracers count as finite.
      data: a pytree of arrays with one leading example axis.
      batch_size: examples looked at together, or None.

    Raises:
      TypeError: a parameter is not floating-point, or ``batch_size`` is not an integer.
      ValueError: there are no parameters, one is not finite, the data are refused by
        `num_examples`, ``batch_size`` is below 1, or the loss is not a floating-point scalar.
    """
    check_float_leaves("params", params)
    leaves = jax.tree.leaves_with_path(params)
    if not leaves:
        raise ValueError(f"params must hold at least one array, got {params!r}")
    for path, leaf in leaves:
        if not isinstance(leaf, jax.core.Tracer) and not np.all(np.isfinite(leaf)):
            raise ValueError(
                f"params must be finite, got NaN or infinity at params{jax.tree_util.keystr(path)}"
            )
    num_examples(data)
    if batch_size is not None:
        check_integer("batch_size", batch_size, at_least=1)
    answer = jax.eval_shape(loss, params, data)
    is_scalar = isinstance(answer, jax.ShapeDtypeStruct) and answer.shape == ()
    if not is_scalar or not jnp.issubdtype(answer.dtype, jnp.floating):
        raise ValueError(f"loss(params, batch) must be a floating-point scalar, got {answer}")
