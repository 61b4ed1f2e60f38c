"""Noise of the inputs' color, against its closed form and its limits."""

import jax.numpy as jnp
import numpy as np
import pytest

from entropix.committee import Committee, noise_robustness, teacher_student

MODEL = Committee(201)


@pytest.mark.slow
def test_errors_of_a_teacher_follow_the_arccosine_law():
    """White noise of rate r leaves an overlap 1 - 2 r of the fields: arccos(1 - 2 r) / pi."""
    examples, teacher = teacher_student(MODEL, 5.0, 0)
    rates = jnp.array([0.0, 0.05, 0.2, 0.5])
    found = noise_robustness(MODEL, teacher, *examples, rates, 1)
    expected = np.arccos(1 - 2 * np.asarray(rates)) / np.pi
    np.testing.assert_allclose(found.mean, expected, atol=0.015)
    assert float(found.mean[0]) == 0
    assert np.all(found.std_error[1:] > 0)
    assert np.all(found.std_error < 0.01)


@pytest.mark.slow
def test_inputs_that_hardly_vary_are_hardly_flipped():
    """A network that looks at the constant inputs alone makes no error at any rate."""
    rng = np.random.default_rng(0)
    patterns = np.where(rng.random((400, 21)) < 0.5, 1.0, -1.0).astype(np.float32)
    patterns[:, :11] = 1.0
    model = Committee(21)
    weights = jnp.asarray(np.r_[np.full(11, 1.0), np.full(10, 1.0)], jnp.float32)[None]
    labels = jnp.ones(400)
    clean = int(model.errors(weights, patterns, labels))
    assert clean <= 1
    blind = jnp.zeros((1, 21)).at[0, :11].set(1.0)
    found = noise_robustness(model, blind, patterns, labels, jnp.array([0.1, 0.5]), 0)
    np.testing.assert_array_equal(found.mean, 0)
    seeing = jnp.zeros((1, 21)).at[0, 11].set(1.0)
    found = noise_robustness(model, seeing, patterns, patterns[:, 11], jnp.array([0.1]), 0)
    # Ten of the inputs vary: each is flipped at 21 / 10 times the mean rate.
    assert float(found.mean[0]) == pytest.approx(0.21, abs=0.02)


@pytest.mark.slow
def test_numbers_of_an_integer_type_are_what_they_are():
    model = Committee(15)
    (patterns, labels), teacher = teacher_student(model, 2.0, 0)
    rates = jnp.array([0.0, 0.1, 0.5])
    expected = noise_robustness(model, teacher, patterns, labels, rates, 1)
    short = [array.astype(jnp.int8) for array in (teacher, patterns, labels)]
    np.testing.assert_array_equal(noise_robustness(model, *short, rates, 1).mean, expected.mean)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(rates=jnp.array([0.6])), "rates must be .*0.6"),
        (dict(rates=jnp.array([-0.1])), "rates must be finite and >= 0"),
        (dict(num_samples=1), "num_samples .*got 1"),
        (dict(patterns=jnp.ones((2, 201))), "patterns must differ in some input"),
        (dict(patterns=jnp.zeros((2, 201))), r"patterns must each be \+1 or -1, got 0.0"),
        (dict(weights=jnp.ones((3, 67))), r"weights .*got \(3, 67\)"),
    ],
)
def test_impossible_input_is_refused_by_name(change, message):
    examples, teacher = teacher_student(MODEL, 2 / 201, 0)
    arguments = dict(weights=teacher, **examples._asdict(), key=0, rates=jnp.array([0.1])) | change
    with pytest.raises(ValueError, match=message):
        noise_robustness(MODEL, **arguments)
