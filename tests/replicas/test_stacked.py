"""Stacks of replicas: their makers, measures and menders against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import entropix
from entropix import replicas

RNG = np.random.default_rng(0)
STACK = {
    "w": jnp.asarray(RNG.normal(size=(5, 3, 2)), jnp.float32),
    "b": jnp.asarray(RNG.normal(size=(5, 4)), jnp.float32),
}


def as_matrix(stack):
    return np.concatenate(
        [np.asarray(stack[name], np.float64).reshape(len(stack[name]), -1) for name in "wb"], 1
    )


@pytest.mark.slow
def test_copies_perturbed_copies_and_initializations():
    params = {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones(100_000)}
    copies = replicas.replicate(params, 3)
    for name, leaf in copies.items():
        np.testing.assert_array_equal(leaf, np.stack([params[name]] * 3))
    noisy = replicas.replicate(params, 3, std=0.1, key=1)
    noise = np.asarray(noisy["b"] - 1.0) / 0.1
    np.testing.assert_allclose(noise.std(1), 1.0, atol=0.02)
    assert np.abs(np.corrcoef(noise) - np.eye(3)).max() < 0.02
    drawn = replicas.replicate(lambda key: jax.random.normal(key, (50_000,)), 3, key=2)
    np.testing.assert_allclose(drawn.std(1), 1.0, atol=0.02)
    assert np.abs(np.corrcoef(drawn) - np.eye(3)).max() < 0.02
    other = replicas.replicate(lambda key: jax.random.normal(key, (50_000,)), 3, key=3)
    assert np.abs(drawn - other).max() > 0.1


def test_center_and_spread():
    matrix = as_matrix(STACK)
    np.testing.assert_allclose(
        as_matrix({name: leaf[None] for name, leaf in replicas.center(STACK).items()})[0],
        matrix.mean(0), rtol=1e-5, atol=1e-7,
    )  # fmt: skip
    found = jax.jit(replicas.spread)(STACK)
    deviation = matrix - matrix.mean(0)
    np.testing.assert_allclose(found.total, np.sqrt((deviation**2).mean()), rtol=1e-6)
    np.testing.assert_allclose(found.leaves["w"], np.sqrt((deviation[:, :6] ** 2).mean()), 1e-6)
    np.testing.assert_allclose(found.leaves["b"], np.sqrt((deviation[:, 6:] ** 2).mean()), 1e-6)
    assert found.leaves["w"] != found.leaves["b"]


def test_collapse():
    collapsed = replicas.collapse(STACK)
    assert float(replicas.spread(collapsed).total) < 1e-7
    for a, b in zip(
        jax.tree.leaves(replicas.center(collapsed)), jax.tree.leaves(replicas.center(STACK)),
        strict=True,
    ):  # fmt: skip
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 5, 8, 12])
def test_resize_keeps_the_center(size):
    new, _ = replicas.resize(STACK, size)
    matrix, old = as_matrix(new), as_matrix(STACK)
    assert len(matrix) == size
    np.testing.assert_allclose(matrix.mean(0), old.mean(0), rtol=1e-5, atol=1e-6)
    taken = old[np.arange(size) % 5]
    np.testing.assert_allclose(matrix - matrix.mean(0), taken - taken.mean(0), rtol=1e-5, atol=1e-6)
    if size == 5:
        np.testing.assert_array_equal(matrix, old)


def test_a_stack_of_numpy_is_resized_inside_a_compiled_function_too():
    stack = jax.tree.map(np.asarray, STACK)
    inside, _ = jax.jit(lambda: replicas.resize(stack, 3))()
    np.testing.assert_allclose(
        as_matrix(inside), as_matrix(replicas.resize(STACK, 3)[0]), rtol=1e-6
    )


@pytest.mark.slow
def test_the_optimizer_state_follows_its_replica():
    tx = optax.chain(entropix.couple_replicas(0.1, center="moving", axis=0), optax.adam(0.1))
    state = tx.init(STACK)
    _, state = tx.update(STACK, state, STACK)
    _, resized = replicas.resize(STACK, 2, state)
    adam = resized[1][0]
    np.testing.assert_array_equal(adam.nu["w"], state[1][0].nu["w"][:2])
    assert bool(jnp.all(adam.nu["b"] >= 0))
    np.testing.assert_array_equal(resized[0].center["w"], state[0].center["w"])
    assert resized[0].step == state[0].step == adam.count == 1
    params, _ = replicas.resize(STACK, 2)
    tx.update(params, resized, params)


# What a replica's own numbers are drawn from, and how a state of all of them is made.
NOISY = {
    "langevin": entropix.langevin_noise(1.0),
    "entropy_sgd": entropix.entropy_sgd(0.1, inner_steps=3, noise=1.0, inner_momentum=None),
}


def drawn(tx, state, y):
    """What each replica adds to a gradient of zero."""
    params = {"w": jnp.zeros((y, 7))}
    axes = jax.tree.map(lambda leaf: 0 if leaf.ndim else None, state)
    update = jax.vmap(lambda params, state: tx.update(params, state, params)[0], (0, axes))
    return np.asarray(update(params, state)["w"])


@pytest.mark.slow
@pytest.mark.parametrize("name", NOISY)
def test_no_two_replicas_draw_the_same_numbers(name):
    """Stacked from one key, grown, shrunk and grown again, and by a plan from a shared key."""
    tx = NOISY[name]
    params = {"w": jnp.zeros((3, 7))}
    state = jax.jit(lambda params: replicas.stack_states(tx.init, params))(params)
    sizes = [3, 8, 2, 5]
    for size in sizes:
        params, state = replicas.resize(params, size, state)
        noise = drawn(tx, state, size)
        assert len(np.unique(noise)) == noise.size
    shared = tx.init({"w": jnp.zeros(7)})
    copied = jax.tree.map(lambda leaf: jnp.stack([leaf] * 4) if leaf.ndim else leaf, shared)
    placed = replicas.plan(4, devices=2).place(copied)
    noise = drawn(tx, jax.device_put(placed, jax.devices()[0]), 4)
    assert len(np.unique(noise)) == noise.size


def test_keys_of_the_callers_own_stay():
    keys = jax.random.split(jax.random.key(3), 4)
    stacked = replicas.stack_states(lambda key: {"key": key}, keys)["key"]
    assert bool(jnp.all(jax.random.key_data(stacked) == jax.random.key_data(keys)))
    keys = keys[jnp.array([0, 1, 0, 1])]
    mended = jax.random.key_data(replicas.stack_states(lambda key: {"key": key}, keys)["key"])
    assert bool(jnp.all(mended[:2] == jax.random.key_data(keys[:2])))
    assert len(np.unique(mended, axis=0)) == 4


@pytest.mark.parametrize("inner_step", range(5))
@pytest.mark.parametrize("size", [2, 7])
def test_resize_keeps_the_evaluated_center_inside_an_inner_loop(inner_step, size):
    """Also that of the averages, so that the next outer step starts from the same center."""
    tx = optax.chain(optax.clip(9.0), entropix.entropy_sgd(1.0, inner_steps=5, noise=0.0))
    params = STACK
    state = replicas.stack_states(tx.init, params)
    axes = jax.tree.map(lambda leaf: 0 if leaf.ndim else None, state)

    @jax.jit
    def step(params, state):
        grads = jax.tree.map(lambda x: x - 1, params)
        updates, state = jax.vmap(tx.update, (0, axes, 0), (0, axes))(grads, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(5 + inner_step):
        params, state = step(params, state)
    found = []
    for count in (5, size):
        new_params, new_state = replicas.resize(params, count, state)
        average = jax.tree.map(
            lambda x, lag: x - lag, new_params, new_state[1].lag if inner_step else new_params
        )
        found.append([
            as_matrix(tree).mean(0)
            for tree in (new_params, entropix.eval_params(new_state, new_params), average)
        ])  # fmt: skip
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5, atol=1e-6)


def test_finite_replicas_have_a_finite_center():
    huge = {"w": jnp.array([[2e38, -3e38], [2e38, 3e38], [-3e38, 3e38]])}
    expected = np.asarray(huge["w"], np.float64)
    np.testing.assert_allclose(replicas.center(huge)["w"], expected.mean(0), rtol=1e-6)
    np.testing.assert_allclose(
        replicas.spread(huge).total, np.sqrt(expected.var(0).mean()), rtol=1e-6
    )
    grown, _ = replicas.resize(jax.tree.map(lambda x: x * 0.75, huge), 4)
    np.testing.assert_allclose(
        np.asarray(grown["w"], np.float64).mean(0), 0.75 * expected.mean(0), rtol=1e-5
    )
    mended = replicas.revive({"w": jnp.concatenate([huge["w"], jnp.full((1, 2), jnp.nan)])})
    np.testing.assert_allclose(mended.params["w"][3], expected.mean(0), rtol=1e-6)


def test_replicas_in_bfloat16_are_averaged_in_float32():
    rng = np.random.default_rng(1)
    stack = jnp.asarray(1 + rng.normal(size=(48, 500)) / 8, jnp.bfloat16)
    exact = np.asarray(stack, np.float64)
    rounded = np.asarray(exact.mean(0), jnp.bfloat16).astype(float)
    np.testing.assert_array_equal(np.asarray(replicas.center(stack), float), rounded)
    bad = stack.at[5].set(jnp.nan)
    others = np.delete(exact, 5, axis=0).mean(0)
    np.testing.assert_allclose(
        np.asarray(replicas.revive(bad).params[5], float), others, rtol=2**-8
    )


@given(
    y=st.integers(1, 9),
    new=st.integers(1, 9),
    shapes=st.lists(st.tuples(st.integers(0, 3)), max_size=4),
)
@settings(max_examples=15, deadline=None)
@pytest.mark.slow
def test_resize_of_any_number_keeps_the_center(y, new, shapes):
    rng = np.random.default_rng(y)
    stack = [jnp.asarray(rng.normal(size=(y, *shape)), jnp.float32) for shape in [(2,), *shapes]]
    resized, _ = replicas.resize(stack, new)
    for a, b in zip(replicas.center(resized), replicas.center(stack), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("axis", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_replica_that_diverged_does_not_poison_the_others(axis):
    """The coupled update of the finite ones is that without it."""
    moved = lambda tree: jax.tree.map(lambda x: jnp.moveaxis(x, 0, axis), tree)
    bad = jax.tree.map(lambda x: x.at[2].set(jnp.inf), STACK)
    bad["w"] = bad["w"].at[2, 0, 0].set(jnp.nan)
    rest = jax.tree.map(lambda x: jnp.delete(x, 2, axis=0), STACK)
    tx = entropix.replicated_sgd(0.1, gamma=1.0, every=1, axis=axis)
    with_it, _ = tx.update(moved(bad), tx.init(moved(bad)), moved(bad))
    without, _ = tx.update(moved(rest), tx.init(moved(rest)), moved(rest))
    for name in STACK:
        kept = jnp.delete(with_it[name], 2, axis=axis)
        np.testing.assert_allclose(kept, without[name], rtol=1e-5, atol=1e-6)


def test_a_mapped_replica_that_diverged_does_not_poison_the_others():
    bad = STACK["w"].at[2].set(jnp.nan)
    tx = entropix.couple_replicas(1.0, axis_name="replica")
    pull = jax.vmap(lambda x: tx.update(0 * x, tx.init(x), x)[0], axis_name="replica")(bad)
    rest = jnp.delete(STACK["w"], 2, axis=0)
    np.testing.assert_allclose(
        jnp.delete(pull, 2, axis=0), rest - rest.mean(0)[None], rtol=1e-5, atol=1e-6
    )
    assert not np.isfinite(pull[2]).any()


def test_revive_replaces_by_the_center_of_the_others_and_counts():
    tx = optax.adam(0.1)
    _, state = tx.update(STACK, tx.init(STACK))
    bad = STACK | {"b": STACK["b"].at[1, 3].set(jnp.nan)}
    bad_mu = state[0].mu | {"w": state[0].mu["w"].at[4].set(-jnp.inf)}
    bad_state = (state[0]._replace(mu=bad_mu), state[1])
    mended = jax.jit(replicas.revive)(bad, bad_state)
    assert mended.num_replaced == 2
    np.testing.assert_array_equal(mended.replaced, [False, True, False, False, True])
    alive = [0, 2, 3]
    for name in STACK:
        others = np.asarray(STACK[name])[alive]
        for dead in (1, 4):
            np.testing.assert_allclose(mended.params[name][dead], others.mean(0), rtol=1e-5)
            np.testing.assert_allclose(
                mended.state[0].nu[name][dead], state[0].nu[name][jnp.asarray(alive)].mean(0),
                rtol=1e-5,
            )  # fmt: skip
        np.testing.assert_array_equal(np.asarray(mended.params[name])[alive], others)
    assert mended.state[0].count == 1


def test_revive_leaves_the_finite_alone_and_the_hopeless():
    mended = replicas.revive(STACK)
    assert mended.num_replaced == 0
    jax.tree.map(np.testing.assert_array_equal, mended.params, STACK)
    lost = replicas.revive(jax.tree.map(lambda x: x * jnp.nan, STACK))
    assert lost.num_replaced == 5
    assert not np.isfinite(lost.params["w"]).any()


def test_training_goes_on_after_a_replica_diverged():
    """One bad gradient costs one replica for a while; after revival all find the minimum."""
    tx = entropix.replicated_sgd(0.1, gamma=0.5, every=2, axis=0)
    params = {"w": STACK["w"]}
    state = tx.init(params)
    step, replaced = jax.jit(tx.update), 0
    for at in range(200):
        grads = {"w": params["w"] - 1.0}
        if at == 5:
            grads["w"] = grads["w"].at[3].set(jnp.nan)
        updates, state = step(grads, state, params)
        params = optax.apply_updates(params, updates)
        if at == 5 + 4:
            assert np.isfinite(np.asarray(params["w"]).reshape(5, -1)).all(1).sum() == 4
            params, state, _, count = replicas.revive(params, state)
            replaced += int(count)
    assert replaced == 1
    np.testing.assert_allclose(params["w"], 1.0, atol=1e-4)


@pytest.mark.parametrize(
    "function",
    [
        replicas.center, replicas.spread, replicas.collapse, replicas.revive,
        lambda params: replicas.resize(params, 2),
        lambda params: replicas.stack_states(optax.sgd(0.1).init, params),
    ],
)  # fmt: skip
def test_mismatched_axes_are_refused(function):
    with pytest.raises(ValueError, match=r"of one length, got .*'b'.*4.*'w'.*5"):
        function({"w": jnp.ones((5, 3)), "b": jnp.ones((4, 3))})
    with pytest.raises(ValueError, match=r"of one length, got .*'b'.*None"):
        function({"w": jnp.ones((5, 3)), "b": jnp.ones(())})


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: replicas.replicate(jnp.ones(3), 0), ValueError, "replicas must be an integer"),
        (lambda: replicas.replicate(jnp.ones(3), 2, std=-1), ValueError, "std must be finite"),
        (lambda: replicas.replicate(jnp.ones(3), 2, key="a"), TypeError, "key must be an integer"),
        (
            lambda: replicas.replicate({"w": jnp.ones(3, jnp.int32)}, 2), TypeError,
            r"floating-point arrays, got int32 at params\['w'\]",
        ),
        (lambda: replicas.resize(jnp.ones(3), 0), ValueError, "replicas must be an integer >= 1"),
        (lambda: replicas.center({}), ValueError, "params must hold at least one array"),
    ],
)  # fmt: skip
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
