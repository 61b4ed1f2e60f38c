"""Arrays onto the devices of a layout, which may be of other processes, and back to the host."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding


def is_key(x: Any) -> bool:
    """Whether an array is of typed keys."""
    return jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)


def placed(x: Any, sharding: NamedSharding) -> jax.Array:
    """A copy of the array in a sharding, over devices of processes that all have it.

    A copy even where the array lies there already: a step that gives its state's buffers away must
    not take those of the caller's own arrays.
    """
    if jax.process_count() == 1:
        return jax.device_put(x, sharding, may_alias=False)
    if not getattr(x, "is_fully_addressable", True):
        return _copied(x, sharding)
    if is_key(x):
        data = placed(jax.random.key_data(x), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    whole = np.asarray(x)
    return jax.make_array_from_callback(whole.shape, sharding, lambda place: whole[place])


def relaid(x: jax.Array, sharding: NamedSharding) -> jax.Array:
    """The array in another sharding over the same devices."""
    return jax.device_put(x, sharding) if x.is_fully_addressable else _copied(x, sharding)


@functools.partial(jax.jit, static_argnames="sharding")
def _copied(x: jax.Array, sharding: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(jnp.copy(x), sharding)


def placed_part(x: Any, sharding: NamedSharding) -> jax.Array:
    """The array of all processes from the part that each gives."""
    if jax.process_count() == 1:
        return jax.device_put(x, sharding)
    return jax.make_array_from_process_local_data(sharding, np.asarray(x))


def on_host(x: Any) -> Any:
    """The whole of an array as a NumPy array; keys as a key array on one device."""
    if is_key(x):
        return jax.random.wrap_key_data(
            on_host(jax.random.key_data(x)), impl=jax.random.key_impl(x)
        )
    if getattr(x, "is_fully_addressable", True) or x.is_fully_replicated:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))
