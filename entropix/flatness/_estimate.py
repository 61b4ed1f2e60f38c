"""Estimates over random probes, and the probes' keys."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from entropix._checks import check_integer
from entropix._keys import check_key, fresh_key


class Estimate(NamedTuple):
    """A number with the standard error of the random probes that it was estimated by.

    Attributes:
      mean: the estimate.
      std_error: its standard error, of the shape of ``mean``; no bound.
    """

    mean: Any
    std_error: Any


class Bounded(NamedTuple):
    """A number with a bound on its error.

    Attributes:
      value: the number.
      bound: the number is off by no more than this.
    """

    value: jax.Array
    bound: jax.Array


def mean_over_probes(samples: jax.Array, axis: int = 0) -> Estimate:
    """Mean of independent samples, and its standard error: NaN where there is only one."""
    count = samples.shape[axis]
    mean = jnp.mean(samples, axis)
    spread = jnp.std(samples, axis, ddof=1) if count > 1 else jnp.full_like(mean, jnp.nan)
    return Estimate(mean, spread / count**0.5)


def with_rounding(estimate: Estimate, size: jax.Array, rounding: jax.Array | float) -> Estimate:
    """The estimate with the rounding of what was added up to it, numbers of this size, in its bar.

    Without it, probes that happen to agree would make a wrong number look exact.
    """
    return Estimate(estimate.mean, jnp.hypot(estimate.std_error, size * rounding))


def map_probes(function: Callable[[jax.Array], Any], keys: jax.Array, batch_size: int) -> Any:
    """The function's answers for all keys, stacked; so many of them computed at the same time.

    One at a time is no ``vmap``: under it a ``cond`` computes both of its branches.
    """
    return jax.lax.map(function, keys, batch_size=batch_size if batch_size > 1 else None)


def probe_keys(key: jax.Array | int, num_probes: Any) -> jax.Array:
    """One key for each probe, from a seed, a key, or that many keys.

    Raises:
      TypeError: ``num_probes`` is not an integer, or ``key`` is neither a seed nor a key.
      ValueError: ``num_probes`` is below 1, or not the number of keys.
    """
    check_integer("num_probes", num_probes, at_least=1)
    if (
        isinstance(key, jax.Array)
        and key.ndim == 1
        and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    ):
        if key.shape[0] != num_probes:
            raise ValueError(
                f"key must be one key or num_probes = {num_probes}, got {key.shape[0]}"
            )
        return key
    check_key(key)
    return jax.random.split(fresh_key(key), num_probes)
