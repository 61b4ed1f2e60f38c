"""IVON against a plain loop, and against what it should find on a parabola."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from benchmarks.tuning.ivon import ivon, mean_of

SIZE, CURVATURE, DECAY, B1, RATE = 50.0, 0.3, 0.05, 0.9, 0.02


def trajectory(grad, start, steps, learning_rate=0.1, rate=RATE):
    """All weights that the training loop holds, all states, and the final mean."""
    tx = ivon(
        lambda step: learning_rate / (1 + 0.1 * step),
        size=SIZE, curvature=CURVATURE, decay=DECAY, b1=B1, curvature_rate=rate,
        key=jax.random.key(3),
    )  # fmt: skip

    def step(carry, _):
        x, state = carry
        updates, state = tx.update(grad(x), state, x)
        new = optax.apply_updates(x, updates)
        return (new, state), (x, state.mean, state.curvature)

    (x, state), seen = jax.lax.scan(step, (start, tx.init(start)), length=steps)
    return seen, mean_of((state, optax.EmptyState()), x)


def test_ivon_against_a_plain_loop_in_double_precision():
    scales, target = np.array([0.2, 1.0, 4.0, 8.0]), np.array([1.0, -2.0, 0.5, 0.1])
    grad = lambda x: jnp.asarray(scales, jnp.float32) * jnp.sin(x - target.astype(np.float32))
    (thetas, means, curvatures), last = trajectory(grad, jnp.ones(4), 30)
    m, h, average = np.ones(4), np.full(4, CURVATURE), np.zeros(4)
    for t, theta in enumerate(np.asarray(thetas, np.float64)):
        g = scales * np.sin(theta - target)
        if t:
            variance = 1 / (SIZE * (h + DECAY))
            hat = g * (theta - m) / variance
            h = (
                (1 - RATE) * h
                + RATE * hat
                + 0.5 * RATE**2 * (h - hat) ** 2 / (h + DECAY)
            )  # fmt: skip
        average = B1 * average + (1 - B1) * g
        newton = (average / (1 - B1 ** (t + 1)) + DECAY * m) / (h + DECAY)
        m = m - 0.1 / (1 + 0.1 * t) * (CURVATURE + DECAY) * newton
        np.testing.assert_allclose(curvatures[t], h, rtol=1e-3)
        np.testing.assert_allclose(means[t], m, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(last, means[-1])


@pytest.mark.slow
def test_the_weights_are_drawn_from_the_posterior_and_its_curvature_is_that_of_the_loss():
    scales = jnp.repeat(jnp.array([0.5, 2.0]), 500)
    (thetas, means, curvatures), _ = trajectory(
        lambda x: scales * x, jnp.zeros(1000), 2000, learning_rate=0.01
    )
    # The draw after the last but one update is what the last gradient was taken at.
    drawn = (thetas[-1] - means[-2]) * jnp.sqrt(SIZE * (curvatures[-2] + DECAY))
    assert stats.kstest(np.asarray(drawn), "norm").pvalue > 1e-3
    found = np.asarray(curvatures[-500:]).mean(0).reshape(2, 500).mean(1)
    np.testing.assert_allclose(found, [0.5, 2.0], rtol=0.1)
    # However wrong a single estimate is, the posterior keeps a variance.
    assert float(jnp.min(curvatures)) > -DECAY
