"""Trace estimators: without bias, with honest bars, XTrace closer than Hutchinson."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from entropix.flatness import Operator, dense, hessian, trace
from tests.flatness import problems

RNG = np.random.default_rng(0)
EIGENVALUES = np.concatenate([0.05 * RNG.normal(size=110), [9.0, 7.0, 5.0, 3.0, -2.0]])
BASIS, _ = np.linalg.qr(RNG.normal(size=(115, 115)))
MATRIX = BASIS * EIGENVALUES @ BASIS.T


def operator_trace(matvec, like, key, **options):
    return trace(Operator.from_matvec(matvec, like), key, **options)


def estimates(method, num_probes):
    a = jnp.asarray(MATRIX)
    one = lambda key: operator_trace(
        lambda v: a @ v, jnp.zeros(115), key,
        num_probes=num_probes, method=method, probe_batch_size=num_probes,
    )  # fmt: skip
    return jax.vmap(one)(jax.random.split(jax.random.key(1), 200))


@pytest.mark.slow
@pytest.mark.parametrize(("method", "degrees"), [("hutchinson", 29), ("xtrace", 14)])
def test_bars_hold_at_the_stated_rate_over_200_keys(method, degrees, x64):
    mean, std_error = estimates(method, 30)
    truth = EIGENVALUES.sum()
    inside = np.abs(mean - truth) < scipy.stats.t(degrees).ppf(0.975) * std_error
    # The jackknife's bars are too large rather than too small.
    assert 0.89 <= inside.mean() <= (1.0 if method == "xtrace" else 0.99)
    assert np.sqrt(np.mean(std_error**2)) < 2.5 * np.std(mean)
    assert abs(np.mean(mean) - truth) < 4 * np.std(mean) / 200**0.5


@pytest.mark.slow
def test_xtrace_is_closer_for_the_same_products(x64):
    errors = {method: np.std(estimates(method, 30).mean) for method in ("hutchinson", "xtrace")}
    assert errors["xtrace"] < errors["hutchinson"] / 10


@pytest.mark.slow
def test_network(x64):
    params, data = problems.mlp_problem()
    h = hessian(problems.mlp, params, data)
    truth = np.trace(dense(h))
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    exact = trace(h, 0, num_probes=2 * size)
    assert float(exact.mean) == pytest.approx(truth, rel=1e-9)
    assert float(exact.std_error) == pytest.approx(0, abs=1e-9)
    for arguments in ({}, {"num_probes": 20}, {"method": "hutchinson", "probe_batch_size": 4}):
        found = trace(h, 1, **arguments)
        assert abs(float(found.mean) - truth) < 4 * float(found.std_error) + 1e-9


def test_bad_input():
    with pytest.raises(ValueError, match="method must be 'xtrace' or 'hutchinson', got 'x'"):
        operator_trace(lambda v: v, jnp.ones(4), 0, method="x")
    with pytest.raises(ValueError, match=r"num_probes .*got 3"):
        operator_trace(lambda v: v, jnp.ones(4), 0, num_probes=3)
    with pytest.raises(ValueError, match=r"num_probes .*got 1"):
        operator_trace(lambda v: v, jnp.ones(4), 0, num_probes=1, method="hutchinson")
