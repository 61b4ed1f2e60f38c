"""Keys that a caller hands in: a seed or a typed key, checked, in a buffer of its own."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def fresh_key(key: Any) -> jax.Array:
    """A typed key in a buffer of its own, from a seed, a typed key, or an old-style key array."""
    if jnp.issubdtype(jnp.result_type(key), jax.dtypes.prng_key):
        return jax.random.wrap_key_data(
            jnp.copy(jax.random.key_data(key)), impl=jax.random.key_impl(key)
        )
    if np.ndim(key) > 0:
        return jax.random.wrap_key_data(jnp.array(key))
    return jax.random.key(key)


def check_key(key: Any) -> None:
    """Raises unless `fresh_key` makes a key of it.

    Raises:
      TypeError: it is neither an integer seed nor a key.
    """
    dtype = getattr(key, "dtype", np.dtype(type(key)) if isinstance(key, int) else np.dtype(object))
    is_key = jnp.issubdtype(dtype, jax.dtypes.prng_key) or (np.ndim(key) > 0 and dtype == np.uint32)
    is_seed = np.ndim(key) == 0 and jnp.issubdtype(dtype, jnp.integer)
    if not (is_key or is_seed):
        raise TypeError(f"key must be an integer seed or a key of jax.random.key, got {key!r}")
