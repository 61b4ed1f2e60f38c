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
    exact_hessian,
    gauss_newton_operator,
    hessian_operator,
    hessian_spectrum,
    lanczos,
    local_energy,
    sam_sharpness,
    top_eigenvalues,
    trace,
)
from tests.flatness import problems

RNG = np.random.default_rng(0)


def test_quadratic(x64):
    x = jnp.asarray(RNG.normal(size=(30, 6)))
    h = exact_hessian(problems.quadratic, jnp.zeros(6), x)
    np.testing.assert_allclose(h, x.T @ x / 30, atol=1e-13)


def test_logistic_regression_is_x_d_x(x64):
    x, w = RNG.normal(size=(40, 5)), RNG.normal(size=5)
    y = RNG.integers(0, 2, size=40).astype(float)
    p = 1 / (1 + np.exp(-x @ w))
    expected = x.T @ np.diag(p * (1 - p)) @ x / 40
    data = jnp.asarray(x), jnp.asarray(y)
    np.testing.assert_allclose(
        exact_hessian(problems.logistic, jnp.asarray(w), data), expected, atol=1e-13
    )
    v = jnp.asarray(RNG.normal(size=5))
    for batch_size in (None, 7):
        product = hessian_operator(problems.logistic, jnp.asarray(w), data, batch_size=batch_size)
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
    np.testing.assert_allclose(exact_hessian(loss, params, data), expected, atol=1e-13)
    product = gauss_newton_operator(
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
    found = exact_hessian(problems.linear_network, (jnp.asarray(a), jnp.asarray(b)), data)
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("batch_size", [None, 1, 7, 59, 60, 100])
def test_network_against_dense_derivatives_in_any_chunks(batch_size, x64):
    params, data = problems.mlp_problem()
    flat, unflatten = ravel_pytree(params)
    hessian = jax.hessian(lambda w: problems.mlp(unflatten(w), data))(flat)
    found = exact_hessian(problems.mlp, params, data, batch_size=batch_size)
    np.testing.assert_allclose(found, hessian, atol=1e-13)
    np.testing.assert_array_equal(found, found.T)
    jacobian = jax.jacobian(lambda w: problems.mlp_outputs(unflatten(w), data))(flat)
    z = problems.mlp_outputs(params, data)
    curvature = jax.hessian(problems.cross_entropy)(z, data)
    gauss_newton = jnp.einsum("abi,abcd,cdj->ij", jacobian, curvature, jacobian)
    product = gauss_newton_operator(
        problems.mlp_outputs, problems.cross_entropy, params, data, batch_size=batch_size
    )
    v = jnp.asarray(RNG.normal(size=flat.size))
    np.testing.assert_allclose(ravel_pytree(product(unflatten(v)))[0], gauss_newton @ v, atol=1e-13)


CHUNKED = {
    "hessian": lambda params, data, size: hessian_operator(
        problems.mlp, params, data, batch_size=size
    )(params),
    "gauss-newton": lambda params, data, size: gauss_newton_operator(
        problems.mlp_outputs, problems.cross_entropy, params, data, batch_size=size
    )(params),
    "spectrum": lambda params, data, size: hessian_spectrum(
        problems.mlp, params, data, 0, num_steps=4, num_probes=2, batch_size=size
    )[:2],
    "trace": lambda params, data, size: trace(
        problems.mlp, params, data, 0, num_probes=6, batch_size=size
    ),
    "local energy": lambda params, data, size: local_energy(
        problems.mlp, params, data, 0, sigma=0.1, num_samples=3, batch_size=size
    ),
    "sharpness": lambda params, data, size: sam_sharpness(
        problems.mlp, params, data, num_steps=2, batch_size=size
    ),
}


@pytest.mark.parametrize("name", CHUNKED)
def test_a_thousand_examples_in_any_chunks(name, x64):
    params, data = problems.mlp_problem(examples=1000)
    # The spectrum and the trace see the data through the operator alone.
    sizes = (1000, 7) if name in ("spectrum", "trace") else (1000, 1, 7, 333)
    whole, *others = (CHUNKED[name](params, data, size) for size in sizes)
    for answer in others:
        for ours, expected in zip(jax.tree.leaves(answer), jax.tree.leaves(whole), strict=True):
            np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-12)


ESTIMATORS = {
    "spectrum": lambda params, data: hessian_spectrum(
        problems.mlp, params, data, 0, num_steps=5, num_probes=8, probe_batch_size=8
    )[:2],
    "spectrum in chunks": lambda params, data: hessian_spectrum(
        problems.mlp, params, data, 0, num_steps=5, num_probes=2, batch_size=16
    )[:2],
    "eigenvalues": lambda params, data: (
        top_eigenvalues(problems.mlp, params, data, 0, k=2, tol=1e-8).eigenvalues
    ),
    "trace": lambda params, data: trace(problems.mlp, params, data, 0, num_probes=9),
    "local energy": lambda params, data: local_energy(
        problems.mlp, params, data, 0, sigma=jnp.array([0.1, 0.2]), num_samples=4
    ),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_examples_on_eight_devices_under_jit_give_the_same(name, x64):
    params, data = problems.mlp_problem(examples=64)
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))
    sharded = jax.device_put(data, NamedSharding(mesh, P("data")))
    replicated = jax.device_put(params, NamedSharding(mesh, P()))
    expected = ESTIMATORS[name](params, data)
    found = jax.jit(ESTIMATORS[name])(replicated, sharded)
    for ours, one in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, one, rtol=1e-9, atol=1e-12)


def test_probes_and_examples_over_a_mesh_give_the_same(x64):
    params, data = problems.mlp_problem(examples=64)
    keys = jax.random.split(jax.random.key(0), 8)
    arguments = dict(num_steps=5, num_probes=8, probe_batch_size=8)
    expected = hessian_spectrum(problems.mlp, params, data, keys, **arguments)
    mesh = jax.make_mesh((4, 2), ("probe", "data"), (AxisType.Auto,) * 2)
    found = hessian_spectrum(
        problems.mlp,
        jax.device_put(params, NamedSharding(mesh, P())),
        jax.device_put(data, NamedSharding(mesh, P("data"))),
        jax.device_put(keys, NamedSharding(mesh, P("probe"))),
        **arguments,
    )
    assert found.nodes.sharding.spec[0] == "probe"
    np.testing.assert_allclose(found.nodes, expected.nodes, atol=1e-12)
    np.testing.assert_allclose(found.weights, expected.weights, atol=1e-12)


def test_second_operator_of_the_same_shapes_compiles_nothing():
    params, data = problems.mlp_problem()

    def run(scale, batch_size):
        here = jax.tree.map(lambda leaf: scale * leaf, params)
        operator = hessian_operator(problems.mlp, here, data, batch_size=batch_size)
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


PARAMS, DATA = problems.mlp_problem()
LONG = {"w": jnp.zeros((100, 100))}


@pytest.mark.parametrize("estimate", [*ESTIMATORS.values(), lambda p, d: exact_hessian(
    problems.mlp, p, d), lambda p, d: sam_sharpness(problems.mlp, p, d)])  # fmt: skip
@pytest.mark.parametrize(
    ("params", "data", "error", "message"),
    [
        (PARAMS | {"b": jnp.ones(6, int)}, DATA, TypeError, "params must hold floating-point"),
        (PARAMS | {"b": jnp.full(6, jnp.nan)}, DATA, ValueError, r"got NaN or infinity at .*'b'"),
        (PARAMS, (DATA[0][:0], DATA[1][:0]), ValueError, "at least one example, got none"),
        (PARAMS, (DATA[0], DATA[1][:9]), ValueError, "equal leading axes, got 60 .* and 9"),
        ({}, DATA, ValueError, "params must hold at least one array"),
    ],
    ids=["integer", "nan", "empty", "uneven", "no parameters"],
)
def test_bad_problems(estimate, params, data, error, message):
    with pytest.raises(error, match=message):
        estimate(params, data)


def test_loss_that_is_not_scalar_and_too_many_parameters():
    with pytest.raises(ValueError, match="must be a floating-point scalar"):
        hessian_operator(problems.mlp_outputs, PARAMS, DATA)
    with pytest.raises(ValueError, match="params must hold N <= 8192 numbers, got 10000"):
        exact_hessian(lambda p, x: jnp.mean(p["w"]) * jnp.mean(x), LONG, jnp.ones(3))
    with pytest.raises(ValueError, match="batch_size must be an integer >= 1, got 0"):
        hessian_operator(problems.mlp, PARAMS, DATA, batch_size=0)
