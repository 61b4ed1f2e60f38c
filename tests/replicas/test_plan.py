"""The same training on one device, and on several by every backend; traffic of the programs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import entropix
from entropix import replicas
from tests.replicas.programs import collectives, inside_conditionals
from tests.transforms.regression import DIM, as_tree, loss

Y, STEPS, BATCH = 8, 50, 8
BACKENDS = ["pmap", "shard_map", "jit"]
RNG = np.random.default_rng(4)
BATCHES = [
    (
        RNG.normal(size=(Y, BATCH, DIM)).astype(np.float32),
        RNG.normal(size=(Y, BATCH)).astype(np.float32),
    )
    for _ in range(5)
]
STARTS = RNG.normal(size=(Y, DIM)).astype(np.float32)
ALGORITHMS = {
    "replicated_sgd": lambda **where: entropix.replicated_sgd(0.02, gamma=0.3, every=3, **where),
    "elastic_sgd": lambda **where: entropix.elastic_sgd(
        0.02, gamma=0.3, every=3, momentum=0.9, **where
    ),
    "parle": lambda **where: entropix.parle(
        0.5, gamma=0.1, rho=0.5, inner_learning_rate=0.02, inner_steps=5, **where
    ),
    "diloco": lambda **where: entropix.diloco(
        optax.adam(0.02), inner_steps=4, delay=1, blend=0.8, **where
    ),
}
ALL = pytest.mark.parametrize("algorithm", ALGORITHMS)
# Every algorithm on the default backend and one on the others are quick, the rest is slow.
SOME = pytest.mark.parametrize(
    ("algorithm", "backend"),
    [
        pytest.param(
            algorithm,
            backend,
            marks=() if backend == "jit" or algorithm == "elastic_sgd" else pytest.mark.slow,
        )
        for algorithm in ALGORITHMS
        for backend in BACKENDS
    ],
)


def one_replica_step(tx):
    """A step of one replica, with its loss as the answer."""

    def step(state, batch):
        params, opt_state = state
        value, grads = jax.value_and_grad(loss)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    return step


def start(tx, y=Y):
    params = as_tree(STARTS[:y])
    return params, replicas.stack_states(tx.init, params)


@functools.cache
def on_one_device(algorithm, y=Y):
    """The parameters and the last losses of a vmapped step on one device."""
    tx = ALGORITHMS[algorithm](axis_name="replicas")
    state = start(tx, y)
    axes = jax.tree.map(lambda leaf: 0 if leaf.ndim else None, state)
    step = jax.jit(jax.vmap(one_replica_step(tx), (axes, 0), (axes, 0), axis_name="replicas"))
    for at in range(STEPS):
        state, value = step(state, first(BATCHES[at % 5], y))
    return state[0], value


def first(batch, y):
    return jax.tree.map(lambda leaf: leaf[:y], batch)


def on_devices(algorithm, plan, steps=STEPS):
    tx = ALGORITHMS[algorithm](axis_name=plan.axis_name)
    run = plan.run(one_replica_step(tx))
    state = plan.place(start(tx, plan.replicas))
    batches = [plan.place_batch(first(batch, plan.replicas)) for batch in BATCHES]
    for at in range(steps):
        # Simulated devices share a few threads: collectives of two steps at once can starve there.
        state, value = jax.block_until_ready(run(state, batches[at % 5]))
    return plan.collect(state)[0], plan.collect(value)


def assert_same(actual, expected):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


@SOME
@pytest.mark.parametrize(
    "devices", [pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow), 8]
)
def test_many_devices_give_what_one_gives(algorithm, backend, devices):
    plan = replicas.plan(Y, devices=devices, backend=backend)
    actual, expected = on_devices(algorithm, plan), on_one_device(algorithm)
    assert_same(actual, expected)
    assert replicas.spread(expected[0]).total > 1e-3


def test_devices_that_share_a_replica_divide_its_batch():
    """Two replicas on eight devices: four for each."""
    plan = replicas.plan(2, devices=8)
    assert plan.data_shards == 4
    assert_same(on_devices("replicated_sgd", plan), on_one_device("replicated_sgd", 2))


def test_stacked_coupling_is_mapped_coupling():
    """``axis=0`` over sharded arrays, without a plan, is the same algorithm."""
    tx = ALGORITHMS["replicated_sgd"](axis=0)

    @jax.jit
    def step(params, opt_state, batch):
        grads = jax.vmap(jax.grad(loss))(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    plan = replicas.plan(Y)
    params = plan.place(as_tree(STARTS))
    opt_state = tx.init(params)
    for at in range(STEPS):
        params, opt_state = jax.block_until_ready(
            step(params, opt_state, plan.place_batch(BATCHES[at % 5]))
        )
    assert_same(params, on_one_device("replicated_sgd")[0])


@SOME
def test_the_only_traffic_is_one_all_reduce_inside_the_conditional(algorithm, backend):
    """On 8 devices, whatever the number of leaves."""
    plan = replicas.plan(2 * Y, devices=8, backend=backend)
    tx = ALGORITHMS[algorithm](axis_name=plan.axis_name)
    params = as_tree(np.tile(STARTS, (2, 1)))
    state = plan.place((params, replicas.stack_states(tx.init, params)))
    batch = plan.place_batch(jax.tree.map(lambda x: np.concatenate([x, x]), BATCHES[0]))
    lowered = plan.run(one_replica_step(tx)).lower(state, batch)
    text = lowered.compile().as_text()
    found = collectives(text)
    assert [each.kind for each in found] == ["all-reduce"]
    assert found[0].computation in inside_conditionals(text)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compressed_meetings_are_the_same_on_devices(backend, monkeypatch):
    """Two replicas on each of four devices exchange over both axes."""
    compressed = lambda **where: entropix.diloco(
        optax.sgd(0.02),
        inner_steps=2,
        compression=entropix.Compression("int8", block_size=2),
        **where,
    )
    monkeypatch.setitem(ALGORITHMS, "compressed", compressed)
    plan = replicas.plan(Y, devices=Y // 2, backend=backend)
    assert_same(on_devices("compressed", plan), on_one_device("compressed"))


def test_the_reader_of_programs_sees_unconditional_traffic():
    """Without a condition the all-reduce is found, and found outside."""
    plan = replicas.plan(Y, devices=8)
    x = plan.place(jnp.ones((Y, 3)))
    text = jax.jit(lambda x: x - x.mean(0)[None]).lower(x).compile().as_text()
    found = collectives(text)
    assert [each.kind for each in found] == ["all-reduce"]
    assert found[0].groups == (tuple(range(8)),)
    assert found[0].computation not in inside_conditionals(text)


def test_counters_are_shared():
    state = replicas.stack_states(optax.adam(0.1).init, as_tree(STARTS))
    assert state[0].count.shape == ()
    assert state[0].mu["a"].shape == (Y, 2)
    keyed = replicas.stack_states(
        lambda key, params: entropix.langevin_noise(0.1, key=key).init(params),
        jax.random.split(jax.random.key(0), Y),
        as_tree(STARTS),
    )
    assert keyed.key.shape == (Y,)
    assert keyed.step.shape == ()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.slow
def test_each_replica_keeps_its_own_key(backend):
    """Noise differs from replica to replica, and is the same however they lie on devices."""
    plan = replicas.plan(4, devices=2, backend=backend)
    tx = entropix.langevin_noise(1.0)
    params = jnp.zeros((4, 3))
    init = lambda key, params: entropix.langevin_noise(1.0, key=key).init(params)
    opt_state = replicas.stack_states(init, jax.random.split(jax.random.key(0), 4), params)

    def step(state, batch):
        params, opt_state = state
        updates, opt_state = tx.update(params, opt_state, params)
        return (params + updates, opt_state), None

    state, _ = plan.run(step)(plan.place((params, opt_state)), plan.place_batch(np.zeros((4, 2))))
    noise = np.asarray(plan.collect(state)[0])
    alone = [tx.update(params[0], init(key, params[0]))[0] for key in
             jax.random.split(jax.random.key(0), 4)]  # fmt: skip
    np.testing.assert_allclose(noise, alone, rtol=1e-6)
    assert len(set(noise.ravel().tolist())) == 12


def test_a_step_is_compiled_once():
    for backend in BACKENDS:
        traces = []
        plan = replicas.plan(4, devices=2, backend=backend)

        def step(state, batch, traces=traces):
            traces.append(1)
            return state + batch.mean(), None

        run, state = plan.run(step), plan.place(jnp.zeros(4))
        for _ in range(3):
            state, _ = run(state, plan.place_batch(np.ones((4, 2), np.float32)))
        assert len(traces) == 1
        np.testing.assert_array_equal(plan.collect(state), 3.0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"replicas": 6, "devices": 4}, ValueError,
            "multiple of the number of devices or a divisor of it, got 6 replicas on 4 devices",
        ),
        (
            {"replicas": 16, "devices": 16}, ValueError,
            "devices .*got 16",
        ),
        ({"replicas": 0}, ValueError, "replicas .*got 0"),
        ({"replicas": 2.5}, TypeError, "replicas .*got 2.5"),
        ({"replicas": 8, "devices": 0}, ValueError, "devices .*got 0"),
        ({"replicas": 8, "devices": ()}, ValueError, "got 8 replicas on 0 devices"),
        (
            {"replicas": 2, "backend": "pmap"}, ValueError,
            "backend .* got 'pmap' for 2 replicas on 8",
        ),
        (
            {"replicas": 2, "backend": "shard_map"}, ValueError,
            "backend .* got 'shard_map' for 2 replicas on 8",
        ),
        ({"replicas": 8, "backend": "mpi"}, ValueError, "backend must be one of .*got 'mpi'"),
    ],
)  # fmt: skip
def test_bad_plans(arguments, error, message):
    with pytest.raises(error, match=message):
        replicas.plan(**arguments)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_states_and_batches(backend):
    plan = replicas.plan(4, devices=2, backend=backend)
    with pytest.raises(
        ValueError, match=r"4 replicas on the first axis .* \(3, 2\) at state\['b'\]"
    ):
        plan.place({"w": jnp.ones((4, 2)), "b": jnp.ones((3, 2))})
    with pytest.raises(ValueError, match=r"batch must have 4 replicas .* \(5, 8\) at batch\[1\]"):
        plan.place_batch((np.ones((4, 8)), np.ones((5, 8))))


def test_batches_that_do_not_divide():
    shared = replicas.plan(2, devices=8)
    with pytest.raises(ValueError, match=r"in a multiple of 4, .*got shape \(2, 6\) at batch"):
        shared.place_batch(np.ones((2, 6)))


def test_one_device_has_nobody_to_talk_to():
    plan = replicas.plan(Y, devices=1)
    tx = ALGORITHMS["replicated_sgd"](axis_name=plan.axis_name)
    state, batch = plan.place(start(tx)), plan.place_batch(BATCHES[0])
    text = plan.run(one_replica_step(tx)).lower(state, batch).compile().as_text()
    assert collectives(text) == []


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("devices", [1, 2, 4])
def test_a_step_takes_the_memory_of_its_state_alone(backend, devices):
    """What the caller stacked stays whole, and so does the state itself without donation."""
    plan = replicas.plan(4, devices=devices, backend=backend)
    mine = {"x": jnp.ones((4, 3)), "count": jnp.zeros((), jnp.int32)}
    mine["same"] = mine["x"]
    step = lambda state, batch: (jax.tree.map(lambda x: x + 1, state), None)
    batch = plan.place_batch(np.zeros((4, 2), np.float32))
    state = plan.place(mine)
    kept, _ = plan.run(step, donate=False)(state, batch)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    new, _ = plan.run(step)(state, batch)
    assert state["x"].is_deleted()
    assert state["same"].is_deleted()
    jax.tree.map(np.testing.assert_array_equal, plan.collect(new), plan.collect(kept))
    assert mine["x"].sum() == mine["same"].sum() == 12


@pytest.mark.parametrize("backend", BACKENDS)
def test_collected_replicas_are_the_hosts(backend):
    """They lie on no device, and later steps do not write over them."""
    plan = replicas.plan(8, devices=4, backend=backend)
    run = plan.run(lambda state, batch: ({"x": state["x"] + 1, "key": state["key"]}, None))
    keys = jax.random.split(jax.random.key(0), 8)
    state = plan.place({"x": jnp.arange(8.0), "key": keys})
    found = plan.collect(state)
    state, _ = run(state, plan.place_batch(np.zeros((8, 1), np.float32)))
    assert isinstance(found["x"], np.ndarray)
    np.testing.assert_array_equal(found["x"], np.arange(8.0))
    assert len(found["key"].devices()) == 1
    assert bool(jnp.all(jax.random.key_data(found["key"]) == jax.random.key_data(keys)))


def test_a_process_without_a_device_of_the_plan_is_told_at_once(monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 3)
    with pytest.raises(ValueError, match=r"devices .* none of process 3 among 2 .* \[0\]"):
        replicas.plan(2, devices=2)


FINITE = {
    "inside": lambda names: optax.chain(
        entropix.couple_replicas(0.3, every=2, axis_name=names),
        optax.apply_if_finite(optax.adam(0.02), 5),
    ),
    "around": lambda names: optax.apply_if_finite(
        entropix.replicated_sgd(0.02, gamma=0.3, every=2, axis_name=names), 5
    ),
}


@pytest.mark.parametrize("devices", [2, 4])
def test_a_replica_skips_its_own_update_where_it_is_not_finite(devices):
    """It keeps its weights and counts for itself, and the others go on."""
    plan = replicas.plan(4, devices=devices)
    tx = FINITE["inside"](plan.axis_name)
    run, state = plan.run(one_replica_step(tx)), plan.place(start(tx, 4))
    good = first(BATCHES[0], 4)
    bad = (good[0], np.where(np.arange(4)[:, None] == 2, np.nan, good[1]).astype(np.float32))
    for batch in (good, bad, good):
        before = plan.collect(state[0])
        state, _ = jax.block_until_ready(run(state, plan.place_batch(batch)))
        moved = [
            np.abs(new - old).reshape(4, -1).max(1) > 0
            for new, old in zip(
                jax.tree.leaves(plan.collect(state[0])), jax.tree.leaves(before), strict=True
            )
        ]
        np.testing.assert_array_equal(np.any(moved, 0), [True, True, batch is good, True])
    counts = plan.collect(state[1][1])
    np.testing.assert_array_equal(counts.total_notfinite, [0, 0, 1, 0])
    np.testing.assert_array_equal(counts.inner_state[0].count, [3, 3, 2, 3])


@pytest.mark.parametrize("devices", [2, 4])
def test_a_coupling_that_replicas_would_skip_alone_is_refused(devices):
    plan = replicas.plan(4, devices=devices)
    tx = FINITE["around"](plan.axis_name)
    with pytest.raises(ValueError, match=r"apply_if_finite .* got \['CoupleReplicasState'\]"):
        start(tx, 4)
    tx = optax.apply_if_finite(
        entropix.diloco(optax.sgd(0.1), inner_steps=2, axis_name=plan.axis_name), 5
    )
    with pytest.raises(ValueError, match=r"'DiLoCoState'.* diloco\(optax\.apply_if_finite\("):
        start(tx, 4)
    tx = FINITE["around"](plan.axis_name)
    params = as_tree(STARTS[:4])
    counters = tx.init(jax.tree.map(lambda x: x[0], params))
    stacked = jax.vmap(tx.init)(params)
    shared = jax.tree.map(lambda x, one: x if one.ndim else one, stacked, counters)
    run = plan.run(one_replica_step(tx))
    with pytest.raises(ValueError, match=r"differ from replica to replica .*notfinite_count"):
        run(plan.place((params, shared)), plan.place_batch(first(BATCHES[0], 4)))


@pytest.mark.parametrize("devices", [2, 4])
def test_replicas_in_bfloat16(devices):
    """On one device or several the same, to a rounding or two."""

    def found(devices):
        plan = replicas.plan(4, devices=devices)
        tx = entropix.replicated_sgd(0.1, gamma=0.5, every=1, axis_name=plan.axis_name)

        def step(state, batch):
            params, opt_state = state
            updates, opt_state = tx.update(params, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        params = jnp.arange(12, dtype=jnp.bfloat16).reshape(4, 3)
        state = plan.place((params, replicas.stack_states(tx.init, params)))
        state, _ = plan.run(step)(state, plan.place_batch(np.zeros((4, 1), np.float32)))
        return plan.collect(state)[0].astype(np.float32)

    np.testing.assert_allclose(found(devices), found(1), rtol=2**-7)
