"""Where transforms meet wrappers, derivatives, many leaves and numbers at the edge."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import entropix

Y = 4


def run(tx, params, steps, gradient=lambda x: x):
    """Parameters and state after some steps on a quadratic, as one scan."""

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.tree.map(gradient, params), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, tx.init(params)), length=steps)[0]


def operations_per_leaf(num_leaves):
    tx = entropix.couple_replicas(0.1, every=2, axis=0)
    params = {f"layer {i}": jnp.ones((2, 3 + i % 3)) for i in range(num_leaves)}
    program = jax.jit(tx.update).lower(params, tx.init(params), params).compile()
    return program.as_text().count(" = ") / num_leaves


def test_what_is_compiled_for_a_coupling_is_linear_in_the_leaves():
    """A chain of conditions over the leaves is compiled into a program of quadratic size."""
    assert operations_per_leaf(80) < 1.3 * operations_per_leaf(20)


@pytest.mark.slow
def test_what_is_compiled_for_many_leaves_is_linear():
    assert operations_per_leaf(800) < 1.1 * operations_per_leaf(100)


LOOPED = {
    "entropy_sgd": lambda: entropix.entropy_sgd(inner_steps=3, noise=0),
    "diloco": lambda: entropix.diloco(optax.sgd(0.1, momentum=0.9), inner_steps=3),
}


@pytest.mark.parametrize("name", LOOPED)
def test_loops_carry_few_leaves_only(name):
    """XLA takes time quadratic in the arrays of a loop to find out what may stay in place."""
    tx = LOOPED[name]()

    def loops(num_leaves):
        params = [jnp.ones(2)] * num_leaves
        text = jax.jit(tx.update).lower(params, tx.init(params), params).as_text()
        return text.count("stablehlo.while")

    assert loops(2) > 0
    assert loops(100) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", LOOPED)
def test_many_leaves_are_one_vector_in_pieces(name):
    x = jnp.linspace(-1.0, 1.0, 300)
    whole, _ = jax.jit(lambda x: run(LOOPED[name](), x, 10))(x)
    pieces, _ = jax.jit(lambda x: run(LOOPED[name](), jnp.split(x, 100), 10))(x)
    np.testing.assert_allclose(jnp.concatenate(pieces), whole, rtol=1e-6, atol=1e-7)


def test_the_mean_of_large_replicas_is_finite():
    x = jnp.array([[2e38, 1.0], [3e38, 3.0]])
    assert jnp.all(jnp.isfinite(entropix.eval_params((), x, axis=0)))
    updates, _ = entropix.couple_replicas(0.5, axis=0).update(
        jnp.zeros_like(x), entropix.couple_replicas(0.5, axis=0).init(x), x
    )
    np.testing.assert_allclose(updates[0], [-0.25e38, -0.5], rtol=1e-6)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_the_mean_leaves_out_what_is_not_finite(bad):
    x = jnp.array([[1.0, 2.0], [bad, 7.0], [3.0, 4.0]])
    center = jax.jit(lambda x: entropix.eval_params((), x, axis=0))(x)
    np.testing.assert_array_equal(center, [2.0, 3.0])


def test_a_moving_center_that_was_lost_starts_again_at_the_mean():
    tx = entropix.couple_replicas(0.5, center="moving", center_rate=0.5, axis=0)
    x = jnp.array([1.0, 3.0])
    _, state = tx.update(x, tx.init(x), x)
    _, state = tx.update(x, state, jnp.full(2, jnp.nan))
    updates, state = tx.update(jnp.zeros(2), state, x)
    np.testing.assert_array_equal(state.center, [2.0])
    np.testing.assert_array_equal(updates, [-0.5, 0.5])


@pytest.mark.parametrize("mapped", [False, True])
def test_eval_params_under_flatten(mapped):
    params = {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones(()), "c": jnp.ones((0, 2))}
    tx = optax.flatten(entropix.entropy_sgd(inner_steps=3, noise=0.0))
    if mapped:
        params = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), params)
        state = jax.vmap(tx.init)(params)
        updates, state = jax.vmap(tx.update)(params, state, params)
    else:
        updates, state = tx.update(params, tx.init(params), params)
    held = optax.apply_updates(params, updates)
    assert jnp.any(held["a"] != params["a"])
    jax.tree.map(np.testing.assert_array_equal, entropix.eval_params(state, held), params)


EVALUATED = {
    "anchors": (
        entropix.entropy_sgd(inner_steps=3, noise=0.0),
        lambda start, held: start,
    ),
    "centers": (
        entropix.replicated_sgd(0.1, axis=0),
        lambda start, held: held,
    ),
    "both": (
        entropix.parle(inner_steps=3, axis=0),
        lambda start, held: start,
    ),
    "neither": (optax.adam(0.1), lambda start, held: held),
}


@pytest.mark.parametrize("method", EVALUATED)
def test_evaluation_weights_of_any_method(method):
    tx, weights = EVALUATED[method]
    start = {"w": jnp.arange(6.0).reshape(3, 2), "b": jnp.ones((3, 1))}
    held, state = run(tx, start, 2)
    expected = weights(start, held)
    jax.tree.map(np.testing.assert_array_equal, entropix.eval_params(state, held), expected)
    center = entropix.eval_params(state, held, axis=0)
    jax.tree.map(lambda c, x: np.testing.assert_allclose(c, x.mean(0), rtol=1e-6), center, expected)


def test_the_center_of_mapped_replicas():
    x = jnp.arange(4.0).reshape(4, 1)
    centers = jax.vmap(lambda x: entropix.eval_params((), x, axis_name="r"), axis_name="r")(x)
    np.testing.assert_array_equal(centers, jnp.full((4, 1), 1.5))
    with pytest.raises(ValueError, match=r"axis 0 .*shape \(\)"):
        entropix.eval_params((), jnp.ones(()), axis=0)


def test_an_inner_loop_counts_its_own_outer_steps():
    """The schedule of a nested descent sees how often it has stepped itself."""
    seen = []

    def rate(step):
        jax.debug.callback(lambda step: seen.append(int(step)), step, ordered=True)
        return 0.1

    nested = entropix.entropy_sgd(
        inner_learning_rate=rate, inner_steps=2, noise=0.0, reset_inner=False
    )
    tx = entropix.entropy_descent(
        optax.sgd(1.0), nested, inner_steps=6, gamma=0.0, reset_inner=False
    )
    run(tx, jnp.ones(2), 6)
    jax.effects_barrier()
    assert seen == [0, 0, 1, 1, 2, 2]


def test_eval_params_of_nested_loops_is_the_outermost_anchor():
    nested = entropix.entropy_sgd(inner_steps=2, noise=0.0)
    tx = entropix.entropy_descent(optax.sgd(1.0), nested, inner_steps=5, gamma=0.0)
    start = jnp.array([1.0, 2.0])
    for steps in (1, 3, 4):
        held, state = run(tx, start, steps)
        np.testing.assert_array_equal(entropix.eval_params(state, held), start)
    held, state = run(tx, start, 5)
    np.testing.assert_array_equal(entropix.eval_params(state, held), held)
    outside = entropix.entropy_descent(nested, optax.sgd(0.1), inner_steps=2, gamma=0.0)
    held, state = run(outside, start, 2)
    np.testing.assert_array_equal(entropix.eval_params(state, held), start)


DIFFERENTIABLE = {
    "entropy_sgd": entropix.entropy_sgd(inner_steps=3, gamma=0.1, noise=1e-3),
    "opaque": entropix.entropy_sgd(inner_steps=3, gamma=0.1, opaque=True),
    "elastic_sgd": entropix.elastic_sgd(0.1, every=2, axis=0),
    "parle": entropix.parle(inner_steps=2, axis=0),
}


@pytest.mark.parametrize(
    "name",
    [
        name if name == "entropy_sgd" else pytest.param(name, marks=pytest.mark.slow)
        for name in DIFFERENTIABLE
    ],
)
def test_derivatives_through_updates(name, x64):
    """Forward and reverse, of a few steps on a quartic, against central differences."""
    tx = DIFFERENTIABLE[name]
    gradient = lambda x: x**3 + x

    def final(x):
        if name == "opaque":
            grad_fn = lambda x, step: gradient(x)
            return jnp.sum((x + tx.update(x, tx.init(x), x, grad_fn=grad_fn)[0]) ** 2)
        return jnp.sum(run(tx, x, 5, gradient)[0] ** 2)

    x = jnp.linspace(-0.5, 0.7, Y)
    reverse, forward = jax.jit(jax.grad(final))(x), jax.jit(jax.jacfwd(final))(x)
    final = jax.jit(final)
    steps = 1e-5 * jnp.eye(Y)
    differences = [(final(x + step) - final(x - step)) / 2e-5 for step in steps]
    np.testing.assert_allclose(reverse, differences, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(forward, reverse, rtol=1e-10)


@pytest.mark.parametrize("axis_name", ["replica", ("replica",)])
def test_apply_if_finite_over_mapped_replicas(axis_name):
    """A replica with a bad gradient stays where it is; the others move as if it were idle."""
    tx = optax.apply_if_finite(
        entropix.replicated_sgd(0.1, gamma=0.2, every=1, momentum=None, axis_name=axis_name), 5
    )
    x = jnp.array([0.0, 1.0, 5.0])
    state = jax.vmap(tx.init)(x)
    update = jax.jit(jax.vmap(tx.update, axis_name="replica"))
    updates, state = update(jnp.array([0.0, jnp.nan, 0.0]), state, x)
    np.testing.assert_allclose(updates, [0.04, 0.0, -0.06], atol=1e-7)
    np.testing.assert_array_equal(state.total_notfinite, [0, 1, 0])


@pytest.mark.parametrize("axis", [0, -1])
def test_updates_of_unit_norm(axis):
    u = {"w": np.random.default_rng(0).normal(size=(3, 4, 3)), "b": np.ones((3, 3))}
    for tree in u.values():
        np.moveaxis(tree, axis, 0)[1] = 0.0
    tx = entropix.normalize_updates(axis=axis)
    updates, _ = tx.update(jax.tree.map(jnp.asarray, u), tx.init(u))
    rows = {name: np.moveaxis(leaf, axis, 0).reshape(3, -1) for name, leaf in u.items()}
    norms = np.sqrt(sum((row**2).sum(1) for row in rows.values()))
    for name, row in rows.items():
        actual = np.moveaxis(np.asarray(updates[name]), axis, 0).reshape(3, -1)
        np.testing.assert_allclose(actual, row / np.maximum(norms, 1e-30)[:, None], rtol=1e-5)
    alone = {name: jnp.asarray(row[0]) for name, row in rows.items()}
    single, _ = entropix.normalize_updates().update(alone, optax.EmptyState())
    np.testing.assert_allclose(optax.tree.norm(single), 1.0, rtol=1e-6)
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), u)
    assert tx.update(half, optax.EmptyState())[0]["w"].dtype == jnp.bfloat16


BAD_KEYS = [jax.random.split(jax.random.key(0), 2), jax.random.split(jax.random.PRNGKey(0), 2)]


@pytest.mark.parametrize("key", BAD_KEYS, ids=["typed", "raw"])
def test_a_batch_of_keys_is_no_key(key):
    with pytest.raises(TypeError, match=r"key .* got an array of shape \(2"):
        entropix.langevin_noise(0.1, key=key)


@pytest.mark.parametrize(
    "factory",
    [
        entropix.entropy_sgd,
        lambda: entropix.langevin_noise(0.1),
        lambda: entropix.replicated_sgd(0.1, axis_name="r"),
    ],
)
def test_python_floats_are_no_parameters(factory):
    with pytest.raises(TypeError, match=r"params .* got 1.5 at params\['scale'\]"):
        factory().init({"w": jnp.ones(2), "scale": 1.5})
