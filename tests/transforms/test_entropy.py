"""What Entropy-SGD estimates, where its anchor is found, and what its branches cost."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import entropix


def test_direction_on_a_quadratic_is_the_local_entropy_gradient(x64):
    """gamma (x - <x'>) = (I + H/gamma)^-1 H x, within five standard errors of the time average."""
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    hessian = jnp.asarray(basis * [0.0, 0.1, 0.5, 1.0, 2.0, 4.0]) @ basis.T
    gamma, rate, temperature = 0.8, 0.02, 0.05
    x = jnp.asarray(rng.normal(size=6))
    chains = 256

    def mean_direction(key):
        """x - mu, by an outer SGD of rate 1, with a long memory of 1 / (1 - alpha) steps."""
        tx = entropix.entropy_descent(
            optax.sgd(1.0), optax.sgd(rate), inner_steps=6000, gamma=gamma, opaque=True,
            debias=True, noise_std=(2 * rate * temperature) ** 0.5, ema_decay=1 - 1 / 1500, key=key,
        )  # fmt: skip
        updates, _ = tx.update(x, tx.init(x), x, grad_fn=lambda params, step: hessian @ params)
        return -updates

    directions = jax.jit(jax.vmap(mean_direction))(jax.random.split(jax.random.key(0), chains))
    expected = jnp.linalg.solve(jnp.eye(6) + hessian / gamma, hessian @ x)
    error = gamma * directions.std(0) / chains**0.5
    # The start x still weighs e^(-relaxation) in the average: below the error bar.
    deviation = jnp.abs(gamma * directions.mean(0) - expected) / error
    assert jnp.max(error) < 0.02 * jnp.max(jnp.abs(expected))
    assert jnp.max(deviation) < 5
    assert jnp.max(jnp.abs(hessian @ x - expected) / error) > 50


@pytest.mark.parametrize("wrap", [
    lambda tx: optax.chain(optax.clip(10.0), tx),
    lambda tx: optax.named_chain(("a", optax.clip(10.0)), ("b", tx)),
    lambda tx: optax.MultiSteps(tx, 1),
    lambda tx: optax.apply_if_finite(tx, 2),
    lambda tx: optax.masked(tx, {"a": True, "b": True}),
    lambda tx: optax.partition({"it": tx}, {"a": "it", "b": "it"}),
    lambda tx: optax.inject_hyperparams(lambda s: optax.chain(optax.scale(s), tx))(s=1.0),
])  # fmt: skip
def test_eval_params_finds_the_anchor_in_any_wrapper(wrap):
    params = {"a": jnp.ones(3), "b": jnp.ones(2)}
    tx = wrap(entropix.entropy_sgd(inner_steps=3, momentum=None, gamma=0.0, noise=0.0))
    state = tx.init(params)
    start = params
    for gradients in range(1, 5):
        updates, state = tx.update(params, state, params)
        params = optax.apply_updates(params, updates)
        anchor = entropix.eval_params(state, params)
        if gradients < 3:
            jax.tree.map(np.testing.assert_array_equal, anchor, start)
        if gradients == 3:
            closed = params
        if gradients >= 3:
            jax.tree.map(np.testing.assert_array_equal, anchor, closed)


def test_eval_params_of_a_subset_and_of_two_groups():
    params = {"a": jnp.ones(3), "b": jnp.ones(2)}
    quick, slow = (entropix.entropy_sgd(inner_steps=n, noise=0.0) for n in (1, 5))
    masked = optax.masked(slow, {"a": True, "b": False})
    updates, state = masked.update(params, masked.init(params), params)
    held = optax.apply_updates(params, updates)
    anchor = entropix.eval_params(state, held)
    np.testing.assert_array_equal(anchor["a"], params["a"])
    np.testing.assert_array_equal(anchor["b"], held["b"])

    both = optax.partition({"quick": quick, "slow": slow}, {"a": "slow", "b": "quick"})
    updates, state = both.update(params, both.init(params), params)
    held = optax.apply_updates(params, updates)
    anchor = entropix.eval_params(state, held)
    np.testing.assert_array_equal(anchor["a"], params["a"])
    np.testing.assert_array_equal(anchor["b"], held["b"])
    assert jnp.all(held["b"] != params["b"])


@pytest.mark.slow
def test_eval_params_of_vmapped_replicas():
    tx = entropix.entropy_sgd(inner_steps=3)
    params = jnp.arange(6.0).reshape(2, 3)
    state = jax.vmap(tx.init)(params)
    updates, state = jax.vmap(tx.update)(params, state, params)
    held = params + updates
    np.testing.assert_array_equal(entropix.eval_params(state, held), params)
    np.testing.assert_array_equal(jax.vmap(entropix.eval_params)(state, held), params)


def test_weights_loaded_between_outer_steps_become_the_anchor():
    tx = entropix.entropy_sgd(inner_steps=2, noise=0.0)
    params = jnp.ones(3)
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(params, state, params)
        params = params + updates
    loaded = jnp.full(3, 7.0)
    _, state = tx.update(loaded, state, loaded)
    np.testing.assert_array_equal(entropix.eval_params(state, jnp.zeros(3)), loaded)


def test_accumulator_dtype_keeps_small_steps_in_bfloat16():
    """Steps that bfloat16 holds, but not their average: in float32 it is right."""
    rate = 2.0**-7

    def last_direction(accumulator_dtype):
        tx = entropix.entropy_sgd(
            1.0, inner_learning_rate=rate, inner_steps=50, noise=0.0, gamma=0.0, momentum=None,
            inner_momentum=None, ema_decay=0.99, accumulator_dtype=accumulator_dtype, opaque=True,
        )  # fmt: skip
        x = jnp.zeros(1, jnp.bfloat16)
        updates, _ = tx.update(x, tx.init(x), x, grad_fn=lambda p, i: -jnp.ones_like(p))
        return float(updates[0])

    exact = sum(0.01 * 0.99 ** (49 - step) * rate * (step + 1) for step in range(50))
    assert last_direction(jnp.float32) == pytest.approx(exact, rel=0.02)
    assert abs(last_direction(None) / exact - 1) > abs(last_direction(jnp.float32) / exact - 1)


def test_accumulator_dtype_is_that_of_the_state():
    tx = entropix.entropy_sgd(accumulator_dtype=jnp.float32)
    state = tx.init({"w": jnp.ones(2, jnp.bfloat16)})
    assert state.lag["w"].dtype == jnp.float32
    assert state.anchor["w"].dtype == jnp.bfloat16


def _primitives(jaxpr, inside=False):
    """Primitive names of a jaxpr, with whether they sit inside a loop or branch."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name, inside
        for sub in jax.extend.core.jaxprs_in_params(equation.params):
            yield from _primitives(sub, inside or equation.primitive.name in ("while", "cond"))


def test_outer_step_is_paid_once_per_cycle():
    """The outer optimizer's work (here: a cosine) sits behind the branch, nowhere else."""
    marker = optax.stateless(lambda updates, params: jax.tree.map(jnp.cos, updates))
    tx = entropix.entropy_descent(marker, optax.sgd(0.1), inner_steps=4, gamma=0.1)
    x = jnp.ones(3)
    jaxpr = jax.make_jaxpr(tx.update)(x, tx.init(x), x).jaxpr
    assert [inside for name, inside in _primitives(jaxpr) if name == "cos"] == [True]


def test_opaque_calls_the_gradient_once_in_the_program():
    traced = []

    def grad_fn(params, step):
        traced.append(step)
        return params

    tx = entropix.entropy_sgd(inner_steps=20, opaque=True)
    x = jnp.ones(3)
    jax.jit(lambda x, state: tx.update(x, state, x, grad_fn=grad_fn)).lower(x, tx.init(x))
    assert len(traced) == 1


def test_opaque_makes_exactly_inner_steps_gradients():
    calls = []

    def grad_fn(params, step):
        jax.debug.callback(lambda step: calls.append(int(step)), step, ordered=True)
        return params

    tx = entropix.entropy_sgd(inner_steps=6, opaque=True)
    x = jnp.ones(3)
    updates, _ = jax.jit(lambda x, state: tx.update(x, state, x, grad_fn=grad_fn))(x, tx.init(x))
    jax.block_until_ready(updates)
    jax.effects_barrier()
    assert calls == list(range(6))


def test_eval_params_of_what_was_brought_to_the_host():
    """`Plan.collect` and ``jax.device_get`` answer with arrays of NumPy."""
    tx = entropix.parle(0.1, inner_learning_rate=0.1, inner_steps=3, axis=0)
    x = jnp.array([[1.0, 2.0], [3.0, 5.0]])
    updates, state = tx.update(x, tx.init(x), x)
    held = optax.apply_updates(x, updates)
    center = entropix.eval_params(state, held, axis=0)
    on_host = entropix.eval_params(*jax.device_get((state, held)), axis=0)
    np.testing.assert_array_equal(on_host, center)
    np.testing.assert_array_equal(center, [2.0, 3.5])
