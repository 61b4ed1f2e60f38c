"""Local entropies around typical solutions against tables, limits, and a solution in SciPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_ndtr, ndtr
from scipy.stats import norm

from entropix.replica_theory import franz_parisi, replica_symmetric


def binary_entropy(d):
    return -d * np.log(d) - (1 - d) * np.log(1 - d)


def reference_spherical_potential(alpha, p, q, t, q1):
    """The potential of the spherical perceptron as a sum over three normal variables.

    The field of the reference is summed over the half line where it is right, which the library
    does in closed form, and the weights' term is the one after integrating out all conjugates.
    """
    x, y = np.linspace(-7, 7, 71), np.linspace(-7, 7, 57)
    nodes, node_weights = np.polynomial.legendre.leggauss(40)
    right = ndtr(x * math.sqrt(q / (1 - q)))
    # The truncated normal variable by its quantiles.
    a = -norm.ppf((nodes + 1)[None] / 2 * right[:, None])
    c = (p - t) / math.sqrt(1 - q)
    b = math.sqrt(q1 - t**2 / q - c**2)
    field = (t * x / math.sqrt(q))[:, None, None] + c * a[..., None] + b * y
    cost = log_ndtr(field / math.sqrt(1 - q1))
    measure = [w / w.sum() for w in (norm.pdf(x), node_weights, norm.pdf(y))]
    mean = np.einsum("i,j,k,ijk->", *measure, cost)
    across = (p**2 - t**2 - q * (p - t) ** 2 / (1 - q)) / (1 - q)
    return 0.5 * (math.log(1 - q1) + (q1 - across) / (1 - q1)) + alpha * mean


def assert_table(table, tolerance, **machine):
    """One call for all rows of the table: load, distances and entropies."""
    alpha, distance, entropy = (
        np.concatenate(column)
        for column in zip(*((0 * np.array(d) + a, d, s) for a, d, s in table), strict=True)
    )
    curve = franz_parisi(alpha, distance, **machine)
    np.testing.assert_allclose(curve.entropy, entropy, atol=tolerance)
    p = 1 - 2 * distance if machine["weights"] == "binary" else np.sqrt(1 - distance)
    np.testing.assert_allclose(curve.overlap, p, atol=1e-8)
    assert np.all(curve.converged)
    assert not np.any(curve.beyond_capacity)


@pytest.mark.slow
def test_binary_table(x64):
    table = [
        (
            0.4,
            [0.25, 0.2, 0.1, 0.05, 0.02, 0.01],
            [0.360157, 0.323437, 0.204375, 0.114427, 0.045263, 0.018747],
        ),
        (0.6, [0.1, 0.05, 0.02, 0.01], [0.118687, 0.053944, 0.006778, -0.008743]),
        (0.75, [0.1, 0.06, 0.05], [0.032486, 0.000458, -0.008421]),
    ]
    assert_table(table, 1.1e-6, weights="binary")


@pytest.mark.slow
def test_large_committee_table(x64):
    table = [
        (0.5, [0.5, 0.2, 0.1, 0.05, 0.01], [-0.24185, -0.18371, -0.15247, -0.12733, -0.08453]),
        (
            1.0,
            [0.5, 0.2, 0.1, 0.05, 0.02, 0.01],
            [-0.52778, -0.40162, -0.33283, -0.27738, -0.21889, -0.18328],
        ),
    ]
    assert_table(table, 6e-6, weights="spherical", num_hidden=math.inf)


@pytest.mark.slow
def test_spherical_potential_is_stationary_and_right_in_another_quadrature(x64):
    alpha, distance = 1.0, 0.3
    p = math.sqrt(1 - distance)
    q = float(replica_symmetric(alpha, weights="spherical").overlap)
    theory = franz_parisi(alpha, distance, weights="spherical")
    t, q1 = float(theory.cross_overlap), float(theory.mutual_overlap)
    potential = lambda t, q1: reference_spherical_potential(alpha, p, q, t, q1)
    expected = float(theory.entropy) + 0.5 * math.log(1 - p**2)
    assert potential(t, q1) == pytest.approx(expected, abs=2e-4)
    # Stationary in each unknown, as differences of the other quadrature have it.
    step = 1e-3
    for slope in (
        (potential(t + step, q1) - potential(t - step, q1)) / (2 * step),
        (potential(t, q1 + step) - potential(t, q1 - step)) / (2 * step),
    ):
        assert slope == pytest.approx(0, abs=5e-3)
    # The scale of the slopes: away from the saddle point they are far larger.
    away = (potential(t, q1 + 0.03) - potential(t, q1 + 0.028)) / 0.002
    assert abs(away) > 2e-2


@pytest.mark.slow
def test_at_the_typical_overlap_it_is_the_typical_entropy(x64):
    """Two typical solutions are at the overlap q; there the reference says nothing."""
    for alpha, weights in ((0.6, "binary"), (1.2, "spherical")):
        typical = replica_symmetric(alpha, weights=weights)
        p = float(typical.overlap) + 2e-3
        distance = (1 - p) / 2 if weights == "binary" else 1 - p**2
        near = franz_parisi(alpha, distance, weights=weights)
        total = float(near.entropy)
        if weights == "spherical":
            total += 0.5 * math.log(1 - p**2)
        assert bool(near.converged)
        assert total == pytest.approx(float(typical.entropy), abs=2e-5)
        for overlap in (near.mutual_overlap, near.cross_overlap):
            assert float(overlap) == pytest.approx(float(typical.overlap), abs=5e-3)


@pytest.mark.parametrize(
    ("weights", "num_hidden"),
    [("binary", 1), pytest.param("spherical", math.inf, marks=pytest.mark.slow)],
)
@pytest.mark.slow
def test_curves_stay_below_the_annealed_bound(weights, num_hidden, x64):
    distance = np.array([0.4, 0.3, 0.2, 0.1, 0.05])
    curve = franz_parisi(0.5, distance, weights=weights, num_hidden=num_hidden)
    p = 1 - 2 * distance if weights == "binary" else np.sqrt(1 - distance)
    all_weights = binary_entropy(distance) if weights == "binary" else 0.0
    Q = p if num_hidden == 1 else 2 / np.pi * np.arcsin(p)
    bound = all_weights + 0.5 * np.log(1 - np.arccos(Q) / np.pi)
    gap = bound - np.asarray(curve.entropy)
    assert np.all(gap > 0)
    assert np.all(gap < 0.1)
    assert np.all(np.diff(curve.mutual_overlap) > 0)


@pytest.mark.parametrize("weights", ["binary", "spherical"])
@pytest.mark.slow
def test_small_loads_cost_one_pattern_at_a_time(weights, x64):
    """First order in alpha: a pattern right by u > 0 leaves Phi(p u / sqrt(1 - p^2)) of weights."""
    alpha, distance = 1e-3, np.array([0.3, 0.1])
    curve = franz_parisi(alpha, distance, weights=weights)
    p = 1 - 2 * distance if weights == "binary" else np.sqrt(1 - distance)
    all_weights = binary_entropy(distance) if weights == "binary" else 0.0
    u = (np.arange(9000) + 0.5) * 1e-3
    cost = 2e-3 * log_ndtr(np.multiply.outer(p / np.sqrt(1 - p**2), u)) @ norm.pdf(u)
    np.testing.assert_allclose(
        np.asarray(curve.entropy) - all_weights, alpha * cost, rtol=3e-3, atol=1e-9
    )


@pytest.mark.slow
def test_loads_beyond_the_capacity_are_reported(x64):
    binary = franz_parisi(jnp.array([0.8, 0.9]), 0.1, weights="binary")
    assert binary.beyond_capacity.tolist() == [False, True]
    spherical = franz_parisi(2.1, 0.1, weights="spherical")
    assert bool(spherical.beyond_capacity)
    assert not bool(spherical.converged)


@pytest.mark.slow
def test_families_of_curves_equal_their_points(x64):
    alpha, distance = jnp.array([[0.3], [0.5]]), jnp.array([[0.1]])
    curves = franz_parisi(alpha, distance, weights="binary")
    assert curves.entropy.shape == (2, 1)
    point = jax.jit(lambda a, d: franz_parisi(a, d, weights="binary"))(0.5, 0.1)
    np.testing.assert_allclose(point.entropy, curves.entropy[1, 0], atol=1e-9)


@pytest.mark.slow
def test_curves_have_gradients(x64):
    entropy = lambda d: franz_parisi(0.5, d, weights="binary").entropy
    rise = (entropy(0.1001) - entropy(0.0999)) / 2e-4
    np.testing.assert_allclose(jax.jvp(entropy, (0.1,), (1.0,))[1], rise, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(distance=0.0), ValueError, "distance .*got 0.0"),
        (dict(distance=1.0), ValueError, "distance .*got 1.0"),
        (dict(alpha=-1.0), ValueError, "alpha .*got -1.0"),
        (dict(num_hidden=3), ValueError, "num_hidden .*got 3"),
        (dict(weights="real"), ValueError, "weights .*got 'real'"),
    ],
)
def test_bad_input(arguments, error, message, x64):
    with pytest.raises(error, match=message):
        franz_parisi(**{"alpha": 0.5, "distance": 0.1, "weights": "binary"} | arguments)


def test_single_precision_is_refused():
    with pytest.raises(ValueError, match="jax_enable_x64 must be True"):
        franz_parisi(0.5, 0.1, weights="binary")
