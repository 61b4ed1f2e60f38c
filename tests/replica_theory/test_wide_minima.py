"""Local entropies of the widest minima against tables, limits, and direct maximization."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_ndtr, ndtr

from entropix.replica_theory import franz_parisi, replica_symmetric, wide_minima
from entropix.replica_theory._committee_replicas import best_shifts
from entropix.replica_theory._replicas import best_shift

Z = np.linspace(-9, 9, 1801)
DZ = np.exp(-(Z**2) / 2) / np.exp(-(Z**2) / 2).sum()


def spherical(alpha, distance, **machine):
    return wide_minima(alpha, jnp.asarray(distance), weights="spherical", **machine)


@pytest.mark.parametrize("log_delta", [-8.0, 0.0, 2.0, 30.0])
def test_shift_is_the_maximum(log_delta, x64):
    variance = 0.1
    h = np.array([-3.0, -0.5, 0.0, 0.2, 1.5])
    best = best_shift(jnp.asarray(h), jnp.asarray(log_delta), jnp.asarray(variance))
    for field, value, shift in zip(h, best.value, best.shift, strict=True):
        cost = lambda s, f=field: (
            s**2 * math.exp(-log_delta) / 2 - log_ndtr((f + s) / math.sqrt(variance))
        )
        found = minimize_scalar(cost, bounds=(0, 9), method="bounded", options={"xatol": 1e-10})
        assert float(value) == pytest.approx(-found.fun, abs=1e-9)
        # Where the cost is flat to rounding SciPy's position is not defined.
        if found.fun > 1e-6:
            assert float(shift) == pytest.approx(found.x, abs=2e-4)
    assert np.all(np.asarray(best.shift) > 0)


@pytest.mark.parametrize("output", ["majority", pytest.param("parity", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_shifts_of_three_units_are_the_maximum_on_a_grid(output, x64):
    variance, log_delta = 0.2, 0.5
    axis = np.linspace(-3, 3, 61)
    u = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    a, b, c = ndtr(u / math.sqrt(variance)).T
    probability = {
        "majority": a * b + a * c + b * c - 2 * a * b * c,
        "parity": (1 + (2 * a - 1) * (2 * b - 1) * (2 * c - 1)) / 2,
    }[output]
    fields = np.array([[-0.6, -0.4, 0.9], [-1.0, 0.3, 0.7], [0.8, 0.5, -0.9], [-0.2, -1.0, -1.5]])
    best = jax.vmap(best_shifts, in_axes=(0, None, None, None))(
        jnp.asarray(fields), jnp.asarray(log_delta), jnp.asarray(variance), output
    )
    for h, value in zip(fields, best.value, strict=True):
        gain = np.log(probability) - np.sum((u - h) ** 2, axis=1) / (2 * math.exp(log_delta))
        assert float(value) == pytest.approx(gain.max(), abs=2e-2)
        assert float(value) > gain.max() - 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("alpha", "distance", "entropy"),
    [
        (0.5, [0.05, 0.1, 0.2, 0.3, 0.5], [-0.00002, -0.00205, -0.02181, -0.05220, -0.11990]),
        (
            1.0,
            [0.02, 0.05, 0.1, 0.2, 0.3, 0.5],
            [-0.00001, -0.00621, -0.05292, -0.16997, -0.26671, -0.41727],
        ),
        (1.5, [0.05, 0.1, 0.2], [-0.05145, -0.20179, -0.43234]),
    ],
)
def test_large_committee_table(alpha, distance, entropy, x64):
    curve = spherical(alpha, distance, num_hidden=math.inf)
    np.testing.assert_allclose(curve.entropy, entropy, atol=6e-6)
    assert np.all(curve.converged)
    assert not np.any(curve.beyond_typical)


def test_spherical_perceptron_table(x64):
    curve = spherical(1.0, [0.05, 0.1, 0.2])
    np.testing.assert_allclose(curve.entropy, [-0.0120, -0.05737, -0.16810], atol=6e-5)


@pytest.mark.parametrize("distance", [pytest.param(0.1, marks=pytest.mark.slow), 0.4])
def test_spherical_perceptron_is_the_minimum_of_a_direct_maximization(distance, x64):
    """The defining min-max on a grid of shifts, in NumPy."""
    q1, shifts = 1 - distance, np.linspace(0, 6, 3001)
    gain = log_ndtr((math.sqrt(q1) * Z[::6, None] + shifts) / math.sqrt(distance))
    weights = DZ[::6] / DZ[::6].sum()

    def entropy(log_delta):
        delta = math.exp(log_delta)
        best = np.max(gain - shifts**2 / (2 * delta), axis=1)
        return q1 / (2 * (1 - q1 + delta)) + weights @ best

    found = minimize_scalar(entropy, bounds=(-6, 4), method="bounded")
    assert float(spherical(1.0, distance).entropy) == pytest.approx(found.fun, abs=2e-5)


@pytest.mark.slow
def test_full_density_close_by_exactly_below_the_capacity(x64):
    """At D to 0 all weights around the best center of a perceptron are solutions iff alpha < 2."""
    close = spherical(jnp.array([0.5, 1.0, 1.5]), 1e-3)
    np.testing.assert_allclose(close.entropy, 0, atol=1e-6)
    assert np.all(close.converged)
    beyond = spherical(jnp.array([1.9, 2.1]), 1e-3)
    assert beyond.beyond_capacity.tolist() == [False, True]


@pytest.mark.slow
@pytest.mark.parametrize(("num_hidden", "alpha"), [(1, 1.0), (math.inf, 1.0), (1, 0.3)])
def test_joins_the_typical_entropy_where_replicas_need_no_attraction(num_hidden, alpha, x64):
    typical = replica_symmetric(alpha, weights="spherical", num_hidden=num_hidden)
    edge = 1 - float(typical.overlap)
    curve = spherical(alpha, [edge - 1e-4, edge + 1e-4], num_hidden=num_hidden)
    expected = float(typical.entropy) - 0.5 * math.log(edge)
    assert float(curve.entropy[0]) == pytest.approx(expected, abs=3e-4)
    assert curve.beyond_typical.tolist() == [False, True]
    assert math.isnan(float(curve.entropy[1]))


@pytest.mark.slow
def test_widest_minima_are_wider_than_typical_solutions(x64):
    distance = jnp.array([0.02, 0.05, 0.1, 0.2])
    for machine in (dict(num_hidden=1), dict(num_hidden=math.inf)):
        wide = spherical(1.0, distance, **machine).entropy
        typical = franz_parisi(1.0, distance, weights="spherical", **machine).entropy
        assert np.all(np.asarray(wide) > np.asarray(typical) + 0.05)
        assert np.all(np.diff(wide) < 0)


@pytest.mark.slow
def test_binary_point_of_the_table(x64):
    found = wide_minima(0.75, 0.05, weights="binary")
    assert float(found.entropy) == pytest.approx(0.04798, abs=1.2e-5)
    assert bool(found.converged)


@pytest.mark.slow
def test_binary_table(x64):
    alpha = jnp.array([0.4] * 4 + [0.6] * 2 + [0.75] * 3)
    distance = jnp.array([0.15, 0.1, 0.05, 0.025, 0.1, 0.05, 0.1, 0.05, 0.025])
    entropy = [0.33506, 0.27658, 0.18579, 0.11542, 0.17841, 0.13008, 0.06877, 0.04798, 0.04212]
    curve = wide_minima(alpha, distance, weights="binary")
    np.testing.assert_allclose(curve.entropy, entropy, atol=1.2e-5)
    assert np.all(curve.converged)
    typical = franz_parisi(alpha, distance, weights="binary")
    assert np.all(np.asarray(curve.entropy) > np.asarray(typical.entropy))


@pytest.mark.slow
def test_binary_entropy_stops_growing_with_the_distance_above_0_7554(x64):
    """The load where the dense region of solutions breaks up, for infinitely many replicas."""
    distance = jnp.array([0.021, 0.020])
    curves = wide_minima(jnp.array([[0.7550], [0.7558]]), distance, weights="binary")
    closer = np.diff(curves.entropy, axis=1)[:, 0]
    assert closer[0] < 0 < closer[1]
    assert np.all(curves.converged)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_hidden", "distance", "entropy"),
    [
        (3, [0.05, 0.1, 0.2, 0.4], [0.0, -0.010, -0.093, -0.337]),
        (9, [0.1, 0.4], [-0.077, -0.586]),
    ],
)
def test_parity_machines_at_finite_size(num_hidden, distance, entropy, x64):
    """The tabulated values were sampled, to 0.01."""
    curve = spherical(1.0, distance, num_hidden=num_hidden, output="parity")
    np.testing.assert_allclose(curve.entropy, entropy, atol=0.01)
    assert np.all(curve.converged)


def test_parity_machine_is_flat_in_the_limit_only(x64):
    distance = jnp.array([0.05, 0.2, 0.4])
    flat = spherical(1.3, distance, num_hidden=math.inf, output="parity")
    np.testing.assert_allclose(flat.entropy, -1.3 * math.log(2), rtol=1e-14)


@pytest.mark.slow
def test_majorities_of_finite_size(x64):
    """The tabulated values were sampled, to 0.01; one unit is the perceptron."""
    three = spherical(1.0, [0.2], num_hidden=3)
    np.testing.assert_allclose(three.entropy, [-0.121], atol=0.01)
    parity = spherical(1.0, 0.2, num_hidden=1, output="parity")
    np.testing.assert_allclose(parity.entropy, spherical(1.0, 0.2).entropy, atol=1e-12)


@pytest.mark.slow
def test_slope_of_the_curve_is_its_derivative(x64):
    curve = lambda d: spherical(1.0, d).entropy
    rise = (curve(0.2001) - curve(0.1999)) / 2e-4
    np.testing.assert_allclose(jax.grad(curve)(0.2), rise, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(curve)(0.2), curve(0.2), atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(alpha=0.0), ValueError, "alpha .*got 0.0"),
        (dict(distance=1.5), ValueError, "distance .*got 1.5"),
        (dict(output="vote"), ValueError, "output .*got 'vote'"),
        (dict(num_hidden=4), ValueError, "num_hidden .*got 4"),
        (dict(num_hidden=0), ValueError, "num_hidden .*got 0"),
        (
            dict(weights="binary", num_hidden=3),
            ValueError,
            "num_hidden .*got 3",
        ),
    ],
)
def test_bad_input(arguments, error, message, x64):
    with pytest.raises(error, match=message):
        wide_minima(**{"alpha": 0.5, "distance": 0.1, "weights": "spherical"} | arguments)


def test_single_precision_is_refused():
    with pytest.raises(ValueError, match="jax_enable_x64 must be True"):
        wide_minima(0.5, 0.1, weights="binary")
