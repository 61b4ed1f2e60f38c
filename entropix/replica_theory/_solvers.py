"""Root finders for saddle points, differentiable in whatever the equations close over."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Solution(NamedTuple):
    """Where an iteration stopped.

    Attributes:
      x: the unknowns.
      residual: largest absolute residual of the equations at x. # shape=()
      iterations: taken. # shape=(), dtype=int32
      converged: whether the residual is within the tolerance. # shape=(), dtype=bool
    """

    x: jax.Array
    residual: Float[Array, "*batch"]
    iterations: Int[Array, "*batch"]
    converged: Bool[Array, "*batch"]


def find_root(
    equation: Callable[[jax.Array], jax.Array],
    lower: float | jax.Array,
    upper: float | jax.Array,
    *,
    tolerance: float,
    max_iterations: int = 100,
) -> Solution:
    """Root of one scalar equation that is negative at ``lower`` and positive at ``upper``.

    Newton's method inside a bracket: a step that would leave the bracket, or that follows one which
    did not halve the residual, is a bisection instead.
    """
    lower, upper = jnp.asarray(lower, float), jnp.asarray(upper, float)

    def solve(equation: Callable[..., jax.Array], start: jax.Array) -> tuple[jax.Array, Any]:
        def goes_on(carry: Any) -> jax.Array:
            _, low, high, _, residual, count = carry
            apart = high - low > 4 * jnp.finfo(low.dtype).eps * jnp.maximum(1, jnp.abs(low))
            return (residual > tolerance) & (count < max_iterations) & apart

        def step(carry: Any) -> Any:
            x, low, high, best, previous, count = carry
            value, slope = jax.jvp(equation, (x,), (jnp.ones_like(x),))
            low, high = jnp.where(value < 0, x, low), jnp.where(value < 0, high, x)
            residual = jnp.abs(value)
            better = residual < jnp.abs(previous)
            best = jnp.where(better, x, best)
            newton = x - value / slope
            trusted = (newton > low) & (newton < high) & (residual < previous / 2)
            return (
                jnp.where(trusted, newton, (low + high) / 2),
                low, high, best, jnp.where(better, residual, previous), count + 1,
            )  # fmt: skip

        count = jnp.zeros([], jnp.int32)
        inf = jnp.full_like(start, jnp.inf)
        carry = (start, lower, upper, start, inf, count)
        _, _, _, best, residual, count = jax.lax.while_loop(goes_on, step, carry)
        return best, (residual, count.astype(residual.dtype))

    root, (residual, count) = jax.lax.custom_root(
        equation, (lower + upper) / 2, solve, lambda g, y: y / g(jnp.ones_like(y)), has_aux=True
    )
    return Solution(root, residual, count.astype(jnp.int32), residual <= tolerance)


def newton(
    equations: Callable[[jax.Array], jax.Array],
    start: jax.Array,
    *,
    tolerance: float,
    max_iterations: int = 40,
) -> Solution:
    """Root of a system of equations by Newton's method with step halving.

    A step is halved until the residual falls and stays finite; equations that have no value at a
    point (nan) thereby bound the region searched.

    Args:
      equations: x -> residuals, both of shape (n,).
      start: where to begin, with finite residuals. # shape=(n,)
      tolerance: on the largest absolute residual.
      max_iterations: Newton steps at most.

    Returns:
      A `Solution`.
    """

    def size(value: jax.Array) -> jax.Array:
        norm = jnp.max(jnp.abs(value))
        return jnp.where(jnp.isfinite(norm), norm, jnp.inf)

    def solve(equations: Callable[..., jax.Array], start: jax.Array) -> tuple[jax.Array, Any]:
        def goes_on(carry: Any) -> jax.Array:
            _, _, residual, count, alive = carry
            return (residual > tolerance) & (count < max_iterations) & alive

        def step(carry: Any) -> Any:
            x, value, residual, count, _ = carry
            direction = -jnp.linalg.solve(jax.jacfwd(equations)(x), value)

            def shorten(trial: Any) -> Any:
                length = trial[0] / 2
                value = equations(x + length * direction)
                return length, value, size(value)

            def too_long(trial: Any) -> jax.Array:
                length, _, norm = trial
                return ~(norm < residual) & (length > 1e-3)

            first = equations(x + direction)
            one = jnp.ones_like(residual)
            length, tried, norm = jax.lax.while_loop(too_long, shorten, (one, first, size(first)))
            fell = norm < residual
            return (
                jnp.where(fell, x + length * direction, x),
                jnp.where(fell, tried, value),
                jnp.where(fell, norm, residual),
                count + 1,
                fell,
            )

        value = equations(start)
        carry = (start, value, size(value), jnp.zeros([], jnp.int32), jnp.ones([], bool))
        x, _, residual, count, _ = jax.lax.while_loop(goes_on, step, carry)
        return x, (residual, count.astype(residual.dtype))

    def tangent_solve(linear: Callable[[jax.Array], jax.Array], y: jax.Array) -> jax.Array:
        return jnp.linalg.solve(jax.jacfwd(linear)(jnp.zeros_like(y)), y)

    x, (residual, count) = jax.lax.custom_root(equations, start, solve, tangent_solve, has_aux=True)
    return Solution(x, residual, count.astype(jnp.int32), residual <= tolerance)
