"""How much noise on its inputs a committee machine bears."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from entropix._checks import check_integer, check_number, holds
from entropix._keys import check_key, fresh_key
from entropix.committee._arguments import dtype_of
from entropix.committee._model import Committee, check_examples, check_weights


class NoiseRobustness(NamedTuple):
    """Answer of `noise_robustness`.

    Attributes:
      rate: share of the inputs flipped, on the average over inputs. # shape=(R,)
      mean: error rate on the noisy patterns. # shape=(R,)
      std_error: of the mean, over the draws of the noise. # shape=(R,)
    """

    rate: Float[Array, "*batch R"]
    mean: Float[Array, "*batch R"]
    std_error: Float[Array, "*batch R"]


def noise_robustness(
    model: Committee,
    weights: Real[ArrayLike, "units n"],
    patterns: Real[ArrayLike, "patterns inputs"],
    labels: Real[ArrayLike, " patterns"],
    rates: Real[ArrayLike, " rates"],
    key: jax.Array | int,
    *,
    num_samples: int = 20,
) -> NoiseRobustness:
    r"""Error rate on patterns with noise of the color of their inputs.

    .. math:: x^\mu_i \to -x^\mu_i \ \text{with probability} \ p_i = \min\Big(\tfrac12,
       r\, \frac{v_i}{\frac1N \sum_j v_j}\Big), \qquad v_i = 1 - \Big(\frac1M \sum_\mu
       x^\mu_i\Big)^2

    so that inputs that hardly vary over the patterns are hardly ever flipped. On random patterns
    the noise is nearly white. All rates see the same random numbers.

    Args:
      model: the network.
      weights: w. # shape=(K, n)
      patterns: x, each +1 or -1. # shape=(M, N)
      labels: sigma, each +1 or -1. # shape=(M,)
      rates: r, from 0 to 1/2. # shape=(R,)
      key: an integer seed or a key of ``jax.random.key``. Compare networks with the same one.
      num_samples: draws of the noise, at least 2. Default 20.

    Returns:
      `NoiseRobustness`.

    Raises:
      TypeError: a number is of the wrong type or ``key`` is not a key.
      ValueError: a number is out of its range, a shape does not fit, a label or a pattern is not of
        +-1, or no input varies.

    Examples:
      >>> import jax.numpy as jnp
      >>> from entropix.committee import teacher_student
      >>> model = Committee(101)
      >>> examples, teacher = teacher_student(model, 2.0, 0)
      >>> found = noise_robustness(model, teacher, *examples, jnp.array([0.0, 0.1, 0.5]), 1)
      >>> [round(float(rate), 1) for rate in found.mean]
      [0.0, 0.2, 0.5]

    Reference:
      Baldassi, Pittorino and Zecchina, `Shaping the learning landscape in neural networks around
      wide flat minima <https://arxiv.org/abs/1905.07833>`_, PNAS 117 (2020). The color is this
      library's choice.
    """
    check_examples(model, patterns, labels, signs_only=True)
    check_weights("weights", model, weights)
    check_key(key)
    check_integer("num_samples", num_samples, at_least=2)
    weights = jnp.asarray(weights, dtype_of(weights))
    rates = rates if isinstance(rates, jax.Array) else np.asarray(rates, float)
    check_number("rates", rates, at_least=0, at_most=0.5)
    if np.ndim(rates) != 1:
        raise ValueError(f"rates must have shape (R,), got {np.shape(rates)}")
    if not holds(lambda x: jnp.any(x != x[:1]), patterns):
        raise ValueError("patterns must differ in some input, got only equal ones")
    return _noise_robustness(
        weights, patterns, labels, fresh_key(key), jnp.asarray(rates, weights.dtype),
        model=model, num_samples=num_samples,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames=("model", "num_samples"))
def _noise_robustness(
    weights: jax.Array,
    patterns: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    rates: jax.Array,
    *,
    model: Committee,
    num_samples: int,
) -> NoiseRobustness:
    """The compiled part of `noise_robustness`."""
    clean = patterns.astype(weights.dtype)
    variance = 1 - jnp.mean(clean, axis=0) ** 2
    color = variance / jnp.mean(variance)

    def error_rates(key: jax.Array) -> jax.Array:
        uniform = jax.random.uniform(key, clean.shape, clean.dtype)

        def at(rate: jax.Array) -> jax.Array:
            flipped = uniform < jnp.minimum(rate * color, 0.5)[None]
            errors = model.errors(weights, jnp.where(flipped, -clean, clean), labels)
            return errors.astype(rate.dtype) / labels.shape[0]

        return jax.lax.map(at, rates)

    drawn = jax.lax.map(error_rates, jax.random.split(key, num_samples))
    std_error = jnp.std(drawn, axis=0, ddof=1) / num_samples**0.5
    return NoiseRobustness(rates, jnp.mean(drawn, axis=0), std_error)
