"""The factor nodes of a committee: what a pattern tells its hidden units, and these their weights.

Everything is in the gauge of the label: inputs and signs are multiplied by sigma, so the output of
every pattern should be +1. A message about a sign is a field, half the log odds of +1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from entropix.committee._model import Output
from entropix.committee._normal import log_cdf

# Beyond it a sign is certain to all purposes: its log odds are 60.
CLIP = 30.0
# Of a sum's variance, where all weights of a unit are frozen.
SMALLEST_VARIANCE = 1e-10


class Sums(NamedTuple):
    """Distribution of the local fields (times sqrt(n)) of the hidden units, taken as normal.

    Attributes:
      mean: # shape=(M, K)
      variance: # shape=(M, K)
    """

    mean: jax.Array
    variance: jax.Array

    @property
    def scaled(self) -> jax.Array:
        """Mean in units of the standard deviation."""
        return self.mean / jnp.sqrt(self.variance)


def field_sums(inputs: jax.Array, mean: jax.Array, variance: jax.Array) -> Sums:
    """Sums over the inputs of independent weights with these moments.

    Args:
      inputs: # shape=(M, K or 1, n)
      mean: of the weights, for each pattern without its own message. # shape=(M, K, n)
      variance: likewise. # shape=(M, K, n)
    """
    total = jnp.sum(inputs**2 * variance, axis=2)
    return Sums(jnp.sum(inputs * mean, axis=2), jnp.maximum(total, SMALLEST_VARIANCE))


def gaussian_up(sums: Sums) -> jax.Array:
    """Field on the sign of a normal sum, shape (M, K)."""
    return jnp.clip((log_cdf(sums.scaled) - log_cdf(-sums.scaled)) / 2, -CLIP, CLIP)


def output_node(output: Output, up: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What the output +1 says of each hidden sign, and how probable it is.

    Args:
      output: majority or parity.
      up: fields on the K hidden signs. # shape=(M, K)

    Returns:
      Fields on each sign from the others, clipped, and the log probability of the right output.
      # shapes=(M, K), (M,)
    """
    down, log_z = (_majority if output == "majority" else _parity)(up)
    return jnp.clip(down, -CLIP, CLIP), log_z


def _majority(up: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`output_node` by the distribution of the number of +1, in logarithms."""
    num_hidden = up.shape[1]
    # Row k leaves unit k out; the last row leaves out none.
    rows = jnp.arange(num_hidden + 1, dtype=jnp.int32)
    nothing = jnp.where(rows == 0, 0.0, -jnp.inf).astype(up.dtype)
    start = jnp.broadcast_to(nothing, (up.shape[0], num_hidden + 1, num_hidden + 1))

    def count(log_counts: jax.Array, unit: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        index, field = unit
        yes, no = jax.nn.log_sigmoid(2 * field), jax.nn.log_sigmoid(-2 * field)
        one_more = jnp.pad(log_counts[..., :-1], ((0, 0), (0, 0), (1, 0)), constant_values=-jnp.inf)
        counted = jnp.logaddexp(log_counts + no[:, None, None], one_more + yes[:, None, None])
        left_out = (rows == index)[None, :, None]
        return jnp.where(left_out, log_counts, counted), None

    units = jnp.arange(num_hidden, dtype=jnp.int32), up.T
    log_counts, _ = jax.lax.scan(count, start, units)

    def at_least(least: int, rows: jax.Array) -> jax.Array:
        return jax.nn.logsumexp(rows[..., least:], axis=-1)

    others = log_counts[:, :-1]
    half = (num_hidden - 1) // 2
    down = (at_least(half, others) - at_least(half + 1, others)) / 2
    return down, at_least(half + 1, log_counts[:, -1])


def _parity(up: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`output_node` by tanh D_k, the product of the other units' tanh U."""
    means = jnp.tanh(up)
    left_out = jnp.eye(up.shape[1], dtype=bool)[None]
    others = jnp.prod(jnp.where(left_out, 1, means[:, None, :]), axis=2)
    # Inside the clip, so that nothing is divided by 0.
    largest = jnp.tanh(jnp.asarray(CLIP, up.dtype)) - jnp.finfo(up.dtype).eps
    down = jnp.arctanh(jnp.clip(others, -largest, largest))
    return down, jnp.log1p(jnp.prod(means, axis=1)) - jnp.log(jnp.asarray(2, up.dtype))


class Channel(NamedTuple):
    r"""How the log probability of a node bends with the mean of its normal sum.

    Attributes:
      slope: g, its derivative. # shape=(M, K)
      curvature: Gamma, minus its second derivative. # shape=(M, K)
    """

    slope: jax.Array
    curvature: jax.Array


def channel(sums: Sums, down: jax.Array | None) -> Channel:
    """Derivatives of log P(sign agrees with the field ``down``); of log P(+1) where that is None.

    Args:
      sums: of all inputs.
      down: D, fields on the hidden signs. # shape=(M, K)
    """
    t = sums.scaled
    log_density = -(t**2) / 2 - jnp.log(jnp.asarray(2 * jnp.pi, t.dtype)) / 2
    if down is None:
        slope = jnp.exp(log_density - log_cdf(t))
    else:
        log_z = jnp.logaddexp(
            jax.nn.log_sigmoid(2 * down) + log_cdf(t), jax.nn.log_sigmoid(-2 * down) + log_cdf(-t)
        )
        slope = jnp.tanh(down) * jnp.exp(log_density - log_z)
    slope = slope / jnp.sqrt(sums.variance)
    return Channel(slope, slope * (slope + sums.mean / sums.variance))


def gaussian_fields(
    sums: Sums, inputs: jax.Array, mean: jax.Array, variance: jax.Array, down: jax.Array | None
) -> jax.Array:
    """Fields on binary weights, the rest of each sum taken as normal.

    Args:
      sums: of all inputs.
      inputs: +-1. # shape=(M, K or 1, n)
      mean: of the weights. # shape=(M, K, n)
      variance: of the weights. # shape=(M, K, n)
      down: as in `channel`.

    Returns:
      # shape=(M, K, n)
    """
    rest = sums.mean[:, :, None] - inputs * mean
    spread = jnp.sqrt(jnp.maximum(sums.variance[:, :, None] - variance, SMALLEST_VARIANCE))

    def log_agreement(total: jax.Array) -> jax.Array:
        yes = log_cdf(total / spread)
        if down is None:
            return yes
        return _log_agreement(yes, log_cdf(-total / spread), down[:, :, None])

    return inputs * (log_agreement(rest + 1) - log_agreement(rest - 1)) / 2


def _log_agreement(yes: jax.Array, no: jax.Array, down: jax.Array) -> jax.Array:
    """Log of e^D P(+1) + e^-D P(-1) from the logarithms of the two."""
    return jnp.logaddexp(down + yes, -down + no)


def exact_node(inputs: jax.Array, mean: jax.Array, output: Output) -> tuple[jax.Array, jax.Array]:
    """Messages of binary weights without any approximation of the sums.

    The number of agreeing weights has the generating function
    prod_j ((1 - a_j) / 2 + z (1 + a_j) / 2), a = inputs * mean; its values at the roots of unity
    give every tail probability, and the products without one factor those that a weight sees.

    Args:
      inputs: +-1. # shape=(M, K or 1, n)
      mean: of the weights. # shape=(M, K, n)
      output: majority or parity.

    Returns:
      Fields on the weights, and the log probability of the right output. # shapes=(M, K, n), (M,)
    """
    size = mean.shape[2]
    half = (size - 1) // 2
    agreement = (inputs * mean)[..., None]
    counts = jnp.arange(size + 1, dtype=mean.dtype)
    roots = jnp.exp(2j * jnp.pi * counts / (size + 1))
    factors = (1 - agreement) / 2 + roots[None, None, None] * (1 + agreement) / 2
    ones = jnp.ones_like(factors[:, :, :1])
    before = jnp.cumprod(jnp.concatenate([ones, factors], axis=2), axis=2)
    after = jnp.flip(
        jnp.cumprod(jnp.concatenate([ones, jnp.flip(factors, 2)], axis=2), axis=2), axis=2
    )

    def log_tails(values: jax.Array, least: int) -> tuple[jax.Array, jax.Array]:
        """Logarithms of P(count >= least) and of P(count < least)."""
        powers = roots[:, None] ** -counts[None, :]
        sign = jnp.where(counts >= least, 1, -1) / (2 * (size + 1))
        excess = jnp.real(values @ (powers @ sign.astype(powers.dtype)))
        smallest = jnp.finfo(mean.dtype).tiny
        return (
            jnp.log(jnp.maximum(0.5 + excess, smallest)),
            jnp.log(jnp.maximum(0.5 - excess, smallest)),
        )

    yes, no = log_tails(before[:, :, -1], half + 1)
    up = jnp.clip((yes - no) / 2, -CLIP, CLIP)
    down, log_z = output_node(output, up)
    others = before[:, :, :-1] * after[:, :, 1:]
    with_one = log_tails(others, half)
    without = log_tails(others, half + 1)
    if mean.shape[1] == 1:
        fields = (with_one[0] - without[0]) / 2
    else:
        down = down[:, :, None]
        fields = (_log_agreement(*with_one, down) - _log_agreement(*without, down)) / 2
    return inputs * fields, log_z
