"""The normal tail and its hazard against SciPy, in single and in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erfcx, log_ndtr

from entropix._gaussian import hazard, log_tail


def test_tail_and_hazard_are_exact_to_rounding_far_out(x64):
    x = np.concatenate([np.linspace(-8, 60, 2001), [1e2, 1e4, 1e7]])
    np.testing.assert_allclose(log_tail(jnp.asarray(x)), log_ndtr(-x), rtol=2e-15, atol=2e-16)
    expected = np.sqrt(2 / np.pi) / erfcx(x / np.sqrt(2))
    np.testing.assert_allclose(hazard(jnp.asarray(x)), expected, rtol=3e-14)


def test_derivatives_of_the_tail_are_the_hazard_and_its_slope(x64):
    x = np.linspace(-8, 60, 501)
    h = np.sqrt(2 / np.pi) / erfcx(x / np.sqrt(2))
    slope = jax.grad(log_tail)
    np.testing.assert_allclose(jax.vmap(slope)(jnp.asarray(x)), -h, rtol=3e-14)
    np.testing.assert_allclose(
        jax.vmap(jax.grad(slope))(jnp.asarray(x)), -h * (h - x), rtol=1e-10, atol=1e-13
    )
    np.testing.assert_allclose(
        jax.vmap(lambda x: jax.jvp(log_tail, (x,), (1.0,))[1])(jnp.asarray(x)), -h, rtol=3e-14
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 3e-7), (np.float64, 1e-15)])
def test_tail_is_exact_to_the_rounding_of_its_type(dtype, tolerance, x64):
    x = np.concatenate([np.linspace(-12, 60, 4001), [-1e3, 1e3, 1e5]]).astype(dtype)
    expected = log_ndtr(-x.astype(np.float64))
    found = np.asarray(log_tail(jnp.asarray(x)))
    assert found.dtype == dtype
    allowed = 3 * tolerance * np.maximum(1, np.abs(expected)) * np.maximum(1, np.abs(x))
    assert np.all(np.abs(found - expected) <= allowed)
    assert np.all(np.isfinite(found))


def test_hazard_is_right_in_single_precision():
    x = np.concatenate([np.linspace(-8, 60, 2001), [1e3, 1e5]]).astype(np.float32)
    found = hazard(jnp.asarray(x))
    assert found.dtype == jnp.float32
    wide = x.astype(np.float64)
    np.testing.assert_allclose(found, np.sqrt(2 / np.pi) / erfcx(wide / np.sqrt(2)), rtol=1e-5)
