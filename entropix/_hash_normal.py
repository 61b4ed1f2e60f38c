"""Standard normal numbers at the price of a few integer operations each.

One threefry normal costs more than the rest of an optimizer's work on that parameter, so the noise
of the transforms is a counter-based hash instead: the number at position i of a leaf is a function
of (key, leaf, i) alone, needs no memory, and fuses into the loop that uses it. Three steps make it
normal:

1. the population count of 32 hashed bits is Binomial(32, 1/2);
2. a triangular number on (-1, 1) fills the gaps of the integer lattice: the zeros of its
   characteristic function lie on the lattice's aliases, so what is left is smooth;
3. the sum, centered, goes through the odd cubic that gives it variance 1 and fourth moment 3.

The numbers stay inside |z| < 6.5; their distribution function is within 1.7e-4 of that of N(0, 1),
tails included to within 6 % at 4 standard deviations. They are meant for optimization, not for
cryptography.
"""

import functools
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from entropix._places import mixed, places

# The root of E[w^2] = 1, E[w^4] = 3 for w = a v + b v^3, v the sum of steps 1 and 2 (exact
# moments).
_LINEAR, _CUBIC = 0.3471501718, 0.00011537726594
# Shifts and factors of two rounds of mixing.
_FIRST_ROUND = (16, 13, 16), (0x85EBCA6B, 0xC2B2AE35)
_SECOND_ROUND = (15, 13, 16), (0x2C1B3C6D, 0x297A2D39)


def _linear_index(leaf: jax.Array) -> jax.Array:
    """The row-major position of each element, modulo 2^32, sharded like the leaf."""
    sharding = jax.typeof(leaf).sharding
    index = jnp.zeros_like(leaf, jnp.uint32)
    stride = 1
    for axis in reversed(range(leaf.ndim)):
        position = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis, out_sharding=sharding)
        index = index + position * np.uint32(stride % 2**32)
        stride *= leaf.shape[axis]
    return index


def _hashed_bits(seed: jax.Array, leaf: jax.Array) -> jax.Array:
    """32 random bits for each element of the leaf from two uint32 seed words."""
    # An odd factor drawn anew for each seed keeps two streams from being shifts of one another.
    counter = _linear_index(leaf) * (seed[0] | np.uint32(1)) + seed[1]
    return mixed(counter, *_FIRST_ROUND)


def _standard_normal(seed: jax.Array, leaf: jax.Array) -> jax.Array:
    """Float32 normal numbers of the leaf's shape from two uint32 seed words."""
    bits = _hashed_bits(seed, leaf)
    more_bits = mixed(bits + np.uint32(0x9E3779B9), *_SECOND_ROUND)

    def to_float(word: jax.Array) -> jax.Array:
        return word.astype(jnp.int32).astype(jnp.float32)

    binomial = to_float(jax.lax.population_count(bits)) - 16
    triangular = (
        to_float((more_bits & np.uint32(0xFFFF)) + (more_bits >> np.uint32(16))) / 2**16 - 1
    )
    v = binomial + triangular
    return v * (_LINEAR + _CUBIC * v * v)


@functools.cache
def _stream(path: str) -> tuple[int, int]:
    """Two words that name a leaf's stream."""
    digest = hashlib.blake2b(path.encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4]), int.from_bytes(digest[4:])


def normal_like(key: Key[Array, ""], tree: Any, params: Any = None) -> Any:
    """Independent standard normal numbers in the shapes, dtypes and shardings of ``tree``.

    A leaf's stream is named by its path and not by its position: the groups of ``optax.partition``
    hold different leaves of one tree, and draw different numbers from one key. Mapped copies of a
    leaf draw from different streams where the key is the same for all, see `entropix._places`; so
    do those of ``params``, where ``tree`` is made for it and may itself be the same for all.
    """
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(tree)]
    if not paths:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    names = np.array([_stream(path) for path in paths], np.uint32)
    seeds = mixed(jax.random.bits(key, (1, 2), jnp.uint32) ^ names, *_FIRST_ROUND)
    # Nothing where nothing is mapped, and both words another for each copy elsewhere.
    beside = leaves
    if params is not None:
        beside = jax.tree.leaves(jax.tree.map(lambda _, x: x, tree, params))
    copies = places(
        jax.random.key_data(key), [[arrays] for arrays in zip(leaves, beside, strict=True)]
    )
    noise = [
        _standard_normal(seed ^ jnp.stack([copy, copy * np.uint32(0x85EBCA6B)]), leaf)
        for seed, copy, leaf in zip(seeds, copies, leaves, strict=True)
    ]
    return jax.tree.unflatten(
        structure, [z.astype(leaf.dtype) for z, leaf in zip(noise, leaves, strict=True)]
    )
