"""A student starts neither at its teacher nor at a pattern, whatever its seed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from entropix.committee import (
    Committee,
    entropic_lal,
    least_action_learning,
    random_patterns,
    replicated_lal,
    surrogate_sgd,
    teacher_student,
)

RULES = {
    "lal, binary": (least_action_learning, "binary"),
    "lal, spherical": (least_action_learning, "spherical"),
    "replicated_lal": (functools.partial(replicated_lal, attraction=0.0), "binary"),
    "entropic_lal": (entropic_lal, "spherical"),
    "surrogate_sgd": (
        lambda model, *examples, **options: surrogate_sgd(
            model, *examples[:2], optax.sgd(1.0), examples[2], **options
        ),
        "spherical",
    ),
}


def start(rule, model, patterns, labels, seed):
    """What a pass over inputs so small that nothing moves ends with."""
    return rule(model, 1e-6 * patterns, labels, seed, max_epochs=1).weights


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("seed", [0, 7])
def test_equal_seeds_start_no_student_at_its_teacher_or_at_a_pattern(name, seed):
    rule, weights = RULES[name]
    model = Committee(501, 3, weights=weights)
    (patterns, labels), teacher = teacher_student(model, 0.02, seed)
    began = start(rule, model, patterns, labels, seed)
    np.testing.assert_allclose(jnp.sum(began**2), 501, rtol=1e-3)
    # Five standard deviations of what is independent.
    assert abs(float(jnp.mean(began * teacher))) < 5 / 501**0.5
    drawn = random_patterns(model, 0.02, seed).patterns
    for seen in (patterns, drawn):
        overlaps = seen.reshape(-1, 501) @ began.reshape(501) / 501
        assert np.max(np.abs(overlaps)) < 5 / 501**0.5
    again = start(rule, model, patterns, labels, seed)
    np.testing.assert_array_equal(again, began)
    other = start(rule, model, patterns, labels, jax.random.key(seed + 1))
    assert abs(float(jnp.mean(began * other))) < 5 / 501**0.5
