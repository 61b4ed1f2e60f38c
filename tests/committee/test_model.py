"""The committee machine against a loop over patterns and units, and what it refuses."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropix.committee import Committee, random_patterns, teacher_student

KINDS = [
    Committee(21, 1),
    Committee(21, 3, "tree", "majority"),
    Committee(21, 3, "tree", "parity", "spherical"),
    Committee(7, 3, "full", "majority", "spherical"),
    Committee(8, 2, "full", "parity", "spherical"),
]


def output(model, weights, x):
    """What the network answers to one pattern, by the definition."""
    k, n = model.shape
    tau = []
    for unit in range(k):
        seen = x[unit * n : (unit + 1) * n] if model.architecture == "tree" else x
        tau.append(np.sign(weights[unit] @ seen))
    return np.sign(np.sum(tau)) if model.output == "majority" else np.prod(tau)


@pytest.mark.parametrize("model", KINDS, ids=str)
def test_errors_are_those_of_the_definition(model):
    patterns, labels = random_patterns(model, 3.0, 0, distribution="normal")
    weights = model.random_weights(1)
    right = [output(model, np.asarray(weights), np.asarray(x)) for x in patterns]
    wrong = int(np.sum(np.array(right) != np.asarray(labels)))
    assert 0 < wrong < len(labels)
    assert int(model.errors(weights, patterns, labels)) == wrong
    assert int(jax.jit(model.errors)(weights, patterns, labels)) == wrong


@pytest.mark.parametrize("model", KINDS, ids=str)
def test_stability_is_the_distance_of_the_fields_to_the_boundary(model):
    """Any change of all fields below it keeps the output; a larger one in the worst signs not."""
    patterns, labels = random_patterns(model, 1.0, 0, distribution="normal")
    weights = model.random_weights(1)
    fields = np.asarray(model.fields(weights, patterns))
    stabilities = np.asarray(model.stabilities(weights, patterns, labels))
    signs = np.array(list(itertools.product([-1, 1], repeat=model.num_hidden)))

    def outputs(h):
        tau = np.sign(h)
        return np.sign(tau.sum(-1)) if model.output == "majority" else tau.prod(-1)

    for h, stability, sigma in zip(fields, stabilities, np.asarray(labels), strict=True):
        assert np.sign(stability) == sigma * outputs(h)
        assert np.all(outputs(h + 0.999 * abs(stability) * signs) == outputs(h))
        assert np.any(outputs(h + 1.001 * abs(stability) * signs) != outputs(h))


def test_a_field_of_zero_is_an_error_for_both_labels():
    model = Committee(2, 1, weights="spherical")
    weights, pattern = jnp.ones((1, 2)), jnp.array([[1.0, -1.0]])
    assert int(model.errors(weights, pattern, jnp.array([1]))) == 1
    assert int(model.errors(weights, pattern, jnp.array([-1]))) == 1


def test_outputs_do_not_depend_on_the_units_norms():
    model = KINDS[3]
    patterns, labels = random_patterns(model, 3.0, 0)
    weights = model.random_weights(1) * jnp.array([[0.1], [3.0], [20.0]])
    normalized = model.normalize(weights)
    np.testing.assert_allclose(jnp.sum(normalized**2, 1), model.shape[1], rtol=1e-5)
    assert model.errors(weights, patterns, labels) == model.errors(normalized, patterns, labels)


@pytest.mark.parametrize("model", KINDS, ids=str)
def test_the_teacher_makes_no_error(model):
    examples, teacher = teacher_student(model, 5.0, 3)
    assert int(model.errors(teacher, *examples)) == 0
    assert 0.2 < float(jnp.mean(examples.labels > 0)) < 0.8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(num_inputs=20, num_hidden=2), "num_hidden must be odd for a majority.*got 2"),
        (dict(num_inputs=20, num_hidden=3), "num_hidden must divide num_inputs.*3 and 20"),
        (dict(num_inputs=20), "must be odd in number for binary weights.*got 20"),
        (dict(num_inputs=0), "num_inputs .*got 0"),
        (dict(num_inputs=5, architecture="ring"), "architecture must be of.*'ring'"),
        (dict(num_inputs=5, output="sum"), "output must be of.*'sum'"),
        (dict(num_inputs=5, weights="ternary"), "weights must be of.*'ternary'"),
    ],
)
def test_impossible_networks_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        Committee(**arguments)


def test_an_even_number_of_units_may_vote_by_parity():
    assert Committee(6, 2, output="parity").shape == (2, 3)
