"""Replicas larger than a device: parameters divided over the devices of a group."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import entropix
from entropix import replicas
from tests.replicas.programs import between, collectives, inside_conditionals

WIDTH, SIZE, STEPS = 16, 16, 6
SPLIT = {
    # Tensor parallelism: the first layer by columns, the second by rows.
    "model": {"up": {"w": P(None, "model"), "b": P("model")}, "down": {"w": P("model", None)}},
    # Fully sharded data parallelism: the axis that divides the mini-batch divides the weights too.
    "data": {"up": {"w": P("data", None), "b": P("data")}, "down": {"w": P("data", None)}},
}
BOTH = {"up": {"w": P("data", "model"), "b": P("model")}, "down": {"w": P("model", "data")}}
ALGORITHMS = {
    "replicated_adam": lambda names: optax.chain(
        entropix.couple_replicas(0.2, every=2, axis_name=names), optax.adam(0.02)
    ),
    "pushed": lambda names: optax.chain(
        entropix.couple_replicas(0.2, push=0.3, every=2, axis_name=names),
        optax.sgd(0.05, momentum=0.9),
    ),
    "elastic_sgd": lambda names: entropix.elastic_sgd(0.05, gamma=0.2, every=2, axis_name=names),
    "parle": lambda names: entropix.parle(
        0.5, gamma=0.1, rho=0.5, inner_learning_rate=0.05, inner_steps=3, axis_name=names
    ),
}


def forward(params, x):
    hidden = jnp.tanh(x @ params["up"]["w"] + params["up"]["b"][None])
    return hidden @ params["down"]["w"]


def make_step(tx):
    def loss(params, batch):
        x, target = batch
        return jnp.mean((forward(params, x) - target) ** 2)

    def step(state, batch):
        params, opt_state = state
        value, grads = jax.value_and_grad(loss)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    return step


def start(tx, y):
    """All replicas and their states, from the seed alone."""

    def init(key):
        up, down = jax.random.split(key)
        return {
            "up": {"w": jax.random.normal(up, (8, WIDTH)) / 3, "b": jnp.zeros(WIDTH)},
            "down": {"w": jax.random.normal(down, (WIDTH, 4)) / 4},
        }

    params = replicas.replicate(init, y, key=1)
    return params, replicas.stack_states(tx.init, params)


def batches(y):
    rng = np.random.default_rng(3)
    return [
        (
            rng.normal(size=(y, SIZE, 8)).astype(np.float32),
            rng.normal(size=(y, SIZE, 4)).astype(np.float32),
        )
        for _ in range(2)
    ]


@functools.cache
def on_one_device(algorithm, y):
    plan = replicas.plan(y, devices=1)
    return trained(algorithm, plan)[1]


def trained(algorithm, plan):
    """The compiled program, and what it makes of the replicas."""
    y = plan.replicas
    tx = ALGORITHMS[algorithm](plan.axis_name)
    make = functools.partial(start, tx, y)
    state = jax.jit(make, out_shardings=plan.shardings(jax.eval_shape(make)))()
    data = [*map(plan.place_batch, batches(y))]
    compiled = plan.run(make_step(tx)).lower(state, data[0]).compile()
    for at in range(STEPS):
        state, value = jax.block_until_ready(compiled(state, data[at % 2]))
    return compiled, (plan.collect(state), plan.collect(value)), state


def assert_same(actual, expected):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("algorithm", "y", "axis"),
    [
        ("replicated_adam", 2, "model"),
        ("replicated_adam", 4, "data"),
        ("elastic_sgd", 4, "model"),
        # The length of a gap is that over all devices of a replica.
        ("pushed", 2, "model"),
        ("parle", 2, "data"),
    ],
)
@pytest.mark.slow
def test_replicas_divided_over_devices(algorithm, y, axis):
    """2 x 4 and 4 x 2: the numbers of one device, an eighth of the state on each device, and a
    coupling that adds up what each device has and gathers nothing."""
    plan = replicas.plan(y, devices=8, model=SPLIT[axis])
    compiled, found, state = trained(algorithm, plan)
    assert_same(found, on_one_device(algorithm, y))

    large = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim > 1]
    assert len(large) >= 6
    for leaf in large:
        assert leaf.addressable_shards[0].data.size == leaf.size // 8, leaf.sharding
    text, group = compiled.as_text(), 8 // y
    meets = [each for each in collectives(text) if between(each, group)]
    assert meets
    assert {each.kind for each in meets} == {"all-reduce"}
    assert {each.computation for each in meets} <= inside_conditionals(text)
    most = sum(leaf.size // 8 for leaf in jax.tree.leaves(state[0]))
    # The parameters of one device, and a count of the finite replicas.
    assert sum(int(np.prod(shape)) for each in meets for shape in each.shapes) <= most + 4


def test_bfloat16_parameters_meet_beside_axes_of_the_compiler():
    """XLA on CPU ends the process at an all-reduce in bfloat16 there."""
    plan = replicas.plan(2, devices=8, model={"w": P("model", None)})
    tx = entropix.couple_replicas(0.25, axis_name=plan.axis_name)

    def step(state, batch):
        params, opt_state = state
        updates, opt_state = tx.update(jax.tree.map(jnp.zeros_like, params), opt_state, params)
        return (jax.tree.map(jnp.subtract, params, updates), opt_state), batch

    rows = jnp.stack([jnp.ones((8, 4)), 5 * jnp.ones((8, 4))]).astype(jnp.bfloat16)
    params = {"w": rows}
    state = plan.place((params, replicas.stack_states(tx.init, params)))
    state, _ = plan.run(step)(state, plan.place_batch(jnp.zeros((2, 4))))
    found = plan.collect(state)[0]["w"].astype(np.float32)
    np.testing.assert_array_equal(found[:, 0, 0], [1.5, 4.5])


@pytest.mark.slow
def test_two_axes_inside_a_replica():
    """Two replicas, each over 2 data and 2 model devices, the lengths from an abstract mesh."""
    mesh = AbstractMesh((2,), ("model",), axis_types=(AxisType.Auto,))
    model = jax.tree.map(
        lambda spec: NamedSharding(mesh, P(*(n if n == "model" else None for n in spec))), BOTH
    )
    plan = replicas.plan(2, devices=8, model=model)
    assert plan.data_shards == 2
    assert_same(trained("replicated_adam", plan)[1], on_one_device("replicated_adam", 2))


def test_a_state_moves_to_another_mesh_and_number():
    """Growing from 2 x 4 to 4 x 2 keeps the center, and leaves no array whole on a device."""
    first = replicas.plan(2, devices=8, model=SPLIT["model"])
    _, (whole, _), (params, opt_state) = trained("replicated_adam", first)
    grown = replicas.resize(params, 4, opt_state)
    for leaf in jax.tree.leaves(grown):
        if leaf.ndim > 1:
            assert leaf.addressable_shards[0].data.size < leaf.size
    second = replicas.plan(4, devices=8, model=SPLIT["model"])
    placed = second.place(grown)
    for leaf in jax.tree.leaves(placed):
        if leaf.ndim > 1:
            assert leaf.addressable_shards[0].data.size == leaf.size // 8
    assert_same(replicas.center(second.collect(placed)[0]), replicas.center(whole[0]))
    one = jax.tree.map(lambda x: x[0], params)
    for leaf in jax.tree.leaves(replicas.replicate(one, 3)):
        assert leaf.addressable_shards[0].data.size < leaf.size


def test_what_belongs_to_a_parameter_lies_like_it():
    """Also under masks and partitions; factored accumulators stay whole in their group."""
    plan = replicas.plan(2, devices=8, model=SPLIT["model"])
    label = lambda tree: {"up": "adam", "down": "factored"}
    tx = optax.partition({"adam": optax.adam(0.1), "factored": optax.adafactor(0.1)}, label)
    make = functools.partial(start, tx, 2)
    shapes = jax.eval_shape(make)
    for (path, leaf), sharding in zip(
        jax.tree.leaves_with_path(shapes), jax.tree.leaves(plan.shardings(shapes)), strict=True
    ):
        name = jax.tree_util.keystr(path)
        whole = {(2, 8, WIDTH): P(None, "model"), (2, WIDTH, 4): P("model", None)}
        whole[2, WIDTH] = P("model") if "up" in name else P()
        expected = P("replica_devices", *whole.get(leaf.shape, P())) if leaf.ndim else P()
        assert sharding.spec == expected, name


def test_bad_models():
    with pytest.raises(TypeError, match=r"model must hold .* got 'x' at model\['w'\]"):
        replicas.plan(2, model={"w": "x"})
    with pytest.raises(ValueError, match=r"model .* several axes, .* \['a', 'b'\]"):
        replicas.plan(2, model={"w": P("a", "b")})
    mesh = Mesh(np.asarray(jax.devices()[:3]), ("model",))
    with pytest.raises(ValueError, match=r"model axes {'model': 3} must divide .* got 8 devices"):
        replicas.plan(2, model={"w": NamedSharding(mesh, P("model"))})
    for backend in ("pmap", "shard_map"):
        with pytest.raises(ValueError, match=f"backend must be 'jit' .* got '{backend}'"):
            replicas.plan(2, devices=8, backend=backend, model=SPLIT["model"])
