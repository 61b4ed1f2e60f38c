"""The rest of the family against NumPy transcriptions, its special cases, and its compositions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import entropix
from entropix import scoping
from tests.transforms import reference
from tests.transforms.regression import (
    GRADIENTS,
    REPLICAS,
    START,
    as_tree,
    as_vector,
    loss,
    np_gradient,
    one_replica,
    replica_starts,
    stacked,
    train,
)

pytestmark = pytest.mark.usefixtures("x64")

LAWS = dict(rtol=0, atol=1e-9)
GAMMA = scoping.exponential(0.05, 0.04), lambda t: 0.05 * 1.04**t
RHO = scoping.linear(0.3, 0.2), lambda t: 0.3 * (1 + 0.2 * t)

ELASTIC = {
    "EASGD": {},
    "EAMSGD": {"momentum": 0.9},
    "every step": {"every": 1, "center_rate": 0.3},
    "weight decay": {"momentum": 0.5, "weight_decay": 0.1},
}
PARLE = {
    "paper": {},
    "released code": {"momentum": 0.9, "inner_momentum": 0.9, "ema_decay": 0.0},
    "inner state reset": {"inner_momentum": 0.9, "reset_inner": True},
}


def elastic_arguments(case, gamma):
    arguments = {"learning_rate": 0.02, "every": 3, "center_rate": 0.7}
    return arguments | ELASTIC[case] | {"gamma": gamma}


def parle_arguments(case, gamma, rho):
    arguments = {"learning_rate": 0.5, "inner_learning_rate": 0.02, "inner_steps": 8}
    arguments |= {"momentum": None, "inner_momentum": None, "ema_decay": 0.75}
    return arguments | PARLE[case] | {"gamma": gamma, "rho": rho}


@pytest.mark.parametrize("case", ELASTIC)
def test_elastic_sgd_stacked(case):
    tx = entropix.elastic_sgd(axis=0, **elastic_arguments(case, GAMMA[0]))
    expected, _ = reference.elastic_sgd(
        np_gradient, replica_starts(), steps=GRADIENTS, **elastic_arguments(case, GAMMA[1])
    )
    np.testing.assert_allclose(as_vector(stacked(tx, replica_starts())), expected, **LAWS)
    uncoupled, _ = reference.elastic_sgd(
        np_gradient, replica_starts(), steps=GRADIENTS, **elastic_arguments(case, lambda t: 0.0)
    )
    assert np.abs(uncoupled - expected).max() > 1e-3


@pytest.mark.parametrize("mapped", ["vmap", "pmap"])
def test_elastic_sgd_named_axis(mapped):
    tx = entropix.elastic_sgd(axis_name="replica", **elastic_arguments("EAMSGD", GAMMA[0]))
    actual = run_mapped(one_replica(tx), mapped)
    expected, _ = reference.elastic_sgd(
        np_gradient, replica_starts(), steps=GRADIENTS, **elastic_arguments("EAMSGD", GAMMA[1])
    )
    np.testing.assert_allclose(as_vector(actual), expected, **LAWS)


def run_mapped(run, mapped):
    inputs = as_tree(replica_starts()), jnp.arange(REPLICAS)
    if mapped == "vmap":
        return jax.jit(jax.vmap(run, axis_name="replica"))(*inputs)
    devices = jax.devices()[:REPLICAS]
    return jax.device_get(jax.pmap(run, axis_name="replica", devices=devices)(*inputs))


def test_the_moving_center_is_in_the_state():
    arguments = elastic_arguments("EASGD", 0.2)
    tx = entropix.elastic_sgd(axis=0, **arguments)
    params = as_tree(replica_starts())
    state = tx.init(params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    for _ in range(7):
        updates, state = tx.update(zeros, state, params)
        params = optax.apply_updates(params, updates)
    _, expected = reference.elastic_sgd(
        lambda x, a, step: 0 * x, replica_starts(), steps=7,
        **elastic_arguments("EASGD", lambda t: 0.2),
    )  # fmt: skip
    np.testing.assert_allclose(as_vector(optax.tree.get(state, "center"))[0], expected, **LAWS)


@pytest.mark.parametrize("case", PARLE)
def test_parle_stacked(case):
    tx = entropix.parle(axis=0, **parle_arguments(case, GAMMA[0], RHO[0]))
    expected = reference.parle(
        np_gradient, replica_starts(), gradients=GRADIENTS,
        **parle_arguments(case, GAMMA[1], RHO[1]),
    )  # fmt: skip
    np.testing.assert_allclose(as_vector(stacked(tx, replica_starts())), expected, **LAWS)
    uncoupled = reference.parle(
        np_gradient, replica_starts(), gradients=GRADIENTS,
        **parle_arguments(case, GAMMA[1], lambda t: 0.0),
    )  # fmt: skip
    assert np.abs(uncoupled - expected).max() > 1e-3


@pytest.mark.parametrize("mapped", ["vmap", "pmap"])
def test_parle_named_axis(mapped):
    tx = entropix.parle(axis_name="replica", **parle_arguments("released code", GAMMA[0], RHO[0]))
    expected = reference.parle(
        np_gradient, replica_starts(), gradients=GRADIENTS,
        **parle_arguments("released code", GAMMA[1], RHO[1]),
    )  # fmt: skip
    np.testing.assert_allclose(as_vector(run_mapped(one_replica(tx), mapped)), expected, **LAWS)


def test_parle_schedules_are_those_of_the_released_code():
    gamma, rho = scoping.parle_schedules(10)
    for t in (0, 1, 7, 30, 90, 200):
        np.testing.assert_allclose(gamma(t), min(0.01 * 1.05**t, 1), rtol=1e-12)
        np.testing.assert_allclose(rho(t), min(1.05**t, 10), rtol=1e-12)


@pytest.mark.parametrize(
    ("factory", "average"),
    [
        (entropix.heat_sgd, lambda iterates: np.mean(iterates, 0)),
        (entropix.hopf_lax_sgd, lambda iterates: iterates[-1]),
    ],
)
def test_relaxation_steps(factory, average):
    arguments = dict(learning_rate=0.8, gamma=0.4, inner_learning_rate=0.05, inner_steps=5)
    held, _ = train(factory(inner_momentum=None, **arguments))
    expected = reference.relaxation(
        lambda x, i: np_gradient(x, 0, i), START,
        gradients=GRADIENTS, average=average, **arguments,
    )  # fmt: skip
    np.testing.assert_allclose(as_vector(held), expected, **LAWS)


def test_debiased_plain_average_leaves_the_start_out():
    tx = entropix.entropy_descent(
        optax.sgd(1.0), optax.sgd(0.05), inner_steps=5, gamma=0.4,
        ema_decay=entropix.plain_average, debias=True,
    )  # fmt: skip
    held, _ = train(tx)
    expected = reference.relaxation(
        lambda x, i: np_gradient(x, 0, i), START,
        gradients=GRADIENTS, inner_steps=5, gamma=0.4, learning_rate=1.0, inner_learning_rate=0.05,
        average=lambda iterates: np.mean(iterates[1:], 0),
    )  # fmt: skip
    np.testing.assert_allclose(as_vector(held), expected, **LAWS)


def test_the_hopf_lax_step_on_a_quadratic_is_its_proximal_point():
    """argmin f + gamma/2 |x' - x|^2 = (I + H/gamma)^-1 x at eta = 1."""
    hessian = jnp.diag(jnp.array([0.0, 0.5, 2.0]))
    x = jnp.array([1.0, -2.0, 3.0])
    tx = entropix.hopf_lax_sgd(gamma=0.5, inner_steps=200, opaque=True)
    updates, _ = tx.update(x, tx.init(x), x, grad_fn=lambda w, step: hessian @ w)
    np.testing.assert_allclose(x + updates, jnp.linalg.solve(jnp.eye(3) + hessian / 0.5, x))


def test_parle_with_one_replica_and_no_coupling_is_entropy_sgd():
    arguments = parle_arguments("released code", GAMMA[0], 0.0) | {"noise": 0.1, "key": 5}
    alone = entropix.parle(axis=0, **arguments)
    del arguments["rho"]
    entropy_sgd = entropix.entropy_sgd(reset_inner=False, **arguments)
    start = replica_starts()[:1]
    actual, expected = (as_vector(stacked(tx, start)) for tx in (alone, entropy_sgd))
    np.testing.assert_array_equal(actual, expected)
    assert np.abs(actual - start).max() > 0.1


@pytest.mark.parametrize(
    ("coupled", "independent"),
    [
        (
            entropix.replicated_sgd(0.02, gamma=0.0, axis=0),
            optax.sgd(0.02, momentum=0.9, nesterov=True),
        ),
        (
            entropix.elastic_sgd(0.02, gamma=0.0, momentum=0.9, axis=0),
            optax.sgd(0.02, momentum=0.9, nesterov=True),
        ),
        (
            entropix.parle(axis=0, **parle_arguments("paper", 0.2, 0.0)),
            entropix.entropy_sgd(
                0.5, inner_learning_rate=0.02, inner_steps=8, gamma=0.2, noise=0.0, momentum=None,
                inner_momentum=None,
            ),
        ),
    ],
    ids=["replicated_sgd", "elastic_sgd", "parle"],
)  # fmt: skip
def test_without_coupling_the_replicas_are_independent_runs(coupled, independent):
    actual = stacked(coupled, replica_starts())
    expected = jax.jit(jax.vmap(one_replica(independent)))(
        as_tree(replica_starts()), jnp.arange(REPLICAS)
    )
    np.testing.assert_allclose(as_vector(actual), as_vector(expected), rtol=0, atol=1e-14)


def test_a_moving_center_with_rate_one_is_the_mean():
    mean, moving = (
        optax.chain(
            entropix.couple_replicas(0.3, center=center, center_rate=1.0, axis=0),
            optax.sgd(0.02, momentum=0.9),
        )
        for center in ("mean", "moving")
    )
    actual, expected = (as_vector(stacked(tx, replica_starts())) for tx in (moving, mean))
    np.testing.assert_array_equal(actual, expected)
    elastic = entropix.elastic_sgd(0.02, gamma=0.3, center_rate=1.0, every=1, axis=0)
    replicated = entropix.replicated_sgd(0.02, gamma=0.3, every=1, momentum=None, axis=0)
    actual, expected = (as_vector(stacked(tx, replica_starts())) for tx in (elastic, replicated))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-14)


def test_replicated_sam():
    """Each replica climbs along its own gradient; the descent is coupled at where it came from."""
    ascent = optax.chain(optax.contrib.normalize(), optax.sgd(0.1))
    descent = optax.chain(
        entropix.couple_replicas(0.3, every=2, axis_name="replica"), optax.sgd(0.02)
    )
    tx = optax.contrib.sam(descent, ascent, sync_period=2)
    actual = as_vector(run_mapped(one_replica(tx), "vmap"))
    x = replica_starts()
    for step in range(GRADIENTS // 2):
        climbed = []
        for a in range(REPLICAS):
            g = np_gradient(x[a], a, 2 * step)
            climbed.append(x[a] + 0.1 * g / np.linalg.norm(g))
        # SAM updates its descent optimizer at every gradient and keeps every second result.
        pull = 2 * 0.3 * (x - x.mean(0)) * (step % 2 == 0)
        g = np.stack([np_gradient(climbed[a], a, 2 * step + 1) for a in range(REPLICAS)])
        x = x - 0.02 * (g + pull)
    np.testing.assert_allclose(actual, x, **LAWS)


def test_entropy_sgd_on_some_parameters_and_sgd_on_the_others():
    entropy_sgd = entropix.entropy_sgd(
        0.7, inner_learning_rate=0.05, inner_steps=8, gamma=0.3, noise=0.0, momentum=None,
        inner_momentum=None,
    )  # fmt: skip
    tx = optax.partition(
        {"entropy": entropy_sgd, "plain": optax.sgd(0.03)}, {"a": "entropy", "b": "plain"}
    )
    held, state = train(tx)
    x = START.copy()
    for outer_step in range(GRADIENTS // 8):
        anchor = mu = x[:2]
        for inner_step in range(8):
            g = np_gradient(x, 0, 8 * outer_step + inner_step)
            inner = x[:2] - 0.05 * (g[:2] + 0.3 * (x[:2] - anchor))
            mu = 0.75 * mu + 0.25 * inner
            x = np.concatenate([inner, x[2:] - 0.03 * g[2:]])
        x[:2] = anchor - 0.7 * (anchor - mu)
    np.testing.assert_allclose(as_vector(held), x, **LAWS)
    np.testing.assert_allclose(as_vector(entropix.eval_params(state, held)), x, **LAWS)


def test_partial_coupling_of_one_layer():
    tx = optax.chain(
        optax.masked(entropix.couple_replicas(0.3, axis=0), {"a": True, "b": False}),
        optax.sgd(0.02),
    )
    x = replica_starts()
    for step in range(GRADIENTS):
        g = np.stack([np_gradient(x[a], a, step) for a in range(REPLICAS)])
        g[:, :2] += 0.3 * (x - x.mean(0))[:, :2]
        x = x - 0.02 * g
    np.testing.assert_allclose(as_vector(stacked(tx, replica_starts())), x, **LAWS)


@pytest.mark.slow
def test_replicated_training_on_a_smoothed_loss():
    """The layer-wise local entropy is one more loss: replicas of it are coupled like any other."""
    smooth = entropix.losses.local_entropy_loss(
        loss, radius=0.1, samples=3, mask={"a": True, "b": False}
    )
    params = as_tree(replica_starts())
    batch = (jnp.ones((3, 5)), jnp.ones(3))
    tx = entropix.replicated_sgd(0.02, gamma=0.3, every=1, axis=0)
    keys = jax.random.split(jax.random.key(0), REPLICAS)
    grads = jax.vmap(jax.grad(smooth), (0, None, 0))(params, batch, keys)
    updates, _ = tx.update(grads, tx.init(params), params)
    plain = jax.vmap(jax.grad(loss), (0, None))(params, batch)
    for name in ("a", "b"):
        pull = 0.3 * (params[name] - params[name].mean(0)[None])
        expected = -0.02 * 1.9 * (grads[name] + pull)
        np.testing.assert_allclose(updates[name], expected, atol=1e-12)
        assert np.abs(grads[name] - plain[name]).max() > 1e-6


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: entropix.couple_replicas(0.1, center="still", axis=0), ValueError,
            "center must be 'mean' or 'moving', got 'still'",
        ),
        (
            lambda: entropix.elastic_sgd(0.1, gamma=0.1, center_rate=1.5, axis=0), ValueError,
            "center_rate .*got 1.5",
        ),
        (
            lambda: entropix.parle(gamma=0.1, rho=-1, axis=0), ValueError,
            "rho .*got -1",
        ),
        (
            lambda: entropix.parle(gamma=0.1, rho=1.0), ValueError,
            "axis or axis_name must say where the replicas are",
        ),
        (
            lambda: entropix.heat_sgd(gamma=-1.0), ValueError,
            "gamma .*got -1.0",
        ),
        (
            lambda: scoping.parle_schedules(0), ValueError,
            "batches_per_epoch .*got 0",
        ),
        (
            lambda: entropix.parle(gamma=0.1, rho=1.0, axis=0).init(
                {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
            ),
            ValueError, r"one length for all leaves, got .*'b'.*3",
        ),
    ],
)  # fmt: skip
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
