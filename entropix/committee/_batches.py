"""Mini-batches of example indices."""

import jax
import jax.numpy as jnp


def random_order(key: jax.Array, count: int) -> jax.Array:
    """All indices below ``count`` in random order."""
    return jax.random.permutation(key, count)


def random_batches(key: jax.Array, count: int, batch_size: int) -> jax.Array:
    """The same batch by batch; -1 fills up the last one. # shape=(ceil(count / size), size)."""
    rows = -(-count // batch_size)
    order = random_order(key, count)
    filled = jnp.pad(order, (0, rows * batch_size - count), constant_values=-1)
    return filled.reshape(rows, batch_size)
