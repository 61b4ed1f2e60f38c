"""Replica-symmetric entropies and capacities against tables, limits and a SciPy solution."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.special import erfcx, log_ndtr, ndtr
from scipy.stats import norm, qmc

from entropix.replica_theory import (
    capacity,
    de_almeida_thouless_load,
    replica_symmetric,
)

LOADS = np.array([0.1, 0.2, 0.4, 0.6, 0.7, 0.8])


def gauss(f, lower=-12.0, upper=12.0):
    """int Dz f(z) by SciPy's adaptive Gauss-Kronrod rule."""
    points = [0.0] if lower < 0 < upper else None
    return quad(lambda z: norm.pdf(z) * f(z), lower, upper, epsabs=1e-13, limit=200, points=points)[
        0
    ]


def ratio(x):
    """G(x) / H(x)."""
    return math.sqrt(2 / math.pi) / erfcx(x / math.sqrt(2))


def reference(alpha, weights, margin=0.0, num_hidden=1):
    """Overlap and entropy by damped iteration of the saddle point on q itself, in SciPy."""
    infinite = num_hidden == math.inf
    Q = (lambda q: 2 / math.pi * math.asin(q)) if infinite else (lambda q: q)
    slope = (lambda q: 2 / math.pi / math.sqrt(1 - q**2)) if infinite else (lambda q: 1.0)

    def conjugate(q):
        field = lambda z: (margin + math.sqrt(Q(q)) * z) / math.sqrt(1 - Q(q))
        return alpha * slope(q) / (1 - Q(q)) * gauss(lambda z: ratio(field(z)) ** 2)

    def mismatch(q):
        qhat = conjugate(q)
        if weights == "spherical":
            return q / (1 - q) ** 2 - qhat
        return q - gauss(lambda z: math.tanh(math.sqrt(qhat) * z) ** 2)

    q = brentq(mismatch, 1e-6, 0.98, xtol=1e-12)
    qhat = conjugate(q)
    cost = gauss(lambda z: log_ndtr(-(margin + math.sqrt(Q(q)) * z) / math.sqrt(1 - Q(q))))
    if weights == "spherical":
        return q, 0.5 * math.log(1 - q) + q / (2 * (1 - q)) + alpha * cost
    free = gauss(lambda z: np.logaddexp(math.sqrt(qhat) * z, -math.sqrt(qhat) * z))
    return q, -0.5 * qhat * (1 - q) + free + alpha * cost


def test_binary_perceptron_table(x64):
    theory = replica_symmetric(LOADS, weights="binary")
    overlap = [0.06343494, 0.12686467, 0.25584294, 0.39104950, 0.46257052, 0.53794216]
    conjugate = [0.07214476, 0.16493019, 0.44719422, 0.98229958, 1.45359136, 2.21531606]
    entropy = [0.62277921, 0.55012011, 0.39645505, 0.22778496, 0.13539967, 0.03530572]
    np.testing.assert_allclose(theory.overlap, overlap, atol=6e-9)
    np.testing.assert_allclose(theory.conjugate, conjugate, atol=6e-9)
    np.testing.assert_allclose(theory.entropy, entropy, atol=6e-9)
    assert np.all(theory.converged)
    assert not np.any(theory.beyond_capacity)


def test_spherical_perceptron_table(x64):
    theory = replica_symmetric(jnp.array([0.5, 1.0, 1.5, 1.9]), weights="spherical")
    overlap, entropy = [0.307393, 0.585312, 0.821722, 0.970875], [-0.37767, -0.855821, -1.589208]
    np.testing.assert_allclose(theory.overlap, overlap, atol=2e-6)
    np.testing.assert_allclose(theory.entropy[:3], entropy, atol=2e-6)
    np.testing.assert_allclose(theory.entropy[3], -3.14672, atol=6e-6)


def test_large_committee_table(x64):
    theory = replica_symmetric(
        jnp.array([0.5, 1.0, 2.0, 3.0]), weights="spherical", num_hidden=math.inf
    )
    np.testing.assert_allclose(theory.overlap, [0.175617, 0.310806, 0.504014, 0.631615], atol=1e-6)
    np.testing.assert_allclose(
        theory.entropy, [-0.356659, -0.733093, -1.544807, -2.435889], atol=1e-6
    )
    binary = replica_symmetric(0.5, weights="binary", num_hidden=math.inf)
    np.testing.assert_allclose([binary.overlap, binary.entropy], [0.178192, 0.336398], atol=6e-7)


@pytest.mark.slow
def test_committee_of_three_table(x64):
    theory = replica_symmetric(jnp.array([0.5, 1.0, 2.0]), weights="spherical", num_hidden=3)
    np.testing.assert_allclose(theory.overlap, [0.212711, 0.388541, 0.667297], atol=1.1e-6)
    np.testing.assert_allclose(theory.entropy, [-0.361358, -0.755959, -1.690160], atol=1.1e-6)
    binary = replica_symmetric(0.5, weights="binary", num_hidden=3)
    np.testing.assert_allclose([binary.overlap, binary.entropy], [0.217383, 0.331583], atol=1e-6)


@pytest.mark.slow
def test_committee_of_nine_against_scrambled_sobol_points(x64):
    """The tabulated entropies of this case were sampled, and hold to 1e-3."""
    theory = replica_symmetric(jnp.array([0.5, 1.0]), weights="spherical", num_hidden=9)
    np.testing.assert_allclose(theory.entropy, [-0.3578, -0.7384], atol=1e-3)
    z = norm.ppf(qmc.Sobol(9, seed=0).random(2**15))

    def entropy(q, alpha):
        right = ndtr(math.sqrt(q / (1 - q)) * z)
        counts = np.eye(1, 10)
        for p in right.T[:, :, None]:
            counts = counts * (1 - p) + np.roll(counts, 1, axis=1) * p
        cost = np.mean(np.log(counts[:, 5:].sum(1)))
        return 0.5 * math.log(1 - q) + q / (2 * (1 - q)) + alpha * cost

    for index, alpha in enumerate((0.5, 1.0)):
        q = float(theory.overlap[index])
        assert float(theory.entropy[index]) == pytest.approx(entropy(q, alpha), abs=2e-4)
        # The saddle point is the minimum over q, of a parabola through three points.
        below, at, above = (entropy(q + step, alpha) for step in (-0.01, 0, 0.01))
        assert at < min(below, above)
        lowest = q + 0.005 * (below - above) / (below - 2 * at + above)
        assert q == pytest.approx(lowest, abs=5e-4)
    np.testing.assert_allclose(theory.overlap, [0.1865, 0.3315], atol=5e-4)


@pytest.mark.parametrize(
    ("alpha", "weights", "margin", "num_hidden"),
    [
        (0.55, "binary", 0.0, 1),
        (0.3, "binary", 0.4, 1),
        (1.3, "spherical", 0.0, 1),
        (0.4, "spherical", 0.7, 1),
        (1.2, "spherical", -0.5, 1),
        (0.8, "binary", 0.0, math.inf),
        (4.0, "spherical", 0.0, math.inf),
    ],
)
def test_equals_a_solution_by_adaptive_quadrature(alpha, weights, margin, num_hidden, x64):
    theory = replica_symmetric(alpha, weights=weights, margin=margin, num_hidden=num_hidden)
    overlap, entropy = reference(alpha, weights, margin, num_hidden)
    assert float(theory.overlap) == pytest.approx(overlap, abs=1e-9)
    assert float(theory.entropy) == pytest.approx(entropy, abs=1e-9)
    assert bool(theory.converged)
    assert float(theory.residual) < 1e-12


@pytest.mark.parametrize("weights", ["binary", "spherical"])
@pytest.mark.parametrize("num_hidden", [1, math.inf])
def test_small_load_expansion(weights, num_hidden, x64):
    """q = (2 / pi) alpha Q'(0) and s = s_0 - alpha log 2 - alpha^2 Q'(0)^2 / pi^2 + O(alpha^3)."""
    alpha = 1e-3
    theory = replica_symmetric(alpha, weights=weights, num_hidden=num_hidden)
    slope = 1 if num_hidden == 1 else 2 / math.pi
    start = math.log(2) if weights == "binary" else 0.0
    assert float(theory.overlap) == pytest.approx(2 / math.pi * alpha * slope, rel=5e-3)
    second = alpha**2 * slope**2 / math.pi**2
    assert float(theory.entropy) - start + alpha * math.log(2) == pytest.approx(-second, rel=1e-2)


@pytest.mark.parametrize("num_hidden", [1, math.inf])
@pytest.mark.parametrize("weights", ["binary", "spherical"])
def test_entropy_obeys_its_bounds_and_monotonicities(weights, num_hidden, x64):
    alpha = np.linspace(0, 0.8, 17)
    theory = replica_symmetric(alpha, weights=weights, num_hidden=num_hidden)
    start = math.log(2) if weights == "binary" else 0.0
    annealed = start - alpha * math.log(2)
    assert np.all(np.asarray(theory.entropy)[1:] < annealed[1:])
    assert np.all(np.diff(theory.overlap) > 0)
    assert np.all(np.diff(theory.entropy) < 0)
    # The entropy is concave in the load: a convex cost of every further pattern.
    assert np.all(np.diff(theory.entropy, 2) < 0)
    assert float(theory.entropy[0]) == pytest.approx(start, abs=1e-11)
    assert float(theory.overlap[0]) == pytest.approx(0, abs=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["binary", "spherical"])
def test_slope_in_the_load_is_the_cost_of_a_pattern(weights, x64):
    entropy = lambda alpha: replica_symmetric(alpha, weights=weights).entropy
    theory = replica_symmetric(0.5, weights=weights)
    gain = math.sqrt(float(theory.overlap) / (1 - float(theory.overlap)))
    expected = gauss(lambda z: log_ndtr(-gain * z))
    for differentiate in (jax.grad, jax.jacfwd):
        assert float(differentiate(entropy)(0.5)) == pytest.approx(expected, abs=1e-10)


def test_capacities_of_the_perceptron(x64):
    binary = capacity(weights="binary")
    np.testing.assert_allclose([binary.load, binary.overlap], [0.8330786, 0.5639491], atol=6e-8)
    theory = replica_symmetric(binary.load, weights="binary")
    np.testing.assert_allclose(theory.conjugate, 2.5763513, atol=2e-7)
    np.testing.assert_allclose(theory.entropy, 0, atol=1e-11)
    margins = jnp.array([0.0, 0.5, 1.0])
    spherical = capacity(weights="spherical", margin=margins)
    np.testing.assert_allclose(spherical.load, [2, 0.961205, 0.519572], atol=6e-7)
    for margin, load in zip(margins, spherical.load, strict=True):
        integral = gauss(lambda t, k=float(margin): (t + k) ** 2, -float(margin), 12.0)
        assert float(load) == pytest.approx(1 / integral, rel=1e-11)
    assert bool(binary.converged)
    assert np.all(spherical.converged)


@pytest.mark.slow
def test_capacities_of_committees(x64):
    np.testing.assert_allclose(capacity(weights="binary", num_hidden=3).load, 0.92062, atol=6e-6)
    large = capacity(weights="binary", num_hidden=math.inf)
    np.testing.assert_allclose(large.load, 0.94695, atol=6e-6)
    loads = [float(capacity(weights="spherical", num_hidden=k).load) for k in (3, 5, 7, 9)]
    np.testing.assert_allclose(loads, [4.0252, 5.7688, 7.3119, 8.7102], atol=6e-5)
    np.testing.assert_allclose(loads, [1 / least_change(k) for k in (3, 5, 7, 9)], rtol=1e-6)


def least_change(units):
    """Mean of the least squared change of normal fields that makes most of them positive.

    Of w negative ones the smallest, as many as are too many: their sizes are order statistics.
    """

    def smallest(rank, wrong):
        density = lambda x: (
            2 * norm.pdf(x) * wrong * math.comb(wrong - 1, rank - 1)
            * (2 * norm.cdf(x) - 1) ** (rank - 1) * (2 * norm.sf(x)) ** (wrong - rank)
        )  # fmt: skip
        return quad(lambda x: x**2 * density(x), 0, 12, epsabs=1e-13, limit=300)[0]

    half = (units - 1) // 2
    return sum(
        math.comb(units, wrong) / 2**units * smallest(rank, wrong)
        for wrong in range(half + 1, units + 1)
        for rank in range(1, wrong - half + 1)
    )


@pytest.mark.parametrize("units", [3, 7])
def test_capacity_of_a_committee_is_the_least_change_of_sampled_majorities(units, x64):
    fields = np.random.default_rng(0).normal(size=(200_000, units))
    negative = np.sort(np.where(fields < 0, -fields, np.inf), axis=1)
    flips = np.maximum((fields < 0).sum(1) - (units - 1) // 2, 0)
    cost = np.where(np.arange(units) < flips[:, None], negative, 0) ** 2
    sampled = cost.sum(1)
    expected = 1 / float(capacity(weights="spherical", num_hidden=units).load)
    error = sampled.std() / math.sqrt(len(sampled))
    assert abs(sampled.mean() - expected) < 4 * error


def test_loads_beyond_the_capacity_are_reported(x64):
    binary = replica_symmetric(jnp.array([0.83, 0.84, 1.0]), weights="binary")
    assert binary.beyond_capacity.tolist() == [False, True, True]
    assert np.all(binary.converged)
    spherical = replica_symmetric(jnp.array([1.99, 2.0, 2.5]), weights="spherical")
    assert spherical.beyond_capacity.tolist() == [False, True, True]
    assert spherical.entropy[1:].tolist() == [-np.inf, -np.inf]
    assert spherical.overlap[1:].tolist() == [1.0, 1.0]
    hard = replica_symmetric(0.97, weights="spherical", margin=0.5)
    assert bool(hard.beyond_capacity)
    # Past 4 / pi binary weights have no replica-symmetric saddle point either.
    lost = replica_symmetric(1.3, weights="binary")
    assert bool(lost.beyond_capacity)
    assert not bool(lost.converged)
    assert float(lost.residual) > 1e-3


def test_replica_symmetry_of_the_large_committee_breaks(x64):
    limit = de_almeida_thouless_load()
    assert float(limit.load) == pytest.approx(2.98782, abs=6e-6)
    saddle = replica_symmetric(limit.load, weights="spherical", num_hidden=math.inf)
    assert float(saddle.overlap) == pytest.approx(float(limit.overlap), abs=1e-9)


@pytest.mark.slow
def test_curves_equal_their_points_and_jit_equals_eager(x64):
    loads = jnp.array([[0.2, 0.5], [0.7, 0.9]])
    solve = lambda alpha: replica_symmetric(alpha, weights="binary")
    curve = solve(loads)
    assert curve.entropy.shape == (2, 2)
    for other in (jax.jit(solve)(loads), jax.vmap(jax.vmap(solve))(loads)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), curve, other)
    for index in np.ndindex(2, 2):
        point = solve(loads[index])
        np.testing.assert_allclose(point.entropy, curve.entropy[index], atol=1e-12)
    margins = replica_symmetric(0.3, weights="spherical", margin=jnp.array([0.0, 0.5]))
    assert float(margins.entropy[1]) < float(margins.entropy[0])


def test_same_shapes_compile_once(x64):
    from entropix.replica_theory._replica_symmetric import _replica_symmetric

    replica_symmetric(jnp.array([0.2, 0.5]), weights="binary")
    before = _replica_symmetric._cache_size()
    replica_symmetric(jnp.array([0.3, 0.6]), weights="binary", margin=0.1)
    assert _replica_symmetric._cache_size() == before


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(alpha=-0.1), ValueError, "alpha .*got -0.1"),
        (dict(alpha="0.1"), TypeError, "alpha .*got '0.1'"),
        (dict(alpha=math.inf), ValueError, "alpha must be finite"),
        (dict(weights="ternary"), ValueError, "weights .*got 'ternary'"),
        (dict(num_hidden=4), ValueError, "num_hidden .*got 4"),
        (dict(num_hidden=2.5), TypeError, "num_hidden .*got 2.5"),
        (dict(num_hidden=3, margin=0.1), ValueError, "margin must be 0 for a committee"),
        (dict(margin=math.nan), ValueError, "margin must be finite"),
    ],
)
def test_bad_input(arguments, error, message, x64):
    with pytest.raises(error, match=message):
        replica_symmetric(**{"alpha": 0.5, "weights": "binary"} | arguments)


def test_spherical_capacity_of_the_infinite_committee_is_refused(x64):
    with pytest.raises(ValueError, match="num_hidden must be finite for spherical weights"):
        capacity(weights="spherical", num_hidden=math.inf)


def test_single_precision_is_refused():
    for call in (
        lambda: replica_symmetric(0.5, weights="binary"),
        lambda: capacity(weights="binary"),
        de_almeida_thouless_load,
    ):
        with pytest.raises(ValueError, match=r"jax_enable_x64 .*got False"):
            call()
