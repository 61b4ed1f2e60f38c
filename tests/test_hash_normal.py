"""The hash's normal numbers: exact distribution, independence over positions, keys and steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import entropix
from entropix._hash_normal import _CUBIC, _LINEAR, normal_like


def draw(seed, size):
    return normal_like(jax.random.key(seed), jnp.zeros(size))


def lattice():
    """The exact law of binomial + triangular: its values v and distribution function at them."""
    v = np.linspace(-17, 17, 400_001)
    successes = np.arange(33)
    weights = scipy.stats.binom(32, 0.5).pmf(successes)
    triangular = scipy.stats.triang(0.5, loc=-1, scale=2).cdf
    return v, sum(w * triangular(v - (s - 16)) for w, s in zip(weights, successes, strict=True))


def test_constants_give_the_moments_of_the_normal():
    v, distribution = lattice()
    mass, middle = np.diff(distribution), (v[1:] + v[:-1]) / 2
    w = middle * (_LINEAR + _CUBIC * middle**2)
    assert np.sum(mass * w**2) == pytest.approx(1, abs=1e-7)
    assert np.sum(mass * w**4) == pytest.approx(3, abs=1e-6)


def test_exact_distribution_is_close_to_the_normal():
    v, distribution = lattice()
    w = v * (_LINEAR + _CUBIC * v**2)
    assert np.abs(distribution - scipy.stats.norm.cdf(w)).max() < 1.7e-4
    tail = np.searchsorted(w, -4)
    assert distribution[tail] / scipy.stats.norm.cdf(-4) == pytest.approx(1, abs=0.06)


def test_sample_follows_the_exact_distribution():
    v, distribution = lattice()
    sample = np.asarray(draw(0, 1_000_000), float)
    cdf = lambda x: np.interp(x, v * (_LINEAR + _CUBIC * v**2), distribution)
    assert scipy.stats.kstest(sample, cdf).pvalue > 1e-3


def test_moments_and_correlations_over_many_keys_are_those_of_independent_normals():
    """Each statistic is N(0, 1) under independence; its spread over 300 keys says so."""
    size = 40_000

    def statistics(key):
        z = normal_like(key, jnp.zeros(size))
        lags = [jnp.sum(z[lag:] * z[:-lag]) for lag in (1, 2, 64, 1000)]
        return (
            jnp.stack([jnp.sum(z), jnp.sum(z**2 - 1) / 2**0.5, jnp.sum(z**3) / 15**0.5, *lags])
            / size**0.5
        )

    observed = jax.lax.map(statistics, jax.random.split(jax.random.key(1), 300))
    np.testing.assert_allclose(observed.mean(0), 0, atol=4 / 300**0.5)
    np.testing.assert_allclose(observed.std(0), 1, atol=4 / 600**0.5)


@pytest.mark.slow
def test_steps_and_leaves_are_independent():
    size, steps = 50_000, 100
    keys = jax.vmap(lambda step: jax.random.fold_in(jax.random.key(3), step))(jnp.arange(steps))
    tree = jax.vmap(lambda key: normal_like(key, (jnp.zeros(size), jnp.zeros(size))))(keys)
    streams = jnp.concatenate(tree)
    correlations = np.asarray(streams @ streams.T) / size**0.5
    off_diagonal = correlations[np.triu_indices(2 * steps, 1)]
    assert np.abs(off_diagonal).max() < 5.5
    assert off_diagonal.std() == pytest.approx(1, abs=0.03)


def test_each_coordinate_varies_over_steps():
    """Time series at one position: lag correlations vanish, so Langevin paths do not repeat."""
    keys = jax.vmap(lambda step: jax.random.fold_in(jax.random.key(4), step))(jnp.arange(20_000))
    series = jax.lax.map(lambda key: normal_like(key, jnp.zeros((2, 3))), keys, batch_size=1000)
    for lag in (1, 2, 20):
        correlation = jnp.sum(series[lag:] * series[:-lag], 0) / 20_000**0.5
        assert jnp.abs(correlation).max() < 4.5


@pytest.mark.slow
def test_shape_does_not_matter_and_sharding_follows():
    flat = draw(5, 24)
    np.testing.assert_array_equal(draw(5, (2, 3, 4)).ravel(), flat)
    assert draw(5, ()).shape == ()
    mesh = jax.make_mesh((4,), ("x",), (AxisType.Explicit,), devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        sharded = jax.device_put(jnp.zeros(24), NamedSharding(mesh, P("x")))
        noise = jax.jit(normal_like)(jax.random.key(5), sharded)
        assert jax.typeof(noise) == jax.typeof(sharded)
    np.testing.assert_array_equal(jax.device_get(noise), flat)


@pytest.mark.parametrize("opaque", [False, True])
def test_entropy_sgd_noise_has_the_papers_standard_deviation(opaque):
    """Without gradient and pull, the inner steps are a random walk of std sqrt(eta') eps."""
    size, inner_steps = 200_000, 4
    tx = entropix.entropy_sgd(
        1.0, inner_learning_rate=0.25, inner_steps=inner_steps, gamma=0.0, noise=0.1, ema_decay=0.0,
        momentum=None, opaque=opaque, key=7,
    )  # fmt: skip
    x = jnp.zeros(size)
    state = tx.init(x)
    if opaque:
        updates, state = tx.update(x, state, x, grad_fn=lambda params, step: jnp.zeros_like(params))
        x = x + updates
    else:
        for step in range(inner_steps):
            updates, state = tx.update(jnp.zeros(size), state, x)
            if step < inner_steps - 1:  # the last one holds the outer step too
                assert updates.std() == pytest.approx(0.05, rel=0.01)
            x = x + updates
    assert x.std() == pytest.approx(0.05 * inner_steps**0.5, rel=0.01)
    assert abs(float(x.mean())) < 5 * 0.1 / size**0.5


def test_transparent_and_opaque_draw_the_same_noise():
    arguments = dict(inner_learning_rate=0.1, inner_steps=3, noise=0.1, key=3)
    transparent = entropix.entropy_sgd(**arguments)
    opaque = entropix.entropy_sgd(opaque=True, **arguments)
    x = y = jnp.ones(50)
    state, opaque_state = transparent.init(x), opaque.init(y)
    for _ in range(2):
        for _ in range(3):
            updates, state = transparent.update(x, state, x)
            x = x + updates
        updates, opaque_state = opaque.update(
            y, opaque_state, y, grad_fn=lambda params, step: params
        )
        y = y + updates
    np.testing.assert_allclose(x, y, atol=1e-6)


def test_sgld_samples_the_gibbs_distribution():
    """On f = h x^2 / 2 the discrete chain has variance 2 eta T / (1 - (1 - eta h)^2) exactly."""
    eta, temperature, curvature = 0.1, 0.3, jnp.array([[1.0], [4.0]])
    tx = entropix.sgld(eta, temperature=temperature, key=2)
    x = jnp.zeros((2, 5000))

    def step(carry, _):
        x, state = carry
        updates, state = tx.update(curvature * x, state)
        return (optax.apply_updates(x, updates), state), x

    _, path = jax.lax.scan(step, (x, tx.init(x)), length=400)
    samples = path[100:]
    expected = 2 * eta * temperature / (1 - (1 - eta * curvature[:, 0]) ** 2)
    np.testing.assert_allclose(samples.var((0, 2)), expected, rtol=0.02)
    standardized = np.asarray(samples[::40]) / np.sqrt(expected)[:, None]
    assert abs(scipy.stats.kurtosis(standardized, axis=None)) < 0.1


def test_sgld_schedules_move_the_noise_with_the_step():
    tx = entropix.sgld(lambda step: 0.5**step, temperature=2.0)
    state = tx.init(jnp.zeros(100_000))
    for step in range(3):
        updates, state = tx.update(jnp.zeros(100_000), state)
        assert updates.std() == pytest.approx((2 * 0.5**step * 2.0) ** 0.5, rel=0.02)
