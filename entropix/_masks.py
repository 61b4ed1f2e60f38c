"""Which parameters an operation touches: a tree of booleans or a function of the path."""

from collections.abc import Callable
from typing import Any

import jax

Mask = Callable[[tuple[Any, ...]], bool] | Any


def full_mask(mask: Mask | None, params: Any) -> Any:
    """One boolean per leaf of ``params``.

    Args:
      mask: a tree of booleans that is a prefix of ``params``; a function of a leaf's path (a tuple
        of ``jax.tree_util`` keys) that answers with a boolean; or None for all leaves.
      params: a pytree of arrays.

    Returns:
      A tree of booleans of the structure of ``params``.

    Raises:
      TypeError: the mask holds or answers anything but booleans.
      ValueError: the mask is not a prefix of ``params``.
    """
    if mask is None:
        return jax.tree.map(lambda _: True, params)
    if callable(mask):
        chosen = jax.tree.map_with_path(lambda path, _: mask(path), params)
    else:
        try:
            chosen = jax.tree.broadcast(mask, params)
        except ValueError as error:
            raise ValueError(f"mask must be a prefix of params: {error}") from None
    for path, choice in jax.tree.leaves_with_path(chosen):
        if not isinstance(choice, bool):
            where = jax.tree_util.keystr(path)
            raise TypeError(f"mask must hold booleans, got {choice!r} at {where}")
    return chosen
