"""Curvature along the step that training takes: by forward passes alone, and exactly."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from entropix._canary import warn_if_backend_is_faulty
from entropix._checks import check_integer, check_number
from entropix.flatness._chunks import mean_over_chunks
from entropix.flatness._precision import resolution, widened
from entropix.flatness._problem import (
    Chunked,
    check_inputs,
    checked_loss,
    forward_derivatives,
)
from entropix.flatness._slices import check_like

Loss = Callable[[Any, Any], jax.Array]

_STRIDE = 4.0


class CriticalSharpness(NamedTuple):
    r"""Answer of `critical_sharpness`.

    Attributes:
      sharpness: :math:`2 / \eta_c`; infinite where every step that was tried raises the loss, and
        0 where none does.
      lower: bound from below on the sharpness, as far as the loss was looked at.
      upper: bound from above.
      learning_rate: :math:`\eta_c`, in the units of the argument ``learning_rate``.
      num_passes: evaluations of the loss that were made, the one at the parameters included.
    """

    sharpness: Float[Array, "*batch"]
    lower: Float[Array, "*batch"]
    upper: Float[Array, "*batch"]
    learning_rate: Float[Array, "*batch"]
    num_passes: Int[Array, "*batch"]


class Bracket(NamedTuple):
    """Two steps between which the loss comes back to where it was.

    Attributes:
      low: the largest step known at which the loss is not higher, or 0.
      low_slope: (f(low) - f(0)) / low; at low = 0 the derivative, or 0 if that is not known.
      high: the smallest step known at which the loss is higher, or infinity.
      high_slope: (f(high) - f(0)) / high.
      num_passes: evaluations of f(s) - f(0).
    """

    low: Float[Array, "*batch"]
    low_slope: Float[Array, "*batch"]
    high: Float[Array, "*batch"]
    high_slope: Float[Array, "*batch"]
    num_passes: Int[Array, "*batch"]

    def root(self) -> Float[Array, "*batch"]:
        """Where the secant through both slopes is 0; a mean of the ends where there is none."""
        rise = self.high_slope - self.low_slope
        usable = jnp.isfinite(self.high) & jnp.isfinite(rise) & (self.low_slope < 0)
        share = jnp.where(usable, -self.low_slope / jnp.where(usable, rise, 1), 0)
        secant = self.low + share * jnp.where(usable, self.high - self.low, 0)
        return jnp.where(usable, secant, jnp.sqrt(self.low) * jnp.sqrt(self.high))


def critical_step(
    change: Callable[[Float[Array, ""]], Float[Array, ""]],
    start: Float[Array, ""],
    slope: Float[Array, ""] | float = 0.0,
    *,
    noise: Float[Array, ""] | float,
    tolerance: float,
    max_passes: int | Int[Array, ""],
) -> Bracket:
    r"""Brackets the smallest s > 0 at which the loss along a line is back where it was.

    The mean slope (f(s) - f(0)) / s of a parabola is linear in s, so the secant through two of its
    values finds the root at once; two more passes, half a tolerance before and behind it, bracket
    it. Until the root lies between two steps, the steps grow or shrink by a factor of 4.

    Args:
      change: s -> f(s) - f(0); not a number counts as a rise.
      start: the first step tried, above 0.
      slope: the derivative at 0, if known; else 0.
      noise: rounding error of ``change``.
      tolerance: width of the bracket, relative to its lower end, that ends the search.
      max_passes: evaluations of ``change`` that end it.
    """
    zero = jnp.zeros_like(start)
    infinite = jnp.full_like(start, jnp.inf)
    empty = Bracket(
        zero,
        jnp.minimum(jnp.asarray(slope, start.dtype), 0),
        infinite,
        zero,
        jnp.zeros(start.shape, jnp.int32),
    )

    def next_step(bracket: Bracket) -> Float[Array, ""]:
        root = bracket.root()
        # A little less than half the tolerance each, for both together must not exceed it.
        margin = (1 + tolerance) ** 0.49
        behind, before = root * margin, root / margin
        # The end that is farther from the root moves next to it.
        step = jnp.where(bracket.high - root > root - bracket.low, behind, before)
        # A loss that is far from a parabola may hold an end of the secant for ever.
        middle = jnp.sqrt(jnp.maximum(bracket.low, bracket.high / _STRIDE)) * jnp.sqrt(bracket.high)
        is_inside = (step > bracket.low) & (step < bracket.high)
        is_stuck = (bracket.num_passes >= 8) & (bracket.num_passes % 2 == 0)
        step = jnp.where(is_inside & ~is_stuck, step, middle)
        is_known_below = (bracket.low > 0) | (bracket.low_slope < 0)
        step = jnp.where(is_known_below, step, bracket.high / _STRIDE)
        return jnp.where(jnp.isfinite(bracket.high), step, _STRIDE * bracket.low)

    def advance(carry: tuple[Bracket, Float[Array, ""]]) -> tuple[Bracket, Float[Array, ""]]:
        bracket, step = carry
        rise = change(step).astype(step.dtype)
        # Where rounding hides the sign, short of a step that rises there was no fall either.
        rises = jnp.where(jnp.isfinite(bracket.high), ~(rise < -noise), ~(rise <= noise))
        mean_slope = rise / step
        mean_slope = jnp.where(jnp.isfinite(mean_slope), mean_slope, infinite)
        bracket = Bracket(
            jnp.where(rises, bracket.low, step),
            jnp.where(rises, bracket.low_slope, mean_slope),
            jnp.where(rises, step, bracket.high),
            jnp.where(rises, mean_slope, bracket.high_slope),
            bracket.num_passes + 1,
        )
        return bracket, next_step(bracket)

    def goes_on(carry: tuple[Bracket, Float[Array, ""]]) -> Bool[Array, ""]:
        bracket, _ = carry
        is_open = ~(bracket.high <= (1 + tolerance) * bracket.low)
        return is_open & (bracket.num_passes < max_passes)

    return jax.lax.while_loop(goes_on, advance, (empty, start))[0]


def move(params: PyTree, updates: PyTree, step: Float[Array, ""]) -> PyTree:
    """The parameters after so many times the updates, in the parameters' precision."""
    return jax.tree.map(lambda w, u: w + step.astype(w.dtype) * u.astype(w.dtype), params, updates)


def critical_sharpness(
    loss: Loss,
    params: PyTree,
    updates: PyTree,
    data: PyTree,
    *,
    learning_rate: float | Array = 1.0,
    tolerance: float = 0.1,
    max_passes: int = 16,
    batch_size: int | None = None,
) -> CriticalSharpness:
    r"""The curvature that limits the learning rate, from about six forward passes.

    .. math:: \lambda_c = \frac{2}{\eta_c}, \qquad
       \eta_c = \min \Big\{ \eta > 0 : f \Big( w + \frac{\eta}{\eta_0} u \Big) > f(w) \Big\}

    for the updates u that were made at the learning rate :math:`\eta_0`. Training is at the edge
    of stability where :math:`\lambda_c` is :math:`2 / \eta_0`. On a quadratic with Hessian H, and
    for gradient descent, it is the mean of the eigenvalues of H, each weighted by the square of
    the gradient's component along its eigenvector: at most the largest eigenvalue, and near to it
    once the gradient has turned that way. No derivative is taken, so that any kernel will do.

    Args:
      loss: f(params, batch) -> scalar, a mean over the examples of the batch.
      params: w, a pytree of float arrays.
      updates: u, a pytree like ``params``: what an Optax transformation gives, to be added to
        the parameters.
      data: a pytree of arrays with one leading axis of n examples.
      learning_rate: :math:`\eta_0`, what is contained in ``updates``. Above 0; the default of 1
        takes the updates for the direction, and measures in units of their length.
      tolerance: relative width of the interval in which the loss comes back to where it was.
        Above 0, default 0.1; on a quadratic the sharpness itself is exact.
      max_passes: evaluations of the loss at which the search ends. At least 3, default 16.
      batch_size: examples evaluated at once. Default all n.

    Returns:
      A `CriticalSharpness`, of NaN where the loss at the parameters is not finite.

    Raises:
      TypeError: a parameter is not a float array, or an argument is not a number.
      ValueError: a parameter is not finite, ``updates`` is not like ``params``, ``data`` is empty
        or uneven, the loss is not scalar, or a number is out of its range.

    Examples:
      On a parabola of curvature 3, after a step of gradient descent:

      >>> import jax.numpy as jnp
      >>> loss = lambda w, x: 1.5 * jnp.mean(x * w**2)
      >>> found = critical_sharpness(
      ...     loss, jnp.ones(1), jnp.array([-0.1 * 3.0]), jnp.ones(1), learning_rate=0.1
      ... )
      >>> print(f"{found.sharpness:.4f}", int(found.num_passes))
      3.0000 6

    Reference:
      Kalra et al., `A scalable measure of loss landscape curvature for analyzing the training
      dynamics of LLMs <https://arxiv.org/abs/2601.16979>`_, 2026.
    """
    warn_if_backend_is_faulty()
    check_inputs(params, data, batch_size)
    check_like("updates", updates, params)
    check_number("learning_rate", learning_rate, above=0)
    check_number("tolerance", tolerance, above=0)
    check_integer("max_passes", max_passes, at_least=3)
    center = widened(loss, params, data)
    traced = checked_loss(loss, center, data, batch_size)
    return _critical_sharpness(
        traced, center, updates, data, learning_rate, float(tolerance), int(max_passes), batch_size
    )


@functools.partial(jax.jit, static_argnums=(5, 6, 7))
def _critical_sharpness(
    loss: Chunked,
    center: PyTree,
    updates: PyTree,
    data: PyTree,
    learning_rate: float | Array,
    tolerance: float,
    max_passes: int,
    batch_size: int | None,
) -> CriticalSharpness:
    """The compiled part of `critical_sharpness`."""

    def value(weights: PyTree) -> Float[Array, ""]:
        return mean_over_chunks(lambda batch: loss(weights, batch), data, batch_size)

    base = value(center)
    dtype = jnp.promote_types(base.dtype, jnp.float32)
    bracket = critical_step(
        lambda step: value(move(center, updates, step)) - base,
        jnp.ones((), dtype),
        noise=resolution(base).astype(dtype),
        tolerance=tolerance,
        # Where the loss is nan at the parameters themselves there is nothing to look for.
        max_passes=jnp.where(jnp.isfinite(base), max_passes - 1, 0),
    )
    rate = jnp.asarray(learning_rate, dtype)
    critical = bracket.root() * rate
    return CriticalSharpness(
        sharpness=2 / critical,
        lower=2 / (bracket.high * rate),
        upper=2 / (bracket.low * rate),
        learning_rate=critical,
        num_passes=bracket.num_passes + 1,
    )


def directional_curvature(
    loss: Loss,
    params: PyTree,
    direction: PyTree,
    data: PyTree,
    *,
    batch_size: int | None = None,
) -> Float[Array, ""]:
    r"""The second derivative of the loss along a line, per unit of its squared length.

    .. math:: \frac{d^T H d}{|d|^2}

    It lies between the smallest and the largest eigenvalue of the Hessian H. Two nested forward
    derivatives give it, in the memory of a few forward passes and at the cost of about four.

    Args:
      loss: f(params, batch) -> scalar, a mean over the examples of the batch.
      params: w, a pytree of float arrays.
      direction: d, a pytree like ``params`` of any length but 0, such as the gradient or the
        updates.
      data: a pytree of arrays with one leading axis of n examples.
      batch_size: examples evaluated at once. Default all n.

    Returns:
      The curvature, a scalar; not a number where the direction is 0.

    Raises:
      TypeError: a parameter is not a float array, or the loss has no forward derivatives.
      ValueError: a parameter is not finite, ``direction`` is not like ``params``, ``data`` is
        empty or uneven, or the loss is not scalar.

    Examples:
      >>> import jax.numpy as jnp
      >>> loss = lambda w, x: jnp.mean(w[0] ** 2 + 4 * w[1] ** 2 + 0 * x)
      >>> print(directional_curvature(loss, jnp.zeros(2), jnp.array([0.0, 3.0]), jnp.ones(1)))
      8.0

    Reference:
      Pearlmutter, Fast exact multiplication by the Hessian, Neural Computation 6 (1994).
    """
    warn_if_backend_is_faulty()
    check_inputs(params, data, batch_size)
    check_like("direction", direction, params)
    center = widened(loss, params, data)
    traced = checked_loss(loss, center, data, batch_size)
    with forward_derivatives("hessian with product='reverse_over_reverse' does without"):
        return _directional_curvature(traced, center, direction, data, batch_size)


@functools.partial(jax.jit, static_argnums=4)
def _directional_curvature(
    loss: Chunked, center: PyTree, direction: PyTree, data: PyTree, batch_size: int | None
) -> Float[Array, ""]:
    """The compiled part of `directional_curvature`."""
    direction = jax.tree.map(lambda d, w: d.astype(w.dtype), direction, center)
    length = norm(direction)
    unit = jax.tree.map(lambda d: d / length.astype(d.dtype), direction)

    def slope(weights: PyTree, batch: Any) -> Float[Array, ""]:
        return jax.jvp(lambda w: loss(w, batch), (weights,), (unit,))[1]

    return mean_over_chunks(
        lambda batch: jax.jvp(lambda w: slope(w, batch), (center,), (unit,))[1], data, batch_size
    )


def inner(left: PyTree, right: PyTree) -> Float[Array, ""]:
    """The inner product of two pytrees, leaf by leaf where the leaves are."""
    products = jax.tree.leaves(
        jax.tree.map(lambda x, y: jnp.sum(x * y, dtype=jnp.promote_types(x.dtype, jnp.float32)),
                     left, right)
    )  # fmt: skip
    widest = functools.reduce(jnp.promote_types, [product.dtype for product in products])
    return functools.reduce(jnp.add, [product.astype(widest) for product in products])


def norm(tree: PyTree) -> Float[Array, ""]:
    """The Euclidean norm of a pytree."""
    return jnp.sqrt(inner(tree, tree))
