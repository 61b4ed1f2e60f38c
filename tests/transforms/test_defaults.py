"""Defaults are features: every optimizer trains with them, as well as a tuned SGD."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import entropix

STEPS, BATCH_SIZE, SEEDS, REPLICAS = 500, 64, 4, 3
TRAINING = 1297

DEFAULTS = {
    "entropy_sgd": entropix.entropy_sgd(),
    "entropy_adam": entropix.entropy_adam(1e-2),
    "heat_sgd": entropix.heat_sgd(),
    "hopf_lax_sgd": entropix.hopf_lax_sgd(),
    "sgld": entropix.sgld(0.3),
}
REPLICATED = {
    "parle": entropix.parle(axis=0),
    "replicated_sgd": entropix.replicated_sgd(0.1, axis=0),
    "elastic_sgd": entropix.elastic_sgd(0.3, axis=0),
}


@functools.cache
def digits():
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    return (images[order] / 16).astype(np.float32), labels[order]


def init(key):
    sizes = (64, 64, 64, 10)
    return [
        {"w": jax.random.normal(k, (a, b)) * (2 / a) ** 0.5, "b": jnp.zeros(b)}
        for k, (a, b) in zip(jax.random.split(key, 3), itertools.pairwise(sizes), strict=True)
    ]


def logits(params, images):
    for layer in params[:-1]:
        images = jax.nn.relu(images @ layer["w"] + layer["b"][None])
    return images @ params[-1]["w"] + params[-1]["b"][None]


def loss(params, key):
    images, labels = map(jnp.asarray, digits())
    batch = jax.random.randint(key, (BATCH_SIZE,), 0, TRAINING)
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits(params, images[batch]), labels[batch]
    )
    return losses.mean()


def final_error(tx, key, replicas=None):
    """Per cent of the test images that the evaluated weights of one run get wrong."""
    init_key, data_key = jax.random.split(key)
    params = init(init_key) if replicas is None else jax.vmap(init)(jax.random.split(key, replicas))

    def step(carry, key):
        params, state = carry
        if replicas is None:
            grads = jax.grad(loss)(params, key)
        else:
            grads = jax.vmap(jax.grad(loss))(params, jax.random.split(key, replicas))
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    start = params, tx.init(params)
    (params, state), _ = jax.lax.scan(step, start, jax.random.split(data_key, STEPS))
    params = entropix.eval_params(state, params, axis=None if replicas is None else 0)
    images, labels = digits()
    wrong = logits(params, images[TRAINING:]).argmax(-1) != labels[TRAINING:]
    return 100 * jnp.mean(wrong)


KEYS = jax.random.split(jax.random.key(1), SEEDS)


def some_slow(names):
    quick = ("entropy_sgd", "replicated_sgd")
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]


def mean_error(tx, replicas=None):
    errors = jax.jit(lambda: jax.lax.map(lambda key: final_error(tx, key, replicas), KEYS))()
    return float(np.mean(errors))


@functools.cache
def tuned_sgd():
    def of_rate(rate):
        tx = optax.sgd(rate, momentum=0.9, nesterov=True)
        return jnp.mean(jax.lax.map(lambda key: final_error(tx, key), KEYS))

    return float(jax.jit(lambda: jax.lax.map(of_rate, jnp.array([0.03, 0.1, 0.3])))().min())


@pytest.mark.parametrize("name", some_slow(DEFAULTS))
def test_defaults_reach_tuned_sgd(name):
    error = mean_error(DEFAULTS[name])
    assert error < tuned_sgd() + 1


@pytest.mark.parametrize("name", some_slow(REPLICATED))
def test_defaults_of_replicas_reach_tuned_sgd(name):
    error = mean_error(REPLICATED[name], REPLICAS)
    assert error < tuned_sgd() + 1
