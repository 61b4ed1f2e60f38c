"""SAM sharpness against closed forms of a quadratic, in groups, and bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropix.flatness import sam_sharpness
from tests.flatness import problems

RNG = np.random.default_rng(0)
X, W = RNG.normal(size=(24, 6)), RNG.normal(size=6)
H = X.T @ X / 24


def test_one_step_is_that_of_sam(x64):
    g = H @ W
    step = 0.3 * g / np.linalg.norm(g)
    expected = g @ step + step @ H @ step / 2
    found = sam_sharpness(problems.quadratic, jnp.asarray(W), jnp.asarray(X), radius=0.3)
    assert float(found.mean) == pytest.approx(expected, rel=1e-12)
    assert float(found.base) == pytest.approx(W @ H @ W / 2)
    assert float(found.std_error) == 0


def test_many_steps_come_near_the_maximum_in_the_ball(x64):
    """Near the minimum of a quadratic the maximum is rho^2 lambda_max / 2, and never exceeded."""
    w = 1e-9 * jnp.ones(6)
    found = sam_sharpness(problems.quadratic, w, jnp.asarray(X), radius=0.1, num_steps=200)
    maximum = 0.01 / 2 * np.linalg.eigvalsh(H)[-1]
    assert 0.99 * maximum < float(found.mean) <= maximum * (1 + 1e-6)
    one = sam_sharpness(problems.quadratic, w, jnp.asarray(X), radius=0.1)
    assert float(one.mean) < 0.99 * float(found.mean)


def test_groups_have_balls_of_their_own(x64):
    found = sam_sharpness(
        problems.quadratic, jnp.asarray(W), jnp.asarray(X), radius=0.3, group_size=4
    )

    def rise(group):
        alone = sam_sharpness(problems.quadratic, jnp.asarray(W), jnp.asarray(group), radius=0.3)
        return float(alone.mean)

    rises = [rise(X[start::6]) for start in range(6)]
    assert float(found.mean) == pytest.approx(np.mean(rises))
    assert float(found.std_error) == pytest.approx(np.std(rises, ddof=1) / 6**0.5)


def test_zero_radius_and_zero_gradient():
    x = jnp.asarray(X, jnp.float32)
    for w, radius in ((jnp.ones(6), 0.0), (jnp.zeros(6), 0.1)):
        found = sam_sharpness(problems.quadratic, w, x, radius=radius, num_steps=2)
        assert float(found.mean) == pytest.approx(0, abs=1e-6)


def test_jit_and_vmap_over_radii(x64):
    run = lambda radius: (
        sam_sharpness(
            problems.quadratic, jnp.asarray(W), jnp.asarray(X), radius=radius, num_steps=3
        ).mean
    )
    radii = jnp.array([0.1, 0.5])
    loop = [float(run(radius)) for radius in radii]
    np.testing.assert_allclose(jax.vmap(run)(radii), loop, rtol=1e-12)
    assert float(jax.jit(run)(0.5)) == pytest.approx(loop[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"radius": -1.0}, "radius .*got -1.0"),
        ({"num_steps": 0}, "num_steps .*got 0"),
        ({"group_size": 0}, "group_size .*got 0"),
        ({"group_size": 4, "batch_size": 2}, "batch_size must be None where group_size is given"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        sam_sharpness(problems.quadratic, jnp.ones(6), jnp.asarray(X, jnp.float32), **arguments)
