"""Quadratures of the Gaussian measure and their integrands against SciPy and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erfcx, log_ndtr, ndtr

from entropix._gaussian import log_tail
from entropix.replica_theory._quadrature import gaussian_quadrature, half_line_quadrature
from entropix.replica_theory._units import (
    log_even_parity,
    log_majority,
    symmetric_nodes,
)


def test_quadrature_of_moments_and_of_a_narrow_feature(x64):
    z = gaussian_quadrature(0.02)
    for order, moment in ((0, 1), (1, 0), (2, 1), (4, 3), (8, 105)):
        np.testing.assert_allclose(z.weights @ z.nodes**order, moment, atol=1e-12, rtol=1e-13)
    # int Dz H(a z + b) = H(b / sqrt(1 + a^2)), for a step far steeper than the density.
    steep = z.weights @ jnp.exp(log_tail(25 * z.nodes + 10.0))
    np.testing.assert_allclose(steep, ndtr(-10 / np.sqrt(626)), rtol=1e-12)


@pytest.mark.parametrize("spacing", [0.1, 0.05])
def test_half_line_rule_is_exact_for_what_is_not_smooth_at_zero(spacing, x64):
    z = half_line_quadrature(spacing)
    for power, moment in ((0, 1), (1, np.sqrt(2 / np.pi)), (2, 1), (8, 105)):
        np.testing.assert_allclose(z.weights @ z.nodes**power, moment, rtol=1e-12)
    # int_0^inf 2 Dz exp(-a z) = erfcx(a / sqrt 2): a change over a width of 1 / a.
    for steepness in (10.0, 1e3):
        mean = z.weights @ jnp.exp(-steepness * z.nodes)
        np.testing.assert_allclose(mean, erfcx(steepness / np.sqrt(2)), atol=1e-12)


@pytest.mark.parametrize(
    "units", [pytest.param(1, marks=pytest.mark.slow), 3, pytest.param(5, marks=pytest.mark.slow)]
)
def test_symmetric_nodes_integrate_symmetric_functions(units, x64):
    nodes, weights = symmetric_nodes(units, None if units <= 3 else 2**14)
    np.testing.assert_allclose(jnp.sum(weights), 1, rtol=1e-12)
    np.testing.assert_allclose(weights @ jnp.sum(nodes, axis=1) ** 2, units, rtol=1e-11)
    # int prod_k Dz_k exp(z_k / 2) = exp(K / 8)
    growth = weights @ jnp.exp(jnp.sum(nodes, axis=1) / 2)
    np.testing.assert_allclose(growth, np.exp(units / 8), rtol=1e-10 if units <= 3 else 2e-3)


@pytest.mark.parametrize(
    "units", [1, pytest.param(3, marks=pytest.mark.slow), pytest.param(5, marks=pytest.mark.slow)]
)
def test_output_probabilities_equal_the_sum_over_hidden_signs(units, x64):
    fields = np.random.default_rng(units).normal(size=units) * 2
    signs = np.array(np.meshgrid(*[[-1, 1]] * units)).reshape(units, -1).T
    probability = np.prod(ndtr(signs * fields), axis=1)
    for log_probability, right in (
        (log_majority, signs.sum(1) > 0),
        (log_even_parity, signs.prod(1) > 0),
    ):
        expected = np.log(probability[right].sum())
        np.testing.assert_allclose(log_probability(jnp.asarray(fields)), expected, rtol=1e-13)
        assert np.all(np.isfinite(jax.grad(log_probability)(jnp.asarray(fields))))


@pytest.mark.slow
def test_output_probabilities_far_from_right_stay_finite(x64):
    wrong = -60 * jnp.ones(3)
    # Two units of three have to turn, each with probability H(60).
    np.testing.assert_allclose(log_majority(wrong), np.log(3) + 2 * log_ndtr(-60.0), rtol=1e-13)
    np.testing.assert_allclose(log_even_parity(wrong), np.log(3) + log_ndtr(-60.0), rtol=1e-13)
    assert np.all(np.isfinite(jax.jacfwd(jax.grad(log_majority))(wrong)))
