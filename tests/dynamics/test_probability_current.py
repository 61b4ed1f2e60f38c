"""The test for currents holds its level on paths without, and finds those of the toy system."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropix.dynamics import current_field, probability_current
from tests.dynamics.double_well import rotating_double_well

GRID = np.linspace(-6, 6, 24_001)
# Z = integral of exp(-Phi) over the plane.
NORMALIZER = np.sqrt(2 * np.pi) * np.sum(np.exp(-((GRID**2 - 1) ** 2) / 4)) * (GRID[1] - GRID[0])


@functools.cache
def toys(rotation, num_paths=40, num_steps=20_000):
    keys = jax.random.split(jax.random.key(0), num_paths)
    simulate = jax.vmap(lambda k: rotating_double_well(k, rotation=rotation, num_steps=num_steps))
    return simulate(keys)


def p_values(paths, **options):
    keys = jax.random.split(jax.random.key(1), len(paths))
    options = {"num_surrogates": 1999} | options
    return jax.vmap(lambda x, k: probability_current(x, k, **options).p_value)(paths, keys)


def test_area_rate_of_the_toy_is_pi_lambda_over_z():
    for rotation in (0.0, 0.5, 1.5):
        paths = toys(rotation)
        found = jax.vmap(lambda x: probability_current(x, 0, num_blocks=10, num_surrogates=1))(
            paths
        )
        rate = np.asarray(found.area_rate[:, 0, 1]) / 0.01
        expected = np.pi * rotation / NORMALIZER
        error = rate.std(ddof=1) / len(rate) ** 0.5
        # Blocks of 20 time units close by a chord, and Euler's step is finite: 3 % between them.
        assert abs(rate.mean() - expected) < 4 * error + 0.03 * expected
        claimed = np.sqrt(np.mean(np.asarray(found.std_error[:, 0, 1]) ** 2)) / 0.01
        assert 0.7 < claimed / rate.std(ddof=1) < 1.4
        np.testing.assert_allclose(
            found.area_rate, -np.swapaxes(found.area_rate, 1, 2), rtol=1e-4, atol=1e-6
        )


def test_finds_the_current_of_the_toy_and_none_at_equilibrium():
    at_rest = p_values(toys(0.0))
    assert float(jnp.mean(at_rest < 0.05)) <= 0.15
    assert 0.25 < float(jnp.mean(at_rest < 0.5)) < 0.75
    assert float(jnp.max(p_values(toys(1.5)))) < 0.001
    assert float(jnp.mean(p_values(toys(0.5)) < 0.05)) > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("drift", [0.0, 0.5])
def test_brownian_motion_is_not_rejected(drift):
    increments = jax.random.normal(jax.random.key(2), (200, 501, 5)) + drift
    found = p_values(jnp.cumsum(increments, 1), num_surrogates=199)
    assert 0.01 <= float(jnp.mean(found < 0.05)) <= 0.1
    assert 0.4 < float(jnp.mean(found < 0.5)) < 0.6


def test_areas_of_known_paths():
    angle = 2 * np.pi * np.arange(3001) / 1000
    circle = np.stack([2 * np.cos(angle), 2 * np.sin(angle), angle], 1)
    found = probability_current(circle, 0, num_blocks=3, num_surrogates=99)
    np.testing.assert_allclose(found.area_rate[0, 1], 4 * np.pi / 1000, rtol=1e-4)
    np.testing.assert_allclose(found.area_rate[1, 0], -4 * np.pi / 1000, rtol=1e-4)
    backwards = probability_current(circle[::-1], 0, num_blocks=3, num_surrogates=99)
    np.testing.assert_allclose(backwards.area_rate, -found.area_rate, atol=1e-5)
    moved = probability_current(circle + 10, 0, num_blocks=3, num_surrogates=99)
    np.testing.assert_allclose(moved.area_rate, found.area_rate, atol=1e-5)


def test_field_of_the_toy_is_its_exact_current_and_density():
    path = rotating_double_well(jax.random.key(0), rotation=1.5, num_steps=1_000_000)
    field = current_field(path, num_bins=12, extent=((-2.4, 2.4), (-2.4, 2.4)))
    fine = (np.arange(120) + 0.5) * 0.04 - 2.4
    x, y = np.meshgrid(fine, fine, indexing="ij")

    def over_cells(values):
        return values.reshape(12, 10, 12, 10).mean((1, 3))

    density = over_cells(np.exp(-((x**2 - 1) ** 2) / 4 - y**2 / 2)) / NORMALIZER
    speed = 1.5 * np.exp(-((x**2 + y**2) ** 2) / 4) / NORMALIZER
    current = np.stack([over_cells(-y * speed), over_cells(x * speed)], -1) * 0.01
    assert np.max(np.abs(field.density - density)) < 0.1 * density.max()
    seen = density > 0.01
    z = ((np.asarray(field.current) - current) / np.asarray(field.std_error))[seen]
    assert 0.8 < np.std(z) < 1.35
    assert np.mean(np.abs(np.asarray(field.current)[seen]) / np.asarray(field.std_error)[seen]) > 3
    np.testing.assert_allclose(field.centers[0, :2], [-2.2, -1.8], rtol=1e-5)


def test_field_counts_every_visit_within_the_extent():
    path = np.random.default_rng(0).normal(size=(2001, 2))
    field = current_field(path, num_bins=5, num_blocks=20)
    area = np.prod(np.ptp(path, 0)) / 25
    interior = path[: 20 * 100 + 1].reshape(-1, 2)
    kept = np.concatenate([interior[b * 100 + 1 : b * 100 + 100] for b in range(20)])
    counts, *_ = np.histogram2d(
        kept[:, 0], kept[:, 1], 5, [(path[:, i].min(), path[:, i].max()) for i in range(2)]
    )
    np.testing.assert_allclose(field.density * area * len(kept), counts, atol=1e-2)


@pytest.mark.slow
def test_jit_equals_eager():
    path = rotating_double_well(jax.random.key(0), rotation=1.5, num_steps=300)
    compiled = jax.jit(lambda x: probability_current(x, 0, num_surrogates=9))(path)
    with jax.disable_jit():
        eager = probability_current(path, 0, num_surrogates=9)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3), compiled, eager)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: probability_current(p[:, :1], 0), ValueError, "k >= 2 components"),
        (lambda p: probability_current(p[:100], 0), ValueError, "T >= 101 recorded steps"),
        (lambda p: probability_current(p, 0, num_blocks=1), ValueError, "num_blocks .*got 1"),
        (lambda p: probability_current(p, None), TypeError, "key must be"),
        (lambda p: current_field(np.repeat(p, 2, 1)), ValueError, "2 components, got 4"),
        (lambda p: current_field(p, num_bins=0), ValueError, "num_bins .*got 0"),
        (lambda p: current_field(p, extent=((0, 1), (1, 1))), ValueError, "extent must be"),
        (lambda p: current_field(p * np.inf), ValueError, "coordinates must be finite"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(np.random.default_rng(0).normal(size=(200, 2)))
