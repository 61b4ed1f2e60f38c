"""Replicas that are pushed from their center as they are pulled to it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import entropix
from entropix import Compression, replicas
from tests.transforms import reference
from tests.transforms.regression import (
    GRADIENTS,
    REPLICAS,
    as_tree,
    as_vector,
    batch_of,
    loss,
    np_gradient,
    one_replica,
    replica_starts,
    stacked,
)

pytestmark = pytest.mark.usefixtures("x64")

LAWS = dict(rtol=0, atol=1e-9)
RATE, GAMMA, PUSH, EVERY = 0.02, 0.3, 0.6, 3
WIDTH = PUSH / GAMMA


def pushed(push=PUSH, **options):
    return optax.chain(
        entropix.couple_replicas(GAMMA, push=push, **{"every": EVERY} | options),
        optax.sgd(RATE, momentum=0.9, nesterov=True),
    )


def expected(push=lambda step: PUSH):
    return reference.replicated_sgd(
        np_gradient, replica_starts(), steps=GRADIENTS, every=EVERY, gamma=lambda step: GAMMA,
        learning_rate=RATE, momentum=0.9, push=push,
    )  # fmt: skip


def flat(x, steps, **options):
    """Where the replicas are after some steps of plain SGD where the loss is flat."""
    tx = optax.chain(
        entropix.couple_replicas(**{"gamma": GAMMA, "push": PUSH, "axis": 0} | options),
        optax.sgd(RATE),
    )

    def step(carry, _):
        x, state = carry
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, x), state, x)
        return (optax.apply_updates(x, updates), state), None

    return jax.jit(lambda x: jax.lax.scan(step, (x, tx.init(x)), length=steps)[0][0])(x)


def gaps(tree):
    x = np.asarray(as_vector(tree))
    return x - x.mean(0)


@pytest.mark.parametrize("scheduled", [False, True])
def test_against_a_loop(scheduled):
    """The length of a gap is that over both leaves."""
    push = (lambda step: 0.2 + 0.01 * step) if scheduled else PUSH
    actual = as_vector(stacked(pushed(push, axis=0), replica_starts()))
    plain = expected(None)
    np.testing.assert_allclose(actual, expected(push if scheduled else lambda _: push), **LAWS)
    assert np.abs(actual - plain).max() > 0.1


@pytest.mark.slow
def test_one_result_wherever_the_replicas_are():
    starts, places = as_tree(replica_starts()), jnp.arange(REPLICAS)
    by_name = one_replica(pushed(axis_name="replica"))
    vmapped = jax.jit(jax.vmap(by_name, axis_name="replica"))(starts, places)
    np.testing.assert_allclose(as_vector(vmapped), expected(), **LAWS)
    devices = jax.devices()[:REPLICAS]
    pmapped = jax.pmap(by_name, axis_name="replica", devices=devices)(starts, places)
    np.testing.assert_allclose(as_vector(jax.device_get(pmapped)), expected(), **LAWS)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [4, 8])
def test_one_result_by_a_plan(devices):
    """On eight devices two share a replica."""
    plan = replicas.plan(REPLICAS, devices=devices)
    tx = pushed(axis_name=plan.axis_name)

    def step(state, batch):
        params, opt_state = state
        grads = jax.grad(loss)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), 0.0

    params = as_tree(replica_starts())
    run, state = plan.run(step), plan.place((params, replicas.stack_states(tx.init, params)))
    for at in range(GRADIENTS):
        batch = plan.place_batch(batch_of(jnp.arange(REPLICAS), at))
        state, _ = jax.block_until_ready(run(state, batch))
    np.testing.assert_allclose(as_vector(plan.collect(state)[0]), expected(), **LAWS)


def test_no_push_is_the_plain_coupling():
    """Bit for bit, and at no cost, where it is known to be 0; to rounding where it is traced."""
    params = as_tree(replica_starts())

    def updated(**options):
        tx = entropix.couple_replicas(GAMMA, every=1, axis=0, **options)
        update = jax.jit(tx.update)
        arguments = params, tx.init(params), params
        return update.lower(*arguments).as_text(), update(*arguments)[0]

    program, plain = updated()
    assert updated(push=0)[0] == program
    assert "sqrt" not in program
    other_program, same = updated(push=lambda step: 0.0 * step)
    assert "sqrt" in other_program
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-14), same, plain)


@pytest.mark.parametrize("distance", [0.01, 0.5, 1.0, 7.0])
@pytest.mark.parametrize("every", [1, 2])
def test_two_replicas_come_to_the_width_at_a_known_rate(distance, every):
    """From below and from above, and their mean stays; a step between couplings does nothing."""
    direction = np.array([1.0, -2.0, 0.5, 3.0, 1.0])
    gap = distance * WIDTH * direction / np.linalg.norm(direction)
    start = np.stack([10 + gap, 10 - gap])
    end = as_vector(flat(as_tree(start), 40 * every, every=every))
    kept = (1 - RATE * every * GAMMA) ** 40
    length = WIDTH * (1 + kept * (distance - 1))
    np.testing.assert_allclose(end - 10, np.outer([1, -1], gap / distance / WIDTH * length), **LAWS)
    assert kept < 0.8


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"center": "moving", "center_rate": 0.5}])
def test_many_replicas_span_a_valley_of_the_width(options):
    """Unit vectors from the center, unlike at the start, come to cancel, so that it stays."""
    rng = np.random.default_rng(2)
    start = as_tree(rng.normal(size=(5, 5)) * [[0.1], [0.1], [3.0], [1.0], [0.1]])
    middle, end = (gaps(flat(start, steps, **options)) for steps in (10, 20000))
    units = lambda away: away / np.linalg.norm(away, axis=1, keepdims=True)
    assert np.linalg.norm(units(middle).mean(0)) > 0.1
    np.testing.assert_allclose(np.linalg.norm(end, axis=1), WIDTH, rtol=1e-6)
    np.testing.assert_allclose(units(end).mean(0), 0, atol=1e-6)


def test_an_odd_number_on_a_line_drifts():
    """The two of three that share a side are pushed less far, and the center goes with them."""
    start = jnp.array([0.0, 0.1, 1.0])
    before, after = (flat(start, steps) for steps in (4000, 4001))
    gap = after - after.mean()
    np.testing.assert_allclose(gap, WIDTH * np.array([-2, -2, 4]) / 3, **LAWS)
    np.testing.assert_allclose(after - before, -RATE * PUSH / 3, **LAWS)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16])
def test_replicas_at_the_center_are_not_pushed(dtype):
    same = {"w": jnp.full((3, 2), 1.5, dtype), "b": jnp.ones((3, 1), dtype)}
    jax.tree.map(np.testing.assert_array_equal, flat(same, 5), same)
    line = flat(jnp.array([-1.0, 0.0, 1.0], dtype), 1)
    assert jnp.all(jnp.isfinite(line))
    assert line[1] == 0
    assert line[2] > 1


@pytest.mark.slow
def test_the_gap_to_a_moving_center_is_exact_whatever_travels():
    """Compression rounds what moves the center, and nothing of what is pushed."""
    start = as_tree(np.random.default_rng(4).normal(size=(REPLICAS, 5)))
    options = {"center": "moving", "center_rate": 0.5}
    small = flat(start, 4000, compression=Compression("int8", block_size=2), **options)
    np.testing.assert_allclose(np.linalg.norm(gaps(small), axis=1), WIDTH, rtol=1e-2)


def test_a_replica_that_diverged_keeps_its_trouble_to_itself():
    x = jnp.array([[0.0, 0.0], [np.nan, 1.0], [2.0, 0.0]])
    updates = flat(x, 1) - x
    assert jnp.all(jnp.isfinite(updates[jnp.array([0, 2])]))
    np.testing.assert_allclose(updates[2], [RATE * (PUSH - GAMMA), 0.0], atol=1e-12)
