"""Networks of every kind with few parameters, and the dense matrices of their losses."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

EXAMPLES, CLASSES = 12, 3


class Dense(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(CLASSES)(nn.tanh(nn.Dense(3)(x)))


class Convolution(nn.Module):
    """Batch normalization with the running averages that it starts from."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(2, (3, 3))(x)
        x = nn.gelu(nn.BatchNorm(use_running_average=True)(x))
        return nn.Dense(CLASSES)(x.mean((1, 2)))


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, x):
        # The cell starts from zeros of its parameters' dtype.
        return nn.Dense(CLASSES)(nn.RNN(nn.LSTMCell(2, param_dtype=x.dtype))(x)[:, -1])


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(CLASSES)(x.mean(1) + nn.MultiHeadDotProductAttention(2)(x).mean(1))


KINDS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "mlp": (Dense(), (4,)),
    "convolution": (Convolution(), (4, 4, 1)),
    "lstm": (Recurrent(), (3, 2)),
    "attention": (Attention(), (3, 2)),
}


class Problem(NamedTuple):
    """A network, its weights and its data: numbers that bfloat16 holds exactly.

    Attributes:
      outputs: (params, batch) -> logits.
      params: weights, all of one dtype.
      data: inputs of that dtype, labels.
    """

    outputs: Callable[[Any, Any], jax.Array]
    params: Any
    data: tuple[jax.Array, jax.Array]

    def loss(self, params, batch):
        return cross_entropy(self.outputs(params, batch), batch)


def cross_entropy(logits, batch):
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), batch[1][:, None], axis=1)
    return -jnp.mean(picked)


@functools.cache
def numbers(kind):
    """Weights, statistics and data as NumPy arrays; spread wide, so that no layer is linear."""
    network, shape = KINDS[kind]
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.normal(size=(EXAMPLES, *shape)), jnp.bfloat16).astype(jnp.float32)
    variables = network.init(jax.random.key(0), x)
    noise = lambda leaf: leaf + 0.5 * rng.normal(size=leaf.shape)
    params = jax.tree.map(lambda leaf: jnp.asarray(noise(leaf), jnp.bfloat16), variables["params"])
    rest = {name: value for name, value in variables.items() if name != "params"}
    return jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float64),
        (params, rest, x, rng.integers(0, CLASSES, EXAMPLES)),
    )


def problem(kind, dtype):
    """The same numbers in any dtype; the statistics stay in float32 at least."""
    network, _ = KINDS[kind]
    params, rest, x, y = numbers(kind)
    cast = lambda tree, dtype: jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)
    rest = cast(rest, jnp.promote_types(dtype, jnp.float32))

    def outputs(params, batch):
        return network.apply({"params": params} | rest, batch[0])

    return Problem(outputs, cast(params, dtype), (cast(x, dtype), jnp.asarray(y, jnp.int32)))


@functools.cache
def matrices(kind):
    """Hessian, Gauss-Newton matrix and covariance of the gradients, in float64 by NumPy."""
    with jax.enable_x64(True):
        one = problem(kind, jnp.float64)
        flat, restore = ravel_pytree(one.params)

        def logits(flat, x):
            return one.outputs(restore(flat), (x[None], None))[0]

        def loss(flat, x, y):
            return -jax.nn.log_softmax(logits(flat, x))[y]

        @jax.jit
        def all_of(flat, x, y):
            per_example = lambda f: jax.vmap(f, (None, 0, 0))(flat, x, y)
            return (
                per_example(jax.hessian(loss)),
                jax.vmap(jax.jacobian(logits), (None, 0))(flat, x),
                jax.vmap(lambda x: jax.nn.softmax(logits(flat, x)))(x),
                per_example(jax.grad(loss)),
            )

        hessians, jacobians, shares, gradients = map(np.asarray, all_of(flat, *one.data))
    inner = np.einsum("nc,cd->ncd", shares, np.eye(CLASSES)) - np.einsum(
        "nc,nd->ncd", shares, shares
    )
    return {
        "hessian": hessians.mean(0),
        "gauss-newton": np.einsum("nci,ncd,ndj->ij", jacobians, inner, jacobians) / EXAMPLES,
        "covariance": np.cov(gradients.T, bias=True),
    }
