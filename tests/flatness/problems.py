"""Losses whose curvature is known: quadratics, regressions, and small networks."""

import jax
import jax.numpy as jnp
import numpy as np


def quadratic(params, batch):
    """Mean over rows x of (x w)^2 / 2: Hessian X^T X / n, minimum 0 at w = 0."""
    return jnp.mean(jnp.matmul(batch, params) ** 2) / 2


def logistic(params, batch):
    """Mean logistic loss of labels y in {0, 1}."""
    x, y = batch
    margin = jnp.matmul(x, params)
    return jnp.mean(jnp.logaddexp(jnp.zeros_like(margin), margin) - y * margin)


def softmax_outputs(params, batch):
    return jnp.matmul(batch[0], params)


def cross_entropy(logits, batch):
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), batch[1][:, None], axis=1)
    return -jnp.mean(picked)


def mlp_outputs(params, batch):
    hidden = jnp.tanh(jnp.matmul(batch[0], params["w"]) + params["b"][None])
    return jnp.matmul(hidden, params["v"])


def mlp(params, batch):
    return cross_entropy(mlp_outputs(params, batch), batch)


def linear_network(params, batch):
    """Mean of |y - x A B|^2 / 2."""
    x, y = batch
    return jnp.mean(jnp.sum((jnp.matmul(jnp.matmul(x, params[0]), params[1]) - y) ** 2, 1)) / 2


def mlp_problem(examples=60, inputs=5, hidden=6, classes=3, dtype=None):
    rng = np.random.default_rng(7)
    params = {
        "w": rng.normal(size=(inputs, hidden)),
        "b": rng.normal(size=hidden),
        "v": rng.normal(size=(hidden, classes)),
    }
    data = rng.normal(size=(examples, inputs)), rng.integers(0, classes, size=examples)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype or jnp.result_type(float)), params)
    return params, (
        jnp.asarray(data[0], dtype or jnp.result_type(float)),
        jnp.asarray(data[1], jnp.int32),
    )
