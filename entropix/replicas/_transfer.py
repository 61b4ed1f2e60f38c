"""Arrays from some devices to others, which may be of other processes."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding


@functools.partial(jax.jit, static_argnames="sharding")
def moved(tree: Any, sharding: NamedSharding) -> Any:
    """Arrays of these devices in another sharding over them."""
    return jax.lax.with_sharding_constraint(tree, sharding)


def put(x: jax.Array, sharding: NamedSharding) -> jax.Array:
    """The array in a sharding, which may be over devices of other processes that have it too."""
    if jax.process_count() == 1:
        return jax.device_put(x, sharding)
    if not x.is_fully_addressable:
        return moved(x, sharding)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(
            put(jax.random.key_data(x), sharding), impl=jax.random.key_impl(x)
        )
    whole = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda place: whole[place])


def all_rows(x: jax.Array) -> jax.Array:
    """The rows of all processes, from those of each."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(
            all_rows(jax.random.key_data(x)), impl=jax.random.key_impl(x)
        )
    return jnp.asarray(multihost_utils.process_allgather(x, tiled=True))
