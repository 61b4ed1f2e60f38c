"""The matrix-product convolution is the convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.common.convolution import convolve, max_pool

LAYOUT = ("NHWC", "HWIO", "NHWC")


@pytest.mark.parametrize("padding", ["SAME", "VALID", [(1, 2), (0, 1)]])
@pytest.mark.parametrize("stride", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize("size", [(3, 3), (5, 2), pytest.param((1, 1), marks=pytest.mark.slow)])
def test_equals_lax(padding, stride, size):
    image_key, kernel_key = jax.random.split(jax.random.key(0))
    images = jax.random.normal(image_key, (2, 9, 8, 3))
    kernel = jax.random.normal(kernel_key, (*size, 3, 4))
    ours = convolve(images, kernel, (stride, stride), padding)
    theirs = jax.lax.conv_general_dilated(
        images, kernel, (stride, stride), padding, dimension_numbers=LAYOUT
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_other_backends_get_lax(monkeypatch):
    images, kernel = jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1))
    on_cpu = convolve(images, kernel, (1, 1), "SAME")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    text = str(
        jax.make_jaxpr(lambda x: convolve(x, kernel, (1, 1), "SAME", dimension_numbers=LAYOUT))(
            images
        )
    )
    assert "conv_general_dilated" in text
    elsewhere = convolve(images, kernel, (1, 1), "SAME", dimension_numbers=LAYOUT)
    np.testing.assert_allclose(on_cpu, elsewhere, atol=1e-6)


def test_pooling_takes_the_largest_and_leaves_out_the_rest():
    images = jnp.arange(30.0).reshape(1, 5, 6, 1)
    np.testing.assert_array_equal(max_pool(images, 2)[0, :, :, 0], [[7, 9, 11], [19, 21, 23]])
