"""Bayes-optimal learning and state evolution against SciPy, Monte Carlo, limits and literature."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr

from entropix.replica_theory import bayes_optimal, perfect_generalization, state_evolution


def gauss(f):
    """int Dz f(z)."""
    density = lambda z: math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    return quad(lambda z: density(z) * f(z), -10, 10, epsabs=1e-12, limit=200, points=[0.0])[0]


def reference(alpha, weights):
    """Least overlap and free entropy of the perceptron, in other forms of the integrals."""

    def conjugate(q):
        g = math.sqrt(q / (1 - q))
        density = lambda u: math.exp(-(u**2) / 2) / math.sqrt(2 * math.pi)
        return 2 * alpha / (1 - q) * gauss(lambda z: density(g * z) ** 2 / ndtr(g * z))

    def overlap(qhat):
        if weights == "spherical":
            return qhat / (1 + qhat)
        # tanh squared: by Nishimori's identity the mean of tanh itself.
        return gauss(lambda z: math.tanh(math.sqrt(qhat) * z + qhat) ** 2)

    q = brentq(lambda q: overlap(conjugate(q)) - q, 1e-3, 0.8, xtol=1e-13)
    qhat, g = conjugate(q), math.sqrt(q / (1 - q))
    cost = gauss(lambda z: 2 * ndtr(g * z) * log_ndtr(g * z))
    if weights == "spherical":
        return q, (q + math.log(1 - q)) / 2 + alpha * cost
    field = lambda z: math.sqrt(qhat) * z + qhat
    known = gauss(lambda z: np.logaddexp(field(z), -field(z)))
    return q, known - qhat * (1 + q) / 2 + alpha * cost


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["binary", "spherical"])
def test_perceptron_against_scipy(x64, weights):
    theory = bayes_optimal(np.array([0.5, 1.0]), weights=weights)
    for at, alpha in enumerate((0.5, 1.0)):
        q, entropy = reference(alpha, weights)
        assert theory.overlap[at] == pytest.approx(q, abs=1e-9)
        assert theory.free_entropy[at] == pytest.approx(entropy, abs=1e-9)
        assert theory.generalization_error[at] == pytest.approx(
            math.acos(math.sqrt(q)) / math.pi, abs=1e-9
        )
        assert theory.gibbs_error[at] == pytest.approx(math.acos(q) / math.pi, abs=1e-9)
    assert theory.converged.all()


@pytest.mark.slow
def test_transition_of_the_binary_perceptron(x64):
    """1.245 and 1.493 are the literature's."""
    found = perfect_generalization()
    assert found.load == pytest.approx(1.245, abs=5e-4)
    assert found.spinodal == pytest.approx(1.493, abs=5e-4)
    loads = jnp.array([found.load - 1e-4, found.load + 1e-4, found.spinodal + 1e-4, 3.0])
    theory = bayes_optimal(loads, weights="binary")
    assert theory.overlap[0] == pytest.approx(float(found.overlap), abs=1e-3)
    np.testing.assert_array_equal(theory.overlap[1:], 1)
    np.testing.assert_array_equal(theory.generalization_error[1:], 0)
    np.testing.assert_array_equal(theory.free_entropy[1:], 0)
    # Message passing does not see the first, but stops at the second.
    assert theory.message_passing_overlap[1] < found.spinodal_overlap < 0.9
    np.testing.assert_array_equal(theory.message_passing_overlap[2:], 1)
    assert theory.converged.all()


def test_spherical_errors_fall_as_in_the_literature(x64):
    """0.442 and 0.625 patterns for each weight and error."""
    loads = np.array([200.0, 500.0])
    theory = bayes_optimal(loads, weights="spherical")
    assert theory.converged.all()
    np.testing.assert_allclose(loads * theory.generalization_error, 0.442, atol=2e-3)
    np.testing.assert_allclose(loads * theory.gibbs_error, 0.625, atol=2e-3)


def test_state_evolution_ends_at_the_saddle_point(x64):
    loads = np.array([0.0, 1.0, 1.3])
    theory = bayes_optimal(loads, weights="binary")
    course = state_evolution(loads, weights="binary", num_steps=400)
    assert course.overlap.shape == (3, 401)
    np.testing.assert_allclose(course.overlap[:, -1], theory.message_passing_overlap, atol=1e-6)
    np.testing.assert_allclose(
        course.generalization_error[:, -1], theory.message_passing_error, atol=1e-6
    )
    assert np.all(np.diff(course.overlap[1:], axis=1) > -1e-12)
    # Who already knows nearly all of the teacher comes to know the rest.
    informed = state_evolution(1.3, weights="binary", num_steps=400, start=0.99)
    assert informed.overlap[0] == 0.99
    assert informed.overlap[-1] == pytest.approx(1.0, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("num_hidden", [1, 3, math.inf])
def test_free_entropy_falls_by_what_a_pattern_tells(x64, num_hidden):
    """The derivative in the load is the mean logarithm of a label's probability, by Monte Carlo."""
    loads = 0.8 + np.array([-1e-3, 0, 1e-3])
    theory = bayes_optimal(loads, weights="binary", num_hidden=num_hidden)
    below, _, above = theory.free_entropy
    q = float(theory.overlap[1])
    fields = math.sqrt(q / (1 - q)) * np.random.default_rng(0).normal(size=(3, 2_000_000))
    if num_hidden == 3:
        a, b, c = ndtr(fields)
        p = a * b + c * (a + b - 2 * a * b)
    else:
        Q = q if num_hidden == 1 else 2 / math.pi * math.asin(q)
        p = ndtr(math.sqrt(Q / (1 - Q)) / math.sqrt(q / (1 - q)) * fields[0])
    told = np.mean(p * np.log(p) + (1 - p) * np.log(1 - p))
    assert (above - below) / 2e-3 == pytest.approx(told, abs=5e-4)
    wrong = np.mean(np.minimum(p, 1 - p)), np.mean(2 * p * (1 - p))
    found = theory.generalization_error[1], theory.gibbs_error[1]
    np.testing.assert_allclose(found, wrong, atol=4e-4)


@pytest.mark.slow
def test_committees_have_transitions_too(x64):
    three, many = perfect_generalization(num_hidden=3), perfect_generalization(num_hidden=math.inf)
    assert (three.load, three.spinodal) == pytest.approx((1.1043, 1.4558), abs=1e-4)
    assert (many.load, many.spinodal) == pytest.approx((1.0647, 1.9562), abs=1e-4)
    course = state_evolution(1.4, weights="binary", num_hidden=3, num_steps=300).overlap
    theory = bayes_optimal(1.4, weights="binary", num_hidden=3)
    assert course[-1] == pytest.approx(float(theory.message_passing_overlap), abs=1e-6)
    # The integrals over three fields no longer resolve what is nearly known.
    assert not bayes_optimal(12.0, weights="spherical", num_hidden=3).converged


def test_arguments_are_refused_by_name(x64):
    with pytest.raises(ValueError, match=r"num_hidden.*5"):
        bayes_optimal(1.0, weights="binary", num_hidden=5)
    with pytest.raises(ValueError, match=r"num_hidden.*2"):
        perfect_generalization(num_hidden=2)
    with pytest.raises(ValueError, match=r"start.*1\.0"):
        state_evolution(1.0, weights="binary", start=1.0)
    with pytest.raises(ValueError, match=r"num_steps.*0"):
        state_evolution(1.0, weights="binary", num_steps=0)
    with pytest.raises(ValueError, match=r"alpha.*-1"):
        bayes_optimal(-1.0, weights="binary")
    with pytest.raises(ValueError, match=r"weights.*'real'"):
        state_evolution(1.0, weights="real")
    with jax.enable_x64(False), pytest.raises(ValueError, match="jax_enable_x64"):
        bayes_optimal(1.0, weights="binary")
