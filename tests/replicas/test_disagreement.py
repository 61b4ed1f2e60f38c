"""The subspace in which replicas differ, against NumPy and against the sharp directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import entropix
from entropix import replicas

RNG = np.random.default_rng(2)


def rows(tree):
    """Directions or replicas as a matrix, in double precision."""
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], 1)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("y", [2, 5])
def test_the_directions_rebuild_the_gaps(dtype, y):
    stack = {
        "w": jnp.asarray(RNG.normal(size=(y, 4, 3)), dtype),
        "b": jnp.asarray(1e-3 * RNG.normal(size=(y, 2)), dtype),
    }
    found = jax.jit(replicas.disagreement)(stack)
    gaps = rows(stack) - rows(stack).mean(0)
    values, directions = np.asarray(found.singular_values, np.float64), rows(found.directions)
    np.testing.assert_allclose(values, np.linalg.svd(gaps)[1][: y - 1], rtol=1e-5)
    np.testing.assert_allclose(directions @ directions.T, np.eye(y - 1), atol=1e-5)
    np.testing.assert_allclose(gaps @ directions.T @ directions, gaps, atol=1e-5)
    assert found.directions["w"].shape == (y - 1, 4, 3)
    assert found.directions["b"].dtype == jnp.float32


def test_replicas_that_agree_and_replicas_near_the_largest_number():
    assert float(jnp.max(replicas.disagreement(jnp.ones((3, 4))).singular_values)) == 0
    huge = replicas.disagreement(jnp.array([[2e38, 0.0], [-2e38, 0.0]]))
    np.testing.assert_allclose(huge.singular_values, 2e38 * np.sqrt(2), rtol=1e-6)
    with pytest.raises(ValueError, match="at least 2 replicas, got 1"):
        replicas.disagreement(jnp.ones((1, 3)))


@pytest.mark.slow
def test_noise_of_the_gradient_spreads_replicas_along_the_sharp_directions():
    """On a quadratic with noise of covariance H, they are the top eigenvectors."""
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(30, 30)))[0]
    curvatures = np.array([100.0, 60.0, 30.0, *np.full(27, 0.01)])
    hessian = jnp.asarray(turn * curvatures @ turn.T, jnp.float32)
    root = jnp.asarray(turn * np.sqrt(curvatures) @ turn.T, jnp.float32)
    tx = entropix.replicated_sgd(1e-3, gamma=1e-3, every=5, momentum=None, axis=0)
    x = jnp.zeros((32, 30))
    state = tx.init(x)
    for key in jax.random.split(jax.random.key(0), 40):
        noise = jax.random.normal(key, x.shape) @ root
        updates, state = tx.update(x @ hessian + noise, state, x)
        x = x + updates
    directions = rows(replicas.disagreement(x).directions)[:3]
    overlap = np.linalg.svd(directions @ turn[:, :3])[1]
    # 0.9991 at worst over 12 seeds; the error falls as one over the number of replicas.
    assert overlap.min() > 0.998
