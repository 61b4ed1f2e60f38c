"""Every public function inside jit, its patterns known outside: values are checked where known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from entropix.committee import (
    Committee,
    approximate_message_passing,
    belief_propagation,
    binarize,
    entropic_lal,
    focusing_bp,
    least_action_learning,
    local_entropy_curve,
    noise_robustness,
    parallel_tempering,
    pseudo_reinforcement,
    random_patterns,
    replicated_lal,
    rising_coupling,
    sampled_local_entropy,
    shuffle_pixels,
    surrogate_loss,
    surrogate_sgd,
    two_classes,
)

FLAT, BINARY, SPHERE = Committee(15), Committee(15, 3), Committee(15, 3, weights="spherical")
EXAMPLES = random_patterns(BINARY, 0.4, 0)
SIGNS = jnp.ones(BINARY.shape)
BETAS = jnp.array([0.0, 1.0])
RATES = jnp.array([0.1, 0.2])
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 3)))

CALLS = {
    "approximate_message_passing": lambda x, y, key: approximate_message_passing(FLAT, x, y),
    "belief_propagation": lambda x, y, key: belief_propagation(BINARY, x, y, field=SIGNS),
    "local_entropy_curve": lambda x, y, key: local_entropy_curve(
        BINARY, SIGNS, x, y, np.array([1.0, 0.5])
    ),
    "local_entropy_curve, spherical": lambda x, y, key: local_entropy_curve(
        SPHERE, SIGNS, x, y, RATES
    ),
    "sampled_local_entropy": lambda x, y, key: sampled_local_entropy(
        BINARY, SIGNS, x, y, RATES, key
    ),
    "focusing_bp": lambda x, y, key: focusing_bp(BINARY, x, y, rising_coupling(RATES), key),
    "pseudo_reinforcement": lambda x, y, key: focusing_bp(
        BINARY, x, y, pseudo_reinforcement(RATES), key
    ),
    "least_action_learning": lambda x, y, key: least_action_learning(BINARY, x, y, key, init=SIGNS),
    "entropic_lal": lambda x, y, key: entropic_lal(SPHERE, x, y, key),
    "replicated_lal": lambda x, y, key: replicated_lal(BINARY, x, y, key),
    "surrogate_sgd": lambda x, y, key: surrogate_sgd(SPHERE, x, y, optax.sgd(1.0), key),
    "surrogate_loss": lambda x, y, key: surrogate_loss(SPHERE, beta=1.0, gamma=1.0)(SIGNS, (x, y)),
    "parallel_tempering": lambda x, y, key: parallel_tempering(
        BINARY, x, y, BETAS, key, num_sweeps=8
    ),
    "noise_robustness": lambda x, y, key: noise_robustness(BINARY, SIGNS, x, y, RATES, key),
}


@pytest.mark.parametrize("name", CALLS)
def test_patterns_may_be_closed_over_or_traced(name):
    closed = jax.eval_shape(lambda key: CALLS[name](*EXAMPLES, key), jax.random.key(0))
    traced = jax.eval_shape(CALLS[name], *EXAMPLES, jax.random.key(0))
    assert closed == traced


@pytest.mark.parametrize("name", [name for name in CALLS if name != "surrogate_loss"])
def test_closed_over_values_are_checked_all_the_same(name):
    patterns, labels = EXAMPLES
    halves = labels / 2
    with pytest.raises(ValueError, match=r"labels.*0\.5"):
        jax.eval_shape(lambda key: CALLS[name](patterns, halves, key), jax.random.key(0))
    # Shapes are known of tracers too.
    with pytest.raises(ValueError, match=r"patterns.*\(6, 14\)"):
        jax.eval_shape(CALLS[name], patterns[:, :14], labels, jax.random.key(0))


def test_makers_of_patterns_and_protocols_compile_around_what_they_are_given():
    jax.eval_shape(lambda: (binarize(IMAGES), rising_coupling(RATES), pseudo_reinforcement(RATES)))
    jax.eval_shape(lambda key: shuffle_pixels(EXAMPLES.patterns, key), jax.random.key(0))
    classes = jnp.array([0, 0, 0, 1, 1, 1])
    for patterns in (EXAMPLES.patterns, np.asarray(EXAMPLES.patterns)):
        found = jax.eval_shape(
            lambda key, x=patterns: two_classes(x, classes, (0, 1), 2, key), jax.random.key(0)
        )
        assert found.patterns.shape == (4, 15)
    falling, unknown = -RATES, IMAGES * jnp.nan
    for call in (
        lambda: rising_coupling(falling),
        lambda: binarize(unknown),
        lambda: parallel_tempering(BINARY, *EXAMPLES, RATES, 0),
    ):
        with pytest.raises(ValueError, match=r"gamma.*-0\.1|images.*nan|beta must rise from 0"):
            jax.eval_shape(call)
    with pytest.raises(TypeError, match="classes"):
        jax.eval_shape(lambda c: two_classes(EXAMPLES.patterns, c, (0, 1), 2, 0), classes)


def test_the_compiled_answer_is_the_eager_one():
    eager = belief_propagation(BINARY, *EXAMPLES)
    inside = jax.jit(lambda: belief_propagation(BINARY, *EXAMPLES))()
    np.testing.assert_allclose(inside.mean, eager.mean, atol=1e-5)
