"""Distinct replicas draw different noise, however they are made; copies of one draw the same."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import entropix
from entropix._hash_normal import normal_like
from entropix._keys import fold_in_keys

Y = 4
ENTROPY_SGD = dict(noise=1.0, inner_steps=2, inner_momentum=None)
RANDOM = {
    "langevin_noise": entropix.langevin_noise(1.0),
    "sgld": entropix.sgld(0.1, temperature=1.0),
    "entropy_sgd": entropix.entropy_sgd(**ENTROPY_SGD),
    "parle": entropix.parle(axis_name="replica", **ENTROPY_SGD),
}
EACH = pytest.mark.parametrize("tx", RANDOM.values(), ids=RANDOM)
# All replicas start at one point, and their gradients are zero: what differs is the noise.
STACK = {"w": jnp.ones((Y, 2, 3)), "b": jnp.ones((Y, 3))}
ONE = jax.tree.map(lambda x: x[0], STACK)


def drawn(tx, params, state):
    return tx.update(jax.tree.map(jnp.zeros_like, params), state, params)[0]


def num_distinct(updates, rows=Y):
    """How many different rows the leaves have, which must agree."""
    counts = {
        len(np.unique(np.asarray(jax.device_get(leaf)).reshape(rows, -1), axis=0))
        for leaf in jax.tree.leaves(updates)
    }
    assert len(counts) == 1
    return counts.pop()


@EACH
def test_vmapped_init_and_update(tx):
    state = jax.vmap(tx.init)(STACK)
    update = jax.vmap(lambda params, state: drawn(tx, params, state), axis_name="replica")
    assert num_distinct(jax.jit(update)(STACK, state)) == Y


@EACH
def test_one_state_for_vmapped_updates(tx):
    state = tx.init(ONE)
    update = jax.vmap(lambda params: drawn(tx, params, state), axis_name="replica")
    assert num_distinct(jax.jit(update)(STACK)) == Y


@EACH
@pytest.mark.parametrize("keys_are_stacked", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_replicas_nested_in_groups(tx, keys_are_stacked):
    """One state for all, or one for each member that all groups share."""
    grouped = jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), STACK)
    half = jax.tree.map(lambda x: x[:2], STACK)
    state = jax.vmap(tx.init)(half) if keys_are_stacked else tx.init(ONE)
    members = jax.vmap(
        lambda params, state: drawn(tx, params, state),
        (0, 0 if keys_are_stacked else None),
        axis_name="replica",
    )
    grouped_updates = jax.jit(jax.vmap(members, (0, None)))(grouped, state)
    assert num_distinct(grouped_updates) == Y


@EACH
def test_shard_map_tells_replicas_from_copies(tx):
    """Replicas along one axis of the mesh, copies along the other; the state is made inside."""
    mesh = jax.make_mesh((Y, 2), ("replica", "data"), (AxisType.Auto,) * 2)

    def on_shard(params):
        updates = drawn(tx, params, tx.init(params))
        return updates, jax.tree.map(lambda u: u[None], updates)

    spec, per_device = P("replica"), P(("replica", "data"))
    same, each = jax.jit(
        jax.shard_map(
            on_shard, mesh=mesh, in_specs=spec, out_specs=(spec, per_device), check_vma=True
        )
    )(STACK)
    assert num_distinct(same) == Y
    assert num_distinct(each, 2 * Y) == Y


def test_shards_and_copies_of_one_network():
    """A leaf that is divided draws different numbers in its parts, a copied one the same."""
    tx = entropix.entropy_sgd(**ENTROPY_SGD)
    mesh = jax.make_mesh((Y,), ("model",), (AxisType.Auto,), devices=jax.devices()[:Y])
    specs = {"w": P("model"), "b": P()}
    params = {"w": STACK["w"], "b": ONE["b"]}
    # That the copied leaf may leave with P() at all is checked by shard_map.
    updates = jax.jit(
        jax.shard_map(
            lambda params: drawn(tx, params, tx.init(params)),
            mesh=mesh, in_specs=(specs,), out_specs=specs,
        )
    )(params)  # fmt: skip
    assert num_distinct(updates["w"]) == Y
    assert updates["b"].shape == (3,)


def test_parle_knows_its_replicas_under_pmap():
    tx = RANDOM["parle"]
    state = tx.init(ONE)
    update = jax.pmap(
        lambda params: drawn(tx, params, state), axis_name="replica", devices=jax.devices()[:Y]
    )
    assert num_distinct(update(STACK)) == Y


def test_pmapped_copies_draw_the_same_and_keys_make_replicas():
    devices = jax.devices()[:Y]
    tx = RANDOM["langevin_noise"]
    copies = jax.pmap(lambda params: drawn(tx, params, tx.init(params)), devices=devices)(STACK)
    assert num_distinct(copies) == 1

    def replica(key, params):
        tx = entropix.langevin_noise(1.0, key=key)
        return drawn(tx, params, tx.init(params))

    keys = jax.random.split(jax.random.key(0), Y)
    assert num_distinct(jax.pmap(replica, devices=devices)(keys, STACK)) == Y


@pytest.mark.slow
@EACH
def test_stack_states_and_copied_replicas(tx):
    state = entropix.replicas.stack_states(tx.init, STACK)
    axes = jax.tree.map(lambda s: 0 if s.ndim else None, state)
    update = jax.vmap(
        lambda params, state: drawn(tx, params, state), in_axes=(0, axes), axis_name="replica"
    )
    assert num_distinct(update(STACK, state)) == Y
    again = jax.tree.map(lambda x: jnp.concatenate([x, x]), STACK)
    doubled = jax.tree.map(lambda s: jnp.concatenate([s, s]) if s.ndim else s, state)
    doubled = fold_in_keys(doubled, jnp.arange(2 * Y))
    assert num_distinct(update(again, doubled), 2 * Y) == 2 * Y


@EACH
def test_explicit_shardings(tx):
    mesh = jax.make_mesh((Y,), ("x",), (AxisType.Explicit,), devices=jax.devices()[:Y])
    if tx is RANDOM["parle"]:
        pytest.skip("a mean over a mapped axis that is sharded too is refused by jax")
    with jax.set_mesh(mesh):
        stack = jax.device_put(STACK, NamedSharding(mesh, P("x")))
        state = tx.init(ONE)
        assert num_distinct(jax.jit(jax.vmap(lambda params: drawn(tx, params, state)))(stack)) == Y


def test_groups_of_a_partition_with_the_default_key():
    factory = lambda: entropix.entropy_sgd(**ENTROPY_SGD)
    tx = optax.partition({"one": factory(), "other": factory()}, {"a": "one", "b": "other"})
    params = {"a": jnp.ones(5), "b": jnp.ones(5)}
    updates = drawn(tx, params, tx.init(params))
    assert jnp.all(updates["a"] != updates["b"])


@pytest.mark.slow
def test_replicas_on_an_axis_of_the_leaves():
    tx = entropix.parle(axis=0, **ENTROPY_SGD)
    assert num_distinct(drawn(tx, STACK, tx.init(STACK))) == Y


@given(st.recursive(
    st.one_of(st.none(), st.lists(st.sampled_from([0, 2]), max_size=2)),
    lambda children: st.one_of(
        st.lists(children, max_size=3),
        st.dictionaries(st.sampled_from("abc"), children, max_size=3),
    ),
    max_leaves=6,
))  # fmt: skip
@settings(max_examples=10, deadline=None)
def test_trees_of_any_shape(shapes):
    """Leaves may be missing, scalar or empty; each has a stream of its own, by its path."""
    is_shape = lambda node: isinstance(node, list) and all(isinstance(n, int) for n in node)
    tree = jax.tree.map(lambda shape: jnp.zeros(tuple(shape)), shapes, is_leaf=is_shape)
    noise = normal_like(jax.random.key(0), tree)
    assert jax.tree.structure(noise) == jax.tree.structure(tree)
    for z, leaf in zip(jax.tree.leaves(noise), jax.tree.leaves(tree), strict=True):
        assert z.shape == leaf.shape
        assert z.dtype == leaf.dtype
    firsts = [float(z.ravel()[0]) for z in jax.tree.leaves(noise) if z.size]
    assert len(set(firsts)) == len(firsts)
    alone = {"more": tree, "first": jnp.zeros(2)}
    moved = normal_like(jax.random.key(0), alone)["more"]
    assert all(
        not np.array_equal(a, b) or not a.size
        for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(noise), strict=True)
    )
