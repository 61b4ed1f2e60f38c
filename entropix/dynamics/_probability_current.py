r"""Does the path of the weights run in loops? A test for probability currents, and where they flow.

At equilibrium every piece of a path is as likely as the same piece run backwards, so the area it
sweeps in any plane averages to zero. A current, as of SGD with anisotropic noise, breaks that.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from entropix._canary import warn_if_backend_is_faulty
from entropix._checks import check_integer
from entropix._keys import check_key, fresh_key
from entropix.dynamics._trajectory import as_coordinates


class ProbabilityCurrent(NamedTuple):
    """Answer of `probability_current`; (i, j) stands for the plane of components i and j.

    Attributes:
      area_rate: signed area swept per recorded step, > 0 from i toward j.
      std_error: its standard error, from the blocks.
      z: area_rate / std_error, 0 on the diagonal.
      p_value: chance of so much rotation, over all planes, at equilibrium.
    """

    area_rate: Float[Array, "*batch k k"]
    std_error: Float[Array, "*batch k k"]
    z: Float[Array, "*batch k k"]
    p_value: Float[Array, "*batch"]


class CurrentField(NamedTuple):
    """Answer of `current_field`, on a grid of ``num_bins`` x ``num_bins`` cells.

    Attributes:
      centers: middles of the cells along each of the two components.
      density: share of the visits per unit of area.
      current: probability per unit of length and recorded step, along either component.
      std_error: standard error of ``current``, from the blocks.
    """

    centers: Float[Array, "*batch 2 num_bins"]
    density: Float[Array, "*batch num_bins num_bins"]
    current: Float[Array, "*batch num_bins num_bins 2"]
    std_error: Float[Array, "*batch num_bins num_bins 2"]


def _blocks(
    coordinates: Float[Array, "steps k"], num_blocks: int
) -> Float[Array, "{num_blocks} length k"]:
    """Consecutive pieces that share their end points, (num_blocks, length + 1, k)."""
    length = (len(coordinates) - 1) // num_blocks
    index = np.arange(num_blocks)[:, None] * length + np.arange(length + 1)[None, :]
    return coordinates[index]


def _swept_area(block: Float[Array, "length k"]) -> Float[Array, "k k"]:
    """Signed areas, in every plane, between a piece of path and its chord: a (k, k) matrix."""
    moment = jnp.matmul((block[:-1] - block[:1]).T, jnp.diff(block, axis=0), precision="highest")
    return (moment - moment.T) / 2


@functools.partial(jax.jit, static_argnames=("num_blocks", "num_surrogates"))
def _probability_current(
    coordinates: Float[Array, "steps k"], key: jax.Array, num_blocks: int, num_surrogates: int
) -> ProbabilityCurrent:
    blocks = _blocks(coordinates, num_blocks)
    rates = jax.vmap(_swept_area)(blocks) / (blocks.shape[1] - 1)
    mean = jnp.mean(rates, 0)
    std_error = jnp.std(rates, 0, ddof=1) / num_blocks**0.5
    z = jnp.where(std_error > 0, mean / jnp.where(std_error > 0, std_error, 1), 0)

    planes = rates[(slice(None), *np.triu_indices(rates.shape[1], 1))]
    spread = jnp.maximum(jnp.sum(planes**2, 0), jnp.finfo(planes.dtype).tiny)

    def rotation(signs: Float[Array, " num_blocks"]) -> Float[Array, ""]:
        return jnp.sum(jnp.matmul(signs, planes, precision="highest") ** 2 / spread)

    flips = jax.random.rademacher(key, (num_surrogates, num_blocks), planes.dtype)
    as_much = jax.lax.map(rotation, flips, batch_size=1000) >= rotation(jnp.ones_like(flips[0]))
    p_value = (1 + jnp.sum(as_much, dtype=z.dtype)) / (1 + num_surrogates)
    return ProbabilityCurrent(mean, std_error, z, p_value)


def probability_current(
    coordinates: ArrayLike,
    key: jax.Array | int,
    *,
    num_blocks: int = 50,
    num_surrogates: int = 9999,
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
      A walk that is pulled back to 0 is at equilibrium; one that is also turned is not.

      >>> import jax, jax.numpy as jnp
      >>> noise = jax.random.normal(jax.random.key(0), (5000, 2))
      >>> for turn in (0.0, 0.2):
      ...     pull = jnp.array([[0.9, -turn], [turn, 0.9]])
      ...     _, path = jax.lax.scan(lambda x, z: (pull @ x + z,) * 2, jnp.zeros(2), noise)
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


@functools.partial(jax.jit, static_argnames=("num_bins", "num_blocks"))
def _current_field(
    coordinates: Float[Array, "steps 2"],
    extent: Float[Array, "2 2"],
    num_bins: int,
    num_blocks: int,
) -> CurrentField:
    lower, upper = extent[:, 0], extent[:, 1]
    size = (upper - lower) / num_bins

    def visits(
        block: Float[Array, "length 2"],
    ) -> tuple[Float[Array, "num_bins num_bins"], Float[Array, "num_bins num_bins 2"]]:
        """Share of the visits, and mean velocity times that share, per cell and unit of area."""
        positions, velocities = block[1:-1], (block[2:] - block[:-2]) / 2
        cell = jnp.floor((positions - lower[None, :]) / size[None, :]).astype(jnp.int32)
        cell = jnp.where(positions == upper[None, :], num_bins - 1, cell)
        outside = jnp.any((cell < 0) | (cell >= num_bins), 1)
        number = jnp.where(outside, num_bins**2, cell[:, 0] * num_bins + cell[:, 1])
        marks = jnp.concatenate([jnp.ones_like(velocities[:, :1]), velocities], 1)
        total = jax.ops.segment_sum(marks, number, num_bins**2 + 1)[:-1]
        per_area = total.reshape(num_bins, num_bins, 3) / (len(positions) * size[0] * size[1])
        return per_area[..., 0], per_area[..., 1:]

    density, current = jax.vmap(visits)(_blocks(coordinates, num_blocks))
    middles = (jnp.arange(num_bins, dtype=lower.dtype) + 0.5) / num_bins
    return CurrentField(
        lower[:, None] + (upper - lower)[:, None] * middles[None, :],
        jnp.mean(density, 0),
        jnp.mean(current, 0),
        jnp.std(current, 0, ddof=1) / num_blocks**0.5,
    )


def current_field(
    coordinates: Float[ArrayLike, "steps 2"],
    *,
    num_bins: int = 16,
    extent: ArrayLike | Sequence[Sequence[float]] | None = None,
    num_blocks: int = 20,
) -> CurrentField:
    r"""Density of a path in a plane, and the probability current that flows through each cell.

    .. math:: J(x) = \Big\langle \frac{x_{t+1} - x_{t-1}}{2} \, \delta(x - x_t) \Big\rangle

    The centered difference turns its sign with time, so at equilibrium J vanishes everywhere.

    Args:
      coordinates: recorded path in a plane. Shape (T, 2).
      num_bins: cells along each component. Default 16.
      extent: the grid's limits ((low, high), (low, high)); positions outside of it count in no
        cell. Default None: the range of the path.
      num_blocks: number of consecutive blocks B whose spread gives the standard error, of
        floor((T - 1) / B) >= 2 steps; the steps left over are not used. Default 20.

    Returns:
      `CurrentField`.

    Raises:
      TypeError: the coordinates are not floats, or ``num_bins`` or ``num_blocks`` is not an
        integer.
      ValueError: they are not in a plane, too few, or not finite; ``extent`` is empty.

    Examples:
      On a circle that is walked counterclockwise the current is largest at the rim:

      >>> import jax.numpy as jnp
      >>> angle = jnp.arange(4000) / 100
      >>> path = jnp.stack([jnp.cos(angle), jnp.sin(angle)], 1)
      >>> field = current_field(path, num_bins=3, extent=((-1.1, 1.1), (-1.1, 1.1)))
      >>> bool(field.current[2, 1, 1] > 0) and bool(field.current[0, 1, 1] < 0)
      True

    Reference:
      Battle et al., Broken detailed balance at mesoscopic scales in active biological systems,
      Science 352, 2016.
    """
    check_integer("num_bins", num_bins, at_least=1)
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
    return _current_field(coordinates, limits, num_bins, num_blocks)
