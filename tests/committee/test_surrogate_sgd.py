"""The surrogate loss by its closed forms, and any optimizer of Optax on it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import entropix
from entropix.committee import (
    Committee,
    cross_entropy,
    local_entropy_curve,
    random_patterns,
    surrogate_loss,
    surrogate_sgd,
)
from entropix.committee._learning import start_and_order

MODEL = Committee(99, 3, weights="spherical")
EXAMPLES = random_patterns(MODEL, 0.5, 0)


def test_cross_entropy_is_the_papers_formula(x64):
    x = np.linspace(-3, 3, 41)
    for gamma in (0.3, 1.0, 4.0):
        expected = -x / 2 + np.log(2 * np.cosh(gamma * x)) / (2 * gamma)
        np.testing.assert_allclose(cross_entropy(x, gamma), expected, atol=1e-12)
        slope = jax.vmap(jax.grad(cross_entropy), (0, None))(jnp.asarray(x), gamma)
        np.testing.assert_allclose(slope, -1 / (1 + np.exp(2 * gamma * x)), atol=1e-12)
    np.testing.assert_allclose(cross_entropy(x, 1e6), np.maximum(-x, 0), atol=1e-6)
    np.testing.assert_allclose(cross_entropy(0.0, 3.0), np.log(2) / 6, atol=1e-12)


@pytest.mark.parametrize("output", ["majority", "parity"])
def test_loss_is_that_of_the_definition(output, x64):
    model = Committee(15, 3, output=output, weights="spherical")
    patterns, labels = random_patterns(model, 1.0, 0)
    weights = model.random_weights(1)
    found = surrogate_loss(model, beta=0.7, gamma=1.3)(weights, (patterns, labels))
    total = 0.0
    for x, label in zip(np.asarray(patterns), np.asarray(labels), strict=True):
        units = np.tanh(0.7 * np.sum(np.asarray(weights) * x.reshape(3, 5), axis=1) / np.sqrt(5))
        out = label * (np.sum(units) / np.sqrt(3) if output == "majority" else np.prod(units))
        total += np.log1p(np.exp(-2.6 * out)) / 2.6
    np.testing.assert_allclose(found, total / len(labels), atol=1e-12)


@pytest.mark.slow
def test_one_pass_of_sgd_is_that_of_plain_jax(x64):
    """With a last mini-batch that is not full, and weights brought back to their norm."""
    model = Committee(45, 3, weights="spherical")
    patterns, labels = random_patterns(model, 10 / 45, 0)
    found = surrogate_sgd(
        model, patterns, labels, optax.sgd(3.0), 5, beta=0.8, gamma=0.6, batch_size=4, max_epochs=1
    )
    start_key, batch_key = start_and_order(jax.random.key(5))
    weights = model.random_weights(start_key)
    loss = surrogate_loss(model, beta=0.8, gamma=0.6)
    order = jax.random.permutation(jax.random.fold_in(batch_key, 0), 10)
    for batch in (order[:4], order[4:8], order[8:]):
        examples = patterns[batch], labels[batch]
        gradient = jax.grad(lambda w, data: loss(model.normalize(w), data))(weights, examples)
        weights = model.normalize(weights - 3.0 * gradient)
    np.testing.assert_allclose(found.weights, weights, atol=1e-12)


@pytest.mark.parametrize(
    ("tx", "arguments"),
    [
        (optax.sgd(20.0), {}),
        pytest.param(optax.adam(0.05), {}, marks=pytest.mark.slow),
        (
            entropix.entropy_sgd(inner_learning_rate=5.0, inner_steps=5, inner_momentum=0.0),
            dict(eval_params=entropix.eval_params),
        ),
        (entropix.replicated_sgd(20.0, gamma=1e-3, momentum=None, axis=0), dict(replicas=3)),
    ],
    ids=["sgd", "adam", "entropy_sgd", "replicated_sgd"],
)
@pytest.mark.slow
def test_any_optimizer_learns(tx, arguments):
    found = surrogate_sgd(MODEL, *EXAMPLES, tx, 1, growth=1.01, max_epochs=1000, **arguments)
    assert bool(found.solved)
    assert found.weights.shape == MODEL.shape
    assert int(MODEL.errors(found.weights, *EXAMPLES)) == 0
    np.testing.assert_allclose(jnp.sum(found.weights**2, axis=1), 33, rtol=1e-5)


def test_growth_sharpens_the_units():
    """Without it the smooth network ends where its signs still err; with too much it freezes."""
    solved = [
        surrogate_sgd(MODEL, *EXAMPLES, optax.sgd(20.0), 1, growth=growth, max_epochs=400)
        for growth in (1.01, 1.5)
    ]
    assert bool(solved[0].solved)
    assert not bool(solved[1].solved)
    assert np.all(np.isfinite(solved[1].weights))
    frozen = np.asarray(solved[1].history[-20:])
    assert np.all(frozen == frozen[0])


@pytest.mark.slow
def test_its_solutions_are_wider_than_those_of_least_action_learning():
    plain = entropix.committee.least_action_learning(MODEL, *EXAMPLES, 1)
    smooth = surrogate_sgd(MODEL, *EXAMPLES, optax.sgd(20.0), 1, growth=1.01, max_epochs=1000)
    assert bool(plain.solved)
    narrow, wide = (
        local_entropy_curve(MODEL, found.weights, *EXAMPLES, jnp.array([60.0, 20.0]))
        for found in (plain, smooth)
    )
    assert np.all(wide.relative_entropy > narrow.relative_entropy + 0.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(model=Committee(99, 3)), "model .*got binary"),
        (dict(beta=0.0), "beta .*got 0.0"),
        (dict(gamma=-1.0), "gamma .*got -1.0"),
        (dict(growth=0.9), "growth .*got 0.9"),
        (dict(batch_size=0), "batch_size .*got 0"),
        (dict(replicas=1), "replicas .*got 1"),
        (dict(labels=jnp.zeros(50)), r"labels must each be \+1 or -1, got 0.0"),
    ],
)
def test_impossible_input_is_refused_by_name(change, message):
    arguments = (
        dict(model=MODEL, patterns=EXAMPLES.patterns, labels=EXAMPLES.labels, tx=optax.sgd(1.0))
        | change
    )
    with pytest.raises(ValueError, match=message):
        surrogate_sgd(key=0, **arguments)
