"""Arguments that the algorithms share, checked and brought into the form they compute with."""

from typing import Any, get_args

import jax.numpy as jnp
import numpy as np

from entropix._canary import warn_if_backend_is_faulty
from entropix._checks import check_integer, check_number
from entropix.committee._fixed_point import Stop
from entropix.committee._messages import Node, Problem
from entropix.committee._model import Committee, check_examples

# Messages computed at a time by default: few enough for a CPU's cache, enough to fill a GPU.
_MESSAGES = 2**20
# Inputs of a unit up to which nodes are exact by default, and the sets of n messages for each
# message that such a node holds.
_FEW_INPUTS, _EXACT_COPIES = 25, 4


def message_passing(
    model: Committee, patterns: Any, labels: Any, *, node: Node | None, batch_size: int | None
) -> tuple[Problem, Any, Node, int]:
    """The examples, the type of the messages, the node, and how many patterns to take at a time.

    Raises:
      TypeError: ``batch_size`` is not an integer.
      ValueError: an argument does not fit the model.
    """
    warn_if_backend_is_faulty()
    known = get_args(Node) if model.weights == "binary" else ("gaussian",)
    if node is None:
        few = model.weights == "binary" and model.shape[1] <= _FEW_INPUTS
        node = "exact" if few else "gaussian"
    if node not in known:
        raise ValueError(f"node must be of {known} for {model.weights} weights, got {node!r}")
    check_examples(model, patterns, labels, signs_only=model.weights == "binary")
    count = np.shape(labels)[0]
    if batch_size is None:
        each = model.num_weights * (_EXACT_COPIES * model.shape[1] if node == "exact" else 1)
        batch_size = min(count, max(1, _MESSAGES // each))
    check_integer("batch_size", batch_size, at_least=1)
    if batch_size > count:
        raise ValueError(
            f"batch_size must be at most the number of patterns, {count}, got {batch_size}"
        )
    return Problem(jnp.asarray(patterns), jnp.asarray(labels)), dtype_of(patterns), node, batch_size


def stop_when(damping: Any, max_steps: Any, tolerance: Any, dtype: Any) -> Stop:
    """The checked numbers, in the type of the messages.

    Raises:
      TypeError: one is not a number.
      ValueError: one is out of its range.
    """
    check_number("damping", damping, at_least=0, below=1)
    check_integer("max_steps", max_steps, at_least=1)
    check_number("tolerance", tolerance, at_least=0)
    return Stop(
        jnp.asarray(damping, dtype),
        jnp.asarray(max_steps, jnp.int32),
        jnp.asarray(tolerance, dtype),
    )


def dtype_of(patterns: Any) -> Any:
    """The patterns' own floating-point type, jax's default for integers."""
    dtype = jnp.result_type(patterns)
    return dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.result_type(float)
