"""Local SGD: against a NumPy loop, the methods that it contains, and what travels."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import entropix
from entropix import Compression
from tests.transforms import reference
from tests.transforms.hlo import collectives
from tests.transforms.regression import (
    DIM,
    REPLICAS,
    START,
    as_tree,
    as_vector,
    batch_of,
    loss,
    np_gradient,
    replica_starts,
)

pytestmark = pytest.mark.usefixtures("x64")

STEPS = 33
LAWS = dict(rtol=0, atol=1e-12)
INNER = {
    "sgd": (lambda: optax.sgd(0.02), lambda: reference.Momentum(None, False), 0.02),
    "nesterov": (
        lambda: optax.sgd(0.02, momentum=0.9, nesterov=True),
        lambda: reference.Momentum(0.9, True), 0.02,
    ),
    "adam": (lambda: optax.adam(0.05), reference.Adam, 0.05),
}  # fmt: skip
CASES = {
    "sgd": dict(inner="sgd"),
    "nesterov": dict(inner="nesterov"),
    "adam": dict(inner="adam"),
    "every step": dict(inner="nesterov", inner_steps=1),
    "phase": dict(inner="adam", phase=3),
    "delay": dict(inner="adam", delay=2),
    "delay and blend": dict(inner="nesterov", phase=4, delay=4, blend=0.6),
    "blend": dict(inner="nesterov", blend=0.5),
}


def transform(case, **where):
    options = {"inner_steps": 5} | CASES[case] | where
    return entropix.diloco(INNER[options.pop("inner")][0](), **options)


@functools.cache
def expected(case, replicas=REPLICAS):
    options = {"inner_steps": 5} | CASES[case]
    _, inner, learning_rate = INNER[options.pop("inner")]
    return reference.diloco(
        np_gradient, START, replicas=replicas, gradients=STEPS, inner=inner,
        learning_rate=learning_rate, **options,
    )  # fmt: skip


def scanned(tx, start, grads_at, steps=STEPS):
    """What the training loop holds, what `eval_params` gives, and the state, after some steps."""

    def step(carry, index):
        params, state = carry
        updates, state = tx.update(grads_at(params, index), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.lax.scan(step, (start, tx.init(start)), jnp.arange(steps))
    return params, entropix.eval_params(state, params), state


def stacked_grads(params, index):
    return jax.vmap(jax.grad(loss))(params, batch_of(jnp.arange(REPLICAS), index))


def run_stacked(tx, starts=None, steps=STEPS):
    start = as_tree(np.tile(START, (REPLICAS, 1)) if starts is None else starts)
    return jax.jit(lambda: scanned(tx, start, stacked_grads, steps))()


def run_without_anchor(tx, starts):
    """What the training loop holds, and the state."""
    start = as_tree(starts)

    def step(carry, index):
        params, state = carry
        updates, state = tx.update(stacked_grads(params, index), state, params)
        return (optax.apply_updates(params, updates), state), None

    run = lambda: jax.lax.scan(step, (start, tx.init(start)), jnp.arange(STEPS))
    return jax.jit(run)()[0]


def run_mapped(tx, how, starts=None):
    def one(start, replica):
        grads_at = lambda params, index: jax.grad(loss)(params, batch_of(replica, index))
        return scanned(tx, start, grads_at)[:2]

    inputs = as_tree(np.tile(START, (REPLICAS, 1)) if starts is None else starts)
    inputs = inputs, jnp.arange(REPLICAS)
    devices = jax.devices()[:REPLICAS]
    if how == "vmap":
        return jax.jit(jax.vmap(one, axis_name="replica"))(*inputs)
    if how == "pmap":
        return jax.device_get(jax.pmap(one, axis_name="replica", devices=devices)(*inputs))
    mesh = jax.make_mesh((REPLICAS,), ("replica",), (AxisType.Auto,), devices=devices)

    def on_device(start, replica):
        answer = one(jax.tree.map(lambda x: x[0], start), replica[0])
        return jax.tree.map(lambda x: x[None], answer)

    spec = P("replica")
    mapped = jax.shard_map(on_device, mesh=mesh, in_specs=spec, out_specs=spec)
    return jax.device_get(jax.jit(mapped)(*inputs))


def assert_is(actual, case):
    held, shared = actual[:2]
    x, theta = expected(case)
    np.testing.assert_allclose(as_vector(held), x, **LAWS)
    np.testing.assert_allclose(as_vector(shared), np.tile(theta, (REPLICAS, 1)), **LAWS)
    assert np.abs(theta - START).max() > 0.1


@pytest.mark.parametrize("case", CASES)
def test_stacked(case):
    assert_is(run_stacked(transform(case, axis=0)), case)


@pytest.mark.parametrize(
    ("how", "case"),
    [("vmap", "adam"), ("pmap", "nesterov"), ("shard_map", "delay and blend"),
     ("shard_map", "adam")],
)  # fmt: skip
def test_mapped(how, case):
    assert_is(run_mapped(transform(case, axis_name="replica"), how), case)


def test_stacked_and_mapped_at_once():
    """Two stacked on each of two devices."""
    tx = transform("nesterov", axis=0, axis_name="device")
    start = as_tree(np.tile(START, (REPLICAS, 1)))
    fold = lambda tree: jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), tree)

    def one(start, replicas):
        grads = lambda params, index: jax.vmap(jax.grad(loss))(params, batch_of(replicas, index))
        return scanned(tx, start, grads)[:2]

    actual = jax.vmap(one, axis_name="device")(fold(start), jnp.arange(REPLICAS).reshape(2, 2))
    assert_is(jax.tree.map(lambda x: x.reshape(REPLICAS, *x.shape[2:]), actual), "nesterov")


def test_one_worker():
    """M = 1 is neither axis nor name."""
    grads_at = lambda params, index: jax.grad(loss)(params, batch_of(0, index))
    held, shared, _ = jax.jit(lambda: scanned(transform("adam"), as_tree(START), grads_at))()
    x, theta = expected("adam", replicas=1)
    np.testing.assert_allclose(as_vector(held), x[0], **LAWS)
    np.testing.assert_allclose(as_vector(shared), theta, **LAWS)


def test_one_worker_is_lookahead():
    """With plain outer SGD of rate k: Optax's Lookahead with slow step size k."""
    inner = lambda: optax.sgd(0.02, momentum=0.9)
    grads_at = lambda params, index: jax.grad(loss)(params, batch_of(0, index))
    tx = entropix.diloco(inner(), optax.sgd(0.4), inner_steps=4)
    held, shared, _ = jax.jit(lambda: scanned(tx, as_tree(START), grads_at))()
    lookahead = optax.lookahead(inner(), sync_period=4, slow_step_size=0.4)
    params = optax.LookaheadParams.init_synced(as_tree(START))

    def step(carry, index):
        params, state = carry
        updates, state = lookahead.update(grads_at(params.fast, index), state, params)
        return (optax.apply_updates(params, updates), state), None

    carry = params, lookahead.init(params)
    params = jax.jit(lambda: jax.lax.scan(step, carry, jnp.arange(STEPS)))()[0][0]
    chex.assert_trees_all_close((held, shared), (params.fast, params.slow), **LAWS)


def test_the_outer_gradient_points_back():
    """From where the replicas went to where they started: descending it follows them."""
    tx = entropix.diloco(optax.sgd(1.0), optax.sgd(0.25), inner_steps=1, axis=0)
    x = jnp.zeros((2, 1))
    updates, _ = tx.update(jnp.array([[-1.0], [-3.0]]), tx.init(x), x)
    np.testing.assert_allclose(updates, 0.25 * 2.0)


def test_outer_sgd_of_rate_one_averages_the_parameters():
    """Local SGD, FedAvg."""
    tx = entropix.diloco(optax.sgd(0.02), optax.sgd(1.0), inner_steps=5, axis=0)
    held, _, _ = run_stacked(tx, steps=5)
    alone, _, _ = run_stacked(entropix.diloco(optax.sgd(0.02), inner_steps=9, axis=0), steps=5)
    assert np.ptp(as_vector(alone), 0).max() > 0.01
    np.testing.assert_allclose(
        as_vector(held), np.tile(as_vector(alone).mean(0), (REPLICAS, 1)), **LAWS
    )


def test_every_step_with_plain_sgd_is_data_parallel():
    """H = 1: gradient descent on the mean gradient."""
    tx = entropix.diloco(optax.sgd(0.02), optax.sgd(1.0), inner_steps=1, axis=0)
    data_parallel = optax.chain(entropix.average_updates(axis=0), optax.sgd(0.02))
    x = START
    for step in range(STEPS):
        x = x - 0.02 * np.mean([np_gradient(x, a, step) for a in range(REPLICAS)], 0)
    np.testing.assert_allclose(as_vector(run_stacked(tx)[0]), np.tile(x, (REPLICAS, 1)), **LAWS)
    params, _ = run_without_anchor(data_parallel, np.tile(START, (REPLICAS, 1)))
    np.testing.assert_allclose(as_vector(params), np.tile(x, (REPLICAS, 1)), **LAWS)


@pytest.mark.parametrize("where", [dict(axis=0), dict(axis_name="replica")])
def test_the_continuum(where):
    """Entropy-SGD without pull, noise and average, whose replicas share an outer step."""
    inner = lambda: optax.adam(0.05)
    outer = lambda: optax.sgd(0.7, momentum=0.9, nesterov=True)
    limit = entropix.entropy_descent(
        optax.chain(entropix.average_updates(**where), outer()), inner(),
        inner_steps=5, gamma=0.0, ema_decay=0.0, reset_inner=False,
    )  # fmt: skip
    tx = entropix.diloco(inner(), outer(), inner_steps=5, **where)
    runs = [run_stacked(t)[:2] if "axis" in where else run_mapped(t, "vmap") for t in (limit, tx)]
    chex.assert_trees_all_close(*runs, **LAWS)


def test_post_local_sgd():
    """H = 1 and then H = 5: the state goes from one to the other."""
    make = lambda steps: entropix.diloco(optax.sgd(0.02), optax.sgd(1.0), inner_steps=steps, axis=0)
    params = as_tree(np.tile(START, (REPLICAS, 1)))
    state = make(1).init(params)
    update = {n: jax.jit(lambda p, s, i, n=n: make(n).update(stacked_grads(p, i), s, p))
              for n in (1, 5)}  # fmt: skip
    for step in range(10):
        updates, state = update[1 if step < 5 else 5](params, state, step)
        params = optax.apply_updates(params, updates)
        assert (np.ptp(as_vector(params), 0).max() < 1e-12) == (step < 5 or step == 9)


def sizes(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree) if leaf.ndim)


@pytest.mark.parametrize(
    ("options", "copies"), [({}, 2), (dict(delay=1), 3), (dict(compression=Compression()), 6)]
)
def test_no_copy_is_kept_in_vain(options, copies):
    """Anchor and outer momentum once for all replicas, beside each replica's inner state."""
    tx = entropix.diloco(optax.sgd(0.1, momentum=0.9), inner_steps=2, axis=0, **options)
    params = as_tree(np.tile(START, (REPLICAS, 1)))
    state = tx.init(params)
    assert sizes(state) - sizes(state.inner_state) == copies * DIM
    assert sizes(state.inner_state) == REPLICAS * DIM
    assert all(leaf.shape[0] == 1 for leaf in jax.tree.leaves(state.anchor))


def test_stacked_replicas_that_start_unlike_start_from_their_mean():
    tx = entropix.diloco(optax.sgd(0.0), optax.sgd(1.0), inner_steps=2, axis=0)
    _, shared, _ = run_stacked(tx, replica_starts(), steps=1)
    np.testing.assert_allclose(as_vector(shared)[0], replica_starts().mean(0), **LAWS)
    held, _, _ = run_stacked(tx, replica_starts(), steps=2)
    np.testing.assert_allclose(
        as_vector(held), np.tile(replica_starts().mean(0), (REPLICAS, 1)), **LAWS
    )


@pytest.mark.parametrize("compression", [None, Compression("int8", block_size=4)])
@pytest.mark.parametrize("mapped", [False, True])
def test_a_diverged_replica_is_left_out(mapped, compression):
    where = dict(axis_name="replica") if mapped else dict(axis=0)
    tx = entropix.diloco(
        optax.sgd(1.0), optax.sgd(1.0), inner_steps=1, compression=compression, **where
    )
    grads = {"a": jnp.array([[1.0], [jnp.nan], [3.0]]), "b": jnp.full((3, 2), -8.0)}
    grads["b"] = grads["b"].at[1, 0].set(100.0)
    x = jax.tree.map(jnp.zeros_like, grads)

    def shared(grads, x):
        _, state = tx.update(grads, tx.init(x), x)
        return entropix.eval_params(state, x)

    theta = jax.jit(jax.vmap(shared, axis_name="replica") if mapped else shared)(grads, x)
    expected = {"a": jnp.full((3, 1), -2.0), "b": jnp.full((3, 2), 8.0)}
    chex.assert_trees_all_close(theta, expected, rtol=0.02 if compression else 1e-6)


WRAPPED = {
    "chain": lambda tx: optax.chain(optax.clip_by_global_norm(1e6), tx),
    "masked": lambda tx: optax.masked(tx, {"a": True, "b": True}),
    "partition": lambda tx: optax.partition({0: tx, 1: tx}, {"a": 0, "b": 1}),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 1),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "inject_hyperparams": lambda tx: optax.inject_hyperparams(
        lambda learning_rate: entropix.diloco(optax.sgd(learning_rate), inner_steps=5, axis=0)
    )(0.02),
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_eval_params_finds_the_shared_weights(wrapper):
    tx = WRAPPED[wrapper](transform("sgd", axis=0))
    assert_is(run_stacked(tx), "sgd")
    start = as_tree(replica_starts())
    chex.assert_trees_all_equal(entropix.eval_params(tx.init(start), start), start)


def test_bfloat16_replicas_share_float32_weights():
    """Steps below the last bit of bfloat16 add up in the anchor."""
    tx = entropix.diloco(
        optax.sgd(1.0), optax.sgd(2.0**-6), inner_steps=1, accumulator_dtype=jnp.float32, axis=0
    )
    x = jnp.ones((2, 3), jnp.bfloat16)
    state = tx.init(x)
    assert state.anchor.dtype == jnp.float32
    for _ in range(16):
        updates, state = jax.jit(tx.update)(jnp.full_like(x, 2.0**-6), state, x)
        assert updates.dtype == jnp.bfloat16
        x = optax.apply_updates(x, updates)
    assert abs(float(state.anchor[0, 0]) - (1 - 16 * 2.0**-12)) < 2.0**-9
    plain = entropix.diloco(optax.sgd(1.0), optax.sgd(2.0**-6), inner_steps=1, axis=0)
    x, state = jnp.ones((2, 3), jnp.bfloat16), plain.init(jnp.ones((2, 3), jnp.bfloat16))
    for _ in range(16):
        updates, state = jax.jit(plain.update)(jnp.full_like(x, 2.0**-6), state, x)
        x = optax.apply_updates(x, updates)
    assert float(state.anchor[0, 0]) == 1.0


@pytest.mark.parametrize(
    ("params", "shared", "lost"),
    [
        (jnp.float32, jnp.float64, jnp.float64),
        (jnp.float64, jnp.float32, jnp.float32),
        (jnp.bfloat16, None, jnp.float32),
    ],
)
def test_what_rounding_takes_away_has_the_type_that_travels(params, shared, lost, x64):
    tx = entropix.diloco(
        optax.sgd(0.1),
        inner_steps=2,
        accumulator_dtype=shared,
        compression=Compression("int8"),
        axis=0,
    )
    x = jnp.ones((2, 3), params)
    state = tx.init(x)
    _, after = jax.eval_shape(tx.update, x, state, x)
    assert state.residual.dtype == after.residual.dtype == lost


MANY = {f"layers_{i}": {"w": (6, 8), "b": (8,)} for i in range(8)}
WEIGHTS = 8 * 56


def program(tx, axis_name="replica", devices=4, dtype=jnp.float32):
    """The text of one step, compiled for a network of 16 leaves on four devices."""
    mesh = jax.make_mesh(
        (devices,), ("replica",), (AxisType.Auto,), devices=jax.devices()[:devices]
    )
    params = jax.tree.map(
        lambda shape: jnp.ones(shape, dtype), MANY, is_leaf=lambda x: isinstance(x, tuple)
    )

    def step(params, grads, state):
        grads = jax.tree.map(lambda x: x[0], grads)
        updates, state = tx.update(grads, state, params)
        return jax.tree.map(lambda x: x[None], (updates, state))

    rows = jax.tree.map(lambda x: jnp.stack([x] * devices), params)
    mapped = jax.shard_map(
        step, mesh=mesh, in_specs=(P(), P("replica"), P()), out_specs=P("replica"), check_vma=False
    )
    return jax.jit(mapped).lower(params, rows, tx.init(params)).compile().as_text()


def test_a_meeting_is_one_all_reduce_inside_a_branch():
    """With 16 leaves: the outer gradient, and one number for the finite replicas."""
    found = collectives(program(entropix.diloco(optax.adam(0.1), inner_steps=7,
                                                axis_name="replica")))  # fmt: skip
    assert [c.kind for c in found] == ["all-reduce"]
    assert all(c.branch for c in found)
    assert found[0].payload == 4 * WEIGHTS + 4


def test_average_updates_is_one_all_reduce():
    found = collectives(program(entropix.average_updates(axis_name="replica")))
    assert [(c.kind, c.payload, c.branch) for c in found] == [
        ("all-reduce", 4 * WEIGHTS + 4, False)
    ]


def streaming(number, **options):
    labels = entropix.fragments(
        jax.tree.map(jnp.zeros, MANY, is_leaf=lambda x: isinstance(x, tuple)), number
    )
    part = lambda k: entropix.diloco(
        optax.sgd(0.1), inner_steps=12, phase=12 * k // number, axis_name="replica", **options
    )
    return optax.partition({k: part(k) for k in range(number)}, labels)


def test_fragments_divide_the_peak_of_the_traffic():
    """Each branch holds its fragment only, and no two fragments meet at one step."""
    found = collectives(program(streaming(4)))
    assert [c.kind for c in found] == ["all-reduce"] * 4
    assert all(c.branch and c.payload == 4 * WEIGHTS // 4 + 4 for c in found)
    assert len({c.computation for c in found}) == 4

    tx = streaming(4)
    params = jax.tree.map(jnp.zeros, MANY, is_leaf=lambda x: isinstance(x, tuple))
    params = jax.tree.map(lambda x: jnp.stack([x, x]), params)
    state = jax.vmap(tx.init)(params)
    step = jax.jit(jax.vmap(lambda p, s: tx.update(p, s, p)[1], axis_name="replica"))
    meetings = []
    for _ in range(24):
        before, state = state, step(params, state)
        counts = [
            [value for _, value in optax.tree.get_all_with_path(s, "outer_step")]
            for s in (before, state)
        ]
        meetings.append(sum(int((b - a)[0]) for a, b in zip(*counts, strict=True)))
    assert max(meetings) == 1
    assert sum(meetings) == 4 * 2


def test_fragments_in_phase_are_the_plain_method():
    part = lambda: transform("adam", axis=0)
    tx = optax.partition({0: part(), 1: part()}, {"a": 0, "b": 1})
    assert_is(run_stacked(tx), "adam")


def test_fragments_out_of_phase_against_numpy():
    """Two fragments with one gradient: the NumPy loop of each, fed with what both hold."""
    part = lambda phase: entropix.diloco(optax.sgd(0.02), inner_steps=4, phase=phase, axis=0)
    tx = optax.partition({0: part(0), 1: part(2)}, {"a": 0, "b": 1})
    held, shared, _ = run_stacked(tx)
    x, theta = np.tile(START, (REPLICAS, 1)), START.copy()
    outer = reference.Momentum(0.9, True), reference.Momentum(0.9, True)
    for step in range(STEPS):
        x = np.stack([x[a] - 0.02 * np_gradient(x[a], a, step) for a in range(REPLICAS)])
        for phase, momentum, part in ((0, outer[0], slice(0, 2)), (2, outer[1], slice(2, 5))):
            if (step + 1 + phase) % 4 == 0:
                delta = np.mean(theta[part] - x[:, part], 0)
                theta[part] = theta[part] - 0.7 * momentum(delta)
                x[:, part] = theta[part]
    np.testing.assert_allclose(as_vector(held), x, **LAWS)
    np.testing.assert_allclose(as_vector(shared)[0], theta, **LAWS)


@pytest.mark.parametrize("ema_decay", [0.0, 0.75, lambda step: step / (step + 1)])
def test_phase_of_entropy_descent(ema_decay):
    """A loop of L - p steps, and then loops of L: two transforms, one after the other."""
    make = lambda **loop: entropix.entropy_descent(
        optax.sgd(0.6), optax.sgd(0.02, momentum=0.9), gamma=0.3, ema_decay=ema_decay,
        debias=True, **loop,
    )  # fmt: skip
    grads_at = lambda offset: lambda x, index: jax.grad(loss)(x, batch_of(0, index + offset))

    @jax.jit
    def both():
        actual = scanned(make(inner_steps=5, phase=3), as_tree(START), grads_at(0), 10)[:2]
        after, _, _ = scanned(make(inner_steps=2), as_tree(START), grads_at(0), 2)
        return actual, scanned(make(inner_steps=5), after, grads_at(2), 8)[:2]

    (held, shared), expected = both()
    chex.assert_trees_all_close((held, shared), expected, **LAWS)
    assert np.abs(as_vector(held) - as_vector(shared)).max() > 1e-3


@pytest.mark.parametrize("phase", [0, 1, 2])
def test_phase_of_couple_replicas(phase):
    """Against a loop; the moving center starts at the first meeting."""
    tx = optax.chain(
        entropix.couple_replicas(
            0.7, every=3, phase=phase, center="moving", center_rate=0.4, axis=0
        ),
        optax.sgd(0.05),
    )
    held, _ = run_without_anchor(tx, replica_starts())
    x, center = replica_starts(), None
    for step in range(STEPS):
        d = np.stack([np_gradient(x[a], a, step) for a in range(REPLICAS)])
        if (step + phase) % 3 == 0:
            center = x.mean(0) if center is None else 0.6 * center + 0.4 * x.mean(0)
            d = d + 3 * 0.7 * (x - center)
        x = x - 0.05 * d
    np.testing.assert_allclose(as_vector(held), x, **LAWS)


def test_nothing_is_kept_or_read_for_what_is_zero():
    """Without average no lag; without pull and average the anchor is read when a loop ends."""
    make = lambda **options: entropix.entropy_descent(
        optax.sgd(1.0), optax.sgd(0.1), inner_steps=4, **options
    )
    params = as_tree(START)
    plain = make(gamma=0.0, ema_decay=0.0)
    assert sizes(plain.init(params)) == DIM
    assert sizes(make(gamma=0.0).init(params)) == 2 * DIM
    anchor = jax.tree.map(lambda x: x * jnp.nan, params)
    lost = plain.init(params)._replace(anchor=anchor, inner_step=jnp.asarray(1))
    updates, _ = plain.update(params, lost, params)
    chex.assert_tree_all_finite(updates)


@pytest.mark.parametrize("delay", [0, 2])
def test_a_step_between_meetings_writes_three_arrays(delay):
    """Momentum, update and parameters; anchor and outer momentum stay where they are."""
    tx = entropix.diloco(optax.sgd(0.1, momentum=0.9, nesterov=True), inner_steps=9, delay=delay)
    params = jnp.ones(1037, jnp.float32)

    def step(params, grads, state):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 2)).lower(params, params, tx.init(params)).compile()
    entry = compiled.as_text().split("ENTRY", 1)[1]
    written = re.findall(r"= f32\[1037\]\S* (copy|fusion|add|multiply|subtract)\(", entry)
    assert "copy" not in written
    assert len(written) == 3


def test_a_round_is_a_scope():
    """H steps of size eta and a coupling gamma = 1 / (eta H) smooth alike, stiff or flat."""
    curvature, eta, rounds = jnp.array([1e-4, 3.0]), 0.3, 20
    start = jnp.ones(2)
    slope = lambda x, _: curvature * x

    def way(tx, steps):
        return start - jax.jit(lambda: scanned(tx, start, slope, steps)[1])()

    actual = way(entropix.diloco(optax.sgd(eta), optax.sgd(1.0), inner_steps=rounds), rounds)
    np.testing.assert_allclose(actual, 1 - (1 - eta * curvature) ** rounds, rtol=1e-9)
    gamma = 1 / (eta * rounds)
    pulled = entropix.entropy_descent(
        optax.sgd(1.0), optax.sgd(eta), inner_steps=600, gamma=gamma, ema_decay=0.0
    )
    smoothed = way(pulled, 600)
    np.testing.assert_allclose(smoothed, curvature / (curvature + gamma), rtol=1e-9)
    np.testing.assert_allclose(smoothed[0], actual[0], rtol=1e-3)
    np.testing.assert_allclose(smoothed[1], actual[1], rtol=0.06)


def test_layers_are_dealt_out_in_order_of_depth():
    params = {f"layers_{i}": {"w": np.zeros((4, 4))} for i in range(12)}
    params |= {"embed": np.zeros(100), "head": np.zeros(30)}
    labels = entropix.fragments(params, 3)
    assert [labels[f"layers_{i}"]["w"] for i in range(12)] == [0, 1, 2] * 4
    assert (labels["embed"], labels["head"]) == (0, 1)
    labels = entropix.fragments(params, 3, pattern="sequential")
    assert [labels[f"layers_{i}"]["w"] for i in range(12)] == [0] * 4 + [1] * 4 + [2] * 4


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.sampled_from(["l_1", "l_2", "l_10", "x", "y"]), st.integers(0, 9)),
             min_size=1, max_size=12),
    st.integers(1, 5), st.sampled_from(["strided", "sequential"]),
)  # fmt: skip
def test_fragments_of_any_tree(leaves, number, pattern):
    tree = {"none": None}
    for place, (name, size) in enumerate(leaves):
        tree[f"{name}{'abcdefghijkl'[place]}"] = np.zeros(size)
    digits = {name for name, size in leaves if "_" in name}
    unnumbered = sum("_" not in name for name, _ in leaves)
    if number > len(digits) + unnumbered:
        with pytest.raises(ValueError, match=f"number .* got {number}"):
            entropix.fragments(tree, number, pattern=pattern)
        return
    labels = entropix.fragments(tree, number, pattern=pattern)
    assert jax.tree.structure(labels) == jax.tree.structure(tree)
    assert set(jax.tree.leaves(labels)) == set(range(number))


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("where", ["axis", "vmap", "shard_map"])
def test_compression_is_exact_when_nothing_is_lost(dtype, where):
    """Differences and means of few bits, by a scale that is a power of two."""
    rng = np.random.default_rng(0)
    steps = 4 * rng.integers(-31, 32, size=(REPLICAS, DIM))
    steps[:, 0], steps[:, 3] = 127, -127
    grads = as_tree(steps / 64)
    options = dict(compression=Compression(dtype, block_size=3))
    tx = (
        entropix.average_updates(axis=0, **options)
        if where == "axis"
        else entropix.average_updates(axis_name="replica", **options)
    )
    update = lambda g: tx.update(g, tx.init(g))
    if where == "axis":
        means, state = jax.jit(update)(grads)
    elif where == "vmap":
        means, state = jax.jit(jax.vmap(update, axis_name="replica"))(grads)
    else:
        mesh = jax.make_mesh((REPLICAS,), ("replica",), (AxisType.Auto,),
                             devices=jax.devices()[:REPLICAS])  # fmt: skip
        spec = P("replica")
        on_device = lambda g: jax.tree.map(
            lambda x: x[None], update(jax.tree.map(lambda x: x[0], g))
        )
        means, state = jax.jit(jax.shard_map(on_device, mesh=mesh, in_specs=spec, out_specs=spec))(
            grads
        )
    np.testing.assert_array_equal(as_vector(means), np.tile(steps.mean(0) / 64, (REPLICAS, 1)))
    assert all(not leaf.any() for leaf in jax.tree.leaves(state.residual))


@pytest.mark.parametrize("dtype", [pytest.param("bfloat16", marks=pytest.mark.slow), "int8"])
@pytest.mark.parametrize("how", ["vmap", "shard_map"])
def test_compression_is_the_same_wherever_the_replicas_are(how, dtype):
    make = lambda **where: entropix.diloco(
        optax.sgd(0.02), inner_steps=3, compression=Compression(dtype, block_size=2), **where
    )
    mapped = run_mapped(make(axis_name="replica"), how)
    chex.assert_trees_all_close(jax.device_get(run_stacked(make(axis=0))[:2]), mapped, **LAWS)
    assert np.abs(as_vector(mapped[1]) - as_vector(run_stacked(
        entropix.diloco(optax.sgd(0.02), inner_steps=3, axis=0))[1])).max() > 1e-6  # fmt: skip


@pytest.mark.parametrize(("dtype", "ratio"), [("bfloat16", 0.5), ("int8", 0.25 * (1 + 4 / 64))])
def test_bytes_on_the_wire(dtype, ratio):
    """An all-reduce sends every byte twice, an all-to-all and an all-gather once each."""
    make = lambda compression: program(
        entropix.diloco(optax.sgd(0.1), inner_steps=7, axis_name="replica", compression=compression)
    )
    plain = [c for c in collectives(make(None)) if c.payload > 4]
    small = collectives(make(Compression(dtype, block_size=64)))
    assert all(c.branch for c in small)
    data = [c for c in small if c.payload > 4]
    assert {c.kind for c in data} == {"all-to-all", "all-gather"}
    assert sum(c.payload for c in small) - sum(c.payload for c in data) <= 8
    padded = 4 * 64 * -(-WEIGHTS // (4 * 64))
    full = 2 * sum(c.payload - 4 for c in plain)
    assert sum(c.payload for c in data) == ratio * full * padded / WEIGHTS


def quadratic(compression, noise):
    """Mean loss above the minimum, of 4.9 at the start, over the last 500 of 2,000 steps."""
    scale = jnp.logspace(-1.3, 0, 20)[None]
    spread = 10.0 ** jnp.arange(-1, 1, 0.5)[:, None]
    minima = jax.random.normal(jax.random.key(0), (4, 20)) * spread
    tx = entropix.diloco(
        optax.sgd(0.1), optax.sgd(0.7, momentum=0.5), inner_steps=5, axis=0, compression=compression
    )

    def step(carry, index):
        x, state = carry
        z = jax.random.normal(jax.random.fold_in(jax.random.key(1), index), x.shape)
        updates, state = tx.update(scale * (x - minima) + noise * z, state, x)
        shared = entropix.eval_params(state, x)[0]
        return (x + updates, state), 0.5 * jnp.sum(scale[0] * (shared - minima.mean(0)) ** 2)

    start = jnp.ones((4, 20))
    _, losses = jax.lax.scan(step, (start, tx.init(start)), jnp.arange(2000))
    return float(losses[-500:].mean())


@pytest.mark.slow
def test_compression_with_error_feedback_converges_as_if_in_full():
    """Far apart minima, so that what travels never gets small, and blocks of unlike numbers."""
    one_byte = Compression("int8", block_size=20)
    lossy = Compression("int8", block_size=20, error_feedback=False)
    assert abs(quadratic(one_byte, noise=1.0) / quadratic(None, noise=1.0) - 1) < 0.005
    assert quadratic(None, noise=0.0) < 1e-9
    assert quadratic(one_byte, noise=0.0) < 1e-5
    assert quadratic(lossy, noise=0.0) > 1e-4


def springs(**options):
    """Replicas on springs to a moving center, at every other step."""
    return optax.chain(
        entropix.couple_replicas(
            0.4, every=2, center="moving", center_rate=0.5, **({"axis": 0} | options)
        ),
        optax.sgd(0.05),
    )


def test_springs_are_exact_when_nothing_is_lost():
    """Replicas at center + small multiples of 1/64: center and pull are those in full."""
    rng = np.random.default_rng(0)
    center = rng.normal(size=DIM)
    steps = 4 * rng.integers(-31, 32, size=(REPLICAS, DIM))
    steps[:, 0], steps[:, 3] = 127, -127
    params = as_tree(center + steps / 64)
    grads = jax.tree.map(jnp.zeros_like, params)
    small = dict(compression=Compression("int8", block_size=3))
    both = []
    for options in ({}, small):
        tx = entropix.couple_replicas(0.4, center="moving", center_rate=0.5, axis=0, **options)
        shared = jax.tree.map(lambda c: c[:1], as_tree(np.tile(center, (REPLICAS, 1))))
        state = tx.init(params)._replace(step=jnp.asarray(1), center=shared)
        both.append(jax.jit(tx.update)(grads, state, params))
    (pull, state), (small_pull, small_state) = both
    chex.assert_trees_all_close(
        (small_pull, small_state.center), (pull, state.center), rtol=0, atol=1e-14
    )
    for leaf in jax.tree.leaves(small_state.residual):
        np.testing.assert_allclose(leaf, 0, atol=1e-13)
    assert np.abs(as_vector(pull)).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("how", ["vmap", "shard_map"])
def test_springs_are_the_same_wherever_the_replicas_are(how):
    small = dict(compression=Compression("int8", block_size=2))
    held, _ = run_without_anchor(springs(**small), replica_starts())
    mapped, _ = run_mapped(
        springs(axis=None, axis_name="replica", **small), how, starts=replica_starts()
    )
    chex.assert_trees_all_close(jax.device_get(held), mapped, **LAWS)
    plain, _ = run_without_anchor(springs(), replica_starts())
    assert 1e-6 < np.abs(as_vector(held) - as_vector(plain)).max() < 0.05


@pytest.mark.parametrize(
    ("dtype", "ratio"),
    [pytest.param("bfloat16", 0.5, marks=pytest.mark.slow), ("int8", 0.25 * (1 + 4 / 64))],
)
def test_springs_send_few_bytes(dtype, ratio):
    """Beside them the program holds the first coupling, which is in full."""
    compression = Compression(dtype, block_size=64)
    text = program(
        entropix.couple_replicas(
            0.1, every=7, center="moving", compression=compression, axis_name="replica"
        )
    )
    found = [c for c in collectives(text) if c.payload > 8]
    assert all(c.branch for c in found)
    small = [c for c in found if c.kind != "all-reduce"]
    assert {c.kind for c in small} == {"all-to-all", "all-gather"}
    assert [c.payload for c in found if c.kind == "all-reduce"] == [4 * WEIGHTS + 4]
    padded = 4 * 64 * -(-WEIGHTS // (4 * 64))
    assert sum(c.payload for c in small) == ratio * 2 * 4 * padded


def test_springs_whose_center_was_lost_start_again_in_full():
    tx = entropix.couple_replicas(
        0.4, center="moving", compression=Compression("int8", block_size=2), axis=0
    )
    params = as_tree(replica_starts())
    lost = jax.tree.map(lambda x: jnp.full_like(x[:1], jnp.nan), params)
    state = tx.init(params)._replace(step=jnp.asarray(5), center=lost)
    _, state = jax.jit(tx.update)(jax.tree.map(jnp.zeros_like, params), state, params)
    np.testing.assert_allclose(as_vector(state.center)[0], replica_starts().mean(0), **LAWS)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: entropix.diloco(optax.sgd(1), inner_steps=0), ValueError,
         "inner_steps .*got 0"),
        (lambda: entropix.diloco(optax.sgd(1), inner_steps=3, phase=3), ValueError,
         "phase .* < inner_steps = 3, got 3"),
        (lambda: entropix.couple_replicas(0.1, every=2, phase=2, axis=0), ValueError,
         "phase .* < every = 2, got 2"),
        (lambda: entropix.entropy_descent(
            optax.sgd(1), optax.sgd(1), inner_steps=3, gamma=0.0, phase=-1), ValueError,
         "phase .* got -1"),
        (lambda: entropix.entropy_descent(
            optax.sgd(1), optax.sgd(1), inner_steps=3, gamma=0.0, phase=1, opaque=True),
         ValueError, "phase must be 0 .* got 1"),
        (lambda: entropix.diloco(optax.sgd(1), inner_steps=3, delay=3), ValueError,
         "delay .* < inner_steps = 3, got 3"),
        (lambda: entropix.diloco(optax.sgd(1), inner_steps=3, delay=1.0), TypeError,
         "delay .*got 1.0"),
        (lambda: entropix.diloco(optax.sgd(1), inner_steps=3, blend=1.5), ValueError,
         "blend .* got 1.5"),
        (lambda: entropix.diloco(optax.sgd(1), inner_steps=3, compression=Compression()),
         ValueError, "compression must be None for a single replica"),
        (lambda: entropix.couple_replicas(0.1, axis=0, compression=Compression()), ValueError,
         "compression must be None with center='mean', got Compression"),
        (lambda: entropix.couple_replicas(0.1, axis=0, compression="int8"), TypeError,
         "compression must be a Compression or None, got 'int8'"),
        (lambda: entropix.average_updates(axis=0, compression="int8"), TypeError,
         "compression .*got 'int8'"),
        (lambda: entropix.average_updates(), ValueError, "axis or axis_name"),
        (lambda: Compression("int4"), ValueError, "dtype .* got 'int4'"),
        (lambda: Compression(block_size=0), ValueError, "block_size .* got 0"),
        (lambda: entropix.fragments({"w": np.zeros(2)}, 2), ValueError, "number .* got 2"),
        (lambda: entropix.fragments({"w": np.zeros(2)}, 1, pattern="x"), ValueError,
         "pattern .* got 'x'"),
        (lambda: entropix.diloco(optax.sgd(1), inner_steps=3, axis=0).init(
            {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}), ValueError, "axis 0 .*'b'.*3"),
        (lambda: entropix.diloco(optax.sgd(1), inner_steps=3, axis_name="r").update(
            jnp.ones(2), entropix.diloco(optax.sgd(1), inner_steps=3).init(jnp.ones(2)),
            jnp.ones(2)), ValueError, "axis_name 'r'"),
    ],
)  # fmt: skip
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
