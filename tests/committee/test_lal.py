"""Least action learning: the least action, plain NumPy, and wider solutions from replicas."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropix.committee import (
    Committee,
    entropic_lal,
    least_action,
    least_action_learning,
    local_entropy_curve,
    random_patterns,
    replicated_lal,
)
from entropix.committee._learning import start_and_order

RNG = np.random.default_rng(0)
SPHERE = Committee(99, 3, weights="spherical")


def right(output, tau):
    return np.sum(tau) > 0 if output == "majority" else np.prod(tau) > 0


@pytest.mark.parametrize(("output", "num_hidden"), [("majority", 5), ("parity", 4)])
def test_least_action_is_the_cheapest_change_of_signs_that_is_right(output, num_hidden):
    """Of all 2^K changes, by the largest and then by all of the fields that change sign."""
    model = Committee(num_hidden * 3, num_hidden, output=output)
    sides = jax.jit(lambda h, label: least_action(model, h, label))
    states = np.array(list(itertools.product([-1, 1], repeat=num_hidden)))
    for label, _ in itertools.product((1.0, -1.0), range(20)):
        fields = RNG.normal(size=num_hidden)
        gauged = fields.copy()
        if output == "majority":
            gauged = label * fields
        target = 1 if output == "majority" else label
        ways = [s for s in states if right(output, s) == (target > 0)]
        changed = [np.sign(gauged) != s for s in ways]
        cost = [(np.sum(c), np.sum(np.abs(fields)[c])) for c in changed]
        cheapest = changed[min(range(len(ways)), key=lambda way: cost[way])]
        moves = np.asarray(sides(jnp.asarray(fields, jnp.float32), jnp.float32(label)))
        np.testing.assert_array_equal(moves != 0, cheapest)
        np.testing.assert_array_equal(moves[cheapest], -np.sign(fields)[cheapest])


@pytest.mark.parametrize(
    "model",
    [SPHERE, Committee(33, 3, "full", weights="spherical"), Committee(99, 3)],
    ids=str,
)
@pytest.mark.slow
def test_one_pass_is_that_of_plain_numpy(model, x64):
    patterns, labels = (np.asarray(part) for part in random_patterns(model, 0.5, 0))
    found = least_action_learning(model, patterns, labels, 3, max_epochs=1)
    start_key, order_key = start_and_order(jax.random.key(3))
    hidden = np.array(model.random_weights(start_key))
    k, n = model.shape
    rate = 2 if model.weights == "binary" else 0.5 / np.sqrt(n)
    for mu in np.asarray(jax.random.permutation(jax.random.fold_in(order_key, 0), len(labels))):
        inputs = np.broadcast_to(patterns[mu].reshape(-1, n), (k, n))
        weights = np.sign(hidden) if model.weights == "binary" else hidden
        gauged = labels[mu] * np.sum(weights * inputs, axis=1)
        missing = (k + 1) // 2 - np.sum(gauged > 0)
        wrong = [unit for unit in np.argsort(-gauged) if gauged[unit] <= 0]
        for unit in wrong[: max(missing, 0)]:
            hidden[unit] += rate * labels[mu] * inputs[unit]
    expected = np.sign(hidden)
    if model.weights == "spherical":
        expected = hidden * np.sqrt(n) / np.linalg.norm(hidden, axis=1, keepdims=True)
    np.testing.assert_allclose(found.weights, expected, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "alpha"),
    [
        (SPHERE, 1.0),
        (Committee(999, 3, weights="spherical"), 1.0),
        (Committee(33, 3, "full", weights="spherical"), 1.0),
        (Committee(101, weights="spherical"), 1.0),
        (Committee(45, 3, output="parity", weights="spherical"), 1.0),
        (Committee(101), 0.2),
    ],
    ids=str,
)
def test_learns_random_patterns(model, alpha):
    examples = random_patterns(model, alpha, 0)
    found = least_action_learning(model, *examples, 1)
    assert bool(found.solved)
    assert int(model.errors(found.weights, *examples)) == 0
    epochs = int(found.epochs)
    assert int(found.history[epochs - 1]) == 0
    assert np.all(found.history[: epochs - 1] > 0)
    assert np.all(found.history[epochs:] == -1)
    np.testing.assert_allclose(found.weights, model.normalize(found.weights), rtol=1e-5)


@pytest.mark.slow
def test_solutions_of_replicas_are_wider_than_those_of_one():
    """Paired over ten instances at the same load, around 1 - S^2 = 0.015."""

    def relative_entropies(key):
        examples = random_patterns(SPHERE, 0.8, key)
        plain = least_action_learning(SPHERE, *examples, key)
        entropic = entropic_lal(SPHERE, *examples, key, attraction=0.001)
        curves = [
            local_entropy_curve(SPHERE, found.weights, *examples, jnp.array([100.0, 50.0]))
            for found in (plain, entropic)
        ]
        solved = plain.solved & entropic.solved
        converged = jnp.all(curves[0].converged & curves[1].converged)
        return solved & converged, curves[1].relative_entropy - curves[0].relative_entropy

    usable, gain = jax.vmap(relative_entropies)(jax.random.split(jax.random.key(0), 10))
    gain = np.asarray(gain)[np.asarray(usable), 1]
    assert len(gain) >= 8
    assert np.mean(gain) > 3 * np.std(gain, ddof=1) / np.sqrt(len(gain))
    assert np.mean(gain) > 0.01


@pytest.mark.slow
def test_default_rates_find_wide_regions_whatever_the_network():
    """A third of the local entropy that the rate of one network ends with, from tree to perceptron.

    At 1 - S^2 = 0.1: -0.06 against -0.15 for the perceptron, -0.12 against -0.33 for shared inputs.
    """
    model = Committee(33, 3, "full", weights="spherical")

    def relative_entropies(key, learning_rate):
        examples = random_patterns(model, 1.0, key)
        found = entropic_lal(model, *examples, key, learning_rate=learning_rate, max_epochs=400)
        curve = local_entropy_curve(model, found.weights, *examples, jnp.array([40.0, 12.0]))
        return found.solved & jnp.all(curve.converged), curve.relative_entropy[1]

    keys = jax.random.split(jax.random.key(5), 3)
    solve = jax.jit(jax.vmap(relative_entropies, in_axes=(0, None)))
    defaults, settled = solve(keys, 1.5 / 33**0.5), solve(keys, 0.5 / 33**0.5)
    assert np.all(defaults[0] & settled[0])
    assert np.mean(defaults[1]) > np.mean(settled[1]) / 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        pytest.param(Committee(45, 3, weights="spherical"), marks=pytest.mark.slow),
        pytest.param(Committee(101, weights="spherical"), marks=pytest.mark.slow),
        Committee(15, 3, "full", weights="spherical"),
    ],
    ids=str,
)
def test_the_default_rate_moves_fields_by_the_same_in_every_network(model):
    examples = random_patterns(model, 0.5, 0)
    arguments = dict(key=1, replicas=3, max_epochs=3)
    found = entropic_lal(model, *examples, **arguments)
    told = entropic_lal(
        model, *examples, learning_rate=1.5 / model.shape[1] ** 0.5, attraction=0.005, **arguments
    )
    np.testing.assert_array_equal(found.weights, told.weights)


@pytest.mark.slow
def test_attraction_brings_the_center_to_a_solution_sooner():
    examples = random_patterns(SPHERE, 1.0, 0)
    apart = entropic_lal(SPHERE, *examples, 1, attraction=0.0, max_epochs=150)
    drawn = entropic_lal(SPHERE, *examples, 1, max_epochs=150)
    assert bool(drawn.solved)
    assert int(drawn.epochs) < int(apart.epochs)


@pytest.mark.slow
def test_replicated_rule_learns_what_one_network_does_not():
    model = Committee(161, 5, "full")
    examples = random_patterns(model, 0.3, 0)
    plain = least_action_learning(model, *examples, 1, max_epochs=200)
    replicated = replicated_lal(model, *examples, 1, gamma=0.1, max_epochs=200)
    assert not bool(plain.solved)
    assert bool(replicated.solved)
    assert int(model.errors(replicated.weights, *examples)) == 0
    assert np.all(np.abs(replicated.weights) == 1)


@pytest.mark.slow
def test_replicated_pass_is_that_of_plain_numpy(x64):
    """With a last mini-batch that is not full."""
    model, y, size = Committee(45, 3), 3, 4
    patterns, labels = (np.asarray(part) for part in random_patterns(model, 10 / 45, 0))
    found = replicated_lal(
        model, patterns, labels, 3, replicas=y, batch_size=size, gamma=0.2, max_epochs=1
    )
    start_key, order_key = start_and_order(jax.random.key(3))
    hidden = np.array(jnp.stack([model.random_weights(start_key)] * y))
    keys = jax.random.split(jax.random.fold_in(order_key, 0), y)
    orders = [np.asarray(jax.random.permutation(key, 10)) for key in keys]
    for at in range(0, 10, size):
        for a, order in enumerate(orders):
            weights, change = np.sign(hidden[a]), np.zeros(model.shape)
            for mu in order[at : at + size]:
                inputs = patterns[mu].reshape(3, 15)
                sides = least_action(
                    model, jnp.asarray(np.sum(weights * inputs, 1)), jnp.asarray(labels[mu])
                )
                change += 2 * np.asarray(sides)[:, None] * inputs
            hidden[a] += change
        weights = np.sign(hidden)
        hidden += 0.75 * (np.tanh(0.2 * y * weights.mean(0)) - weights)
    np.testing.assert_array_equal(found.weights, np.sign(np.sign(hidden).sum(0)))


@pytest.mark.parametrize(
    ("learn", "model", "change", "message"),
    [
        (least_action_learning, SPHERE, dict(learning_rate=0.0), "learning_rate must.*> 0, got 0"),
        (least_action_learning, SPHERE, dict(max_epochs=0), "max_epochs must.*>= 1, got 0"),
        (least_action_learning, SPHERE, dict(init=jnp.ones(9)), r"init must have shape \(3, 33\)"),
        (least_action_learning, SPHERE, dict(labels=jnp.zeros(1)), r"labels must each be \+1 or"),
        (entropic_lal, SPHERE, dict(replicas=1), "replicas .*got 1"),
        (entropic_lal, SPHERE, dict(attraction=-1.0), "attraction .*got -1.0"),
        (entropic_lal, Committee(99, 3), {}, "model .*got binary"),
        (replicated_lal, Committee(99, 3), dict(replicas=4), "replicas .*got 4"),
        (replicated_lal, Committee(99, 3), dict(batch_size=0), "batch_size .*got 0"),
        (replicated_lal, SPHERE, {}, "model .*got spherical"),
    ],
)
def test_impossible_input_is_refused_by_name(learn, model, change, message):
    arguments = dict(patterns=jnp.ones((1, 99)), labels=jnp.ones(1), key=0) | change
    with pytest.raises(ValueError, match=message):
        learn(model, **arguments)
