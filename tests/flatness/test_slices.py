"""Slices and barriers against direct evaluation, filter norms, and bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropix.flatness import filter_normalized_direction, linear_barrier, loss_slice
from tests.flatness import problems


def test_filters_have_the_norms_of_the_parameters():
    params = {
        "dense": jax.random.normal(jax.random.key(0), (7, 4)),
        "conv": 3 * jax.random.normal(jax.random.key(1), (3, 3, 2, 5)),
        "bias": jnp.ones(4),
    }
    direction = filter_normalized_direction(params, 1)
    for name in ("dense", "conv"):
        norms = [
            np.linalg.norm(np.asarray(tree[name]).reshape(-1, tree[name].shape[-1]), axis=0)
            for tree in (direction, params)
        ]
        np.testing.assert_allclose(*norms, rtol=1e-5)
        other = filter_normalized_direction(params, 2)[name]
        assert not np.allclose(direction[name], other)
    assert not np.any(direction["bias"])


def test_pruned_filters_stay_at_zero():
    direction = filter_normalized_direction(jnp.array([[1.0, 0.0], [1.0, 0.0]]), 0)
    assert np.all(np.isfinite(direction))
    assert not np.any(direction[:, 1])


@pytest.mark.parametrize("batch_size", [None, 7])
@pytest.mark.slow
def test_values_are_those_at_the_points(batch_size, x64):
    params, data = problems.mlp_problem()
    first, second = (filter_normalized_direction(params, seed) for seed in (1, 2))
    grid = jnp.array([-0.5, 0.0, 2.0])
    line = loss_slice(problems.mlp, params, data, [first], grid, batch_size=batch_size)
    plane = loss_slice(problems.mlp, params, data, [first, second], grid, batch_size=batch_size)

    def value(a, b):
        point = jax.tree.map(lambda w, d, e: w + a * d + b * e, params, first, second)
        return problems.mlp(point, data)

    expected = [[value(a, b) for b in grid] for a in grid]
    np.testing.assert_allclose(plane, expected, rtol=1e-12)
    np.testing.assert_allclose(line, plane[:, 1], rtol=1e-12)


def test_barrier_between_the_wells_of_a_quartic(x64):
    """(w^2 - 1)^2 between -1 and 3: a straight line from 0 to 64 under a hump at 0."""
    quartic = lambda w, x: jnp.mean((w**2 - 1) ** 2 + 0 * x)
    ends = jnp.array([-1.0]), jnp.array([1.5])
    found = linear_barrier(quartic, *ends, jnp.ones(1), num_points=101)
    w = np.linspace(-1, 1.5, 101)
    values = (w**2 - 1) ** 2
    np.testing.assert_allclose(found.values, values, atol=1e-12)
    straight = np.linspace(0, values[-1], 101)
    assert float(found.barrier) == pytest.approx((values - straight).max())
    assert float(found.distance) == pytest.approx(2.5)
    np.testing.assert_allclose(found.positions, np.linspace(0, 1, 101))


def test_no_barrier_on_a_convex_function():
    x = jnp.eye(3)
    found = linear_barrier(problems.quadratic, jnp.zeros(3), jnp.ones(3), x, batch_size=2)
    assert float(found.barrier) == 0
    assert float(found.distance) == pytest.approx(3**0.5)


def test_bad_input():
    w, x = jnp.ones(3), jnp.eye(3)
    with pytest.raises(ValueError, match=r"directions .*got 3"):
        loss_slice(problems.quadratic, w, x, [w, w, w], jnp.zeros(2))
    with pytest.raises(ValueError, match=r"directions\[1\] must have the shapes of params"):
        loss_slice(problems.quadratic, w, x, [w, jnp.ones(2)], jnp.zeros(2))
    with pytest.raises(ValueError, match=r"coordinates .*got shape \(\)"):
        loss_slice(problems.quadratic, w, x, [w], jnp.zeros(()))
    with pytest.raises(ValueError, match="other_params must have the shapes of params"):
        linear_barrier(problems.quadratic, w, {"w": w}, x)
    with pytest.raises(ValueError, match=r"num_points .*got 1"):
        linear_barrier(problems.quadratic, w, w, x, num_points=1)
    with pytest.raises(TypeError, match=r"key must be .*got .a."):
        filter_normalized_direction(w, "a")
