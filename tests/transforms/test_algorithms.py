"""Both algorithms against a NumPy transcription of the papers, to 1e-9 over 80 gradients."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import entropix
from entropix import scoping
from tests.transforms import reference
from tests.transforms.regression import (
    DIM,
    GRADIENTS,
    REPLICAS,
    START,
    as_tree,
    as_vector,
    batch_of,
    loss,
    np_gradient,
    one_replica,
    replica_starts,
    stacked,
    train,
)

pytestmark = pytest.mark.usefixtures("x64")

LAWS = dict(rtol=0, atol=1e-9)

CASES = {
    "paper": {},
    "nesterov in both loops": {"momentum": 0.9, "inner_momentum": 0.8},
    "weight decay": {"weight_decay": 0.1, "inner_momentum": 0.9},
    "debiased": {"debias": True},
    "scaled by gamma": {"scale_by_gamma": True, "learning_rate": 2.0},
    "inner state kept": {"reset_inner": False, "inner_momentum": 0.9},
    "one inner step": {"inner_steps": 1, "momentum": 0.9},
}
SCHEDULES = {
    "constant": (0.3, lambda t: 0.3),
    "scoped": (scoping.exponential(0.05, 0.04), lambda t: 0.05 * 1.04**t),
}


def crossed(cases):
    """Every case with every schedule; each case with one of them in the quick tests."""
    quick = set(zip(cases, itertools.cycle(SCHEDULES)))
    return [
        pytest.param(*pair, marks=() if pair in quick else pytest.mark.slow)
        for pair in itertools.product(cases, SCHEDULES)
    ]


def entropy_arguments(case, gamma):
    arguments = {"learning_rate": 0.7, "inner_learning_rate": 0.05, "inner_steps": 8}
    arguments |= {"momentum": None, "inner_momentum": None, "ema_decay": 0.75}
    return arguments | CASES[case] | {"gamma": gamma}


@pytest.mark.parametrize(("case", "schedule"), crossed(CASES))
@pytest.mark.parametrize("steps", [77, pytest.param(GRADIENTS, marks=pytest.mark.slow)])
def test_entropy_sgd_transparent(case, schedule, steps):
    gamma, np_gamma = SCHEDULES[schedule]
    held, state = train(entropix.entropy_sgd(noise=0.0, **entropy_arguments(case, gamma)), steps)
    expected_held, expected_anchor = reference.entropy_sgd(
        lambda x, i: np_gradient(x, 0, i), START,
        gradients=steps, **entropy_arguments(case, np_gamma),
    )  # fmt: skip
    np.testing.assert_allclose(as_vector(held), expected_held, **LAWS)
    np.testing.assert_allclose(
        as_vector(entropix.eval_params(state, held)), expected_anchor, **LAWS
    )
    assert np.abs(as_vector(held) - START).max() > 0.1


@pytest.mark.parametrize(("case", "schedule"), crossed(CASES))
def test_entropy_sgd_opaque(case, schedule):
    gamma, np_gamma = SCHEDULES[schedule]
    arguments = entropy_arguments(case, gamma)
    inner_steps = arguments["inner_steps"]
    tx = entropix.entropy_sgd(noise=0.0, opaque=True, **arguments)

    def step(carry, outer_step):
        params, state = carry

        def grad_fn(params, inner_step):
            return jax.grad(loss)(params, batch_of(0, outer_step * inner_steps + inner_step))

        updates, state = tx.update(params, state, params, grad_fn=grad_fn)
        return (optax.apply_updates(params, updates), state), None

    start = as_tree(START)
    steps = jnp.arange(GRADIENTS // inner_steps)
    params, state = jax.jit(lambda: jax.lax.scan(step, (start, tx.init(start)), steps)[0])()
    _, expected = reference.entropy_sgd(
        lambda x, i: np_gradient(x, 0, i), START,
        gradients=GRADIENTS, **entropy_arguments(case, np_gamma),
    )  # fmt: skip
    np.testing.assert_allclose(as_vector(params), expected, **LAWS)
    np.testing.assert_allclose(as_vector(entropix.eval_params(state, params)), expected, **LAWS)


def test_entropy_sgd_chained():
    arguments = entropy_arguments("nesterov in both loops", 0.3)
    tx = optax.chain(optax.scale(0.5), entropix.entropy_sgd(noise=0.0, **arguments))
    held, state = train(tx)
    _, expected = reference.entropy_sgd(
        lambda x, i: 0.5 * np_gradient(x, 0, i), START,
        gradients=GRADIENTS, **entropy_arguments("nesterov in both loops", lambda t: 0.3),
    )  # fmt: skip
    np.testing.assert_allclose(as_vector(entropix.eval_params(state, held)), expected, **LAWS)


def test_schedules_of_both_learning_rates_count_outer_steps():
    def decayed(step):
        return 0.5**step

    arguments = entropy_arguments("nesterov in both loops", 0.3)
    arguments |= {"learning_rate": decayed, "inner_learning_rate": lambda t: 0.05 * decayed(t)}
    held, _ = train(entropix.entropy_sgd(noise=0.0, **arguments), steps=16)
    # By hand: one outer step at the first rates, a second one at half of them.
    outer = reference.Momentum(0.9, True)
    x = START
    for outer_step, rate in enumerate([1.0, 0.5]):
        inner, x_prime, mu = reference.Momentum(0.8, True), x, x
        for inner_step in range(8):
            d = np_gradient(x_prime, 0, 8 * outer_step + inner_step) + 0.3 * (x_prime - x)
            x_prime = x_prime - 0.05 * rate * inner(d)
            mu = 0.75 * mu + 0.25 * x_prime
        x = x - rate * outer(x - mu)
    np.testing.assert_allclose(as_vector(held), x, **LAWS)


def test_entropy_adam_feeds_adam_with_the_displacement():
    tx = entropix.entropy_adam(
        0.05, inner_learning_rate=0.05, inner_steps=4, gamma=0.2, noise=0.0, inner_momentum=None
    )
    held, _ = train(tx, steps=40)
    x, m, v = START, 0.0, 0.0
    for outer_step in range(10):
        x_prime, mu = x, x
        for inner_step in range(4):
            d = np_gradient(x_prime, 0, 4 * outer_step + inner_step) + 0.2 * (x_prime - x)
            x_prime = x_prime - 0.05 * d
            mu = 0.75 * mu + 0.25 * x_prime
        g = x - mu
        m, v = 0.5 * m + 0.5 * g, 0.999 * v + 0.001 * g**2
        t = outer_step + 1
        x = x - 0.05 * (m / (1 - 0.5**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    np.testing.assert_allclose(as_vector(held), x, **LAWS)


REPLICATED = {
    "paper": {"momentum": None},
    "nesterov": {"momentum": 0.9},
    "weight decay": {"momentum": 0.9, "weight_decay": 0.1},
    "every step": {"momentum": None, "every": 1},
}


MAPPED = [("paper", "vmap"), ("nesterov", "pmap"), ("weight decay", "shard_map")]


def replicated_arguments(case, gamma):
    return {"learning_rate": 0.02, "every": 3} | REPLICATED[case] | {"gamma": gamma}


def expected_replicas(case, np_gamma):
    return reference.replicated_sgd(
        np_gradient, replica_starts(), steps=GRADIENTS, **replicated_arguments(case, np_gamma)
    )


@pytest.mark.parametrize(("case", "schedule"), crossed(REPLICATED))
def test_replicated_sgd_stacked(case, schedule):
    gamma, np_gamma = SCHEDULES[schedule]
    tx = entropix.replicated_sgd(axis=0, **replicated_arguments(case, gamma))
    actual = as_vector(stacked(tx, replica_starts()))
    np.testing.assert_allclose(actual, expected_replicas(case, np_gamma), **LAWS)
    uncoupled = entropix.replicated_sgd(axis=0, **replicated_arguments(case, 0.0))
    assert np.abs(as_vector(stacked(uncoupled, replica_starts())) - actual).max() > 1e-3


@pytest.mark.parametrize(
    ("case", "mapped"),
    [
        pytest.param(*pair, marks=() if pair in MAPPED else pytest.mark.slow)
        for pair in itertools.product(REPLICATED, ["vmap", "pmap", "shard_map"])
    ],
)
def test_replicated_sgd_named_axis(case, mapped):
    gamma, np_gamma = SCHEDULES["scoped"]
    tx = entropix.replicated_sgd(axis_name="replica", **replicated_arguments(case, gamma))
    starts, replicas = as_tree(replica_starts()), jnp.arange(REPLICAS)
    run = one_replica(tx)
    if mapped == "vmap":
        mapped_run = jax.jit(jax.vmap(run, axis_name="replica"))
    elif mapped == "pmap":
        mapped_run = jax.pmap(run, axis_name="replica", devices=jax.devices()[:REPLICAS])
    else:
        mesh = jax.make_mesh(
            (REPLICAS,),
            ("replica",),
            (jax.sharding.AxisType.Auto,),
            devices=jax.devices()[:REPLICAS],
        )

        def on_shard(start, replica):
            squeezed = jax.tree.map(lambda leaf: leaf[0], (start, replica))
            return jax.tree.map(lambda leaf: leaf[None], run(*squeezed))

        spec = jax.P("replica")
        mapped_run = jax.jit(jax.shard_map(on_shard, mesh=mesh, in_specs=spec, out_specs=spec))
    actual = as_vector(jax.device_get(mapped_run(starts, replicas)))
    np.testing.assert_allclose(actual, expected_replicas(case, np_gamma), **LAWS)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=() if case == "nesterov" else pytest.mark.slow)
        for case in REPLICATED
    ],
)
def test_replicated_sgd_stacked_here_and_mapped_elsewhere(case):
    gamma, np_gamma = SCHEDULES["scoped"]
    tx = entropix.replicated_sgd(axis=0, axis_name="group", **replicated_arguments(case, gamma))

    def run(start, replicas):
        def step(carry, index):
            params, state = carry
            grads = jax.vmap(jax.grad(loss))(params, batch_of(replicas, index))
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (start, tx.init(start)), jnp.arange(GRADIENTS))[0][0]

    grouped = jax.tree.map(lambda x: x.reshape((2, 2, *x.shape[1:])), as_tree(replica_starts()))
    replicas = jnp.arange(REPLICAS).reshape(2, 2)
    pmapped = jax.pmap(run, axis_name="group", devices=jax.devices()[:2])
    actual = as_vector(jax.device_get(pmapped(grouped, replicas))).reshape(REPLICAS, DIM)
    np.testing.assert_allclose(actual, expected_replicas(case, np_gamma), **LAWS)


def test_replicated_sgd_over_two_nested_names():
    gamma, np_gamma = SCHEDULES["scoped"]
    tx = entropix.replicated_sgd(
        axis_name=("group", "member"), **replicated_arguments("nesterov", gamma)
    )
    run = jax.vmap(jax.vmap(one_replica(tx), axis_name="member"), axis_name="group")
    grouped = jax.tree.map(lambda x: x.reshape((2, 2, *x.shape[1:])), as_tree(replica_starts()))
    actual = as_vector(jax.jit(run)(grouped, jnp.arange(REPLICAS).reshape(2, 2)))
    np.testing.assert_allclose(
        actual.reshape(REPLICAS, DIM), expected_replicas("nesterov", np_gamma), **LAWS
    )


def test_coupling_composes_with_adam():
    """chain(couple_replicas, adam) is Adam on the coupled gradient."""
    tx = optax.chain(entropix.couple_replicas(0.2, every=2, axis=0), optax.adam(0.01))
    actual = as_vector(stacked(tx, replica_starts()))
    x = replica_starts()
    m, v = np.zeros_like(x), np.zeros_like(x)
    for step in range(GRADIENTS):
        g = np.stack([np_gradient(x[a], a, step) for a in range(REPLICAS)])
        if step % 2 == 0:
            g = g + 2 * 0.2 * (x - x.mean(0))
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        corrected = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
        x = x - 0.01 * corrected[0] / (np.sqrt(corrected[1]) + 1e-8)
    np.testing.assert_allclose(actual, x, **LAWS)


def test_some_layers_only_can_be_coupled():
    tx = optax.chain(
        optax.masked(entropix.couple_replicas(0.5, axis=0), {"a": True, "b": False}), optax.sgd(0.1)
    )
    starts = as_tree(replica_starts())
    zeros = jax.tree.map(jnp.zeros_like, starts)
    updates, _ = tx.update(zeros, tx.init(starts), starts)
    np.testing.assert_allclose(
        updates["a"], -0.05 * (starts["a"] - starts["a"].mean(0)[None]), atol=1e-15
    )
    np.testing.assert_array_equal(updates["b"], 0.0)
