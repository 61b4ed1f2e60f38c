"""Keys that a caller hands in: checked, in buffers of their own, and another for each replica."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Integer, Key

from entropix._places import places


def fresh_key(key: Any) -> Key[Array, ""]:
    """A typed key in a buffer of its own, from a seed, a typed key, or an old-style key array."""
    if jnp.issubdtype(jnp.result_type(key), jax.dtypes.prng_key):
        return jax.random.wrap_key_data(
            jnp.copy(jax.random.key_data(key)), impl=jax.random.key_impl(key)
        )
    if np.ndim(key) > 0:
        return jax.random.wrap_key_data(jnp.array(key))
    return jax.random.key(key)


def check_key(key: Any) -> None:
    """Raises unless `fresh_key` makes one key of it.

    Raises:
      TypeError: it is neither an integer seed nor a single key.
    """
    dtype = getattr(key, "dtype", np.dtype(type(key)) if isinstance(key, int) else np.dtype(object))
    is_typed = np.ndim(key) == 0 and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    is_raw = np.ndim(key) == 1 and dtype == np.uint32
    is_seed = np.ndim(key) == 0 and jnp.issubdtype(dtype, jnp.integer)
    if not (is_typed or is_raw or is_seed):
        what = f"an array of shape {np.shape(key)}" if np.ndim(key) else repr(key)
        raise TypeError(f"key must be an integer seed or one key of jax.random.key, got {what}")


def replica_key(key: Any, params: Any) -> Key[Array, ""]:
    """The key of a state made at ``params``: another one for each replica that can be told apart.

    Args:
      key: what the caller of a factory gave.
      params: of one replica: arrays, or their shapes and dtypes.

    Returns:
      A key in a buffer of its own. It is not the key given, even where nothing is mapped.
    """
    state_key = fresh_key(key)
    arrays = [(leaf,) for leaf in jax.tree.leaves(params) if isinstance(leaf, jax.Array)]
    (place,) = places(jax.random.key_data(state_key), [arrays])
    return jax.random.fold_in(state_key, place)


def fold_in_keys(tree: Any, index: int | Integer[Array, "*replicas"]) -> Any:
    """A state with other keys: the number of a replica is folded into each.

    Args:
      tree: a pytree such as an optimizer state. Its leaves that are no typed keys stay.
      index: the number of the replica; or an array of the numbers of all, for a state whose keys
        are stacked on a first axis of that length.

    Returns:
      A tree like ``tree``.
    """

    def folded(leaf: Any) -> Any:
        if not jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
            return leaf
        fold = jax.random.fold_in
        for _ in range(jnp.ndim(index), leaf.ndim):
            fold = jax.vmap(fold, (0, None))
        for _ in range(jnp.ndim(index)):
            fold = jax.vmap(fold)
        return fold(leaf, jnp.asarray(index))

    return jax.tree.map(folded, tree)
