"""Slices of the loss: along a line, over a plane, and between two solutions."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from entropix._canary import warn_if_backend_is_faulty
from entropix._checks import check_float_leaves, check_integer, check_number
from entropix._keys import check_key, fresh_key
from entropix._masks import Mask, full_mask
from entropix.flatness._chunks import mean_over_chunks
from entropix.flatness._local_energy import normal_like
from entropix.flatness._precision import widened
from entropix.flatness._problem import Chunked, check_inputs, checked_loss

Objective = Callable[[Any, Any], jax.Array]


class Barrier(NamedTuple):
    """Answer of `linear_barrier`.

    Attributes:
      positions: t of the points on the line, from 0 (the first solution) to 1. # shape=(G,)
      values: the objective at them. # shape=(G,)
      barrier: the largest excess of a value over the straight line between the ends; 0 where there
        is none. # shape=()
      distance: Euclidean distance between the solutions. # shape=()
    """

    positions: Float[Array, "*batch G"]
    values: Float[Array, "*batch G"]
    barrier: Float[Array, "*batch"]
    distance: Float[Array, "*batch"]


def filter_normalized_direction(
    params: PyTree, key: jax.Array | int, *, mask: Mask | None = None
) -> PyTree:
    r"""A random direction in which each filter is as long as the filter of the parameters.

    .. math:: d_j \leftarrow \frac{d_j}{|d_j|} |w_j|, \qquad d \sim N(0, I)

    for each filter j: all weights that lead to one output unit, which is the last axis of a leaf in
    Flax's layout. Leaves of fewer than two axes (biases, scales of normalization) get 0. Slices
    along such directions can be compared between networks that differ in the scale of their
    weights.

    Args:
      params: w, a pytree of float arrays.
      key: an integer seed or a key of ``jax.random.key``.
      mask: the leaves that get a direction: a pytree prefix of ``params`` with boolean leaves, or
        a function of a leaf's path to a boolean; the others get 0. Default all.

    Returns:
      A pytree like ``params``.

    Raises:
      TypeError: a parameter is not a float array, or ``key`` is not a key.
      ValueError: the mask does not fit.

    Examples:
      >>> import jax.numpy as jnp
      >>> direction = filter_normalized_direction({"w": jnp.eye(3), "b": jnp.ones(3)}, 0)
      >>> print(jnp.linalg.norm(direction["w"], axis=0).round(3), direction["b"])
      [1. 1. 1.] [0. 0. 0.]

    Reference:
      Li, Xu, Taylor, Studer and Goldstein, Visualizing the loss landscape of neural nets, NeurIPS
      2018, section 4.
    """
    check_float_leaves("params", params)
    check_key(key)
    chosen = full_mask(mask, params)

    def normalized(
        noise: Float[Array, "*shape"],
        leaf: Float[Array, "*shape"] | Float[np.ndarray, "*shape"],
        is_chosen: bool,
    ) -> Float[Array, "*shape"]:
        if leaf.ndim < 2 or not is_chosen:
            return jnp.zeros_like(leaf)
        axes = tuple(range(leaf.ndim - 1))
        length = jnp.linalg.norm(leaf.reshape(-1, leaf.shape[-1]), axis=0)
        own = jnp.linalg.norm(noise.reshape(-1, leaf.shape[-1]), axis=0)
        return (noise * jnp.expand_dims(length / own, axes)).astype(leaf.dtype)

    return jax.tree.map(normalized, normal_like(fresh_key(key), params), params, chosen)


def loss_slice(
    objective: Objective,
    params: PyTree,
    data: PyTree,
    directions: Sequence[PyTree],
    coordinates: Float[Array, " G"] | Float[np.ndarray, " G"],
    *,
    batch_size: int | None = None,
) -> Float[Array, " G"] | Float[Array, "G G"]:
    r"""Values of an objective along a line or over a plane through the parameters.

    .. math:: f(w + a \, d_1) \quad \text{or} \quad f(w + a \, d_1 + b \, d_2)

    for all a (and b) among the coordinates.

    Args:
      objective: f(params, batch) -> scalar, a mean over the examples of the batch.
      params: w, a pytree of float arrays.
      data: a pytree of arrays with one leading axis of n examples.
      directions: one or two pytrees like ``params``, such as `filter_normalized_direction` gives,
        or eigenvectors of the Hessian.
      coordinates: G multiples of each direction. # shape=(G,)
      batch_size: examples evaluated at once. Default all n.

    Returns:
      The values, of shape (G,) for one direction and (G, G), indexed [a, b], for two.

    Raises:
      TypeError: a parameter is not a float array.
      ValueError: a parameter is not finite, ``data`` is empty or uneven, the objective is not
        scalar, there are no or more than two directions, a direction is not like ``params``, or
        ``coordinates`` is not one-dimensional.

    Examples:
      >>> import jax.numpy as jnp
      >>> square = lambda w, x: jnp.mean((x @ w) ** 2)
      >>> axes = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
      >>> print(loss_slice(square, jnp.zeros(2), jnp.eye(2), axes, jnp.array([0.0, 2.0])))
      [[0. 2.]
       [2. 4.]]

    Reference:
      Goodfellow, Vinyals and Saxe, Qualitatively characterizing neural network optimization
      problems, ICLR 2015; Li et al., NeurIPS 2018.
    """
    warn_if_backend_is_faulty()
    check_inputs(params, data, batch_size)
    directions = tuple(directions)
    if len(directions) not in (1, 2):
        raise ValueError(f"directions must be one or two pytrees, got {len(directions)}")
    for index, direction in enumerate(directions):
        check_like(f"directions[{index}]", direction, params)
    check_number("coordinates", coordinates)
    if jnp.ndim(coordinates) != 1:
        raise ValueError(f"coordinates must have one axis, got shape {jnp.shape(coordinates)}")
    coordinates = jnp.asarray(coordinates)
    points = (
        coordinates[:, None]
        if len(directions) == 1
        else jnp.stack(jnp.meshgrid(coordinates, coordinates, indexing="ij"), axis=-1)
    )
    params = widened(objective, params, data)
    traced = checked_loss(objective, params, data, batch_size)
    return _values(traced, params, data, directions, points, batch_size=batch_size)


def linear_barrier(
    objective: Objective,
    params: PyTree,
    other_params: PyTree,
    data: PyTree,
    *,
    num_points: int = 25,
    batch_size: int | None = None,
) -> Barrier:
    r"""Distance of two solutions, and the barrier on the straight line between them.

    .. math:: \max_t \, f(w_t) - (1 - t) f(w_0) - t f(w_1), \qquad w_t = (1 - t) w_0 + t w_1

    Permutations of hidden units are not removed, and batch statistics are the caller's business:
    those of either end do not fit the networks between.

    Args:
      objective: f(params, batch) -> scalar, a mean over the examples of the batch: a loss or an
        error rate.
      params: :math:`w_0`, a pytree of float arrays.
      other_params: :math:`w_1`, a pytree like it.
      data: a pytree of arrays with one leading axis of n examples.
      num_points: G, points on the line, ends included. At least 2, default 25.
      batch_size: examples evaluated at once. Default all n.

    Returns:
      A `Barrier`.

    Raises:
      TypeError: a parameter is not a float array.
      ValueError: a parameter is not finite, ``other_params`` is not like ``params``, ``data`` is
        empty or uneven, the objective is not scalar, or ``num_points`` is below 2.

    Examples:
      >>> import jax.numpy as jnp
      >>> double_well = lambda w, x: jnp.mean((w**2 - 1) ** 2 + 0 * x)
      >>> answer = linear_barrier(double_well, jnp.array([-1.0]), jnp.array([1.0]), jnp.ones(1))
      >>> print(f"{answer.barrier:.1f} {answer.distance:.1f}")
      1.0 2.0

    Reference:
      Frankle, Dziugaite, Roy and Carbin, Linear mode connectivity and the lottery ticket
      hypothesis, ICML 2020.
    """
    warn_if_backend_is_faulty()
    check_inputs(params, data, batch_size)
    check_like("other_params", other_params, params)
    check_inputs(other_params, data, batch_size)
    check_integer("num_points", num_points, at_least=2)
    params, other_params = (widened(objective, tree, data) for tree in (params, other_params))
    traced = checked_loss(objective, params, data, batch_size)
    step = jax.tree.map(jnp.subtract, other_params, params)
    t = jnp.linspace(0, 1, num_points)
    values = _values(traced, params, data, (step,), t[:, None], batch_size=batch_size)
    t = t.astype(values.dtype)
    straight = (1 - t) * values[0] + t * values[-1]
    squares = jax.tree.leaves(jax.tree.map(lambda leaf: jnp.sum(leaf**2), step))
    distance = jnp.sqrt(jnp.sum(jnp.stack([square.astype(values.dtype) for square in squares])))
    return Barrier(t, values, jnp.maximum(jnp.max(values - straight), 0), distance)


def check_like(name: str, tree: PyTree, params: PyTree) -> None:
    """Raises unless ``tree`` has the structure and shapes of ``params``."""
    expected, got = (jax.tree.map(jnp.shape, t) for t in (params, tree))
    if expected != got:
        raise ValueError(f"{name} must have the shapes of params, {expected}, got {got}")


@functools.partial(jax.jit, static_argnames="batch_size")
def _values(
    objective: Chunked,
    params: PyTree,
    data: PyTree,
    directions: tuple[PyTree, ...],
    points: Float[Array, "*points directions"],
    *,
    batch_size: int | None,
) -> Float[Array, "*points"]:
    """The objective at params + sum_i points[..., i] directions[i]."""

    def value(point: Float[Array, " directions"]) -> Float[Array, ""]:
        def moved(
            leaf: Float[Array, "*shape"], *steps: Float[Array, "*shape"]
        ) -> Float[Array, "*shape"]:
            return leaf + sum((point[i] * step).astype(leaf.dtype) for i, step in enumerate(steps))

        weights = jax.tree.map(moved, params, *directions)
        return mean_over_chunks(lambda batch: objective(weights, batch), data, batch_size)

    flat = points.reshape(-1, points.shape[-1])
    return jax.lax.map(value, flat).reshape(points.shape[:-1])
