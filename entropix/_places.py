"""Which of several mapped copies of a computation this is, as far as a transform can see.

Copies of one network on several devices must draw the same noise, or they drift apart; replicas
must draw different noise, or they are not independent. What tells them apart is whether the arrays
that the noise is for are mapped: along an axis of ``vmap`` they are replicas, and along an axis of
``shard_map`` they are where the type of the array says that it varies. ``pmap``, and ``shard_map``
without ``check_vma``, do not say.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Integer, UInt32

# For each group its leaves, and for each leaf the arrays one of which is mapped where it is.
Groups = Sequence[Sequence[tuple[Any, ...]]]


def mixed(
    words: UInt32[Array, "*shape"], shifts: tuple[int, int, int], factors: tuple[int, int]
) -> UInt32[Array, "*shape"]:
    """Xor-shift and multiply: one bit flipped in flips each bit out half the time."""
    words = words ^ (words >> np.uint32(shifts[0]))
    words = words * np.uint32(factors[0])
    words = words ^ (words >> np.uint32(shifts[1]))
    words = words * np.uint32(factors[1])
    return words ^ (words >> np.uint32(shifts[2]))


def place_after(
    place: UInt32[Array, "*#shape"], index: Integer[Array, "*#shape"]
) -> UInt32[Array, "*#shape"]:
    """The place of copy number ``index`` among those that share a place: different for each."""
    step = (index.astype(jnp.uint32) + np.uint32(1)) * np.uint32(0x9E3779B9)
    return mixed(place + step, (16, 15, 16), (0x21F0AAAD, 0x735A2D97))


def places(key_data: UInt32[Array, " words"], groups: Groups) -> list[UInt32[Array, ""]]:
    """A number for each group of arrays that differs between the mapped copies of it.

    Args:
      key_data: of the key that the noise of all copies comes from. An axis along which it is mapped
        itself does not count: the copies have different keys already.
      groups: of leaves. Mapped copies of a group count where all its leaves are mapped, and a leaf
        is where one of its arrays is, such as a parameter and its gradient.

    Returns:
      For each group a number, 0 where nothing is mapped.
    """
    still = [[tuple(map(jax.lax.stop_gradient, leaf)) for leaf in group] for group in groups]
    found: list[jax.Array] = _vmapped([jnp.zeros([], jnp.uint32) for _ in still], key_data, still)
    shared = varying_axes(key_data)
    for i, group in enumerate(still):
        axes = [frozenset[str]().union(*map(varying_axes, leaf)) for leaf in group]
        for name in sorted(frozenset.intersection(*axes) - shared if axes else ()):
            found[i] = place_after(found[i], jax.lax.axis_index(name))
    return found


def varying_axes(x: Any) -> frozenset[str]:
    """The axes of a ``shard_map`` with ``check_vma`` along which an array varies."""
    array_type = jax.typeof(x)
    manual = getattr(array_type, "manual_axis_type", None)
    return getattr(array_type, "vma", frozenset()) if manual is None else manual.varying


@custom_vmap
def _vmapped(found: list[Any], key_data: Any, groups: list[Any]) -> list[Any]:
    del key_data, groups
    return found


@_vmapped.def_vmap
def _vmapped_along(
    axis_size: int, in_batched: Any, found: list[Any], key_data: Any, groups: list[Any]
) -> tuple[list[Any], list[bool]]:
    """Moves the places of the groups that are mapped along one more axis than the key."""
    is_mapped, key_is_mapped, arrays_are_mapped = in_batched
    # Along the axes of vmaps around this one.
    placed = list(map(jnp.asarray, _vmapped(found, key_data, groups)))
    for i, (group, mapped) in enumerate(zip(groups, arrays_are_mapped, strict=True)):
        if group and all(map(any, mapped)) and not key_is_mapped:
            stack = group[0][mapped[0].index(True)]
            placed[i] = place_after(placed[i], _index_along(stack, axis_size))
            is_mapped[i] = True
    return placed, is_mapped


def _index_along(stack: jax.Array, length: int) -> jax.Array:
    """0, 1, ..., length - 1, sharded like the first axis of a stack."""
    sharding = jax.typeof(stack).sharding
    along = sharding.update(spec=jax.P(*sharding.spec[:1])) if sharding.spec else sharding
    return jax.lax.broadcasted_iota(jnp.uint32, (length,), 0, out_sharding=along)
