"""A regression with a quartic term, on a tree and as a NumPy vector, and loops that train on it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

GRADIENTS = 80
REPLICAS = 4
DIM = 5


def problem(seed: int = 0):
    """Linear regression with a quartic term on 80 mini-batches: (inputs, targets, start)."""
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(REPLICAS, GRADIENTS, 8, DIM)),
        rng.normal(size=(REPLICAS, GRADIENTS, 8)),
        rng.normal(size=DIM),
    )


INPUTS, TARGETS, START = problem()


def np_gradient(x, replica, index):
    features, targets = INPUTS[replica, index], TARGETS[replica, index]
    return features.T @ (features @ x - targets) / len(targets) + 0.1 * x**3


def loss(tree, batch):
    """The same problem on a tree of two leaves."""
    x = jnp.concatenate([tree["a"], tree["b"].ravel()])
    features, targets = batch
    return 0.5 * jnp.mean((features @ x - targets) ** 2) + 0.025 * jnp.sum(x**4)


def as_tree(x):
    return {"a": jnp.asarray(x[..., :2]), "b": jnp.asarray(x[..., 2:]).reshape(*x.shape[:-1], 3, 1)}


def as_vector(tree):
    b = tree["b"]
    return np.concatenate([tree["a"], b.reshape((*b.shape[:-2], 3))], axis=-1)


def batch_of(replica, index):
    return jnp.asarray(INPUTS)[replica, index], jnp.asarray(TARGETS)[replica, index]


def train(tx, steps=GRADIENTS, replica=0):
    """One jitted scan of the transparent use: the parameters held, and the state."""

    def step(carry, index):
        params, state = carry
        grads = jax.grad(loss)(params, batch_of(replica, index))
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    start = as_tree(START)
    return jax.jit(lambda: jax.lax.scan(step, (start, tx.init(start)), jnp.arange(steps))[0])()


def replica_starts():
    return START + 0.5 * np.random.default_rng(1).normal(size=(REPLICAS, DIM))


def one_replica(tx):
    """Trains ONE replica over its own mini-batches; to be mapped over (start, replica)."""

    def run(start, replica):
        def step(carry, index):
            params, state = carry
            grads = jax.grad(loss)(params, batch_of(replica, index))
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (start, tx.init(start)), jnp.arange(GRADIENTS))[0][0]

    return run


def stacked(tx, starts):
    """Trains stacked replicas with one optimizer over the whole stack."""

    def step(carry, index):
        params, state = carry
        batches = batch_of(jnp.arange(starts.shape[0]), index)
        grads = jax.vmap(jax.grad(loss))(params, batches)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    start = as_tree(starts)
    return jax.jit(lambda: jax.lax.scan(step, (start, tx.init(start)), jnp.arange(GRADIENTS))[0])()[
        0
    ]
