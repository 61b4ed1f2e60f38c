"""Focusing belief propagation: its field, its limits, an exact ensemble, and what it solves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropix.committee import (
    Committee,
    Protocol,
    belief_propagation,
    focusing_bp,
    pseudo_reinforcement,
    random_patterns,
    rising_coupling,
)
from entropix.committee._focusing_bp import self_interaction, through_coupling
from tests.committee.exhaustive import solutions

INF = float("inf")
FIELDS = np.array([-20.0, -3.0, -0.2, 0.0, 0.1, 1.0, 8.0])
SPHERE = Committee(45, 3, weights="spherical")
LABEL = jnp.ones(1)


def one_pattern(size):
    return jnp.ones((1, size))


def test_field_through_a_coupling(x64):
    for gamma in (0.1, 0.7, 2.0):
        expected = np.arctanh(np.tanh(FIELDS) * np.tanh(gamma))
        np.testing.assert_allclose(through_coupling(FIELDS, gamma), expected, atol=1e-12)
    np.testing.assert_array_equal(through_coupling(FIELDS, 0.0), 0)
    np.testing.assert_array_equal(through_coupling(FIELDS, INF), FIELDS)
    np.testing.assert_allclose(through_coupling(INF, 0.3), 0.3)


def test_limits_of_the_self_interaction(x64):
    def extra(gamma, replicas):
        total, _ = self_interaction(jnp.asarray(gamma), jnp.asarray(replicas))(
            jnp.asarray(FIELDS), jnp.zeros([])
        )
        return total - FIELDS

    center = np.arctanh(np.tanh(FIELDS) * np.tanh(0.7))
    expected = np.arctanh(np.tanh(2.5 * center) * np.tanh(0.7))
    np.testing.assert_allclose(extra(0.7, 3.5), expected, atol=1e-12)
    np.testing.assert_allclose(extra(0.7, INF), 0.7 * np.sign(FIELDS), atol=1e-12)
    np.testing.assert_allclose(extra(INF, 3.5), 2.5 * FIELDS, atol=1e-12)
    np.testing.assert_array_equal(extra(0.7, 1.0), 0)
    np.testing.assert_array_equal(extra(0.0, INF), 0)


@pytest.mark.parametrize("model", [Committee(21), SPHERE], ids=str)
@pytest.mark.slow
def test_one_replica_is_belief_propagation(model, x64):
    examples = random_patterns(model, 0.3, 0)
    alone = focusing_bp(
        model, *examples, Protocol(jnp.array([0.8]), jnp.array([1.0])), 0,
        max_steps=500, tolerance=1e-9,
    )  # fmt: skip
    plain = belief_propagation(model, *examples, tolerance=1e-9)
    np.testing.assert_allclose(alone.mean, plain.mean, atol=1e-7)


@pytest.mark.slow
def test_many_spherical_replicas_are_infinitely_many(x64):
    examples = random_patterns(SPHERE, 0.8, 0)
    means = [
        focusing_bp(
            SPHERE, *examples, rising_coupling([1.0, 2.0], replicas), 0,
            max_steps=300, tolerance=1e-8, stop_when_solved=False,
        ).mean
        for replicas in (1e6, INF)
    ]  # fmt: skip
    np.testing.assert_allclose(*means, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gamma", "replicas"),
    [
        (0.3, 5.5),
        pytest.param(0.3, 2.0, marks=pytest.mark.slow),
        pytest.param(0.8, 2.0, marks=pytest.mark.slow),
    ],
)
def test_means_are_those_of_the_robust_ensemble(gamma, replicas, x64):
    """Summed over all centers c: of e^(gamma W.c) (sum over W' of e^(gamma W'.c))^(y - 1)."""
    model = Committee(11)
    errors = []
    for seed in range(4):
        examples = random_patterns(model, 2 / 11, seed)
        solved = solutions(model, *examples)[:, 0]
        every = (2.0 * (np.arange(2**11)[:, None] >> np.arange(11) & 1) - 1).astype(float)
        attraction = np.exp(gamma * solved @ every.T)
        together = attraction * attraction.sum(0) ** (replicas - 1)
        exact = together.sum(1) @ solved / together.sum()
        found = focusing_bp(
            model, *examples, Protocol(jnp.array([gamma]), jnp.array([replicas])), seed,
            max_steps=500, tolerance=1e-8, node="exact",
        )  # fmt: skip
        errors.append(found.mean[0] - exact)
    assert np.sqrt(np.mean(np.square(errors))) < 0.05


RISING = rising_coupling(np.arange(0.05, 3.0, 0.05))


@pytest.mark.parametrize(
    ("model", "alpha", "node", "protocol"),
    [
        pytest.param(Committee(1001), 0.7, "relaxed", RISING, marks=pytest.mark.slow),
        (Committee(201), 0.5, "relaxed", RISING),
        pytest.param(
            Committee(501), 0.6, "relaxed", pseudo_reinforcement(np.arange(0, 0.99, 0.01)),
            marks=pytest.mark.slow
        ),
        pytest.param(Committee(999, 3), 0.6, "relaxed", RISING, marks=pytest.mark.slow),
        pytest.param(Committee(321, 5, "full"), 0.3, "gaussian", RISING, marks=pytest.mark.slow),
        pytest.param(
            Committee(495, 9, weights="spherical"), 1.0, "gaussian",
            rising_coupling(np.arange(0.5, 12.5, 0.5)), marks=pytest.mark.slow,
        ),
    ],
    ids=["1001", "201", "pseudo", "tree", "shared inputs", "spherical tree"],
)  # fmt: skip
@pytest.mark.slow
def test_solves_random_patterns(model, alpha, node, protocol):
    examples = random_patterns(model, alpha, 0)
    found = focusing_bp(model, *examples, protocol, 0, node=node)
    assert bool(found.solved)
    assert int(model.errors(found.weights, *examples)) == 0
    np.testing.assert_allclose(found.weights, model.normalize(found.mean), rtol=1e-5)
    stages = int(found.stages)
    history = found.history
    assert np.all(history.errors[: stages - 1] > 0)
    assert int(history.errors[stages - 1]) == 0
    np.testing.assert_array_equal(history.gamma[:stages], protocol.gamma[:stages])
    assert np.all(history.steps[:stages] >= 1)
    assert np.all(history.steps[stages:] == -1)
    assert np.all(np.isnan(history.residual[stages:]))


@pytest.mark.slow
def test_beyond_capacity_it_says_that_nothing_was_found():
    model = Committee(101)
    examples = random_patterns(model, 1.5, 0)
    found = focusing_bp(model, *examples, rising_coupling([0.5, 1.0]), 0)
    assert not bool(found.solved)
    assert int(found.errors) == int(model.errors(found.weights, *examples)) > 0
    assert int(found.stages) == 2


def test_the_best_stage_is_the_answer_whatever_comes_after_it():
    """A last stage without coupling forgets the solution: its means' signs are no solution."""
    model = Committee(101)
    examples = random_patterns(model, 0.6, 3)
    protocol = Protocol(jnp.array([0.2, 0.5, 0.8, 1.2, 1.8, 0.0]), jnp.full(6, INF).at[5].set(1.0))
    found = focusing_bp(model, *examples, protocol, 0, max_steps=40, stop_when_solved=False)
    errors = np.asarray(found.history.errors)
    assert errors[-1] > np.min(errors)
    assert int(found.stages) == 6
    assert int(found.errors) == np.min(errors)
    assert int(model.errors(found.weights, *examples)) == np.min(errors)
    assert np.all(found.history.damping >= 0.5)


@pytest.mark.slow
def test_seeds_may_be_mapped_over():
    model = Committee(51, 3)
    protocol = rising_coupling([0.3, 0.6])

    def find(key):
        return focusing_bp(model, *random_patterns(model, 0.3, key), protocol, key)

    keys = jax.random.split(jax.random.key(0), 3)
    together = jax.vmap(find)(keys)
    for at, key in enumerate(keys):
        alone = find(key)
        assert int(together.stages[at]) == int(alone.stages)
        np.testing.assert_allclose(together.mean[at], alone.mean, atol=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rising_coupling([-1.0]), r"gamma must have shape \(T,\) and be at least 0"),
        (lambda: rising_coupling([1.0], 0.5), "replicas .*got 0.5"),
        (lambda: pseudo_reinforcement([1.0]), r"rate must .* below 1, got \[1.0\]"),
        (lambda: pseudo_reinforcement([0.1], 0.7), "exponent must be .* 0.7"),
        (
            lambda: focusing_bp(SPHERE, one_pattern(45), LABEL, rising_coupling([INF], 2.0), 0),
            "protocol must have finite gamma for spherical weights",
        ),
        (
            lambda: focusing_bp(Committee(5), one_pattern(5), LABEL, rising_coupling([INF]), 0),
            "protocol must not have gamma and replicas infinite",
        ),
        (
            lambda: focusing_bp(Committee(5), one_pattern(5), 0 * LABEL, rising_coupling([1.0]), 0),
            r"labels must each be \+1 or -1, got 0.0",
        ),
    ],
)
def test_impossible_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.slow
@pytest.mark.parametrize("num_hidden", [2, 4])
def test_parities_of_an_even_number_of_units_see_their_labels(num_hidden):
    """A product of that many signs does not change when all inputs change theirs."""
    model = Committee(101 * num_hidden, num_hidden, output="parity")
    patterns, labels = random_patterns(model, 0.2, 0)
    protocol = rising_coupling(jnp.arange(0.05, 3, 0.05))
    for wanted in (labels, -labels):
        found = focusing_bp(model, patterns, wanted, protocol, 1)
        assert found.solved
        assert int(model.errors(found.weights, patterns, wanted)) == 0
