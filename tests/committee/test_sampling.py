"""Local entropy by sampling, against enumeration, a closed form and belief propagation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import comb

from entropix.committee import (
    Committee,
    local_entropy_curve,
    random_patterns,
    sampled_local_entropy,
    teacher_student,
)
from tests.committee.exhaustive import solutions


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        Committee(15),
        Committee(15, 3),
        Committee(14, 2, output="parity"),
    ],
    ids=str,
)
def test_binary_shares_are_those_of_enumeration(model):
    examples = random_patterns(model, 6 / model.num_weights, 1)
    solved = solutions(model, *examples)
    reference = solved[0]
    flips = np.sum(solved != reference, axis=(1, 2))
    distances = np.array([2, 4, 7]) / model.num_weights
    found = sampled_local_entropy(
        model, jnp.asarray(reference), *examples, distances, 0, num_samples=400, num_moves=30
    )
    for at, flipped in enumerate((2, 4, 7)):
        exact = np.log(np.sum(flips == flipped) / comb(model.num_weights, flipped))
        error = max(float(found.std_error[at]), 0.003)
        assert abs(float(found.relative_entropy[at]) - exact / model.num_weights) < 4 * error
    assert np.all(found.converged)
    np.testing.assert_allclose(found.distance, distances, rtol=1e-6)


@pytest.mark.slow
def test_share_of_a_cap_on_one_side_of_a_plane_is_its_closed_form():
    """One pattern along the reference: all of a narrow cap; across it: half of every cap."""
    model = Committee(21, weights="spherical")
    x = jnp.ones((1, 21))
    across = jnp.ones((1, 21)).at[0, 10:].set(-1).at[0, 20].set(0)
    for reference, share in ((x, 1.0), (across, 0.5)):
        found = sampled_local_entropy(model, reference, x, jnp.ones(1), jnp.array([0.3]), 0)
        error = 4 * float(found.std_error[0]) + 1e-6
        assert float(found.relative_entropy[0]) * 21 == pytest.approx(np.log(share), abs=21 * error)
        assert error < 0.02


@pytest.mark.parametrize(
    "model",
    [
        Committee(99, 3, weights="spherical"),
        pytest.param(Committee(99, weights="spherical"), marks=pytest.mark.slow),
        pytest.param(Committee(33, 3, "full", weights="spherical"), marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.slow
def test_agrees_with_belief_propagation_where_that_converges(model):
    """Shares down to e^-20 around a teacher, which direct sampling would never see."""
    examples, teacher = teacher_student(model, 1.0, 1)
    curve = local_entropy_curve(model, teacher, *examples, jnp.array([40.0, 10.0]))
    assert np.all(curve.converged)
    found = sampled_local_entropy(model, teacher, *examples, curve.distance, 0)
    assert np.all(found.converged)
    assert np.all(found.std_error < 0.006)
    np.testing.assert_allclose(found.relative_entropy, curve.relative_entropy, atol=0.015)
    assert float(curve.relative_entropy[1]) * model.num_weights < -10


@pytest.mark.slow
def test_says_that_it_did_not_come_to_the_solutions():
    model = Committee(15)
    patterns = jnp.concatenate([jnp.ones((1, 15)), jnp.ones((1, 15))])
    found = sampled_local_entropy(
        model, jnp.ones((1, 15)), patterns, jnp.array([1.0, -1.0]), jnp.array([0.2]), 0,
        num_samples=10, num_moves=2, max_levels=5,
    )  # fmt: skip
    assert not bool(found.converged[0])
    assert int(found.levels[0]) == 5


@pytest.mark.parametrize(
    ("change", "name", "value"),
    [
        (dict(weights=jnp.zeros((1, 15))), "weights", "zeros"),
        (dict(weights=jnp.full((1, 15), jnp.inf)), "weights", "inf"),
        (dict(distances=jnp.array([1.0])), "distances", "1."),
        (dict(distances=jnp.array(0.1)), "distances", r"\(\)"),
        (dict(num_runs=1), "num_runs", "1"),
        (dict(num_samples=2), "num_samples", "2"),
        (dict(labels=jnp.array([0.0])), "labels", "0.0"),
    ],
)
def test_impossible_input_is_refused_by_name(change, name, value):
    model = Committee(15, weights="spherical")
    arguments = (
        dict(
            weights=jnp.ones((1, 15)),
            patterns=jnp.ones((1, 15)),
            labels=jnp.ones(1),
            distances=jnp.array([0.1]),
            key=0,
        )
        | change
    )
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        sampled_local_entropy(model, **arguments)


def test_may_be_compiled_around_closed_over_patterns():
    model = Committee(15)
    examples = random_patterns(model, 0.4, 0)
    reference = jnp.ones((1, 15))
    shapes = jax.eval_shape(
        lambda key: sampled_local_entropy(model, reference, *examples, np.array([0.1, 0.2]), key),
        jax.random.key(0),
    )
    assert shapes.relative_entropy.shape == (2,)
