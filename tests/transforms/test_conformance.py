"""Every transform against every law: a new transform is one new row of TRANSFORMS."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import entropix
from entropix import scoping

Y = 4  # replicas on axis 0 of every parameter of a stacked row


@dataclass(frozen=True, eq=False)
class Row:
    """A transform under test: its factory, arguments, and what it is able to do."""

    factory: Callable[..., optax.GradientTransformation]
    arguments: dict
    static: tuple[str, ...] = ()
    schedule: str | None = None
    random: bool = False
    descends: bool = True
    promotion: str = "strict"


def local_sgd(learning_rate, *, momentum=None, inner_steps=3, phase=0, delay=0, blend=1.0,
              compression=None, axis=0):  # fmt: skip
    """DiLoCo with a number to schedule."""
    return entropix.diloco(
        optax.sgd(learning_rate, momentum=momentum), inner_steps=inner_steps, phase=phase,
        delay=delay, blend=blend, compression=compression, axis=axis,
    )  # fmt: skip


BARE = dict(inner_learning_rate=0.02, inner_steps=2, noise=0.0, momentum=None, inner_momentum=None)
DESCENT = dict(inner_learning_rate=0.02, inner_steps=3, momentum=0.5, noise=1e-3)
OPTIONS = dict(debias=True, scale_by_gamma=True, reset_inner=False, weight_decay=1e-4)
TRANSFORMS = {
    "entropy_sgd": Row(entropix.entropy_sgd, DESCENT | dict(gamma=0.1), (), "gamma", True),
    "entropy_sgd bare": Row(entropix.entropy_sgd, BARE, (), "learning_rate"),
    "entropy_sgd one step": Row(
        entropix.entropy_sgd, DESCENT | dict(inner_steps=1, reset_inner=False), (), "noise", True
    ),
    "entropy_sgd all options": Row(
        entropix.entropy_sgd, DESCENT | OPTIONS | dict(gamma=1.0), (), "inner_learning_rate", True
    ),
    "entropy_adam": Row(
        entropix.entropy_adam,
        dict(learning_rate=0.02, inner_learning_rate=0.02, inner_steps=3, noise=1e-3),
        (), "learning_rate", True, promotion="standard",  # optax.adam itself promotes
    ),
    "langevin_noise": Row(entropix.langevin_noise, dict(std=0.01), (), "std", True, False),
    "sgld": Row(
        entropix.sgld, dict(learning_rate=0.02, temperature=1e-4), (), "learning_rate", True
    ),
    "couple_replicas": Row(
        entropix.couple_replicas, dict(gamma=0.1, every=2, axis=0), ("axis",), "gamma", False, False
    ),
    "couple_replicas push": Row(
        entropix.couple_replicas,
        dict(gamma=0.1, push=0.05, every=2, center="moving", axis=0), ("axis", "center"), "push",
        False, False,
    ),
    "replicated_sgd": Row(
        entropix.replicated_sgd,
        dict(learning_rate=0.02, gamma=0.1, every=3, axis=0), ("axis",), "learning_rate",
    ),
    "elastic_sgd": Row(
        entropix.elastic_sgd,
        dict(learning_rate=0.02, gamma=0.1, every=3, momentum=0.5, axis=0),
        ("axis",), "center_rate",
    ),
    "parle": Row(
        entropix.parle,
        dict(gamma=0.1, rho=0.5, axis=0) | DESCENT, ("axis",), "rho", True,
    ),
    "heat_sgd": Row(entropix.heat_sgd, dict(gamma=0.1) | DESCENT, (), "learning_rate", True),
    "hopf_lax_sgd": Row(
        entropix.hopf_lax_sgd,
        dict(gamma=0.1, inner_learning_rate=0.02, inner_steps=3), (), "gamma",
    ),
    "average_updates": Row(entropix.average_updates, dict(axis=0), ("axis",), descends=False),
    "diloco": Row(
        local_sgd,
        dict(learning_rate=0.02, momentum=0.5, phase=1, delay=1, blend=0.8,
             compression=entropix.Compression("int8", block_size=4)),
        ("axis", "delay"), "blend",
    ),
}  # fmt: skip
# Every law holds for every row. A row that goes through most of the code is held to all laws in
# the quick tests, the others to the laws that are quick to test; the rest is slow.
QUICK = ("entropy_sgd",)
EVERY_ROW = pytest.mark.parametrize("row", TRANSFORMS.values(), ids=TRANSFORMS)
ROWS = pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=name, marks=() if name in QUICK else pytest.mark.slow)
        for name, row in TRANSFORMS.items()
    ],
)


NOISE = {"noise": 0.0, "std": 0.0, "temperature": 0.0}


def silent(row):
    """The same transform without noise, for what holds of replicas only without it."""
    return {name: 0.0 for name in row.arguments if name in NOISE} if row.random else {}


def make(row, **changes):
    return row.factory(**row.arguments | changes)


def make_params(dtype=jnp.float32):
    return {
        "w": jnp.linspace(-1, 1, Y * 6, dtype=dtype).reshape(Y, 2, 3),
        "b": jnp.ones((Y, 2), dtype),
    }


TARGET = {"w": 0.5, "b": -0.5}


def loss(params):
    return sum(jnp.sum((params[name] - TARGET[name]) ** 2) for name in params)


def step(tx, params, state):
    updates, state = tx.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state


def run(tx, steps=7, params=None, jit=True):
    """Parameters and state after some steps."""
    params = make_params() if params is None else params
    state = tx.init(params)
    advance = jax.jit(lambda params, state: step(tx, params, state)) if jit else None
    for _ in range(steps):
        params, state = advance(params, state) if jit else step(tx, params, state)
    return params, state


@functools.cache
def baseline(row):
    """What the other tests compare with: seven jitted steps on one device."""
    return run(make(row))


def data(tree):
    """The tree with its typed keys as plain arrays."""
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf, tree)


def without_keys(tree):
    """The leaves that are no keys, which are others for each replica."""
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return [leaf for leaf in jax.tree.leaves(tree) if not is_key(leaf)]


def assert_same(a, b):
    chex.assert_trees_all_equal(data(a), data(b))


def assert_close(a, b, rtol=1e-5, atol=1e-6):
    chex.assert_trees_all_close(data(a), data(b), rtol=rtol, atol=atol)


@ROWS
def test_jit_equals_eager(row):
    tx = make(row)
    assert_close(baseline(row), run(tx, jit=False))


@ROWS
def test_scan_equals_loop(row):
    tx = make(row)
    params = make_params()
    scanned = jax.lax.scan(
        lambda carry, _: (step(tx, *carry), None), (params, tx.init(params)), length=7
    )[0]
    assert_close(scanned, baseline(row))


@EVERY_ROW
def test_descends(row):
    if not row.descends:
        pytest.skip("adds to updates, does not descend by itself")
    tx = make(row)
    params = make_params()
    (params, state), _ = jax.lax.scan(
        lambda carry, _: (step(tx, *carry), None), (params, tx.init(params)), length=600
    )
    has_anchor = bool(optax.tree.get_all_with_path(state, "anchor"))
    evaluated = entropix.eval_params(state, params) if has_anchor else params
    assert loss(make_params()) > 10
    assert loss(evaluated) < 0.1


@EVERY_ROW
def test_does_not_compile_twice(row):
    tx = make(row)
    params = make_params()
    state = jax.jit(tx.init)(params)
    traces = 0

    @jax.jit
    def advance(params, state):
        nonlocal traces
        traces += 1
        return step(tx, params, state)

    for _ in range(5):
        params, state = advance(params, state)
    assert traces == 1


@ROWS
def test_extra_arguments_are_accepted_and_forwarded(row):
    seen = []

    def spy_update(updates, state, params=None, *, value, **extra):
        del params, extra
        seen.append(value)
        return updates, state

    spy = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), spy_update)
    tx = optax.chain(make(row), spy)
    params = make_params()
    tx.update(params, tx.init(params), params, value=3.0, unknown=1)
    assert seen == [3.0]


def test_entropy_descent_forwards_extra_arguments_to_both_optimizers():
    seen = []

    def spy(name):
        def update(updates, state, params=None, **extra):
            del params
            seen.append((name, extra["value"]))
            return updates, state

        return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)

    tx = entropix.entropy_descent(spy("outer"), spy("inner"), inner_steps=1, gamma=0.0)
    params = make_params()
    tx.update(params, tx.init(params), params, value=3.0)
    assert seen == [("inner", 3.0), ("outer", 3.0)]


@ROWS
@pytest.mark.parametrize("wrap", ["chain", pytest.param("named_chain", marks=pytest.mark.slow)])
def test_inside_chains(row, wrap):
    tx = make(row)
    wrapped = {
        "chain": optax.chain(tx, optax.identity()),
        "named_chain": optax.named_chain(("it", tx), ("nothing", optax.identity())),
    }[wrap]
    assert_same(run(wrapped)[0], baseline(row)[0])


@ROWS
def test_masked_touches_only_its_leaves(row):
    tx = make(row)
    masked, _ = run(optax.masked(tx, {"w": True, "b": False}))
    only_w = {"w": make_params()["w"]}
    assert_close(masked["w"], run(tx, params=only_w)[0]["w"])
    plain_gradient_ascent = make_params()["b"]
    for _ in range(7):
        plain_gradient_ascent = plain_gradient_ascent + 2 * (plain_gradient_ascent - TARGET["b"])
    assert_close(masked["b"], plain_gradient_ascent)


@ROWS
def test_partition_gives_each_group_its_own(row):
    tx = make(row)
    both = optax.partition({"it": tx, "sgd": optax.sgd(0.1)}, {"w": "it", "b": "sgd"})
    params, _ = run(both)
    assert_close(params["w"], run(tx, params={"w": make_params()["w"]})[0]["w"])
    assert_close(params["b"], run(optax.sgd(0.1), params={"b": make_params()["b"]})[0]["b"])


@ROWS
def test_multi_steps_accumulates(row):
    """Two micro-steps at the same parameters make one step on their mean gradient."""
    tx = make(row)
    every_two = optax.MultiSteps(tx, 2)
    params, state = make_params(), every_two.init(make_params())
    update = jax.jit(every_two.update)
    for _ in range(7):
        for share in (0.5, 1.5):
            grads = jax.tree.map(lambda g, share=share: share * g, jax.grad(loss)(params))
            before = params
            updates, state = update(grads, state, params)
            params = optax.apply_updates(params, updates)
            if share == 0.5:
                assert_same(before, params)
    assert_close(params, baseline(row)[0], rtol=1e-4)


@pytest.mark.slow
@ROWS
def test_apply_if_finite_skips_bad_gradients(row):
    tx = make(row)
    guarded = optax.apply_if_finite(tx, 5)
    params, state = run(guarded, steps=4)
    bad = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), params)
    updates, state = jax.jit(guarded.update)(bad, state, params)
    assert_same(optax.apply_updates(params, updates), params)
    for _ in range(3):
        params, state = step(guarded, params, state)
    assert_close(params, baseline(row)[0])


@ROWS
def test_inject_hyperparams(row):
    injected = optax.inject_hyperparams(row.factory, static_args=row.static)(**row.arguments)
    params, state = run(injected)
    expected_params, expected_state = baseline(row)
    assert_close(params, expected_params)
    assert_close(state.inner_state, expected_state)


@ROWS
def test_injected_hyperparams_can_be_changed(row):
    """The value in the state is the one used: changing it is building the transform with it."""
    if row.schedule is None:
        pytest.skip("has no number to change")
    injected = optax.inject_hyperparams(row.factory, static_args=row.static)(**row.arguments)
    params = make_params()
    state = injected.init(params)
    state.hyperparams[row.schedule] = jnp.asarray(0.0234, jnp.float32)
    advance = jax.jit(lambda params, state: step(injected, params, state))
    for _ in range(3):
        params, state = advance(params, state)
    expected, _ = run(make(row, **{row.schedule: 0.0234}), steps=3)
    assert_close(params, expected)


@ROWS
def test_a_constant_schedule_is_the_constant(row):
    if row.schedule is None:
        pytest.skip("has no number to schedule")
    constant = row.arguments.get(row.schedule, 0.05)
    by_schedule, _ = run(make(row, **{row.schedule: lambda step: constant}))
    by_number, _ = run(make(row, **{row.schedule: constant}))
    assert_close(by_schedule, by_number)
    growing, _ = run(make(row, **{row.schedule: scoping.linear(constant, 1.0)}))
    assert any(
        np.abs(a - b).max() > 0
        for a, b in zip(jax.tree.leaves(growing), jax.tree.leaves(by_number), strict=True)
    )


@ROWS
@pytest.mark.parametrize(
    "dtype",
    [
        jnp.bfloat16,
        jnp.float64,
        *(pytest.param(d, marks=pytest.mark.slow) for d in (jnp.float16, jnp.float32)),
    ],
)
def test_dtypes_are_kept(row, dtype, x64):
    tx = make(row)
    params = make_params(dtype)
    with jax.numpy_dtype_promotion(row.promotion):
        state = tx.init(params)
        updates, new_state = jax.jit(tx.update)(params, state, params)
        # Branches of a cond must agree on shape, dtype and weak type.
        jax.lax.cond(True, lambda: tx.update(params, state, params), lambda: (params, state))
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(new_state, state)
    chex.assert_tree_all_finite(updates)


@ROWS
def test_mixed_dtypes_are_kept(row, x64):
    tx = make(row)
    params = make_params() | {
        "d": jnp.ones((Y, 2), jnp.float64),
        "h": jnp.ones((Y, 3), jnp.bfloat16),
    }
    updates, state = jax.jit(tx.update)(params, tx.init(params), params)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, tx.init(params))


@ROWS
def test_float64_is_computed_in_float64(row, x64):
    if not row.descends:
        pytest.skip("the loss grows, and rounding with it")
    single, _ = run(make(row), steps=6)
    double, _ = run(make(row), steps=6, params=make_params(jnp.float64))
    difference = max(float(jnp.abs(single[k] - double[k]).max()) for k in single)
    assert 0 < difference < 1e-5


@ROWS
def test_vmap_equals_loop(row):
    tx = make(row, **silent(row))
    many = jax.tree.map(lambda p: jnp.stack([p, 2 * p, -p]), make_params())
    states = jax.vmap(tx.init)(many)
    advance = jax.jit(jax.vmap(lambda params, state: step(tx, params, state)))
    mapped = many, states
    for _ in range(5):
        mapped = advance(*mapped)
    for i in range(3):
        alone = run(tx, steps=5, params=jax.tree.map(lambda p, i=i: p[i], many))
        assert_close(
            without_keys(jax.tree.map(lambda leaf, i=i: leaf[i], mapped)), without_keys(alone)
        )


@ROWS
def test_pmap_equals_loop(row):
    tx = make(row, **silent(row))
    many = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), make_params())
    devices = jax.devices()[:2]
    state = jax.pmap(tx.init, devices=devices)(many)
    advance = jax.pmap(lambda params, state: step(tx, params, state), devices=devices)
    mapped = many, state
    for _ in range(5):
        mapped = advance(*mapped)
    mapped = jax.device_get(data(mapped))
    for i in range(2):
        alone = run(tx, steps=5, params=jax.tree.map(lambda p, i=i: p[i], many))
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], mapped), alone)


@ROWS
def test_shard_map_equals_one_device(row):
    """Every device holds another model: the step written for one is mapped over a mesh."""
    tx = make(row, **silent(row))
    many = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), make_params())
    mesh = jax.make_mesh((2,), ("model",), (AxisType.Auto,), devices=jax.devices()[:2])

    def on_shard(block):
        params = jax.tree.map(lambda p: p[0], block)
        start = params, tx.init(params)
        final = jax.lax.scan(lambda c, _: (step(tx, *c), None), start, length=5)[0][0]
        return jax.tree.map(lambda p: p[None], final)

    spec = P("model")
    mapped = jax.jit(jax.shard_map(on_shard, mesh=mesh, in_specs=spec, out_specs=spec))(many)
    for i in range(2):
        alone, _ = run(tx, steps=5, params=jax.tree.map(lambda p, i=i: p[i], many))
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], jax.device_get(mapped)), alone)


@ROWS
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_sharded_equals_one_device_and_state_follows(row, axis_type):
    """Parameters sharded over four devices: the same numbers, and state sharded like them."""
    tx = make(row)
    mesh = jax.make_mesh((Y,), ("x",), (axis_type,), devices=jax.devices()[:Y])
    sharding = NamedSharding(mesh, P("x"))
    with jax.set_mesh(mesh):
        params = jax.device_put(make_params(), sharding)
        state = jax.jit(tx.init)(params)
        assert jax.tree.map(jax.typeof, state) == jax.tree.map(jax.typeof, tx.init(params))
        for _ in range(7):
            updates, new_state = jax.jit(tx.update)(jax.grad(loss)(params), state, params)
            assert jax.tree.map(jax.typeof, new_state) == jax.tree.map(jax.typeof, state)
            params, state = optax.apply_updates(params, updates), new_state
    assert jax.tree.leaves(params)[0].sharding.is_equivalent_to(sharding, 2)
    assert_close(jax.device_get(params), baseline(row)[0])


@EVERY_ROW
def test_abstract_init(row):
    tx = make(row)
    shapes = jax.eval_shape(make_params)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        jax.eval_shape(tx.init, shapes), jax.eval_shape(lambda: tx.init(make_params()))
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(tx.init(shapes), tx.init(make_params()))


@ROWS
def test_buffers_can_be_donated(row):
    tx = make(row)
    params = jax.tree.map(jnp.copy, make_params())
    state = tx.init(params)
    advance = jax.jit(lambda params, state: step(tx, params, state), donate_argnums=(0, 1))
    for _ in range(7):
        params, state = advance(params, state)
    assert_close(params, baseline(row)[0])


@ROWS
def test_orbax_round_trip_resumes_bit_for_bit(row, tmp_path):
    tx = make(row)
    params, state = run(tx, steps=4)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "checkpoint", (params, state))
        checkpointer.wait_until_finished()
        target = jax.eval_shape(lambda: (params, state))
        restored = checkpointer.restore(tmp_path / "checkpoint", target)
    assert_same(restored, (params, state))
    advance = jax.jit(lambda params, state: step(tx, params, state))
    for _ in range(3):
        restored = advance(*restored)
    assert_same(restored, baseline(row))


@ROWS
def test_tree_map_params_reaches_what_is_shaped_like_params(row):
    """Anchors, averages and momenta, and neither counters nor keys."""
    _, state = baseline(row)
    shapes = {leaf.shape for leaf in jax.tree.leaves(make_params())}
    shapes |= {(1, *shape[1:]) for shape in shapes}  # of a moving center
    reached = optax.tree.map_params(make(row), lambda leaf: leaf + 1, state)
    for before, after in zip(
        jax.tree.leaves(data(state)), jax.tree.leaves(data(reached)), strict=True
    ):
        expected = before + 1 if before.shape in shapes else before
        np.testing.assert_array_equal(after, expected)
    assert (
        not row.descends
        or any(leaf.shape in shapes for leaf in jax.tree.leaves(state))
        or row.factory is entropix.sgld
    )


@ROWS
def test_empty_and_none_leaves(row):
    tx = make(row)
    params = make_params() | {"nothing": None, "empty": {}}
    updates, _ = tx.update(params, tx.init(params), params)
    assert updates["nothing"] is None
    assert updates["empty"] == {}
    tx.update({}, tx.init({}), {})


@ROWS
def test_keys_make_paths(row):
    if not row.random:
        pytest.skip("draws no random numbers")
    one, again, other = (run(make(row, key=key))[0] for key in (1, 1, jax.random.key(2)))
    assert_same(one, again)
    assert np.abs(one["w"] - other["w"]).max() > 1e-5
    assert_same(run(make(row, key=jax.random.PRNGKey(1)))[0], one)


@pytest.mark.slow
@ROWS
def test_vmapped_keys_give_each_replica_its_own_noise(row):
    if not row.random:
        pytest.skip("draws no random numbers")
    params = jax.tree.map(lambda p: jnp.stack([p, p]), make_params())
    keys = jax.random.split(jax.random.key(0), 2)
    state = jax.vmap(lambda key, params: make(row, key=key).init(params))(keys, params)
    tx = make(row)
    updates, _ = jax.vmap(lambda params, state: tx.update(params, state, params))(params, state)
    assert jnp.abs(updates["w"][0] - updates["w"][1]).max() > 1e-5


@EVERY_ROW
def test_integer_parameters_are_refused(row):
    with pytest.raises(TypeError, match=r"params .*got int32.*'b'"):
        make(row).init({"w": jnp.ones((Y, 2)), "b": jnp.ones((Y,), jnp.int32)})
