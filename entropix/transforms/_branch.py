"""Branches on the step counter that cost little when they are not taken."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np

T = TypeVar("T")


def apply_when(
    predicate: jax.Array, fn: Callable[[T], T], operand: T, *, in_place: bool = True
) -> T:
    """``fn(operand) if predicate else operand``, for a scalar predicate.

    Outside ``jit`` the predicate is known, and only one side is run. Inside it is a loop of at most
    one trip: XLA lets a loop's carry stay where it is, while ``lax.cond`` copies all that its
    branches pass through, which was measured to cost as much as the rest of an optimizer's update.
    ``in_place=False`` is ``lax.cond``, for operands that are new in any case.
    """
    if not isinstance(predicate, jax.core.Tracer):
        return fn(operand) if predicate else operand
    if not in_place:
        return jax.lax.cond(predicate, fn, lambda operand: operand, operand)

    def body(carry: Any) -> Any:
        pending, operand = carry
        return pending & np.False_, fn(operand)

    return jax.lax.while_loop(lambda carry: carry[0], body, (predicate, operand))[1]
