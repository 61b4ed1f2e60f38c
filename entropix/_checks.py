"""Checks of what a caller hands in, made when a factory is called.

A hyper-parameter may be a tracer (under ``optax.inject_hyperparams`` or inside ``jit``): only
numbers whose value is known are checked. Each error names the argument, its value and what is
accepted.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Known = (bool, int, float, np.number, np.ndarray)


def check_number(
    name: str,
    number: Any,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> None:
    """Raises unless ``number`` is finite and inside the bounds; tracers and schedules pass.

    Args:
      name: the argument's name, for the message.
      number: what the caller gave.
      above: exclusive lower bound.
      at_least: inclusive lower bound.
      below: exclusive upper bound.
      at_most: inclusive upper bound.

    Raises:
      TypeError: it is neither a number nor an array nor a schedule.
      ValueError: it is not finite or lies outside the bounds.
    """
    if callable(number) or isinstance(number, jax.core.Tracer):
        return
    if isinstance(number, jax.Array):
        number = np.asarray(number)
    if not isinstance(number, Known) or isinstance(number, bool):
        raise TypeError(f"{name} must be a number, got {number!r}")
    bounds = {">": above, ">=": at_least, "<": below, "<=": at_most}
    accepted = " and ".join(
        f"{sign} {bound}" for sign, bound in bounds.items() if bound is not None
    )
    inside = (
        np.all(np.isfinite(number))
        and (above is None or np.all(number > above))
        and (at_least is None or np.all(number >= at_least))
        and (below is None or np.all(number < below))
        and (at_most is None or np.all(number <= at_most))
    )
    if not inside:
        raise ValueError(f"{name} must be finite{accepted and ' and ' + accepted}, got {number}")


def check_integer(name: str, number: Any, *, at_least: int) -> None:
    """Raises unless ``number`` is an integer of at least ``at_least``; tracers pass.

    Args:
      name: the argument's name, for the message.
      number: what the caller gave.
      at_least: the smallest accepted value.

    Raises:
      TypeError: it is not an integer.
      ValueError: it is too small.
    """
    if isinstance(number, jax.core.Tracer):
        return
    is_integer = np.issubdtype(getattr(number, "dtype", type(number)), np.integer)
    if not is_integer or np.ndim(number) != 0:
        raise TypeError(f"{name} must be an integer >= {at_least}, got {number!r}")
    if number < at_least:
        raise ValueError(f"{name} must be an integer >= {at_least}, got {number}")


def check_below(name: str, number: Any, bound_name: str, bound: Any) -> None:
    """Raises unless a number is an integer from 0 on and below another argument; tracers pass.

    Raises:
      TypeError: it is not an integer.
      ValueError: it is out of its range.
    """
    check_integer(name, number, at_least=0)
    known = not any(isinstance(x, jax.core.Tracer) for x in (number, bound))
    if known and number >= bound:
        raise ValueError(
            f"{name} must be an integer >= 0 and < {bound_name} = {bound}, got {number}"
        )


def holds(test: Callable[[jax.Array], jax.Array], values: Any) -> bool:
    """Whether the test is true of an array; of a tracer's unknown values it is taken to be.

    Computed at once also while jax traces a function that closes over the array.
    """
    if isinstance(values, jax.core.Tracer):
        return True
    with jax.ensure_compile_time_eval():
        return bool(test(jnp.asarray(values)))


def check_float_leaves(name: str, tree: Any) -> None:
    """Raises unless every leaf of ``tree`` is a floating-point array; a Python float is none.

    Args:
      name: the argument's name, for the message.
      tree: a pytree of arrays (or of their shapes and dtypes).

    Raises:
      TypeError: a leaf is no array or not of a floating-point type; the message names its path
        and what it is.
    """
    for path, leaf in jax.tree.leaves_with_path(tree):
        where = jax.tree_util.keystr(path)
        dtype = getattr(leaf, "dtype", None)
        if dtype is None:
            raise TypeError(
                f"{name} must hold floating-point arrays, got {leaf!r} at {name}{where}: "
                f"make it one by jnp.asarray"
            )
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"{name} must hold floating-point arrays, got {dtype} at {name}{where}")


def required(params: Any) -> Any:
    """The parameters, or an error where ``update`` was called without them."""
    if params is None:
        raise ValueError(
            "params must be passed to update: tx.update(grads, state, params), got None"
        )
    return params
