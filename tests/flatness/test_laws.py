"""What every estimator of a loss must obey: chunks, devices, eager evaluation, bad problems."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from entropix.flatness import (
    critical_sharpness,
    dense,
    diagonal,
    directional_curvature,
    eigenvalues,
    filter_normalized_direction,
    gauss_newton,
    gradient_covariance,
    gradient_noise,
    hessian,
    layer_temperature,
    linear_barrier,
    local_energy,
    local_entropy,
    loss_slice,
    sam_sharpness,
    spectrum,
    trace,
)
from tests.flatness import problems
from tests.flatness.test_hessian import no_compilation


def same(params, batch):
    return params


def doubled(params):
    return jax.tree.map(lambda leaf: leaf + leaf, params)


# Functions of (loss, params, data, batch_size).
ESTIMATORS = {
    "hessian": lambda f, w, x, size: hessian(f, w, x, batch_size=size) @ w,
    "gauss-newton": lambda f, w, x, size: gauss_newton(same, f, w, x, batch_size=size) @ w,
    "reverse over reverse": lambda f, w, x, size: (
        hessian(f, w, x, batch_size=size, product="reverse_over_reverse") @ w
    ),
    "gradient covariance": lambda f, w, x, size: (
        gradient_covariance(f, w, x, batch_size=size) @ w
    ),
    "dense": lambda f, w, x, size: dense(hessian(f, w, x, batch_size=size)),
    "diagonal": lambda f, w, x, size: diagonal(
        hessian(f, w, x, batch_size=size), 0, num_probes=3
    ),
    "spectrum": lambda f, w, x, size: spectrum(
        hessian(f, w, x, batch_size=size), 0, num_steps=4, num_probes=2
    )[:2],
    "probes together": lambda f, w, x, size: spectrum(
        hessian(f, w, x, batch_size=size), 0, num_steps=4, num_probes=8, probe_batch_size=8
    )[:2],
    "eigenvalues": lambda f, w, x, size: (
        eigenvalues(hessian(f, w, x, batch_size=size), 0, k=2, tol=1e-8).eigenvalues
    ),
    "trace": lambda f, w, x, size: trace(hessian(f, w, x, batch_size=size), 0, num_probes=6),
    "local energy": lambda f, w, x, size: local_energy(
        f, w, x, 0, sigma=jnp.array([0.1, 0.2]), num_samples=3, batch_size=size
    ),
    "local entropy": lambda f, w, x, size: (
        local_entropy(
            f, w, x, 0, gamma=1.0, num_nodes=4, num_steps=8, num_burn_in=2, num_chains=2,
            batch_size=size,
        ).value
    ),
    "gradient noise": lambda f, w, x, size: gradient_noise(f, w, x, batch_size=size)[:6],
    "gradient noise by lanczos": lambda f, w, x, size: gradient_noise(
        f, w, x, num_steps=3, batch_size=size
    )[:6],
    "sharpness": lambda f, w, x, size: sam_sharpness(f, w, x, num_steps=2, batch_size=size),
    "slice": lambda f, w, x, size: loss_slice(f, w, x, [w], jnp.arange(3.0), batch_size=size),
    "barrier": lambda f, w, x, size: linear_barrier(
        f, w, doubled(w), x, num_points=3, batch_size=size
    ),
}  # fmt: skip
# These look at mini-batches, or at groups, which chunks would change.
IN_BATCHES = {
    "layer temperature": lambda f, w, x, _: layer_temperature(f, w, x, minibatch_size=4),
    "sharpness of groups": lambda f, w, x, _: sam_sharpness(f, w, x, group_size=4),
}
EVERY = ESTIMATORS | IN_BATCHES


def assert_same(found, expected, rtol=1e-9):
    for ours, one in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, one, rtol=rtol, atol=1e-12)


# Compiled for each size; the others see the chunks through the same function.
AT_EVERY_SIZE = ("hessian", "local energy", "sharpness")


# A chain of Langevin steps magnifies rounding: local entropy has tests of its own.
@pytest.mark.parametrize("name", sorted(set(ESTIMATORS) - {"probes together", "local entropy"}))
@pytest.mark.slow
def test_a_thousand_examples_in_any_chunks(name, x64):
    params, data = problems.mlp_problem(examples=1000, hidden=3)
    sizes = (1000, 1, 7, 333) if name in AT_EVERY_SIZE else (1000, 7)
    whole, *parts = (ESTIMATORS[name](problems.mlp, params, data, size) for size in sizes)
    for part in parts:
        assert_same(part, whole)


@pytest.mark.parametrize(
    ("name", "batch_size"),
    [(name, None) for name in EVERY if name not in ("dense", "sharpness of groups")]
    + [("spectrum", 16)],
)
@pytest.mark.slow
def test_examples_on_eight_devices_under_jit_give_the_same(name, batch_size, x64):
    params, data = problems.mlp_problem(examples=64, hidden=3)
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))
    sharded = jax.device_put(data, NamedSharding(mesh, P("data")))
    replicated = jax.device_put(params, NamedSharding(mesh, P()))
    run = lambda params, data: EVERY[name](problems.mlp, params, data, batch_size)
    found = jax.jit(run)(replicated, sharded)
    assert_same(found, run(params, data), rtol=1e-6 if name == "local entropy" else 1e-9)


# The others have it in tests of their own.
@pytest.mark.parametrize(
    "name", ["spectrum", "eigenvalues", "trace", "local energy", "sharpness", "slice", "barrier"]
)
@pytest.mark.slow
def test_jit_equals_eager(name, x64):
    params, data = problems.mlp_problem(examples=8, hidden=1, inputs=2)
    compiled = EVERY[name](problems.mlp, params, data, 3)
    with jax.disable_jit():
        eager = EVERY[name](problems.mlp, params, data, 3)
    assert_same(eager, compiled)


PARAMS, DATA = problems.mlp_problem(hidden=6)


@pytest.mark.parametrize(
    ("name", "batch_size"),
    [("hessian", 3)]
    + [
        pytest.param(name, None, marks=[] if name in AT_EVERY_SIZE else pytest.mark.slow)
        for name in EVERY
    ],
)
def test_parameters_and_data_may_be_constants_of_a_compiled_function(name, batch_size):
    params, data = problems.mlp_problem(examples=8, hidden=1, inputs=2)

    bad = params | {"w": params["w"].at[0].set(jnp.nan)}
    jax.eval_shape(lambda: EVERY[name](problems.mlp, params, data, batch_size))
    with pytest.raises(ValueError, match="params"):
        jax.eval_shape(lambda: EVERY[name](problems.mlp, bad, data, batch_size))


@pytest.mark.parametrize("name", EVERY)
def test_bad_problems(name):
    for loss, params, data, error, message in (
        (problems.mlp_outputs, PARAMS, DATA, ValueError, "must be a floating-point scalar"),
        (problems.mlp, PARAMS | {"b": jnp.ones(6, int)}, DATA, TypeError, "hold floating-point"),
        (
            problems.mlp, PARAMS | {"b": jnp.full(6, jnp.nan)}, DATA, ValueError,
            r"got NaN or infinity at .*'b'",
        ),
        (problems.mlp, PARAMS, (DATA[0][:0], DATA[1][:0]), ValueError, "one example, got none"),
        (
            problems.mlp, PARAMS, (DATA[0], DATA[1][:9]), ValueError,
            "equal leading axes, got 60 .* and 9",
        ),
        (problems.mlp, {}, DATA, ValueError, "params must hold at least one array"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            EVERY[name](loss, params, data, None)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_bad_batch_size(name):
    with pytest.raises(ValueError, match=r"batch_size .*got 0"):
        ESTIMATORS[name](problems.mlp, PARAMS, DATA, 0)


X, W = jnp.asarray(DATA[0][:12]), {"a": jnp.ones(2), "b": jnp.arange(1.0, 4.0)}


def shifted(shift):
    """A loss that holds an array."""
    return lambda w, x: jnp.mean(
        (jnp.matmul(x[:, :2], w["a"]) - shift + jnp.matmul(x[:, 2:], w["b"])) ** 4
    )


OF_A_CLOSURE = {
    "local energy": lambda f: local_energy(f, W, X, 0, sigma=0.1, num_samples=2).mean,
    "sharpness": lambda f: sam_sharpness(f, W, X).mean,
    "sharpness of groups": lambda f: sam_sharpness(f, W, X, group_size=5).mean,
    "critical sharpness": lambda f: (
        critical_sharpness(f, W, jax.tree.map(jnp.negative, W), X).sharpness
    ),
    "directional curvature": lambda f: directional_curvature(f, W, W, X),
    "slice": lambda f: loss_slice(f, W, X, [W], jnp.arange(2.0)),
    "barrier": lambda f: linear_barrier(f, W, doubled(W), X, num_points=3).values,
    "local entropy": lambda f: (
        local_entropy(
            f, W, X, 0, gamma=1.0, num_nodes=4, num_steps=8, num_burn_in=2, num_chains=2
        ).log_volume
    ),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("sharpness", "slice") else [pytest.mark.slow])
        for name in OF_A_CLOSURE
    ],
)
def test_a_closure_over_other_arrays_compiles_nothing_and_keeps_none_alive(name):
    run = OF_A_CLOSURE[name]
    first, second = jnp.full(12, 2.0), jnp.full(12, 0.0)
    if name == "sharpness of groups":
        first, second = first[:1], second[:1]
    gone = weakref.ref(first)
    before = run(shifted(first))
    with no_compilation():
        after = run(shifted(second))
    assert not np.allclose(before, after)
    del first
    gc.collect()
    assert gone() is None


MASKED = {
    "sharpness": lambda f, w, mask: sam_sharpness(f, w, X, radius=0.5, num_steps=2, mask=mask),
    "local energy": lambda f, w, mask: local_energy(
        f, w, X, 0, sigma=0.1, num_samples=4, mask=mask
    ),
    "local entropy": lambda f, w, mask: local_entropy(
        f, w, X, 0, gamma=1.0, num_nodes=4, num_steps=8, num_burn_in=2, num_chains=2, mask=mask
    )[1:4],
}


@pytest.mark.parametrize(
    "name",
    ["sharpness"] + [pytest.param(name, marks=pytest.mark.slow) for name in list(MASKED)[1:]],
)
def test_with_a_mask_the_other_parameters_are_part_of_the_loss(name):
    loss = shifted(jnp.ones(()))
    # The one leaf in a tree of its own draws what it draws beside the other.
    alone = lambda b, x: loss({"a": W["a"], **b}, x)
    found = MASKED[name](loss, W, {"a": False, "b": True})
    expected = MASKED[name](alone, {"b": W["b"]}, None)
    assert_same(found, expected, rtol=1e-5)
    with pytest.raises(ValueError, match="mask must choose at least one leaf"):
        MASKED[name](loss, W, mask=False)


def test_a_masked_direction_is_zero_elsewhere():
    params = {"a": jnp.eye(3), "b": jnp.eye(3)}
    found = filter_normalized_direction(params, 0, mask={"a": True, "b": False})
    np.testing.assert_allclose(jnp.linalg.norm(found["a"], axis=0), 1, rtol=1e-6)
    np.testing.assert_array_equal(found["b"], 0)
