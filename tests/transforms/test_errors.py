"""Bad input is refused at once, by name, value and what is accepted."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import entropix

PARAMS = {"w": jnp.ones((2, 3))}
SGD = optax.sgd(0.1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"inner_steps": 0}, ValueError, "inner_steps .*got 0"),
        ({"inner_steps": 2.5}, TypeError, "inner_steps .*got 2.5"),
        ({"inner_steps": True}, TypeError, "inner_steps .*got True"),
        ({"gamma": -0.1}, ValueError, "gamma .*got -0.1"),
        ({"gamma": np.float32(np.nan)}, ValueError, "gamma .*got nan"),
        ({"gamma": "big"}, TypeError, "gamma .*got 'big'"),
        ({"ema_decay": 1}, ValueError, "ema_decay .*got 1"),
        ({"ema_decay": -0.5}, ValueError, "ema_decay .*got -0.5"),
        ({"noise": -1e-4}, ValueError, "noise .*got -0.0001"),
        (
            {"inner_learning_rate": -1},
            ValueError,
            "inner_learning_rate .*got -1",
        ),
        (
            {"learning_rate": float("inf")},
            ValueError,
            "learning_rate .*got inf",
        ),
        ({"weight_decay": -1}, ValueError, "weight_decay .*got -1"),
        (
            {"key": "seed"},
            TypeError,
            "key .*got 'seed'",
        ),
        (
            {"key": 1.5},
            TypeError,
            "key .*got 1.5",
        ),
    ],
)
@pytest.mark.parametrize("factory", [entropix.entropy_sgd, entropix.entropy_adam])
def test_entropy_factories(factory, arguments, error, message):
    with pytest.raises(error, match=message):
        factory(**{"learning_rate": 0.1} | arguments)


def test_entropy_descent_and_langevin_factories():
    with pytest.raises(ValueError, match=r"noise_std .*got -1"):
        entropix.entropy_descent(SGD, SGD, inner_steps=1, gamma=0.0, noise_std=-1)
    with pytest.raises(ValueError, match=r"std .*got -1"):
        entropix.langevin_noise(-1)
    with pytest.raises(ValueError, match=r"temperature .*got -2"):
        entropix.sgld(0.1, temperature=-2)
    with pytest.raises(ValueError, match=r"b1 .*got 1"):
        entropix.entropy_adam(0.1, b1=1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"gamma": -1, "axis": 0}, ValueError, "gamma .*got -1"),
        ({"push": -1, "axis": 0}, ValueError, "push .*got -1"),
        ({"push": "far", "axis": 0}, TypeError, "push .*got 'far'"),
        ({"every": 0, "axis": 0}, ValueError, "every .*got 0"),
        ({}, ValueError, "axis or axis_name .*got None and None"),
        ({"axis": 0.5}, TypeError, "axis .*got 0.5"),
        ({"axis_name": 3}, TypeError, "axis_name .*got 3"),
        ({"axis_name": ("a", 3)}, TypeError, "axis_name must be a string or a tuple of strings"),
        ({"axis_name": ()}, ValueError, "axis or axis_name must say where the replicas are"),
    ],
)
def test_coupling_factory(arguments, error, message):
    with pytest.raises(error, match=message):
        entropix.couple_replicas(**{"gamma": 0.1} | arguments)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"w": jnp.ones((1, 3))}, "axis 0 of params .*got length 1"),
        (
            {"w": jnp.ones((2, 3)), "b": jnp.ones(())},
            r"replica axis of every leaf, but params\['b'\]",
        ),
        ({"w": jnp.ones((2, 3)), "b": jnp.ones((3,))}, r"one length for all leaves, got .*'b'.*3"),
    ],
)
def test_replica_axis_is_checked_by_init(params, message):
    with pytest.raises(ValueError, match=message):
        entropix.replicated_sgd(0.1, gamma=0.1, axis=0).init(params)


def test_unknown_axis_name():
    tx = entropix.couple_replicas(0.1, axis_name="nowhere")
    with pytest.raises(ValueError, match="axis_name 'nowhere' must be the name of an axis"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)


def test_named_axis_of_one_replica():
    tx = entropix.couple_replicas(0.1, axis_name="replica")
    update = jax.vmap(lambda p: tx.update(p, tx.init(p), p)[0], axis_name="replica")
    with pytest.raises(ValueError, match=r"2 replicas .*got 1"):
        update({"w": jnp.ones((1, 3))})


def test_one_stacked_replica_is_fine_when_others_are_elsewhere():
    tx = entropix.couple_replicas(0.1, axis=0, axis_name="group")
    update = jax.vmap(lambda p: tx.update(p, tx.init(p), p)[0], axis_name="group")
    update({"w": jnp.ones((2, 1, 3))})


def test_axis_under_inject_hyperparams_says_what_to_do():
    injected = optax.inject_hyperparams(entropix.couple_replicas)(gamma=0.1, axis=0)
    with pytest.raises(TypeError, match=r"under optax.inject_hyperparams name it in static_args"):
        injected.init(PARAMS)


@pytest.mark.parametrize(
    "tx",
    [
        entropix.entropy_sgd(),
        entropix.entropy_sgd(opaque=True),
        entropix.replicated_sgd(0.1, gamma=0.1, axis=0),
    ],
)
def test_update_without_params(tx):
    with pytest.raises(ValueError, match="params must be passed to update"):
        tx.update(PARAMS, tx.init(PARAMS))


def test_opaque_without_grad_fn():
    tx = entropix.entropy_sgd(opaque=True)
    with pytest.raises(ValueError, match=r"grad_fn\(params, step\) must be passed to update"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)


def test_traced_hyperparameters_are_not_checked():
    @jax.jit
    def init(gamma, every):
        return entropix.couple_replicas(gamma, every=every, axis=0).init(PARAMS)

    init(0.1, 2)
