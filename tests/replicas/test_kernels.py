"""Kernels and custom calls without a batching rule, where a device holds one replica."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import Primitive
from jax.interpreters import mlir

import entropix
from entropix import replicas

triple_p = Primitive("triple_without_batching")
triple_p.def_abstract_eval(lambda x: x)
mlir.register_lowering(triple_p, mlir.lower_fun(lambda x: 3 * x, multiple_results=False))


@jax.custom_vjp
def triple(x):
    return triple_p.bind(x)


triple.defvjp(lambda x: (triple(x), None), lambda _, g: (triple_p.bind(g),))


def step(state, batch):
    loss = lambda x: jnp.sum(triple(x) * batch)
    return state - jax.grad(loss)(state), loss(state)


@pytest.mark.parametrize("backend", ["jit", "shard_map", "pmap"])
def test_a_device_with_one_replica_calls_the_step_itself(backend):
    plan = replicas.plan(4, devices=4, backend=backend)
    x, batch = np.arange(8.0, dtype=np.float32).reshape(4, 2), np.ones((4, 2), np.float32)
    state, answer = plan.run(step)(plan.place(jnp.asarray(x)), plan.place_batch(batch))
    np.testing.assert_allclose(plan.collect(state), x - 3)
    np.testing.assert_allclose(plan.collect(answer), 3 * x.sum(1))


def test_devices_that_share_a_replica_call_it_too():
    plan = replicas.plan(2, devices=8)
    x, batch = np.ones((2, 4), np.float32), np.ones((2, 4), np.float32)
    state, _ = plan.run(step)(plan.place(jnp.asarray(x)), plan.place_batch(batch))
    np.testing.assert_allclose(plan.collect(state), x - 3)


def test_the_kernel_has_no_batching_rule():
    """So several replicas on a device cannot use it: the tests above would tell a ``vmap``."""
    plan = replicas.plan(4, devices=2)
    with pytest.raises(NotImplementedError, match="triple_without_batching"):
        plan.run(step)(plan.place(jnp.ones((4, 2))), plan.place_batch(np.ones((4, 2))))


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_a_step_may_answer_with_a_plain_number(devices):
    """However many replicas a device holds; each has its own entry."""
    plan = replicas.plan(4, devices=devices)
    state, batch = plan.place(jnp.zeros((4, 2))), plan.place_batch(np.ones((4, 2)))
    _, answer = plan.run(lambda state, batch: (state + batch, {"loss": 0.5, "count": 3}))(
        state, batch
    )
    np.testing.assert_array_equal(plan.collect(answer["loss"]), [0.5] * 4)
    np.testing.assert_array_equal(plan.collect(answer["count"]), [3] * 4)


@pytest.mark.parametrize("backend", ["jit", "pmap"])
def test_an_exchange_that_knows_how_many_take_part(backend):
    """An all-to-all of compressed differences, whose count is part of the program."""
    plan = replicas.plan(4, devices=4, backend=backend)
    tx = entropix.diloco(
        optax.sgd(1.0), optax.sgd(1.0), inner_steps=1, axis_name=plan.axis_name,
        compression=entropix.Compression("bfloat16", block_size=2),
    )  # fmt: skip

    def descend(state, batch):
        params, opt_state = state
        updates, opt_state = tx.update(batch, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    params = jnp.zeros((4, 3))
    state = plan.place((params, replicas.stack_states(tx.init, params)))
    batch = np.arange(12, dtype=np.float32).reshape(4, 3)
    state, _ = plan.run(descend)(state, plan.place_batch(batch))
    found = plan.collect(state)[0]
    np.testing.assert_array_equal(found, np.tile(-batch.mean(0), (4, 1)))
