r"""Is the path of the weights a Brownian motion? Spectra and correlations of recorded trajectories.

A random walk looks structured to the eye: it is strongly autocorrelated, and its principal
components draw smooth curves. Every statistic here therefore comes with surrogates: walks made of
the same increments in a random order, which is what the path would be were they independent.
Whether the path runs in closed loops is the question of `entropix.dynamics.probability_current`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from entropix._canary import warn_if_backend_is_faulty
from entropix._checks import check_float_leaves, check_integer, check_number
from entropix._keys import check_key, fresh_key


class PrincipalComponents(NamedTuple):
    """Answer of `pca_projection`.

    Attributes:
      coordinates: positions along the components, centered in time.
      explained: share of the path's variance that each component carries.
    """

    coordinates: Float[Array, "*batch steps k"]
    explained: Float[Array, "*batch k"]


class Periodogram(NamedTuple):
    """Answer of `periodogram`.

    Attributes:
      frequency: in cycles per recorded step, without 0.
      power: of each component; flat at the increments' variance if they are white.
      lower: pointwise lower edge of the surrogate band.
      upper: pointwise upper edge of the surrogate band.
      p_value: chance of so uneven a spectrum if the increments were in random order.
    """

    frequency: Float[Array, "*batch frequencies"]
    power: Float[Array, "*batch frequencies k"]
    lower: Float[Array, "*batch frequencies k"]
    upper: Float[Array, "*batch frequencies k"]
    p_value: Float[Array, "*batch"]


class Autocorrelation(NamedTuple):
    """Answer of `autocorrelation`.

    Attributes:
      correlation: of each component at lag 0, 1, ..., num_lags.
      lower: pointwise lower edge of the surrogate band.
      upper: pointwise upper edge of the surrogate band.
    """

    correlation: Float[Array, "*batch lags k"]
    lower: Float[Array, "*batch lags k"]
    upper: Float[Array, "*batch lags k"]


def as_coordinates(
    coordinates: ArrayLike, *, num_components: int = 1, num_steps: int = 4
) -> Float[Array, "steps k"]:
    """The recorded projections as a (T, k) array, or an error that says what is wrong with them."""
    coordinates = jnp.asarray(coordinates)
    check_float_leaves("coordinates", coordinates)
    if coordinates.ndim == 1:
        coordinates = coordinates[:, None]
    shape = coordinates.shape
    if len(shape) != 2 or shape[0] < num_steps or shape[1] < num_components:
        raise ValueError(
            f"coordinates must be (T, k) with T >= {num_steps} recorded steps and "
            f"k >= {num_components} components, got shape {shape}"
        )
    if not isinstance(coordinates, jax.core.Tracer):
        if not np.all(np.isfinite(coordinates)):
            raise ValueError("coordinates must be finite, got NaN or infinity")
        still = np.flatnonzero(np.ptp(coordinates, 0) == 0)
        if still.size:
            raise ValueError(f"coordinates must all move, components {still.tolist()} do not")
    return coordinates


def _snapshots(trajectory: PyTree) -> list[Float[Array, "steps _"]]:
    """The leaves of a recorded pytree as (T, d_leaf) matrices of one dtype."""
    check_float_leaves("trajectory", trajectory)
    leaves = jax.tree.leaves(trajectory)
    lengths = {np.shape(leaf)[0] if np.ndim(leaf) else None for leaf in leaves}
    if len(lengths) != 1 or lengths <= {None, 0}:
        raise ValueError(
            "trajectory must be a pytree whose leaves share one leading axis of recorded steps, "
            f"got shapes {[np.shape(leaf) for leaf in leaves]}"
        )
    double = any(jnp.result_type(leaf) == jnp.float64 for leaf in leaves)
    dtype = jnp.float64 if double else jnp.float32
    return [jnp.asarray(leaf).astype(dtype).reshape(len(leaf), -1) for leaf in leaves]


def random_projection(
    trajectory: PyTree, key: jax.Array | int, *, num_components: int = 2
) -> Float[Array, "steps {num_components}"]:
    r"""Positions of recorded weights along random unit vectors.

    .. math:: y_{t,i} = x_t \cdot u_i, \qquad u_i = n_i / |n_i|, \quad n_i \sim N(0, I)

    The directions depend on ``key`` and on the shapes alone: long runs may be projected one
    snapshot at a time, with a leading axis of 1, and never be kept whole.

    Args:
      trajectory: pytree of recorded parameters, each leaf with a leading axis of T steps.
      key: an integer seed or a key of ``jax.random.key``.
      num_components: k, number of directions. Default 2.

    Returns:
      The coordinates, in units of the parameters. Shape (T, k).

    Raises:
      TypeError: a leaf is not of floats, or ``num_components`` is not an integer.
      ValueError: there is no leaf, or leaves differ in their leading axis.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> weights = {"w": jnp.ones((100, 3, 4)), "b": jnp.zeros((100, 4))}
      >>> random_projection(weights, jax.random.key(0), num_components=5).shape
      (100, 5)
    """
    check_key(key)
    check_integer("num_components", num_components, at_least=1)
    snapshots = _snapshots(trajectory)
    keys = jax.random.split(fresh_key(key), len(snapshots))
    directions = [
        jax.random.normal(leaf_key, (snapshot.shape[1], num_components), snapshot.dtype)
        for leaf_key, snapshot in zip(keys, snapshots, strict=True)
    ]
    length = jnp.sqrt(
        sum((jnp.sum(u**2, 0) for u in directions), jnp.zeros((), snapshots[0].dtype))
    )
    pieces = [
        jnp.matmul(x, u, precision="highest") for x, u in zip(snapshots, directions, strict=True)
    ]
    return jnp.sum(jnp.stack(pieces), 0) / length[None, :]


def pca_projection(trajectory: PyTree, *, num_components: int = 2) -> PrincipalComponents:
    r"""Positions of recorded weights along their principal components.

    .. math:: y_{t,i} = (x_t - \bar x) \cdot v_i, \qquad C v_i = \lambda_i v_i,
        \quad C = \tfrac1T \sum_t (x_t - \bar x)(x_t - \bar x)^T

    from the T x T Gram matrix, so the number of parameters matters little. Beware: the principal
    components of a high-dimensional random walk are cosines of time, whose planes show arcs and
    loops that mean nothing. Test for loops on a `random_projection`.

    Args:
      trajectory: pytree of recorded parameters, each leaf with a leading axis of T steps.
      num_components: k, number of components. At most T. Default 2.

    Returns:
      `PrincipalComponents`, the largest first.

    Raises:
      TypeError: a leaf is not of floats, or ``num_components`` is not an integer.
      ValueError: there is no leaf, leaves differ in their leading axis, or k exceeds T.

    Examples:
      >>> import jax.numpy as jnp
      >>> steps = jnp.linspace(0.0, 1.0, 50)
      >>> line = {"w": steps[:, None] * jnp.array([3.0, 4.0])}
      >>> print(f"{pca_projection(line, num_components=1).explained[0]:.3f}")
      1.000

    Reference:
      Antognini and Sohl-Dickstein, PCA of high dimensional random walks, NeurIPS 2018.
    """
    check_integer("num_components", num_components, at_least=1)
    snapshots = _snapshots(trajectory)
    num_steps = len(snapshots[0])
    if num_components > num_steps:
        raise ValueError(
            f"num_components must be at most the {num_steps} recorded steps, got {num_components}"
        )
    centered = [x - jnp.mean(x, 0, keepdims=True) for x in snapshots]
    gram = jnp.sum(jnp.stack([jnp.matmul(x, x.T, precision="highest") for x in centered]), 0)
    eigenvalues, eigenvectors = jnp.linalg.eigh(gram)
    top = jnp.maximum(eigenvalues[::-1][:num_components], 0)
    coordinates = eigenvectors[:, ::-1][:, :num_components] * jnp.sqrt(top)[None, :]
    return PrincipalComponents(coordinates, top / jnp.trace(gram))


def _band(
    statistics: Float[Array, "surrogates points k"], level: jax.Array | float
) -> tuple[Float[Array, "points k"], Float[Array, "points k"]]:
    """The pointwise ``level`` interval of statistics stacked over surrogates."""
    tail = (1 - jnp.asarray(level, statistics.dtype)) / 2
    lower, upper = jnp.quantile(statistics, jnp.stack([tail, 1 - tail]), axis=0)
    return lower, upper


def _spectrum(increments: Float[Array, "steps k"]) -> Float[Array, "frequencies k"]:
    """|FFT|^2 / n of the centered increments at the frequencies above 0."""
    centered = increments - jnp.mean(increments, 0, keepdims=True)
    return jnp.abs(jnp.fft.rfft(centered, axis=0)[1:]) ** 2 / len(increments)


def _unevenness(power: Float[Array, "frequencies k"]) -> Float[Array, ""]:
    """Kolmogorov-Smirnov distance of the cumulative power from a straight line."""
    share = jnp.mean(power / jnp.sum(power, 0, keepdims=True), 1)
    flat = jnp.arange(1, len(share) + 1, dtype=share.dtype) / len(share)
    return jnp.max(jnp.abs(jnp.cumsum(share) - flat))


@functools.partial(jax.jit, static_argnames="num_surrogates")
def _periodogram(
    coordinates: Float[Array, "steps k"],
    key: jax.Array,
    num_surrogates: int,
    level: jax.Array | float,
) -> Periodogram:
    increments = jnp.diff(coordinates, axis=0)
    power = _spectrum(increments)
    shuffled = jax.lax.map(
        lambda k: _spectrum(jax.random.permutation(k, increments)),
        jax.random.split(key, num_surrogates),
    )
    as_uneven = jax.vmap(_unevenness)(shuffled) >= _unevenness(power)
    p_value = (1 + jnp.sum(as_uneven, dtype=power.dtype)) / (1 + num_surrogates)
    frequency = jnp.fft.rfftfreq(len(increments), dtype=power.dtype)[1:]
    return Periodogram(frequency, power, *_band(shuffled, level), p_value)


def periodogram(
    coordinates: Float[ArrayLike, " steps *k"],
    key: jax.Array | int,
    *,
    num_surrogates: int = 200,
    level: float = 0.99,
) -> Periodogram:
    r"""Power spectrum of the increments of a path, against the same increments in random order.

    .. math:: I(f_j) = \frac1n \Big| \sum_{t=1}^{n} (\Delta x_t - \overline{\Delta x})
        \, e^{-2 \pi i f_j t} \Big|^2, \qquad f_j = j / n, \quad j = 1 \ldots \lfloor n / 2 \rfloor

    White increments, those of a Brownian motion, have a flat spectrum at the height of their
    variance. A bump at low frequencies is the sign of slow loops. Surrogates shuffle the
    increments, all components alike, and keep their distribution. The p-value is of the
    Kolmogorov-Smirnov distance between the cumulative spectrum (mean over the components, each
    normalized) and a straight line.

    Args:
      coordinates: recorded path, such as a `random_projection`. Shape (T, k) or (T,), T >= 4.
      key: an integer seed or a key of ``jax.random.key``, for the shuffles.
      num_surrogates: number of shuffles S; the p-value is at least 1 / (S + 1). Default 200.
      level: coverage of the pointwise band, in (0, 1). Default 0.99.

    Returns:
      `Periodogram`.

    Raises:
      TypeError: the coordinates are not floats, ``key`` is not a key, or ``num_surrogates``
        is not an integer.
      ValueError: too few steps, a NaN among them, or ``level`` outside (0, 1).

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> walk = jnp.cumsum(jax.random.normal(jax.random.key(0), (1000, 3)), 0)
      >>> bool(periodogram(walk, jax.random.key(1)).p_value > 0.01)
      True

    Reference:
      Chaudhari and Soatto, Stochastic gradient descent performs variational inference, converges
      to limit cycles for deep networks, ICLR 2018.
    """
    check_key(key)
    check_integer("num_surrogates", num_surrogates, at_least=1)
    check_number("level", level, above=0, below=1)
    warn_if_backend_is_faulty()
    return _periodogram(as_coordinates(coordinates), fresh_key(key), num_surrogates, level)


def _correlations(path: Float[Array, "steps k"], num_lags: int) -> Float[Array, "lags k"]:
    """The biased sample autocorrelation, by a zero-padded FFT."""
    centered = path - jnp.mean(path, 0, keepdims=True)
    spectrum = jnp.abs(jnp.fft.rfft(centered, 2 * len(path), axis=0)) ** 2
    covariance = jnp.fft.irfft(spectrum, 2 * len(path), axis=0)[: num_lags + 1]
    return covariance / covariance[:1]


@functools.partial(jax.jit, static_argnames=("num_lags", "num_surrogates"))
def _autocorrelation(
    coordinates: Float[Array, "steps k"],
    key: jax.Array,
    num_lags: int,
    num_surrogates: int,
    level: jax.Array | float,
) -> Autocorrelation:
    increments = jnp.diff(coordinates, axis=0)

    def surrogate(key: jax.Array) -> jax.Array:
        walk = jnp.cumsum(jax.random.permutation(key, increments), 0)
        return _correlations(jnp.concatenate([jnp.zeros_like(walk[:1]), walk]), num_lags)

    walks = jax.lax.map(surrogate, jax.random.split(key, num_surrogates))
    return Autocorrelation(_correlations(coordinates, num_lags), *_band(walks, level))


def autocorrelation(
    coordinates: Float[ArrayLike, " steps *k"],
    key: jax.Array | int,
    *,
    num_lags: int,
    num_surrogates: int = 200,
    level: float = 0.99,
) -> Autocorrelation:
    r"""Autocorrelation of a path, against that of random walks with the same increments.

    .. math:: r(l) = \frac{\sum_{t=1}^{T-l} (x_t - \bar x)(x_{t+l} - \bar x)}
        {\sum_{t=1}^{T} (x_t - \bar x)^2}

    The customary band of :math:`\pm 2.576 / \sqrt T` is that of independent positions, which no
    walk has: a plain random walk leaves it at nearly every lag. The band here is that of random
    walks whose steps are the path's own, shuffled.

    Args:
      coordinates: recorded path, such as a `random_projection`. Shape (T, k) or (T,), T >= 4.
      key: an integer seed or a key of ``jax.random.key``, for the shuffles.
      num_lags: largest lag, in recorded steps. From 1 to T - 1.
      num_surrogates: number of shuffles. Default 200.
      level: coverage of the pointwise band, in (0, 1). Default 0.99.

    Returns:
      `Autocorrelation`.

    Raises:
      TypeError: the coordinates are not floats, ``key`` is not a key, or a number of lags or
        shuffles is not an integer.
      ValueError: too few steps, a NaN among them, ``num_lags`` or ``level`` out of range.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> walk = jnp.cumsum(jax.random.normal(jax.random.key(0), (500,)))
      >>> found = autocorrelation(walk, jax.random.key(1), num_lags=20)
      >>> bool(jnp.all(found.correlation > 2.576 / 500**0.5))
      True
      >>> bool(jnp.all((found.lower <= found.correlation) & (found.correlation <= found.upper)))
      True

    Reference:
      Chaudhari and Soatto, ICLR 2018.
    """
    check_integer("num_lags", num_lags, at_least=1)
    check_key(key)
    check_integer("num_surrogates", num_surrogates, at_least=1)
    check_number("level", level, above=0, below=1)
    coordinates = as_coordinates(coordinates)
    if num_lags >= len(coordinates):
        raise ValueError(
            f"num_lags must be below the {len(coordinates)} recorded steps, got {num_lags}"
        )
    warn_if_backend_is_faulty()
    return _autocorrelation(coordinates, fresh_key(key), num_lags, num_surrogates, level)
