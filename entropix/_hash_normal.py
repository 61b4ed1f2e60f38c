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

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# The root of E[w^2] = 1, E[w^4] = 3 for w = a v + b v^3, v the sum of steps 1 and 2 (exact
# moments).
_LINEAR, _CUBIC = 0.3471501718, 0.00011537726594


def _mixed(word: jax.Array, shifts: tuple[int, int, int], factors: tuple[int, int]) -> jax.Array:
    """Xor-shift and multiply: one bit flipped in flips each bit out half the time."""
    word = word ^ (word >> np.uint32(shifts[0]))
    word = word * np.uint32(factors[0])
    word = word ^ (word >> np.uint32(shifts[1]))
    word = word * np.uint32(factors[1])
    return word ^ (word >> np.uint32(shifts[2]))


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
    return _mixed(counter, (16, 13, 16), (0x85EBCA6B, 0xC2B2AE35))


def _standard_normal(seed: jax.Array, leaf: jax.Array) -> jax.Array:
    """Float32 normal numbers of the leaf's shape from two uint32 seed words."""
    bits = _hashed_bits(seed, leaf)
    more_bits = _mixed(bits + np.uint32(0x9E3779B9), (15, 13, 16), (0x2C1B3C6D, 0x297A2D39))

    def to_float(word: jax.Array) -> jax.Array:
        return word.astype(jnp.int32).astype(jnp.float32)

    binomial = to_float(jax.lax.population_count(bits)) - 16
    triangular = (
        to_float((more_bits & np.uint32(0xFFFF)) + (more_bits >> np.uint32(16))) / 2**16 - 1
    )
    v = binomial + triangular
    return v * (_LINEAR + _CUBIC * v * v)


def _uniform(seed: jax.Array, leaf: jax.Array) -> jax.Array:
    """Float32 numbers on a grid inside (0, 1), both ends excluded and symmetric about 1/2."""
    bits = _hashed_bits(seed, leaf) >> np.uint32(9)
    return (bits.astype(jnp.int32).astype(jnp.float32) + 0.5) / 2**23


def normal_like(key: jax.Array, tree: Any) -> Any:
    """Independent standard normal numbers in the shapes, dtypes and shardings of ``tree``."""
    noise = _random_like(_standard_normal, key, tree)
    return jax.tree.map(lambda z, leaf: z.astype(leaf.dtype), noise, tree)


def uniform_like(key: jax.Array, tree: Any) -> Any:
    """Independent float32 numbers, uniform on (0, 1), in the shapes and shardings of ``tree``."""
    return _random_like(_uniform, key, tree)


def _random_like(
    draw: Callable[[jax.Array, jax.Array], jax.Array], key: jax.Array, tree: Any
) -> Any:
    """One stream of ``draw(seed, leaf)`` for each leaf."""
    leaves = jax.tree.leaves(tree)
    seeds = jax.random.bits(key, (len(leaves), 2), jnp.uint32)
    noise = [draw(seed, leaf) for seed, leaf in zip(seeds, leaves, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(tree), noise)
