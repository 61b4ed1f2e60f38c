"""Curvature operators against closed forms, dense derivatives, chunks, devices and bad input."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from entropix.flatness import (
    dense,
    gauss_newton,
    hessian,
    lanczos,
    spectrum,
)
from tests.flatness import problems

RNG = np.random.default_rng(0)


def test_quadratic(x64):
    x = jnp.asarray(RNG.normal(size=(30, 6)))
    h = dense(hessian(problems.quadratic, jnp.zeros(6), x))
    np.testing.assert_allclose(h, x.T @ x / 30, atol=1e-13)


def test_logistic_regression_is_x_d_x(x64):
    x, w = RNG.normal(size=(40, 5)), RNG.normal(size=5)
    y = RNG.integers(0, 2, size=40).astype(float)
    p = 1 / (1 + np.exp(-x @ w))
    expected = x.T @ np.diag(p * (1 - p)) @ x / 40
    data = jnp.asarray(x), jnp.asarray(y)
    np.testing.assert_allclose(
        dense(hessian(problems.logistic, jnp.asarray(w), data)), expected, atol=1e-13
    )
    v = jnp.asarray(RNG.normal(size=5))
    for batch_size in (None, 7):
        product = hessian(problems.logistic, jnp.asarray(w), data, batch_size=batch_size)
        np.testing.assert_allclose(product(v), expected @ v, atol=1e-13)


def test_softmax_regression(x64):
    """H = mean_i kron(x_i x_i^T, diag(p_i) - p_i p_i^T): for a linear model also Gauss-Newton."""
    x, w, y = RNG.normal(size=(20, 3)), RNG.normal(size=(3, 4)), RNG.integers(0, 4, size=20)
    p = np.exp(x @ w) / np.exp(x @ w).sum(1, keepdims=True)
    expected = np.mean(
        [
            np.kron(np.outer(xi, xi), np.diag(pi) - np.outer(pi, pi))
            for xi, pi in zip(x, p, strict=True)
        ],
        axis=0,
    )
    params, data = jnp.asarray(w), (jnp.asarray(x), jnp.asarray(y))
    loss = lambda w, batch: problems.cross_entropy(problems.softmax_outputs(w, batch), batch)
    np.testing.assert_allclose(dense(hessian(loss, params, data)), expected, atol=1e-13)
    product = gauss_newton(
        problems.softmax_outputs, problems.cross_entropy, params, data, batch_size=6
    )
    v = RNG.normal(size=12)
    np.testing.assert_allclose(
        product(jnp.asarray(v.reshape(3, 4))).ravel(), expected @ v, atol=1e-13
    )


def test_linear_network_at_its_minimum(x64):
    """At zero residual the Hessian is J^T J / n, J = (x A kron I, ...): the Gauss-Newton matrix."""
    x, a, b = (RNG.normal(size=shape) for shape in ((15, 3), (3, 2), (2, 4)))
    rows = [
        np.concatenate([np.kron(xi[:, None], b[:, [k]]).ravel(), np.kron(xi @ a, np.eye(4)[k])])
        for xi in x
        for k in range(4)
    ]
    expected = np.transpose(rows) @ np.array(rows) / 15
    data = jnp.asarray(x), jnp.asarray(x @ a @ b)
    found = dense(hessian(problems.linear_network, (jnp.asarray(a), jnp.asarray(b)), data))
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "batch_size",
    [None, 1, 7, 59, 60, 100],
)
def test_network_against_dense_derivatives_in_any_chunks(batch_size, x64):
    params, data = problems.mlp_problem()
    flat, unflatten = ravel_pytree(params)
    expected = jax.hessian(lambda w: problems.mlp(unflatten(w), data))(flat)
    found = dense(hessian(problems.mlp, params, data, batch_size=batch_size))
    np.testing.assert_allclose(found, expected, atol=1e-13)
    np.testing.assert_array_equal(found, found.T)
    jacobian = jax.jacobian(lambda w: problems.mlp_outputs(unflatten(w), data))(flat)
    z = problems.mlp_outputs(params, data)
    curvature = jax.hessian(problems.cross_entropy)(z, data)
    expected = jnp.einsum("abi,abcd,cdj->ij", jacobian, curvature, jacobian)
    product = gauss_newton(
        problems.mlp_outputs, problems.cross_entropy, params, data, batch_size=batch_size
    )
    v = jnp.asarray(RNG.normal(size=flat.size))
    np.testing.assert_allclose(ravel_pytree(product(unflatten(v)))[0], expected @ v, atol=1e-13)


@pytest.mark.slow
def test_probes_and_examples_over_a_mesh_give_the_same(x64):
    params, data = problems.mlp_problem(examples=64)
    keys = jax.random.split(jax.random.key(0), 8)
    arguments = dict(num_steps=5, num_probes=8, probe_batch_size=8)
    expected = spectrum(hessian(problems.mlp, params, data), keys, **arguments)
    mesh = jax.make_mesh((4, 2), ("probe", "data"), (AxisType.Auto,) * 2)
    found = spectrum(
        hessian(
            problems.mlp,
            jax.device_put(params, NamedSharding(mesh, P())),
            jax.device_put(data, NamedSharding(mesh, P("data"))),
        ),
        jax.device_put(keys, NamedSharding(mesh, P("probe"))),
        **arguments,
    )
    assert found.nodes.sharding.spec[0] == "probe"
    np.testing.assert_allclose(found.nodes, expected.nodes, atol=1e-12)
    np.testing.assert_allclose(found.weights, expected.weights, atol=1e-12)


@pytest.mark.slow
def test_second_operator_of_the_same_shapes_compiles_nothing():
    params, data = problems.mlp_problem()

    def run(scale, batch_size):
        here = jax.tree.map(lambda leaf: scale * leaf, params)
        operator = hessian(problems.mlp, here, data, batch_size=batch_size)
        return lanczos(operator, here, 4).diagonal, operator(here)

    for batch_size in (None, 7):
        first = run(1.0, batch_size)
        with no_compilation():
            second = run(2.0, batch_size)
        assert not np.allclose(first[0], second[0])


@contextlib.contextmanager
def no_compilation():
    """Fails the test where anything is compiled inside."""
    compiled = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield
    jax.monitoring.unregister_event_duration_listener(listen)
    assert not compiled


def test_too_many_parameters_for_a_dense_matrix():
    params = {"w": jnp.zeros((100, 100))}
    with pytest.raises(ValueError, match=r"operator .*got 10000"):
        dense(hessian(lambda p, x: jnp.mean(p["w"]) * jnp.mean(x), params, jnp.ones(3)))
