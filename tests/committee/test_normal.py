"""The normal distribution function against SciPy's, in both precisions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_ndtr

from entropix.committee._normal import log_cdf


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 3e-7), (np.float64, 1e-15)])
def test_equals_scipy(dtype, tolerance, x64):
    t = np.concatenate([np.linspace(-60, 12, 4001), [-1e5, -1e3, 1e3]]).astype(dtype)
    expected = log_ndtr(t.astype(np.float64))
    found = np.asarray(log_cdf(jnp.asarray(t)))
    assert found.dtype == dtype
    allowed = 3 * tolerance * np.maximum(1, np.abs(expected)) * np.maximum(1, np.abs(t))
    assert np.all(np.abs(found - expected) <= allowed)
    assert np.all(np.isfinite(found))


def test_slope_is_finite_and_right_on_both_sides_of_the_switch(x64):
    t = jnp.array([-1e3, -31.0, -29.0, -5.0, 0.0, 5.0])
    slope = jax.vmap(jax.grad(log_cdf))(t)
    expected = np.exp(-(t**2) / 2 - np.log(2 * np.pi) / 2 - log_ndtr(np.asarray(t)))
    np.testing.assert_allclose(slope, expected, rtol=1e-6)
