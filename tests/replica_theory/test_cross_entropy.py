"""Local entropies around minima of the cross-entropy against a table and a direct summation."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import log_ndtr, logsumexp

from entropix.replica_theory import franz_parisi_of_cross_entropy

# The theory in small is in the doctests; here are its curves.
pytestmark = pytest.mark.slow

ALPHA = 0.4
DISTANCE = np.array([0.15, 0.1, 0.07, 0.05])
GAMMA = np.array([1.0, 2.0, 4.0])[:, None]


def normal(reach, spacing):
    z = np.arange(-reach, reach + spacing / 2, spacing)
    return z, np.exp(-(z**2) / 2) / np.exp(-(z**2) / 2).sum()


X, DX = normal(8, 0.1)
Y, DY = normal(7, 0.35)
Z, DZ = normal(8, 0.04)
# Reaches from where the loss of every pattern shared is small again.
A, DA = normal(24, 0.05)


@contextlib.contextmanager
def as_in_tests():
    """What the fixtures of a test set; with anything else the program would be compiled again."""
    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="module")
def minima():
    with as_in_tests():
        near = franz_parisi_of_cross_entropy(ALPHA, DISTANCE, gamma=GAMMA)
        return jax.tree.map(np.asarray, near)


@pytest.fixture(scope="module")
def tabulated():
    with as_in_tests():
        beta = np.array([67.0, 212.0, 2756.0])[:, None]
        near = franz_parisi_of_cross_entropy(ALPHA, DISTANCE, gamma=GAMMA, beta=beta)
        return jax.tree.map(np.asarray, near)


def posterior(q, beta, gamma):
    """Stabilities, log-normalization for each x, and probabilities of the own field."""
    u = np.sqrt(q) * X[:, None] + np.sqrt(1 - q) * A
    loss = np.logaddexp(0, -2 * gamma * u) / (2 * gamma)
    log_weight = -beta * loss - A**2 / 2 + np.log((A[1] - A[0]) / np.sqrt(2 * np.pi))
    log_sum = logsumexp(log_weight, axis=1)
    return u, loss, log_sum, np.exp(log_weight - log_sum[:, None])


@pytest.mark.parametrize("row", [0, 1])
def test_references_have_no_entropy_in_a_direct_summation(minima, row):
    q, beta = float(minima.reference_overlap[row, 0]), float(minima.beta[row, 0])
    overlap = lambda q_hat: DZ @ np.tanh(np.sqrt(q_hat) * Z) ** 2
    q_hat = brentq(lambda q_hat: overlap(q_hat) - q, 0.1, 500, xtol=1e-12)
    u, loss, log_sum, p = posterior(q, beta, GAMMA[row, 0])
    pull = p @ A / np.sqrt(1 - q)
    assert ALPHA * (DX @ pull**2) == pytest.approx(q_hat, rel=1e-6)
    field = np.sqrt(q_hat) * Z
    entropy = DZ @ np.logaddexp(field, -field) - q_hat * (1 - q) / 2
    entropy += ALPHA * (DX @ (log_sum + beta * np.sum(p * loss, axis=1)))
    assert entropy == pytest.approx(0, abs=1e-7)
    # A jump is summed to the spacing only.
    errors = DX @ np.sum(p * (u < 0), axis=1)
    if row == 0:
        assert errors == pytest.approx(float(minima.error_rate[row, 0]), rel=0.05)
    assert np.all(minima.reference_entropy[row] < 1e-8)


def test_potential_is_stationary_in_a_direct_summation(minima):
    """The extremum over t, q1 and the three conjugates, by sums over all variables."""
    row, column = 1, 1
    answer = jax.tree.map(lambda x: float(x[row, column]), minima)
    q, p, t, q1 = (
        answer.reference_overlap,
        1 - 2 * DISTANCE[column],
        answer.cross_overlap,
        answer.mutual_overlap,
    )
    *_, probability = posterior(q, answer.beta, GAMMA[row, 0])
    kept = np.flatnonzero(np.max(probability, axis=0) > 1e-14)
    probability, own = probability[:, kept], A[kept]

    def energy(t, q1):
        c = (p - t) / np.sqrt(1 - q)
        b = np.sqrt(q1 - t**2 / q - c**2)
        field = t * X[:, None, None] / np.sqrt(q) + c * own[:, None] + b * Y
        cost = log_ndtr(field / np.sqrt(1 - q1)) @ DY
        return DX @ np.sum(probability * cost, axis=1)

    q_hat = brentq(lambda x: DZ @ np.tanh(np.sqrt(x) * Z) ** 2 - q, 0.1, 500, xtol=1e-12)

    def weights(p_hat, t_hat, q1_hat):
        excess = np.sqrt(q1_hat - t_hat**2 / q_hat)
        field = t_hat * Z[:, None] / np.sqrt(q_hat) + excess * Y + p_hat - t_hat
        positive = 2 / (1 + np.exp(-2 * np.sqrt(q_hat) * Z))
        return (DZ * positive) @ np.logaddexp(field, -field) @ DY

    def slope(function, arguments, index, step=1e-5):
        up, down = list(arguments), list(arguments)
        up[index] += step
        down[index] -= step
        return (function(*up) - function(*down)) / (2 * step)

    t_hat, half_q1_hat = (-ALPHA * slope(energy, (t, q1), index) for index in (0, 1))
    q1_hat = 2 * half_q1_hat
    p_hat = brentq(lambda x: slope(weights, (x, t_hat, q1_hat), 0) - p, -3, 5, xtol=1e-10)
    assert slope(weights, (p_hat, t_hat, q1_hat), 1) == pytest.approx(-t, abs=2e-6)
    assert slope(weights, (p_hat, t_hat, q1_hat), 2) == pytest.approx((1 - q1) / 2, abs=2e-6)
    total = weights(p_hat, t_hat, q1_hat) - p_hat * p + t_hat * t - q1_hat * (1 - q1) / 2
    assert total + ALPHA * energy(t, q1) == pytest.approx(answer.entropy, abs=1e-6)


@pytest.mark.parametrize(
    ("row", "beta", "errors", "entropy", "tolerance"),
    [
        (0, 67.0, 2e-4, [0.33349, 0.27409, 0.22369, 0.18100], 1e-4),
        (1, 212.0, 1e-13, [0.33263, 0.27479, 0.22573, 0.18380], 2e-5),
        (2, 2756.0, 0.0, [0.33050, 0.27298, 0.22460, 0.18332], 6e-6),
    ],
)
def test_table(tabulated, row, beta, errors, entropy, tolerance):
    """The tabulated beta has few digits, to which the entropy at gamma = 1 answers most."""
    near = tabulated
    np.testing.assert_allclose(near.entropy[row], entropy, atol=tolerance)
    np.testing.assert_allclose(near.beta[row], beta, rtol=1e-8)
    np.testing.assert_allclose(near.error_rate[row], errors, rtol=0.25, atol=1e-20)
    assert np.all(near.converged)
    # The references there still have an entropy: their minima are at larger beta.
    assert np.all(near.reference_entropy[row] > 5e-3)


def test_minima_lie_in_dense_regions(minima):
    """Between typical solutions and the best centers, as tabulated."""
    typical, best = np.array([0.27235, 0.20438, 0.11443]), np.array([0.33506, 0.27658, 0.18579])
    entropy = np.asarray(minima.entropy)[:, [0, 1, 3]]
    assert np.all(entropy > typical + 0.05)
    assert np.all(entropy < best)
    assert np.all(entropy > best - 0.005)
    np.testing.assert_allclose(minima.overlap, 1 - 2 * DISTANCE[None] + 0 * GAMMA, atol=1e-9)
    assert np.all(minima.converged)
    # Steeper losses leave more room between the minima, and fewer errors.
    assert np.all(np.diff(minima.reference_overlap, axis=0) < 0)
    assert np.all(np.diff(minima.error_rate, axis=0) < 0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(alpha=0.0), ValueError, "alpha .*got 0.0"),
        (dict(distance=1.5), ValueError, "distance .*got 1.5"),
        (dict(gamma=0.0), ValueError, "gamma .*got 0.0"),
        (dict(gamma="steep"), TypeError, "gamma .*got 'steep'"),
        (dict(beta=-1.0), ValueError, "beta .*got -1.0"),
    ],
)
def test_bad_input(arguments, error, message, x64):
    with pytest.raises(error, match=message):
        franz_parisi_of_cross_entropy(**{"alpha": 0.4, "distance": 0.1, "gamma": 2.0} | arguments)


def test_traced_arguments_are_accepted(x64):
    call = lambda d: franz_parisi_of_cross_entropy(ALPHA, d, gamma=2.0)
    assert {x.shape for x in jax.eval_shape(call, jnp.array([0.1, 0.2]))} == {(2,)}


def test_single_precision_is_refused():
    with pytest.raises(ValueError, match="jax_enable_x64 must be True"):
        franz_parisi_of_cross_entropy(0.4, 0.1, gamma=2.0)
