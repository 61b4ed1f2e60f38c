"""Spectra, correlations and projections of paths, against NumPy and against known processes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropix.dynamics import autocorrelation, pca_projection, periodogram, random_projection


def walk(seed, shape=(400, 2)):
    return np.cumsum(np.random.default_rng(seed).normal(size=shape), 0)


def mean_reverting(seed, num_steps=400, decay=0.5):
    rng = np.random.default_rng(seed)
    x = np.zeros((num_steps, 2))
    for t in range(1, num_steps):
        x[t] = decay * x[t - 1] + rng.normal(size=2)
    return x


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("num_steps", [4, 101, 400])
def test_periodogram_is_the_discrete_fourier_sum(num_steps):
    path = walk(0, (num_steps, 2))
    increments = np.diff(path, axis=0)
    n = len(increments)
    found = periodogram(path, 0, num_surrogates=3)
    t = np.arange(1, n + 1)
    for j, frequency in enumerate(np.arange(1, n // 2 + 1) / n):
        wave = np.exp(-2j * np.pi * frequency * t)
        expected = np.abs(wave @ (increments - increments.mean(0))) ** 2 / n
        np.testing.assert_allclose(found.power[j], expected, rtol=1e-8)
        np.testing.assert_allclose(found.frequency[j], frequency)
    assert len(found.power) == n // 2


@pytest.mark.slow
def test_periodogram_accepts_walks_and_rejects_loops_and_reversion():
    p_values = [float(periodogram(walk(seed), seed).p_value) for seed in range(20)]
    assert min(p_values) > 0
    assert 3 <= sum(p > 0.5 for p in p_values) <= 17
    assert float(periodogram(mean_reverting(0), 0).p_value) < 0.01
    loop = np.stack([np.cos(np.arange(400) / 20), np.sin(np.arange(400) / 20)], 1)
    assert float(periodogram(walk(1) + 10 * loop, 0).p_value) < 0.01


def test_periodogram_band_covers_white_increments_pointwise():
    found = periodogram(walk(3, (2001, 1)), 0, num_surrogates=400, level=0.9)
    inside = (found.lower <= found.power) & (found.power <= found.upper)
    assert 0.86 < float(jnp.mean(inside)) < 0.94


@pytest.mark.usefixtures("x64")
def test_autocorrelation_is_the_sum_over_lagged_pairs():
    path = walk(0)
    found = autocorrelation(path, 0, num_lags=399, num_surrogates=2)
    centered = path - path.mean(0)
    for lag in (0, 1, 50, 399):
        expected = (centered[: 400 - lag] * centered[lag:]).sum(0) / (centered**2).sum(0)
        np.testing.assert_allclose(found.correlation[lag], expected, atol=1e-12)


@pytest.mark.slow
def test_autocorrelation_band_knows_that_a_random_walk_is_correlated():
    customary = 2.576 / 400**0.5
    inside, beyond_customary = [], []
    for seed in range(20):
        found = autocorrelation(walk(seed), seed, num_lags=30)
        inside.append((found.lower <= found.correlation) & (found.correlation <= found.upper))
        beyond_customary.append(found.correlation[1:] > customary)
    assert np.mean(beyond_customary) > 0.95
    assert np.mean(inside) > 0.9
    reverting = autocorrelation(mean_reverting(0), 0, num_lags=30)
    assert bool(jnp.all(reverting.correlation[1:6] < reverting.lower[1:6]))


@pytest.mark.usefixtures("x64")
def test_pca_projection_is_the_singular_value_decomposition():
    rng = np.random.default_rng(0)
    tree = {"a": rng.normal(size=(12, 3, 2)), "b": rng.normal(size=(12, 5))}
    flat = np.concatenate([tree["a"].reshape(12, -1), tree["b"]], 1)
    u, s, _ = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    found = pca_projection(tree, num_components=3)
    np.testing.assert_allclose(found.explained, (s**2 / np.sum(s**2))[:3], rtol=1e-10)
    np.testing.assert_allclose(np.abs(found.coordinates), np.abs(u * s)[:, :3], rtol=1e-8)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_random_projection_is_linear_and_of_unit_directions():
    identity = {"a": jnp.eye(6)[:, :4].reshape(6, 2, 2), "b": jnp.eye(6)[:, 4:]}
    directions = random_projection(identity, 0, num_components=3)
    np.testing.assert_allclose(jnp.linalg.norm(directions, axis=0), 1.0)
    rng = np.random.default_rng(0)
    tree = {"a": rng.normal(size=(9, 2, 2)), "b": rng.normal(size=(9, 2))}
    flat = np.concatenate([tree["a"].reshape(9, 4), tree["b"]], 1)
    found = random_projection(tree, 0, num_components=3)
    np.testing.assert_allclose(found, flat @ np.asarray(directions), rtol=1e-12)
    for t in range(9):
        snapshot = jax.tree.map(lambda leaf, t=t: leaf[t : t + 1], tree)
        one = random_projection(snapshot, 0, num_components=3)
        np.testing.assert_allclose(one[0], found[t], rtol=1e-12)


def test_half_precision_and_mixed_trees_are_projected_in_float32():
    tree = {"a": jnp.ones((5, 3), jnp.bfloat16), "b": jnp.ones((5, 2), jnp.float16)}
    with jax.numpy_dtype_promotion("strict"):
        assert random_projection(tree, 0).dtype == jnp.float32
        assert pca_projection({"a": jnp.arange(5, dtype=jnp.bfloat16)}).coordinates.shape == (5, 2)


@pytest.mark.slow
def test_under_jit_and_vmap():
    paths = jnp.asarray(np.stack([walk(0, (50, 2)), walk(1, (50, 2))]), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 2)
    for statistic in (
        lambda x, k: periodogram(x, k, num_surrogates=5),
        lambda x, k: autocorrelation(x, k, num_lags=4, num_surrogates=5),
    ):
        together = jax.jit(jax.vmap(statistic))(paths, keys)
        alone = [statistic(x, k) for x, k in zip(paths, keys, strict=True)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3), together, stacked)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: periodogram(np.zeros((3, 2)), 0), ValueError, r"T >= 4.*got shape \(3, 2\)"),
        (lambda: periodogram(np.zeros((9, 2, 1)), 0), ValueError, r"got shape \(9, 2, 1\)"),
        (lambda: periodogram(np.zeros((9, 2), int), 0), TypeError, "coordinates must hold"),
        (lambda: periodogram(walk(0) * np.nan, 0), ValueError, "coordinates must be finite"),
        (lambda: periodogram(walk(0) * [1, 0], 0), ValueError, r"components \[1\] do not"),
        (lambda: periodogram(walk(0), 0.5), TypeError, "key must be .* got 0.5"),
        (lambda: periodogram(walk(0), 0, level=1), ValueError, "level .*got 1"),
        (lambda: periodogram(walk(0), 0, num_surrogates=0), ValueError, "num_surrogates must be"),
        (lambda: autocorrelation(walk(0), 0, num_lags=400), ValueError, "num_lags must be below"),
        (lambda: random_projection({"a": np.ones((3, 2)), "b": np.ones((4, 2))}, 0), ValueError,
         "share one leading axis"),
        (lambda: random_projection({}, 0), ValueError, "share one leading axis"),
        (lambda: random_projection({"a": np.ones(3, int)}, 0), TypeError, "trajectory must hold"),
        (lambda: pca_projection({"a": np.ones((3, 2))}, num_components=4), ValueError,
         "at most the 3 recorded steps, got 4"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
