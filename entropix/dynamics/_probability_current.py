r"""Does the path of the weights run in loops? A test for probability currents, and where they flow.

At equilibrium every piece of a path is as likely as the same piece run backwards, so the area it
sweeps in any plane averages to zero. A current, as of SGD with anisotropic noise, breaks that.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from entropix._canary import warn_if_backend_is_faulty
from entropix._checks import check_integer, check_number
from entropix._keys import check_key, fresh_key
from entropix.dynamics._trajectory import as_coordinates


class ProbabilityCurrent(NamedTuple):
    """Answer of `probability_current`; (i, j) stands for the plane of components i and j.

    Attributes:
      area_rate: signed area swept per recorded step, > 0 from i toward j. # shape=(k, k)
      std_error: its standard error, from the blocks. # shape=(k, k)
      z: area_rate / std_error, 0 on the diagonal. # shape=(k, k)
      p_value: chance of so much rotation, over all planes, at equilibrium. # shape=()
    """

    area_rate: jax.Array
    std_error: jax.Array
    z: jax.Array
    p_value: jax.Array


class CurrentField(NamedTuple):
    """Answer of `current_field`, on a grid of ``bins`` x ``bins`` cells.

    Attributes:
      centers: middles of the cells along each of the two components. # shape=(2, bins)
      density: share of the visits per unit of area. # shape=(bins, bins)
      current: probability per unit of length and recorded step. # shape=(bins, bins, 2)
      std_error: of the current, from the blocks. # shape=(bins, bins, 2)
    """

    centers: jax.Array
    density: jax.Array
    current: jax.Array
    std_error: jax.Array


def _blocks(coordinates: jax.Array, num_blocks: int) -> jax.Array:
    """Consecutive pieces that share their end points, (num_blocks, length + 1, k)."""
    length = (len(coordinates) - 1) // num_blocks
    index = np.arange(num_blocks)[:, None] * length + np.arange(length + 1)[None, :]
    return coordinates[index]


def _swept_area(block: jax.Array) -> jax.Array:
    """Signed areas, in every plane, between a piece of path and its chord: a (k, k) matrix."""
    moment = jnp.matmul((block[:-1] - block[:1]).T, jnp.diff(block, axis=0), precision="highest")
    return (moment - moment.T) / 2


@functools.partial(jax.jit, static_argnames=("num_blocks", "num_surrogates"))
def _probability_current(
    coordinates: jax.Array, key: jax.Array, num_blocks: int, num_surrogates: int
) -> ProbabilityCurrent:
    blocks = _blocks(coordinates, num_blocks)
    rates = jax.vmap(_swept_area)(blocks) / (blocks.shape[1] - 1)
    mean = jnp.mean(rates, 0)
    std_error = jnp.std(rates, 0, ddof=1) / num_blocks**0.5
    z = jnp.where(std_error > 0, mean / jnp.where(std_error > 0, std_error, 1), 0)

    planes = rates[(slice(None), *np.triu_indices(rates.shape[1], 1))]
    spread = jnp.maximum(jnp.sum(planes**2, 0), jnp.finfo(planes.dtype).tiny)

    def rotation(signs: jax.Array) -> jax.Array:
        return jnp.sum(jnp.matmul(signs, planes, precision="highest") ** 2 / spread)

    flips = jax.random.rademacher(key, (num_surrogates, num_blocks), planes.dtype)
    as_much = jax.lax.map(rotation, flips, batch_size=1000) >= rotation(jnp.ones_like(flips[0]))
    p_value = (1 + jnp.sum(as_much, dtype=z.dtype)) / (1 + num_surrogates)
    return ProbabilityCurrent(mean, std_error, z, p_value)


def probability_current(
    coordinates: Any, key: jax.Array | int, *, num_blocks: int = 50, num_surrogates: int = 9999
) -> ProbabilityCurrent:
    r"""Tests whether a path circulates, against Brownian motion and against equilibrium.

    .. math:: A_{ij} = \tfrac12 \big\langle (x_i - x_i^0) \, \Delta x_j
        - (x_j - x_j^0) \, \Delta x_i \big\rangle

    is the area that the path sweeps per step, half its angular momentum. The path is cut into
    blocks, each seen from its own first point :math:`x^0`: what is measured is the area between
    the block and its chord. Its sign turns when the block is run backwards. So it is as often
    positive as negative both at equilibrium (stationary and reversible) and for increments in
    random order (Brownian motion, with drift or without), and the surrogates reverse each block
    with probability one half. Take blocks longer than the memory of the path: shorter ones
    see less of a slow loop, and resemble each other, which the p-value does not know.

    Args:
      coordinates: recorded path, such as a `random_projection`. Shape (T, k), k >= 2.
      key: an integer seed or a key of ``jax.random.key``, for the reversals.
      num_blocks: number of blocks B, 2 at least, of floor((T - 1) / B) >= 2 steps; the steps
        left over are not used. Default 50.
      num_surrogates: number of surrogates S; the p-value is at least 1 / (S + 1). Default 9999.

    Returns:
      `ProbabilityCurrent`. The p-value is for the sum over the planes of the squared mean area
      relative to the mean square of the blocks' areas.

    Raises:
      TypeError: the coordinates are not floats, or a number of blocks is not an integer.
      ValueError: too few steps or components for the blocks, or a NaN among them.

    Examples:
      Without rotating force the double well is at equilibrium; with it, it is not.

      >>> for rotation in (0.0, 1.5):
      ...     path = rotating_double_well(0, rotation=rotation, num_steps=20_000)
      ...     print(bool(probability_current(path, 1).p_value < 0.001))
      False
      True

    Reference:
      Chaudhari and Soatto, Stochastic gradient descent performs variational inference, converges
      to limit cycles for deep networks, ICLR 2018. Zia and Schmittmann, Probability currents as
      principal characteristics in the statistical mechanics of non-equilibrium steady states,
      J. Stat. Mech. 2007.
    """
    check_key(key)
    check_integer("num_blocks", num_blocks, at_least=2)
    check_integer("num_surrogates", num_surrogates, at_least=1)
    coordinates = as_coordinates(coordinates, num_components=2, num_steps=2 * num_blocks + 1)
    warn_if_backend_is_faulty()
    return _probability_current(coordinates, fresh_key(key), num_blocks, num_surrogates)


@functools.partial(jax.jit, static_argnames=("bins", "num_blocks"))
def _current_field(
    coordinates: jax.Array, extent: jax.Array, bins: int, num_blocks: int
) -> CurrentField:
    lower, upper = extent[:, 0], extent[:, 1]
    size = (upper - lower) / bins

    def visits(block: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Share of the visits, and mean velocity times that share, per cell and unit of area."""
        positions, velocities = block[1:-1], (block[2:] - block[:-2]) / 2
        cell = jnp.floor((positions - lower[None, :]) / size[None, :]).astype(jnp.int32)
        cell = jnp.where(positions == upper[None, :], bins - 1, cell)
        outside = jnp.any((cell < 0) | (cell >= bins), 1)
        number = jnp.where(outside, bins**2, cell[:, 0] * bins + cell[:, 1])
        marks = jnp.concatenate([jnp.ones_like(velocities[:, :1]), velocities], 1)
        total = jax.ops.segment_sum(marks, number, bins**2 + 1)[:-1].reshape(bins, bins, 3)
        per_area = total / (len(positions) * size[0] * size[1])
        return per_area[..., 0], per_area[..., 1:]

    density, current = jax.vmap(visits)(_blocks(coordinates, num_blocks))
    middles = (jnp.arange(bins, dtype=lower.dtype) + 0.5) / bins
    return CurrentField(
        lower[:, None] + (upper - lower)[:, None] * middles[None, :],
        jnp.mean(density, 0),
        jnp.mean(current, 0),
        jnp.std(current, 0, ddof=1) / num_blocks**0.5,
    )


def current_field(
    coordinates: Any,
    *,
    bins: int = 16,
    extent: Any = None,
    num_blocks: int = 20,
) -> CurrentField:
    r"""Density of a path in a plane, and the probability current that flows through each cell.

    .. math:: J(x) = \Big\langle \frac{x_{t+1} - x_{t-1}}{2} \, \delta(x - x_t) \Big\rangle

    The centered difference turns its sign with time, so at equilibrium J vanishes everywhere.

    Args:
      coordinates: recorded path in a plane. Shape (T, 2).
      bins: cells along each component. Default 16.
      extent: the grid's limits ((low, high), (low, high)); positions outside of it count in no
        cell. Default None: the range of the path.
      num_blocks: number of consecutive blocks B whose spread gives the standard error, of
        floor((T - 1) / B) >= 2 steps; the steps left over are not used. Default 20.

    Returns:
      `CurrentField`.

    Raises:
      TypeError: the coordinates are not floats, or a number of bins or blocks is not an integer.
      ValueError: they are not in a plane, too few, or not finite; ``extent`` is empty.

    Examples:
      >>> path = rotating_double_well(0, rotation=1.5, num_steps=20_000)
      >>> field = current_field(path, bins=8, extent=((-2, 2), (-2, 2)))
      >>> field.current.shape
      (8, 8, 2)

    Reference:
      Battle et al., Broken detailed balance at mesoscopic scales in active biological systems,
      Science 352, 2016.
    """
    check_integer("bins", bins, at_least=1)
    check_integer("num_blocks", num_blocks, at_least=2)
    coordinates = as_coordinates(coordinates, num_components=2, num_steps=2 * num_blocks + 1)
    if coordinates.shape[1] != 2:
        raise ValueError(f"coordinates must have 2 components, got {coordinates.shape[1]}")
    if extent is None:
        limits = jnp.stack([jnp.min(coordinates, 0), jnp.max(coordinates, 0)], 1)
    else:
        if np.shape(extent) != (2, 2) or not np.all(np.diff(np.asarray(extent)) > 0):
            raise ValueError(f"extent must be ((low, high), (low, high)), got {extent}")
        limits = jnp.asarray(extent, coordinates.dtype)
    warn_if_backend_is_faulty()
    return _current_field(coordinates, limits, bins, num_blocks)


def _drift(x: jax.Array, rotation: jax.Array | float) -> jax.Array:
    """The toy's force: down the double well, and around."""
    downhill = jnp.stack([x[0] - x[0] ** 3, -x[1]])
    well = (x[0] ** 2 - 1) ** 2 / 4 + x[1] ** 2 / 2
    around = jnp.exp(well - jnp.sum(x**2) ** 2 / 4) * jnp.stack([-x[1], x[0]])
    return downhill + jnp.asarray(rotation, x.dtype) * around


@functools.partial(jax.jit, static_argnames="num_steps")
def _rotating_double_well(
    key: jax.Array, rotation: jax.Array | float, dt: jax.Array | float, num_steps: int
) -> jax.Array:
    noise = jax.random.normal(key, (num_steps, 2))
    interval = jnp.asarray(dt, noise.dtype)

    def step(x: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = x + _drift(x, rotation) * interval + jnp.sqrt(2 * interval) * z
        return x, x

    start = jnp.asarray([1, 0], noise.dtype)
    return jax.lax.scan(step, start, noise)[1]


def rotating_double_well(
    key: jax.Array | int, *, rotation: float, num_steps: int, dt: float = 0.01
) -> jax.Array:
    r"""A path of the toy system of the variational-inference paper, which cycles at will.

    .. math:: dx = (j - \nabla \Phi) \, dt + \sqrt2 \, dW, \qquad
        \Phi = \frac{(x_1^2 - 1)^2}{4} + \frac{x_2^2}{2}, \qquad
        j = \lambda \, e^{\Phi} e^{-(x_1^2 + x_2^2)^2 / 4} (-x_2, x_1)

    Its stationary density is :math:`e^{-\Phi} / Z` whatever the rotation; the current through it
    is :math:`j e^{-\Phi} / Z`, and the area swept per unit of time :math:`\pi \lambda / Z`.

    Args:
      key: an integer seed or a key of ``jax.random.key``.
      rotation: lambda; 0 for equilibrium, 0.5 and 1.5 in the paper.
      num_steps: number T of steps of Euler and Maruyama from the well at (1, 0).
      dt: length of a step in time. Default 0.01.

    Returns:
      The positions after every step. Shape (T, 2).

    Raises:
      TypeError: an argument is not a number, or ``key`` is not a key.
      ValueError: ``dt`` is not above 0, or ``num_steps`` is below 1.

    Examples:
      >>> rotating_double_well(0, rotation=0.5, num_steps=100).shape
      (100, 2)

    Reference:
      Chaudhari and Soatto, ICLR 2018.
    """
    check_key(key)
    check_number("rotation", rotation)
    check_number("dt", dt, above=0)
    check_integer("num_steps", num_steps, at_least=1)
    return _rotating_double_well(fresh_key(key), rotation, dt, num_steps)
