"""Local entropies of finitely many replicas against an independent functional and its limits."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_ndtr, logsumexp

from entropix.replica_theory import robust_ensemble, wide_minima

# The theory in small is in the doctests; here are its curves.
pytestmark = pytest.mark.slow

# All calls have this shape, and share one program.
ALPHA = np.array([0.75, 0.77, 0.4, 0.75])
DISTANCE = np.array([0.05, 0.05, 0.1, 0.1])
STEP = 1e-5


class Functional:
    """A(y) of `robust_ensemble`, y times it, with sums over equally spaced z0 and z1.

    The spacing of z0 is fine where the better sign of the center changes, at 0.
    """

    def __init__(self, alpha, overlap, replicas, spacing=0.02, reach=30.0):
        self.alpha, self.overlap, self.replicas = alpha, overlap, replicas
        self.z0 = np.arange(-8, 8 + spacing / 2, spacing)[:, None]
        self.w0 = np.exp(-(self.z0[:, 0] ** 2) / 2) / np.sum(np.exp(-(self.z0**2) / 2))
        self.z1 = np.linspace(-reach, reach, 241)
        self.log_w1 = np.log((self.z1[1] - self.z1[0]) / np.sqrt(2 * np.pi)) - self.z1**2 / 2

    def weights(self, gamma, q0_hat, q1_hat, y=None):
        y = self.replicas if y is None else y
        field = np.sqrt(q0_hat) * self.z0 + np.sqrt(q1_hat - q0_hat) * self.z1
        one = lambda h: logsumexp(y * np.logaddexp(h, -h) + self.log_w1, axis=1)
        return self.w0 @ np.logaddexp(one(field + gamma), one(field - gamma))

    def patterns(self, q0, q1, y=None):
        y = self.replicas if y is None else y
        u = (np.sqrt(q0) * self.z0 + np.sqrt(q1 - q0) * self.z1) / np.sqrt(1 - q1)
        return self.w0 @ logsumexp(y * log_ndtr(u) + self.log_w1, axis=1)

    def total(self, gamma, q0_hat, q1_hat, q0, q1, y):
        pairs = q1_hat * (1 - q1) / 2 - y * (q0 * q0_hat - q1 * q1_hat) / 2
        potential = self.weights(gamma, q0_hat, q1_hat, y) + self.alpha * self.patterns(q0, q1, y)
        return potential - y * (gamma * self.overlap + pairs)


def difference(function, arguments, index, step=STEP):
    up, down = list(arguments), list(arguments)
    up[index] += step
    down[index] -= step
    return (function(*up) - function(*down)) / (2 * step)


def saddle_point(answer, functional):
    """The unknowns, the conjugates from the stationarity in q0 and q1."""
    y, q0, q1 = (float(x) for x in (answer.replicas, answer.cross_overlap, answer.mutual_overlap))
    slopes = [functional.alpha * difference(functional.patterns, (q0, q1), i) for i in (0, 1)]
    q0_hat, q1_hat = -2 * slopes[0] / y**2, 2 * slopes[1] / (y * (y - 1))
    return [float(answer.attraction), q0_hat, q1_hat, q0, q1, y]


@contextlib.contextmanager
def as_in_tests():
    """What the fixtures of a test set; with anything else the program would be compiled again."""
    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="module")
def best():
    with as_in_tests():
        return robust_ensemble(ALPHA, DISTANCE)


@pytest.fixture(scope="module")
def fixed():
    with as_in_tests():
        return robust_ensemble(ALPHA, DISTANCE, replicas=np.array([4.0, 30.0, 12.0, 1e5]))


@pytest.mark.parametrize("point", [0, 1, 2])
def test_without_external_entropy_the_independent_functional_is_stationary(best, point):
    answer = jax.tree.map(lambda x: x[point], best)
    functional = Functional(ALPHA[point], 1 - 2 * DISTANCE[point], float(answer.replicas))
    unknowns = saddle_point(answer, functional)
    y = unknowns[-1]
    assert functional.total(*unknowns) / y == pytest.approx(float(answer.entropy), abs=2e-8)
    for index in range(3):
        assert difference(functional.total, unknowns, index) / y == pytest.approx(0, abs=2e-6)
    slope = difference(lambda *x: functional.total(*x) / x[-1], unknowns, 5, 1e-2)
    assert slope * y**2 == pytest.approx(0, abs=2e-5)
    assert bool(answer.converged)
    assert float(answer.external_entropy) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("point", [0, 1])
def test_entropies_are_the_derivatives_of_the_independent_functional(fixed, point):
    """Phi = d(y A) / dy and Omega = -y^2 dA / dy at a saddle point."""
    answer = jax.tree.map(lambda x: x[point], fixed)
    functional = Functional(ALPHA[point], 1 - 2 * DISTANCE[point], float(answer.replicas))
    unknowns = saddle_point(answer, functional)
    y = unknowns[-1]
    for index in range(3):
        assert difference(functional.total, unknowns, index) / y == pytest.approx(0, abs=2e-6)
    local = difference(functional.total, unknowns, 5, 1e-3 * y)
    assert local == pytest.approx(float(answer.entropy), abs=1e-6)
    external = functional.total(*unknowns) - y * local
    assert external == pytest.approx(float(answer.external_entropy), abs=1e-5)


def test_known_entropies_and_numbers_of_replicas(best):
    """As computed with equal spacings down to 0.006 as well; 80 Gauss-Hermite nodes are too few."""
    np.testing.assert_allclose(best.entropy[:2], [0.045506, 0.032041], atol=5e-7)
    np.testing.assert_allclose(best.replicas[:2], [15.319, 18.552], atol=5e-4)
    np.testing.assert_allclose(best.residual, 0, atol=1e-9)


def test_many_replicas_are_infinitely_many(fixed, x64):
    limit = wide_minima(0.75, 0.1, weights="binary")
    np.testing.assert_allclose(fixed.entropy[3], limit.entropy, atol=1e-7)
    np.testing.assert_allclose(fixed.mutual_overlap[3], limit.mutual_overlap, atol=1e-5)
    assert fixed.replicas[3] == pytest.approx(1e5)


def test_replicas_trade_centers_for_solutions_around_them(best, x64):
    replicas = jnp.array([3.0, 12.0, best.replicas[0], 1e3])
    answers = robust_ensemble(0.75, 0.05, replicas=replicas)
    assert np.all(answers.converged)
    assert np.all(np.diff(answers.entropy) > 0)
    assert np.all(np.diff(answers.external_entropy) < 0)
    np.testing.assert_allclose(answers.entropy[2], best.entropy[0], atol=1e-9)
    assert float(answers.external_entropy[2]) == pytest.approx(0, abs=1e-8)


def test_slope_of_the_curve_is_the_attraction(x64):
    """dPhi / dS = -gamma where A is stationary in y; d = (1 - S) / 2."""
    distance = jnp.array([0.0498, 0.0499, 0.0501, 0.0502])
    curve = robust_ensemble(0.6, distance)
    rise = (curve.entropy[2] - curve.entropy[1]) / (distance[2] - distance[1])
    assert float(rise) == pytest.approx(2 * float(jnp.mean(curve.attraction)), rel=1e-5)


def test_curve_breaks_up_above_0_767(x64):
    curves = robust_ensemble(jnp.array([[0.766], [0.768]]), jnp.array([0.042, 0.05]))
    assert curves.converged.tolist() == [[True, True], [False, True]]
    inside = robust_ensemble(0.766, jnp.array([0.03, 0.036, 0.042, 0.1]))
    assert np.all(inside.converged)
    assert np.all(np.diff(inside.entropy) > 0)
    np.testing.assert_allclose(inside.entropy[2], curves.entropy[0, 0], atol=1e-10)
    assert not np.any(curves.beyond_capacity)


def test_traced_arguments_are_accepted(x64):
    shape = jax.eval_shape(robust_ensemble, jnp.array([[0.4], [0.5]]), jnp.array([0.1, 0.2, 0.3]))
    assert {x.shape for x in shape} == {(2, 3)}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(alpha=0.0), ValueError, "alpha .*got 0.0"),
        (dict(distance=1.5), ValueError, "distance .*got 1.5"),
        (dict(replicas=1.0), ValueError, "replicas .*got 1.0"),
        (dict(replicas="many"), TypeError, "replicas .*got 'many'"),
    ],
)
def test_bad_input(arguments, error, message, x64):
    with pytest.raises(error, match=message):
        robust_ensemble(**{"alpha": 0.5, "distance": 0.1} | arguments)


def test_single_precision_is_refused():
    with pytest.raises(ValueError, match="jax_enable_x64 must be True"):
        robust_ensemble(0.5, 0.1)
