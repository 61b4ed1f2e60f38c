"""Arguments that the algorithms share, checked and brought into the form they compute with."""

from typing import Any, get_args

import jax.numpy as jnp

from entropix._canary import warn_if_backend_is_faulty
from entropix._checks import check_integer, check_number
from entropix._keys import check_key
from entropix.committee._fixed_point import Stop
from entropix.committee._messages import Node, Problem
from entropix.committee._model import Committee, check_examples

# Messages computed at a time by default: few enough for a CPU's cache, enough to fill a GPU.
_MESSAGES = 2**20


def message_passing(
    model: Committee, patterns: Any, labels: Any, *, node: str, batch_size: int | None
) -> tuple[Problem, Any, int]:
    """The examples, the type of the messages, and how many patterns to take at a time.

    Raises:
      TypeError: ``batch_size`` is not an integer.
      ValueError: an argument does not fit the model.
    """
    warn_if_backend_is_faulty()
    known = get_args(Node) if model.weights == "binary" else ("gaussian",)
    if node not in known:
        raise ValueError(f"node must be of {known} for {model.weights} weights, got {node!r}")
    check_examples(model, patterns, labels, signs_only=model.weights == "binary")
    count = len(labels)
    if batch_size is None:
        batch_size = min(count, max(1, _MESSAGES // model.num_weights))
    check_integer("batch_size", batch_size, at_least=1)
    if batch_size > count:
        raise ValueError(
            f"batch_size must be at most the number of patterns, {count}, got {batch_size}"
        )
    return Problem(jnp.asarray(patterns), jnp.asarray(labels)), dtype_of(patterns), batch_size


def learning(
    model: Committee, patterns: Any, labels: Any, key: Any, max_epochs: Any
) -> tuple[Problem, Any]:
    """The examples and the type of the weights of a rule that learns in passes over them.

    Raises:
      TypeError: ``key`` is not a key or ``max_epochs`` not an integer.
      ValueError: an argument does not fit the model.
    """
    warn_if_backend_is_faulty()
    check_examples(model, patterns, labels)
    check_key(key)
    check_integer("max_epochs", max_epochs, at_least=1)
    return Problem(jnp.asarray(patterns), jnp.asarray(labels)), dtype_of(patterns)


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
