"""The factor nodes of a committee: what a pattern tells its hidden units, and these their weights.

A majority is seen in the gauge of the label: inputs and signs are multiplied by sigma, so that the
output of every pattern should be +1. A parity of an even number of signs would not change with
them; its label is in the output node. A message about a sign is a field, half the log odds of +1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from entropix._gaussian import LOG_SQRT_2PI, hazard, log_tail
from entropix.committee._model import Output

# Beyond it a sign is certain to all purposes: its log odds are 60.
CLIP = 30.0
# Of a sum's variance, where all weights of a unit are frozen. A sum of an odd number of signs is at
# least 1 from 0: with the second spread it is right or wrong but for 1e-12, and the logarithm of
# that is a number that other patterns can outweigh.
SMALLEST_VARIANCE = 1e-10
SMALLEST_VARIANCE_OF_SIGNS = 0.02


class Sums(NamedTuple):
    """Distribution of the local fields (times sqrt(n)) of the hidden units, taken as normal.

    Attributes:
      mean: # shape=(M, K)
      variance: # shape=(M, K)
    """

    mean: Float[Array, "*batch M K"]
    variance: Float[Array, "*batch M K"]

    @property
    def scaled(self) -> jax.Array:
        """Mean in units of the standard deviation."""
        return self.mean / jnp.sqrt(self.variance)


def field_sums(
    inputs: Float[Array, "patterns units_or_1 n"],
    mean: Float[Array, "patterns units n"],
    variance: Float[Array, "patterns units n"],
    smallest: float = SMALLEST_VARIANCE,
) -> Sums:
    """Sums over the inputs of independent weights with these moments.

    Args:
      inputs: of each unit.
      mean: of the weights, for each pattern without its own message.
      variance: likewise.
      smallest: variance that a sum has at least.
    """
    total = jnp.sum(inputs**2 * variance, axis=2)
    return Sums(jnp.sum(inputs * mean, axis=2), jnp.maximum(total, smallest))


def gaussian_up(sums: Sums) -> jax.Array:
    """Field on the sign of a normal sum, shape (M, K)."""
    return jnp.clip((log_tail(-sums.scaled) - log_tail(sums.scaled)) / 2, -CLIP, CLIP)


def output_node(
    output: Output, up: Float[Array, "patterns units"], labels: Float[Array, " patterns"]
) -> tuple[Float[Array, "patterns units"], Float[Array, " patterns"]]:
    """What the right output says of each hidden sign, and how probable it is.

    Args:
      output: majority, whose right output is +1 in the label's gauge, or parity.
      up: fields on the K hidden signs.
      labels: sigma, of which only a parity takes notice.

    Returns:
      Fields on each sign from the others, clipped, and the log probability of the right output.
    """
    down, log_z = _majority(up) if output == "majority" else _parity(up, labels)
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


def _parity(up: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`output_node` by tanh D_k, sigma times the product of the other units' tanh U."""
    means = jnp.tanh(up)
    left_out = jnp.eye(up.shape[1], dtype=bool)[None]
    others = jnp.prod(jnp.where(left_out, 1, means[:, None, :]), axis=2)
    # Inside the clip, so that nothing is divided by 0.
    largest = jnp.tanh(jnp.asarray(CLIP, up.dtype)) - jnp.finfo(up.dtype).eps
    down = jnp.arctanh(jnp.clip(labels[:, None] * others, -largest, largest))
    return down, _log_half_plus(labels, up)


def _log_half_plus(labels: jax.Array, up: jax.Array) -> jax.Array:
    """log (1 + sigma prod_k tanh U_k) / 2, the log probability that the product of signs is sigma.

    By the number of -1 being even, in logarithms: near -1 the sum would round to 0.
    """

    def count(
        log_parity: tuple[jax.Array, jax.Array], field: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        even, odd = log_parity
        yes, no = jax.nn.log_sigmoid(2 * field), jax.nn.log_sigmoid(-2 * field)
        return (jnp.logaddexp(even + yes, odd + no), jnp.logaddexp(odd + yes, even + no)), None

    start = jnp.zeros_like(labels), jnp.full_like(labels, -jnp.inf)
    (even, odd), _ = jax.lax.scan(count, start, up.T)
    return jnp.where(labels > 0, even, odd)


class Channel(NamedTuple):
    r"""How the log probability of a node bends with the mean of its normal sum.

    Attributes:
      slope: g, its derivative. # shape=(M, K)
      curvature: Gamma, minus its second derivative. # shape=(M, K)
    """

    slope: Float[Array, "*batch M K"]
    curvature: Float[Array, "*batch M K"]


def channel(sums: Sums, down: jax.Array | None) -> Channel:
    """Derivatives of log P(sign agrees with the field ``down``); of log P(+1) where that is None.

    Args:
      sums: of all inputs.
      down: D, fields on the hidden signs. # shape=(M, K)
    """
    t = sums.scaled
    if down is None:
        slope = hazard(-t)
    else:
        log_z = jnp.logaddexp(
            jax.nn.log_sigmoid(2 * down) + log_tail(-t), jax.nn.log_sigmoid(-2 * down) + log_tail(t)
        )
        slope = jnp.tanh(down) * jnp.exp(-(t**2) / 2 - LOG_SQRT_2PI - log_z)
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
    rest_variance = sums.variance[:, :, None] - variance
    spread = jnp.sqrt(jnp.maximum(rest_variance, SMALLEST_VARIANCE_OF_SIGNS))

    def log_agreement(total: jax.Array) -> jax.Array:
        yes = log_tail(-total / spread)
        if down is None:
            return yes
        return _log_agreement(yes, log_tail(total / spread), down[:, :, None])

    return inputs * (log_agreement(rest + 1) - log_agreement(rest - 1)) / 2


def _log_agreement(yes: jax.Array, no: jax.Array, down: jax.Array) -> jax.Array:
    """Log of e^D P(+1) + e^-D P(-1) from the logarithms of the two."""
    return jnp.logaddexp(down + yes, -down + no)


def exact_node(
    inputs: Float[Array, "patterns units_or_1 n"],
    natural: Float[Array, "patterns units n"],
    output: Output,
    labels: Float[Array, " patterns"],
) -> tuple[Float[Array, "patterns units n"], Float[Array, " patterns"]]:
    """Messages of binary weights without any approximation of the sums.

    The distribution of the number of agreeing weights grows weight by weight, from either end;
    that of all but one is the convolution of the two parts. All terms are positive, so that the
    smallest probabilities are as exact as the largest.

    Args:
      inputs: +-1.
      natural: fields on the weights, for each pattern without its own message.
      output: majority or parity.
      labels: sigma.

    Returns:
      Fields on the weights, and the log probability of the right output.
    """
    size = natural.shape[2]
    half = (size - 1) // 2
    fields = jnp.moveaxis(inputs * natural, 2, 0)
    agree, differ = jax.nn.sigmoid(2 * fields), jax.nn.sigmoid(-2 * fields)

    def grow(counts: jax.Array, weight: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        yes, no = (p[..., None] for p in weight)
        one_more = jnp.pad(counts[..., :-1], ((0, 0), (0, 0), (1, 0)))
        return counts * no + one_more * yes, counts

    none = jnp.zeros((*natural.shape[:2], size + 1), natural.dtype).at[:, :, 0].set(1)
    every, before = jax.lax.scan(grow, none, (agree, differ))
    _, after = jax.lax.scan(grow, none, (agree, differ), reverse=True)
    above = jnp.flip(jnp.cumsum(jnp.flip(after, -1), -1), -1)
    below = jnp.pad(jnp.cumsum(after, -1)[..., :-1], ((0, 0), (0, 0), (0, 0), (1, 0)))

    def log_tails_of_others(least: int) -> tuple[jax.Array, jax.Array]:
        """Logarithms of P(count >= least) and of P(count < least), without each weight in turn."""
        # With j before the weight, least - j or more after it.
        first = before[..., : least + 1]
        reach = jnp.sum(first * jnp.flip(above[..., : least + 1], -1), -1)
        reach = reach + jnp.sum(before[..., least + 1 :], -1)
        miss = jnp.sum(first * jnp.flip(below[..., : least + 1], -1), -1)
        return _log(reach), _log(miss)

    yes, no = (_log(jnp.sum(part, -1)) for part in (every[..., half + 1 :], every[..., : half + 1]))
    with_one, without = log_tails_of_others(half), log_tails_of_others(half + 1)
    if natural.shape[1] == 1:
        messages, log_z = (with_one[0] - without[0]) / 2, yes[:, 0]
    else:
        down, log_z = output_node(output, jnp.clip((yes - no) / 2, -CLIP, CLIP), labels)
        down = down[None]
        messages = (_log_agreement(*with_one, down) - _log_agreement(*without, down)) / 2
    return inputs * jnp.moveaxis(messages, 0, 2), log_z


def _log(probability: jax.Array) -> jax.Array:
    """Its logarithm; that of the smallest number of the type for 0."""
    return jnp.log(jnp.maximum(probability, jnp.finfo(probability.dtype).tiny))
