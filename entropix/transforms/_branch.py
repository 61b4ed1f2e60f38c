"""Branches on the step counter that cost little when they are not taken."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import Array, Bool

T = TypeVar("T")

# Arrays up to which a loop carries them: XLA's analysis of what a loop may keep in place takes time
# that grows with their square (measured with jax 0.12: 1 s for 100 of them, 10 s for 400).
_CARRIED_AT_MOST = 64


def apply_when(
    predicate: Bool[Array, ""], fn: Callable[[T], T], operand: T, *, in_place: bool = True
) -> T:
    """``fn(operand) if predicate else operand``, for a scalar predicate.

    Outside ``jit`` the predicate is known, and only one side is run. Inside it is a loop of at most
    one trip: XLA lets a loop's carry stay where it is, while ``lax.cond`` copies all that its
    branches pass through, which was measured to cost as much as the rest of an optimizer's update.
    A loop has no reverse derivative, so under differentiation it is ``lax.cond`` all the same; and
    so it is for operands of very many arrays, where a loop would take long to compile.
    ``in_place=False`` is always ``lax.cond``, for operands that are new in any case.
    """
    if not isinstance(predicate, jax.core.Tracer):
        return fn(operand) if predicate else operand
    if not in_place or len(jax.tree.leaves(operand)) > _CARRIED_AT_MOST:
        return jax.lax.cond(predicate, fn, lambda operand: operand, operand)
    # A custom derivative sees its arguments alone, so what `fn` closes over becomes one of them.
    closed, captured = jax.closure_convert(fn, operand)
    return _loop_once(closed, predicate, operand, captured)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _loop_once(fn: Any, predicate: Any, operand: Any, captured: Any) -> Any:
    def body(carry: Any) -> Any:
        pending, operand = carry
        return pending & np.False_, fn(operand, *captured)

    return jax.lax.while_loop(lambda carry: carry[0], body, (predicate, operand))[1]


@_loop_once.defjvp
def _loop_once_jvp(fn: Any, primals: Any, tangents: Any) -> Any:
    predicate, operand, captured = primals

    def branch(operand: Any, captured: Any) -> Any:
        return jax.lax.cond(
            predicate, lambda operand: fn(operand, *captured), lambda operand: operand, operand
        )

    return jax.jvp(branch, (operand, captured), tangents[1:])
