"""Networks of real layers, with the step of one replica and the states of all."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen

import entropix
from entropix import replicas

CLASSES = 3


class MLP(linen.Module):
    """Two layers and dropout."""

    shape = (12,)

    @linen.compact
    def __call__(self, x):
        x = linen.relu(linen.Dense(32)(x))
        x = linen.Dropout(0.3, deterministic=False)(x)
        return linen.Dense(CLASSES)(x)


class ConvNet(linen.Module):
    """Convolutions, batch normalization, dropout."""

    shape = (8, 8, 2)

    @linen.compact
    def __call__(self, x):
        x = linen.Conv(8, (3, 3), use_bias=False)(x)
        x = linen.relu(linen.BatchNorm(use_running_average=False, momentum=0.8)(x))
        x = linen.relu(linen.Conv(8, (3, 3), strides=(2, 2))(x))
        x = linen.Dropout(0.3, deterministic=False)(x)
        return linen.Dense(CLASSES)(x.mean((1, 2)))


class LSTM(linen.Module):
    """A recurrent network over 5 places."""

    shape = (5, 6)

    @linen.compact
    def __call__(self, x):
        return linen.Dense(CLASSES)(linen.RNN(linen.OptimizedLSTMCell(16))(x)[:, -1])


class Attention(linen.Module):
    """Self-attention with dropout, and a layer normalization."""

    shape = (6, 8)

    @linen.compact
    def __call__(self, x):
        attend = linen.MultiHeadDotProductAttention(2, dropout_rate=0.2, deterministic=False)
        x = linen.LayerNorm()(x + attend(x))
        return linen.Dense(CLASSES)(linen.relu(linen.Dense(32)(x)).mean(1))


NETWORKS = {"mlp": MLP(), "conv": ConvNet(), "lstm": LSTM(), "attention": Attention()}


class TrainState(NamedTuple):
    """Everything that a step changes, of one replica or stacked."""

    params: Any
    batch_stats: Any
    opt_state: Any
    key: jax.Array
    step: jax.Array


def optimizer(axis_name, every=2):
    """Replicated SGD strong enough to be seen."""
    return entropix.replicated_sgd(0.05, gamma=0.1, every=every, axis_name=axis_name)


def make_step(net, tx):
    """One update of one replica on its mini-batch, with its loss as the answer."""

    def loss(params, batch_stats, key, x, labels):
        logits, new = net.apply(
            {"params": params, "batch_stats": batch_stats}, x,
            rngs={"dropout": key}, mutable=["batch_stats"],
        )  # fmt: skip
        value = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return value, new.get("batch_stats", {})

    def step(state, batch):
        key = jax.random.fold_in(state.key, state.step)
        (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(
            state.params, state.batch_stats, key, *batch
        )
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, stats, opt_state, state.key, state.step + 1), value

    return step


def start(net, tx, y):
    """The replicas at the start, each with an initialization and a key of its own."""

    def init(key):
        rngs = {"params": key, "dropout": key}
        variables = net.init(rngs, jnp.ones((1, *net.shape)))
        params = variables["params"]
        stats = variables.get("batch_stats", {})
        return TrainState(params, stats, tx.init(params), key, jnp.zeros([], jnp.int32))

    return jax.jit(lambda keys: replicas.stack_states(init, keys))(
        jax.random.split(jax.random.key(5), y)
    )


def batches(net, y, size, count=2):
    """Mini-batches of all replicas."""
    rng = np.random.default_rng(6)
    return [
        (
            rng.normal(size=(y, size, *net.shape)).astype(np.float32),
            rng.integers(0, CLASSES, (y, size)),
        )
        for _ in range(count)
    ]


def vmapped(step, state):
    """The step of all replicas on one device."""
    axes = jax.tree.map(lambda leaf: 0 if leaf.ndim else None, state)
    return jax.jit(jax.vmap(step, (axes, 0), (axes, 0), axis_name="replicas"))
