"""Convolutions in canonical layout: the same numbers, and no other layout inside a loop."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropix.flatness import dense, hessian, lanczos
from entropix.flatness._convolutions import canonical_convolutions

RNG = np.random.default_rng(0)


def outputs(params, x, strides, groups):
    h = jax.lax.conv_general_dilated(
        x, params["k"], strides, "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
    )  # fmt: skip
    h = jax.nn.softplus(h)
    return jax.lax.conv_general_dilated(
        h.transpose(0, 3, 1, 2), params["m"], (1, 1), "VALID", rhs_dilation=(2, 2)
    )


def loss(params, batch, strides=(2, 1), groups=2):
    return jnp.mean(outputs(params, batch, strides, groups) ** 2)


PARAMS = {
    "k": jnp.asarray(RNG.normal(size=(3, 2, 2, 4)), jnp.float32),
    "m": jnp.asarray(RNG.normal(size=(3, 4, 2, 2)), jnp.float32),
}
IMAGES = jnp.asarray(RNG.normal(size=(6, 9, 7, 4)), jnp.float32)


def one_product(params, images):
    gradient = jax.grad(loss)
    return jax.jvp(lambda p: gradient(p, images), (params,), (params,))[1]


def test_same_numbers_for_strides_groups_dilation_and_layouts():
    expected = one_product(PARAMS, IMAGES)
    found = jax.jit(canonical_convolutions(one_product))(PARAMS, IMAGES)
    for name in PARAMS:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)


def layouts(program):
    return set(re.findall(r"dim_numbers = (\[.*?\]x\[.*?\]->\[.*?\])", program.as_text()))


@pytest.mark.parametrize("batch_size", [None, 2])
def test_products_in_a_loop_have_one_layout(batch_size):
    operator = hessian(loss, PARAMS, IMAGES, batch_size=batch_size)
    program = jax.jit(lambda operator, v: lanczos(operator, v, 3)).lower(operator, PARAMS)
    assert layouts(program) == {"[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"}
    assert len(layouts(jax.jit(one_product).lower(PARAMS, IMAGES))) > 1


@pytest.mark.slow
def test_hessian_of_a_convolution(x64):
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), PARAMS)
    images = IMAGES.astype(jnp.float64)
    flat, unflatten = jax.flatten_util.ravel_pytree(params)
    expected = jax.hessian(lambda w: loss(unflatten(w), images))(flat)
    found = dense(hessian(loss, params, images, batch_size=4))
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_functions_without_convolutions_and_with_calls():
    inner = jax.jit(lambda x, k: jax.lax.conv(x, k, (1, 1), "SAME"))
    function = lambda x, k: {"y": inner(x, k) * 2, "n": jnp.sum(k)}
    x, k = IMAGES[..., :2].transpose(0, 3, 1, 2), PARAMS["m"][:, :2]
    expected, found = function(x, k), canonical_convolutions(function)(x, k)
    np.testing.assert_allclose(found["y"], expected["y"], rtol=1e-5, atol=1e-5)
    assert float(found["n"]) == float(expected["n"])
    assert float(canonical_convolutions(jnp.sin)(0.5)) == float(jnp.sin(0.5))
