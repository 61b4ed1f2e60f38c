"""Local entropy against exact counts (binary weights) and Monte Carlo (spherical ones)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropix.committee import (
    Committee,
    belief_propagation,
    local_entropy_curve,
    random_patterns,
    teacher_student,
)
from tests.committee.exhaustive import solutions

STRENGTHS = np.array([1.5, 1.0, 0.6, 0.3, 0.0])


def exact_curve(model, patterns, labels, reference):
    """Overlap and entropy at each strength from the number of solutions at each distance."""
    found = solutions(model, patterns, labels)
    overlaps = np.sum(found * np.asarray(reference), axis=(1, 2))
    values, numbers = np.unique(overlaps, return_counts=True)
    tilted = numbers * np.exp(STRENGTHS[:, None] * values)
    mean = np.sum(tilted * values, axis=1) / np.sum(tilted, axis=1)
    entropy = np.log(np.sum(tilted, axis=1)) - STRENGTHS * mean
    return mean / model.num_weights, entropy / model.num_weights


@pytest.mark.parametrize(
    ("model", "count"),
    [(Committee(15), 4), (Committee(15, 3), 4), (Committee(15, 3, output="parity"), 3)],
    ids=str,
)
@pytest.mark.slow
def test_counts_the_solutions_at_each_distance(model, count):
    """Around one of them, each instance within the loops' error and closer on the average."""
    examples, references = [], []
    for seed in range(8):
        one = random_patterns(model, count / 15, seed)
        solved = solutions(model, *one)
        examples.append(one)
        references.append(jnp.asarray(solved[len(solved) // 2], jnp.float32))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *examples)
    curve = jax.vmap(
        lambda patterns, labels, reference: local_entropy_curve(
            model, reference, patterns, labels, jnp.asarray(STRENGTHS, jnp.float32), node="exact"
        )
    )(*stacked, jnp.stack(references))
    exact = [
        exact_curve(model, *one, reference)
        for one, reference in zip(examples, references, strict=True)
    ]
    overlap, entropy = np.swapaxes(np.array(exact), 0, 1)
    assert np.all(curve.converged)
    np.testing.assert_allclose(np.mean(curve.overlap - overlap, axis=0), 0, atol=0.02)
    np.testing.assert_allclose(np.mean(curve.entropy - entropy, axis=0), 0, atol=0.015)
    np.testing.assert_allclose(curve.entropy, entropy, atol=0.08)
    np.testing.assert_allclose(curve.distance, (1 - curve.overlap) / 2, atol=1e-6)
    # No more solutions than weights at that distance.
    assert np.all(curve.relative_entropy < 1e-5)


@pytest.mark.parametrize(
    ("model", "strengths", "tolerance"),
    [
        (Committee(45, weights="spherical"), [12.0, 4.0], 0.003),
        (Committee(45, 3, weights="spherical"), [12.0, 4.0], 0.003),
        (Committee(15, 3, "full", weights="spherical"), [12.0, 4.0], 0.003),
        (Committee(45, 3, output="parity", weights="spherical"), [60.0, 30.0], 0.005),
    ],
    ids=str,
)
@pytest.mark.slow
def test_measures_the_volume_around_a_wide_solution(model, strengths, tolerance, x64):
    """Against the share of 5,000 random weights at the same angle that are solutions."""
    examples, teacher = teacher_student(model, 0.5, 1)
    reference = belief_propagation(model, *examples, field=teacher / 2).mean
    reference = reference * (45**0.5 / jnp.linalg.norm(reference))
    curve = local_entropy_curve(model, reference, *examples, jnp.array(strengths))
    assert np.all(curve.converged)

    @jax.jit
    def hits(key, overlap):
        weights = jax.random.normal(key, (5_000, *model.shape))
        along = jnp.sum(weights * reference[None], axis=(1, 2), keepdims=True) / 45
        across = weights - along * reference[None]
        across *= 45**0.5 / jnp.linalg.norm(across, axis=(1, 2), keepdims=True)
        weights = overlap * reference[None] + jnp.sqrt(1 - overlap**2) * across
        return jnp.mean(jax.vmap(lambda w: model.errors(w, *examples) == 0)(weights))

    for at in range(2):
        share = hits(jax.random.key(at), curve.overlap[at])
        assert 0.02 < share < 1
        assert float(curve.relative_entropy[at]) == pytest.approx(
            float(jnp.log(share)) / 45, abs=tolerance
        )


@pytest.mark.slow
def test_no_distance_is_below_zero():
    """The overlap is 1 up to rounding, on either side."""
    model = Committee(15)
    for seed in range(6):
        reference = model.random_weights(seed)
        patterns = reference * jnp.ones((1, model.num_inputs))
        curve = local_entropy_curve(model, reference, patterns, jnp.ones(1), jnp.array([1e3, 30.0]))
        assert np.all(np.asarray(curve.distance) >= 0)
        assert np.all(np.isfinite(curve.relative_entropy))


@pytest.mark.slow
def test_the_references_norm_does_not_matter_for_spherical_weights():
    model = Committee(45, 3, weights="spherical")
    examples, teacher = teacher_student(model, 0.3, 1)
    strengths = jnp.array([30.0, 10.0])
    one, same = (
        local_entropy_curve(model, scale * teacher, *examples, strengths) for scale in (1, 0.01)
    )
    np.testing.assert_allclose(one.relative_entropy, same.relative_entropy, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(weights=jnp.ones((3, 5))), r"weights .*got \(3, 5\)"),
        (dict(weights=jnp.full((1, 15), 0.5)), r"weights must each be \+1 or -1.*got 0.5"),
        (dict(strengths=jnp.array([-1.0])), "strengths must be finite and >= 0"),
        (dict(strengths=jnp.array(1.0)), r"strengths .*got \(\)"),
        (dict(labels=jnp.array([2.0])), r"labels must each be \+1 or -1, got 2.0"),
    ],
)
def test_impossible_input_is_refused_by_name(change, message):
    arguments = (
        dict(
            patterns=jnp.ones((1, 15)),
            labels=jnp.ones(1),
            weights=jnp.ones((1, 15)),
            strengths=jnp.ones(1),
        )
        | change
    )
    with pytest.raises(ValueError, match=message):
        local_entropy_curve(Committee(15), **arguments)


@pytest.mark.parametrize(("number", "message"), [(0.0, "only zeros"), (jnp.nan, "weights.*nan")])
def test_a_reference_without_a_direction_is_refused(number, message):
    model = Committee(15, weights="spherical")
    weights = jnp.full((1, 15), number)
    with pytest.raises(ValueError, match=message):
        local_entropy_curve(model, weights, jnp.ones((1, 15)), jnp.ones(1), jnp.ones(1))
