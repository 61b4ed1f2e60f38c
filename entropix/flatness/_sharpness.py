"""Sharpness: how much the loss can rise inside a ball around the parameters."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from entropix._canary import warn_if_backend_is_faulty
from entropix._checks import check_integer, check_number
from entropix._masks import Mask
from entropix.flatness._chunks import mean_over_chunks, num_examples
from entropix.flatness._problem import (
    Chunked,
    Point,
    check_inputs,
    check_scalar,
    checked_loss,
    chunked,
    split_params,
)
from entropix.flatness._vectors import vectors_like

Loss = Callable[[Any, Any], jax.Array]

# Steps long enough to cross the ball and still settle (Madry et al. 2018). A single one leaves the
# ball, and its projection is the full step to the surface.
_PATH_OVER_RADIUS = 2.5


class Sharpness(NamedTuple):
    """Answer of `sam_sharpness`.

    Attributes:
      mean: the largest rise of the loss that was found, a lower bound on the maximum; mean over
        groups of examples. # shape=()
      std_error: standard error of ``mean`` over the groups; 0 where all examples are one group,
        since nothing is then random. # shape=()
      base: the loss at the parameters. # shape=()
    """

    mean: Float[Array, "*batch"]
    std_error: Float[Array, "*batch"]
    base: Float[Array, "*batch"]


def sam_sharpness(
    loss: Loss,
    params: PyTree,
    data: PyTree,
    *,
    radius: float | Float[ArrayLike, ""] = 0.05,
    num_steps: int = 1,
    group_size: int | None = None,
    mask: Mask | None = None,
    batch_size: int | None = None,
) -> Sharpness:
    r"""The sharpness that sharpness-aware minimization minimizes.

    .. math:: \max_{|\epsilon| \le \rho} f(w + \epsilon) - f(w), \qquad
       \epsilon \leftarrow \Pi_\rho \Big( \epsilon + \frac{2.5 \rho}{T} \frac{g}{|g|} \Big), \quad
       g = \nabla f(w + \epsilon)

    after T steps of ascent from 0, :math:`\Pi_\rho` being the projection on the ball; the largest
    rise on the way counts. One step is SAM's own :math:`\epsilon = \rho \, g / |g|`. At a point
    whose gradient is exactly 0 ascent finds no direction and answers 0.

    Args:
      loss: f(params, batch) -> scalar, a mean over the examples of the batch.
      params: w, a pytree of float arrays.
      data: a pytree of arrays with one leading axis of n examples.
      radius: :math:`\rho`, in units of the parameters' Euclidean norm. At least 0, default 0.05.
      num_steps: T, ascent steps; each costs a gradient and a loss. Default 1.
      group_size: m of m-sharpness: each group of m examples has a ball and an ascent of its own,
        and the rises are averaged. Default: all examples are one group.
      mask: the parameters that may move (see `hessian`), in a ball of their own. Default all.
      batch_size: examples evaluated at once; only where all examples are one group. Default all n.

    Returns:
      A `Sharpness`.

    Raises:
      TypeError: a parameter is not a float array, or a number is of the wrong type.
      ValueError: a parameter is not finite, ``data`` is empty or uneven, the loss is not scalar,
        ``radius`` is negative, another number is below 1, both sizes are given, or the mask does
        not fit.

    Examples:
      >>> import jax.numpy as jnp
      >>> loss = lambda w, x: jnp.mean((x @ w) ** 2) / 2
      >>> answer = sam_sharpness(loss, jnp.array([1.0, 0.0]), jnp.eye(2), radius=1.0)
      >>> print(f"{answer.base:.2f} {answer.mean:.2f}")
      0.25 0.75

    Reference:
      Foret, Kleiner, Mobahi and Neyshabur, Sharpness-aware minimization for efficiently improving
      generalization, ICLR 2021 (m-sharpness: section 4.1).
    """
    warn_if_backend_is_faulty()
    check_inputs(params, data, batch_size)
    check_number("radius", radius, at_least=0)
    check_integer("num_steps", num_steps, at_least=1)
    if group_size is not None:
        check_integer("group_size", group_size, at_least=1)
        if batch_size is not None:
            raise ValueError(f"batch_size must be None where group_size is given, got {batch_size}")
        traced = chunked(loss, params, data, group_size)
        check_scalar(traced.full.program.answer)
    else:
        traced = checked_loss(loss, params, data, batch_size)
    point, _ = split_params(params, mask)
    return _sam_sharpness(traced, point, data, radius, num_steps, group_size, batch_size)


@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def _sam_sharpness(
    loss: Chunked,
    point: Point,
    data: PyTree,
    radius: float | Float[ArrayLike, ""],
    num_steps: int,
    group_size: int | None,
    batch_size: int | None,
) -> Sharpness:
    """The compiled part of `sam_sharpness`."""

    def rise(batch: PyTree) -> dict[str, Float[Array, ""]]:
        found, base = _largest_rise(loss, point, batch, radius, num_steps, batch_size)
        return {"rise": found, "square": found**2, "base": base}

    answer = mean_over_chunks(rise, data, group_size)
    groups = -(-num_examples(data) // group_size) if group_size else 1
    variance = jnp.maximum(answer["square"] - answer["rise"] ** 2, 0)
    return Sharpness(
        mean=answer["rise"],
        std_error=jnp.sqrt(variance / max(groups - 1, 1)),
        base=answer["base"],
    )


def _largest_rise(
    loss: Chunked,
    point: Point,
    batch: PyTree,
    radius: float | Float[ArrayLike, ""],
    num_steps: int,
    batch_size: int | None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The largest rise on the path of the ascent, and the loss it starts from."""
    space = vectors_like(point.chosen)
    center = space.flatten(point.chosen)
    radius = jnp.asarray(radius, space.dtype)

    def value(w: Float[Array, " n"], chunk: PyTree) -> Float[Array, ""]:
        return loss(point.whole(space.unflatten(w)), chunk)

    def mean_of(function: Callable[..., Any], w: Float[Array, " n"]) -> Any:
        return mean_over_chunks(lambda chunk: function(w, chunk), batch, batch_size)

    def ascend(
        _: Any, carry: tuple[Float[Array, " n"], Float[Array, ""]]
    ) -> tuple[Float[Array, " n"], Float[Array, ""]]:
        offset, best = carry
        gradient = mean_of(jax.grad(value), center + offset)
        offset = offset + _PATH_OVER_RADIUS * radius / num_steps * _unit(gradient)
        excess = jnp.linalg.norm(offset) / radius
        offset = jnp.where(excess > 1, offset / excess, offset)
        return offset, jnp.maximum(best, mean_of(value, center + offset))

    base = mean_of(value, center)
    _, best = jax.lax.fori_loop(0, num_steps, ascend, (jnp.zeros_like(center), base))
    return best - base, base


def _unit(vector: Float[Array, " n"]) -> Float[Array, " n"]:
    """The vector scaled to norm 1, or 0 where it is 0."""
    norm = jnp.linalg.norm(vector)
    return jnp.where(norm > 0, vector / jnp.where(norm > 0, norm, 1), 0)
