"""Critical sharpness and directional curvature: closed forms, dense Hessians, passes, precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from entropix.flatness import critical_sharpness, directional_curvature
from tests.flatness import problems

CURVATURES = np.array([0.1, 1.0, 5.0, 20.0])
W = np.array([1.0, 2.0, 0.3, 0.1])
ONE = jnp.ones(1)


def quadratic(w, x):
    return jnp.sum(jnp.asarray(CURVATURES, w.dtype) * w**2) / 2 + 1 + 0 * jnp.mean(x)


def quartic(w, x):
    return jnp.sum(w**4) + 0 * jnp.mean(x)


@pytest.mark.parametrize("learning_rate", [1e-3, 0.05, 10.0])
def test_of_gradient_descent_on_a_quadratic_is_the_weighted_mean_of_eigenvalues(learning_rate, x64):
    g = CURVATURES * W
    expected = g @ (CURVATURES * g) / (g @ g)
    updates = jnp.asarray(-learning_rate * g)
    found = critical_sharpness(
        quadratic, jnp.asarray(W), updates, ONE, learning_rate=learning_rate, tolerance=0.2
    )
    np.testing.assert_allclose(found.sharpness, expected, rtol=1e-9)
    np.testing.assert_allclose(found.learning_rate, 2 / expected, rtol=1e-9)
    assert float(found.lower) <= expected <= float(found.upper)
    assert float(found.upper / found.lower) <= 1.2 + 1e-9
    np.testing.assert_allclose(
        directional_curvature(quadratic, jnp.asarray(W), updates, ONE), expected, rtol=1e-9
    )


def test_about_six_passes_near_the_edge_and_it_says_how_many():
    calls = []

    def counted(w, x):
        jax.debug.callback(lambda: calls.append(1))
        return quadratic(w, x)

    w = jnp.asarray(W, jnp.float32)
    step = -0.1 * jnp.asarray(CURVATURES * W, jnp.float32)
    found = critical_sharpness(counted, w, step, ONE, learning_rate=0.1)
    jax.effects_barrier()
    assert len(calls) == int(found.num_passes) <= 6


def test_no_derivative_is_taken():
    """A kernel without any differentiation rule will do."""

    def opaque(w, x):
        return jax.pure_callback(
            lambda w: np.float32(np.sum(np.asarray(w) ** 2)), jax.ShapeDtypeStruct((), w.dtype), w
        )

    found = critical_sharpness(opaque, jnp.ones(3), -jnp.ones(3), ONE)
    assert float(found.sharpness) == pytest.approx(1, rel=1e-3)


def test_far_from_a_parabola_the_root_is_within_its_bounds(x64):
    """Along -4 w the quartic comes back to 1 at w = -1."""
    for size in (1e-3, 0.1, 1.0):
        found = critical_sharpness(
            quartic, ONE, -4 * size * ONE, ONE, learning_rate=size, max_passes=40
        )
        assert float(found.lower) <= 4 <= float(found.upper) <= 1.1001 * float(found.lower)
        assert float(found.sharpness) == pytest.approx(4, rel=0.02)


@pytest.mark.slow
def test_of_a_network_the_loss_is_back_at_its_start(x64):
    params, data = problems.mlp_problem()
    base, gradient = jax.value_and_grad(problems.mlp)(params, data)
    updates = jax.tree.map(lambda g: -0.3 * g, gradient)
    found = critical_sharpness(problems.mlp, params, updates, data, learning_rate=0.3)

    def after(sharpness):
        scale = 2 / sharpness / 0.3
        return problems.mlp(jax.tree.map(lambda w, u: w + scale * u, params, updates), data)

    assert float(after(found.upper)) < float(base) < float(after(found.lower))
    parts = critical_sharpness(problems.mlp, params, updates, data, learning_rate=0.3, batch_size=7)
    np.testing.assert_allclose(parts.sharpness, found.sharpness, rtol=1e-9)
    flat, restore = ravel_pytree(params)
    hessian = jax.hessian(lambda v: problems.mlp(restore(v), data))(flat)
    d = ravel_pytree(updates)[0]
    for size in (None, 7):
        curvature = directional_curvature(problems.mlp, params, updates, data, batch_size=size)
        np.testing.assert_allclose(curvature, d @ hessian @ d / (d @ d), rtol=1e-9)


@pytest.mark.slow
def test_a_loss_that_is_no_number_is_looked_at_once():
    found = critical_sharpness(
        lambda w, x: jnp.mean(x * w**2), jnp.ones(1), -jnp.ones(1), jnp.array([1.0, jnp.nan])
    )
    assert np.isnan(found.sharpness)
    assert int(found.num_passes) == 1


def test_updates_that_only_raise_or_never_raise_the_loss():
    up = critical_sharpness(quartic, ONE, ONE, ONE)
    assert float(up.sharpness) == np.inf
    assert float(up.learning_rate) == 0
    linear = lambda w, x: jnp.sum(w) + 0 * jnp.mean(x)
    for updates in (-ONE, jnp.zeros(1)):
        flat = critical_sharpness(linear, ONE, updates, ONE)
        assert float(flat.sharpness) == float(flat.lower) == 0
        assert float(flat.learning_rate) == np.inf


@pytest.mark.slow
def test_bfloat16_parameters_are_moved_in_float32():
    """An update of a thousandth of the weights is lost in bfloat16."""
    params, data = problems.mlp_problem(dtype=jnp.float32)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half)
    updates = jax.tree.map(
        lambda g: (-1e-4 * g).astype(jnp.bfloat16), jax.grad(problems.mlp)(single, data)
    )
    steps = jax.tree.map(lambda u: u.astype(jnp.float32), updates)
    found, expected = (
        critical_sharpness(problems.mlp, w, u, data, learning_rate=1e-4)
        for w, u in ((half, updates), (single, steps))
    )
    np.testing.assert_allclose(found.sharpness, expected.sharpness, rtol=1e-5)
    np.testing.assert_allclose(
        directional_curvature(problems.mlp, half, updates, data),
        directional_curvature(problems.mlp, single, steps, data),
        rtol=1e-5,
    )


def test_under_jit_and_vmap(x64):
    def run(rate):
        updates = -rate * jnp.asarray(CURVATURES * W)
        return critical_sharpness(quadratic, jnp.asarray(W), updates, ONE, learning_rate=rate)

    rates = jnp.array([0.01, 0.3])
    together = jax.jit(jax.vmap(run))(rates)
    for i, rate in enumerate(rates):
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-6), together, run(rate)
        )


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"updates": jnp.ones(2)}, ValueError, r"updates .*\(1,\).*\(2,\)"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate .* > 0, got 0.0"),
        ({"tolerance": -1.0}, ValueError, "tolerance .* > 0, got -1.0"),
        ({"max_passes": 2}, ValueError, "max_passes .* >= 3, got 2"),
        ({"batch_size": 0}, ValueError, "batch_size .* >= 1, got 0"),
        ({"params": np.ones(1, int)}, TypeError, "params .*int"),
    ],
)
def test_bad_input(changed, error, message):
    arguments = {"loss": quartic, "params": ONE, "updates": ONE, "data": ONE} | changed
    with pytest.raises(error, match=message):
        critical_sharpness(**arguments)
    with pytest.raises(ValueError, match=r"direction .*\(1,\).*\(2,\)"):
        directional_curvature(quartic, ONE, jnp.ones(2), ONE)
