"""Convolution and pooling in the form that is fastest where they run."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def conv(
    filters: int, size: int, *, stride: int = 1, padding: str = "SAME", use_bias: bool = True
) -> nn.Conv:
    """A Flax convolution layer with square filters."""
    return nn.Conv(
        filters,
        (size, size),
        strides=stride,
        padding=padding,
        use_bias=use_bias,
        conv_general_dilated=convolve,
    )


def convolve(
    images: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **layout: Any
) -> jax.Array:
    """``jax.lax.conv_general_dilated`` for undilated images (batch, height, width, channels).

    On CPU the product is taken of all windows at once. XLA's own convolution is as fast there by
    itself, but 3 to 5 times slower vmapped over networks and 15 to 25 times slower inside a loop,
    and seeds, replicas, Monte-Carlo draws and Lanczos steps are just that.
    """
    if jax.default_backend() == "cpu":
        return windows(images, kernel.shape[:2], strides, padding) @ kernel.reshape(
            -1, kernel.shape[-1]
        )
    return jax.lax.conv_general_dilated(images, kernel, strides, padding, **layout)


def windows(
    images: jax.Array, size: tuple[int, ...], strides: tuple[int, ...], padding: Any
) -> jax.Array:
    """The window that each output sees, (batch, height, width, window size x channels)."""
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(images.shape[1:3], size, strides, padding)
    images = jnp.pad(images, ((0, 0), *padding, (0, 0)))
    ends = [length - reach + 1 for length, reach in zip(images.shape[1:3], size, strict=True)]
    shifted = [
        images[:, row : row + ends[0] : strides[0], column : column + ends[1] : strides[1]]
        for row in range(size[0])
        for column in range(size[1])
    ]
    return jnp.concatenate(shifted, axis=-1)


def max_pool(images: jax.Array, size: int) -> jax.Array:
    """Largest value of each size x size block; what is left over at the end is left out."""
    batch, height, width, channels = images.shape
    whole = images[:, : height // size * size, : width // size * size]
    blocks = whole.reshape(batch, height // size, size, width // size, size, channels)
    return blocks.max(axis=(2, 4))
