"""Approximate message passing: enumeration, belief propagation, Nishimori, state evolution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropix.committee import (
    Committee,
    approximate_message_passing,
    belief_propagation,
    random_patterns,
    teacher_student,
)
from entropix.replica_theory import state_evolution
from tests.committee.exhaustive import counted

INSTANCES = 12


@functools.cache
def amp(model):
    """Of many instances, with the number of iterations."""
    return jax.jit(
        jax.vmap(
            lambda x, y, steps: approximate_message_passing(model, x, y, max_steps=steps),
            in_axes=(0, 0, None),
        )
    )


@functools.cache
def taught(model, alpha, instances=INSTANCES):
    """Patterns, labels and teachers of many instances."""
    keys = jax.random.split(jax.random.key(3), instances)
    examples, teachers = jax.vmap(lambda key: teacher_student(model, alpha, key))(keys)
    return *examples, teachers


def overlaps(found, teachers):
    """With the teacher and with itself, for each instance."""
    axes = (-2, -1)
    return np.mean(found.mean * teachers, axis=axes), np.mean(found.mean**2, axis=axes)


@pytest.mark.parametrize(
    ("model", "alpha"),
    [
        (Committee(501), 0.4),
        pytest.param(Committee(501, 3), 0.5, marks=pytest.mark.slow),
        pytest.param(Committee(201, 3, "full"), 0.3, marks=pytest.mark.slow),
        pytest.param(Committee(501, weights="spherical"), 0.6, marks=pytest.mark.slow),
        pytest.param(Committee(502, 2, output="parity"), 0.2, marks=pytest.mark.slow),
    ],
)
def test_is_belief_propagation_where_inputs_are_many(model, alpha):
    """Also under a field, of which the parity, whose symmetry it breaks, tells something."""
    examples = random_patterns(model, alpha, 0)
    field = 0.5 * model.random_weights(1)
    fast = approximate_message_passing(model, *examples, field=field)
    slow = belief_propagation(model, *examples, field=field)
    assert fast.converged
    assert slow.converged
    size = model.num_weights
    assert fast.entropy / size == pytest.approx(float(slow.entropy / size), abs=1e-3)
    assert fast.free_entropy / size == pytest.approx(float(slow.free_entropy / size), abs=1e-3)
    np.testing.assert_allclose(fast.mean, slow.mean, atol=0.02)
    np.testing.assert_allclose(fast.variance, slow.variance, atol=0.02)
    assert jnp.abs(fast.mean).max() > 0.4


@pytest.mark.slow
def test_the_posterior_of_a_small_teacher():
    """Enumerated; the loops that are neglected cost more the more patterns there are."""
    model = Committee(15)
    patterns, labels, _ = taught(model, 0.4)
    find = jax.jit(jax.vmap(lambda x, y: approximate_message_passing(model, x, y, damping=0.3)))
    found = find(patterns, labels)
    entropy, mean = zip(
        *(counted(model, x, y, np.zeros((1, 15))) for x, y in zip(patterns, labels, strict=True)),
        strict=True,
    )
    ok = np.asarray(found.converged)
    assert ok.mean() > 0.8
    apart = (np.asarray(found.entropy) - entropy)[ok] / 15
    assert abs(apart.mean()) < 0.02
    assert np.abs(apart).max() < 0.1
    assert np.sqrt(np.mean((np.asarray(found.mean) - mean)[ok] ** 2)) < 0.15


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        Committee(501),
        pytest.param(Committee(501, weights="spherical"), marks=pytest.mark.slow),
        pytest.param(Committee(501, 3), marks=pytest.mark.slow),
    ],
)
def test_the_teacher_is_a_typical_solution(model):
    """Nishimori: the mean's overlap with the teacher is that with itself, within its bar."""
    patterns, labels, teachers = taught(model, 0.9)
    found = amp(model)(patterns, labels, 1000)
    with_teacher, with_itself = overlaps(found, teachers)
    difference = with_teacher - with_itself
    bar = difference.std(ddof=1) / INSTANCES**0.5
    assert bar < 0.02
    assert abs(difference.mean()) < 3 * bar + 2e-3
    assert with_itself.mean() > 0.3


@pytest.mark.parametrize(
    ("model", "instances"),
    [
        (Committee(501), INSTANCES),
        (Committee(2001), 4),
        (Committee(501, weights="spherical"), INSTANCES),
        (Committee(501, 3), INSTANCES),
    ],
)
@pytest.mark.slow
def test_follows_state_evolution(model, instances):
    """Iteration by iteration, the mean of some instances."""
    patterns, labels, teachers = taught(model, 0.9, instances)
    with jax.enable_x64(True):
        theory = state_evolution(
            0.9, weights=model.weights, num_hidden=model.num_hidden, num_steps=8
        ).overlap
        theory = np.asarray(theory)
    for steps in (1, 2, 3, 8):
        found = overlaps(amp(model)(patterns, labels, steps), teachers)
        np.testing.assert_allclose(np.mean(found, axis=1), theory[steps], atol=0.03)
    # What the bounds tell apart.
    assert theory[8] - theory[1] > 0.08


@pytest.mark.parametrize(
    "algorithm",
    [
        approximate_message_passing,
        pytest.param(belief_propagation, marks=pytest.mark.slow),
        pytest.param(
            functools.partial(belief_propagation, node="gaussian"), marks=pytest.mark.slow
        ),
    ],
)
def test_many_instances_in_one_program_are_each_by_itself(algorithm):
    """An instance that has converged waits for the others, unchanged."""
    model = Committee(15)
    patterns, labels, _ = taught(model, 0.4)
    solve = functools.partial(algorithm, model, damping=0.3)
    together = jax.jit(jax.vmap(solve))(patterns, labels)
    assert len(np.unique(together.steps)) > 1
    alone = solve(patterns[0], labels[0])
    assert together.steps[0] == alone.steps
    np.testing.assert_allclose(together.mean[0], alone.mean, atol=1e-5)
    assert together.entropy[0] == pytest.approx(float(alone.entropy), abs=1e-3)


def test_arguments_are_refused_by_name():
    model = Committee(15)
    examples = random_patterns(model, 0.4, 0)
    with pytest.raises(ValueError, match=r"damping.*1"):
        approximate_message_passing(model, *examples, damping=1)
    with pytest.raises(ValueError, match=r"field.*\(1, 15\).*\(15,\)"):
        approximate_message_passing(model, *examples, field=jnp.zeros(15))
    with pytest.raises(ValueError, match=r"patterns.*0\.5"):
        approximate_message_passing(model, examples.patterns / 2, examples.labels)
