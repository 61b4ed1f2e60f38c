"""Binary weights coupled to a binary center: the saddle point of finitely many replicas."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from entropix._gaussian import LOG_SQRT_2PI, hazard, log_tail
from entropix.replica_theory._quadrature import gaussian_quadrature, half_line_quadrature, log_2cosh
from entropix.replica_theory._replicas import best_shift

# Standard deviations within which a Gaussian factor is integrated.
REACH = 9.0
# Spacings for the field that all centers share, on the two sides, and points for their own.
WEIGHT_SPACING, PATTERN_SPACING = 0.07, 0.1
WEIGHT_NODES, PATTERN_NODES = 201, 193
# Standard deviations about the peak beyond which that own field does not matter to a weight.
WINDOW = 45.0
NEWTON_STEPS = 30


class Fields(NamedTuple):
    """What acts on a weight.

    Attributes:
      attraction: gamma, to the center.
      conjugate: q0hat, variance of the field that all centers share.
      response: dqhat = y (q1hat - q0hat), y times the variance of a center's own field.
      replicas: y.
    """

    attraction: jax.Array
    conjugate: jax.Array
    response: jax.Array
    replicas: jax.Array


class Moments(NamedTuple):
    """What the fields make of the weights.

    Attributes:
      overlap: S, with the center.
      susceptibility: dS / dgamma.
      q0: of replicas of two centers.
      complement: 1 - q1, q1 that of two replicas of one center.
      response: dq = y (q1 - q0).
      free: mean log 2 cosh v.
      potential: mean log-partition function of a center's weight and those of its replicas.
    """

    overlap: jax.Array
    susceptibility: jax.Array
    q0: jax.Array
    complement: jax.Array
    response: jax.Array
    free: jax.Array
    potential: jax.Array


class Patterns(NamedTuple):
    """What the overlaps make of one pattern.

    Attributes:
      conjugate: q0hat / alpha.
      response: dqhat / alpha.
      free: mean log-probability that a replica is right.
      potential: mean log-probability that all replicas of a center are.
    """

    conjugate: jax.Array
    response: jax.Array
    free: jax.Array
    potential: jax.Array


class Entropies(NamedTuple):
    """Entropies for each weight.

    Attributes:
      local: Phi, of the solutions around a center.
      external: Omega, of the centers.
    """

    local: jax.Array
    external: jax.Array


def entropies(
    fields: Fields, moments: Moments, patterns: Patterns, alpha: jax.Array, overlap: jax.Array
) -> Entropies:
    """Phi = d(y A) / dy and Omega = y (A - Phi) at a saddle point of A."""
    y, q1 = fields.replicas, 1 - moments.complement
    conjugate = fields.conjugate + fields.response / y
    # y (q1 q1hat - q0 q0hat), without the cancellation.
    coupled = q1 * fields.response + (conjugate - fields.response / y) * moments.response
    free = moments.free + alpha * patterns.free
    local = free - fields.attraction * overlap - conjugate * moments.complement / 2 - coupled
    potential = moments.potential + alpha * patterns.potential
    return Entropies(local, y * coupled / 2 + potential - y * free)


def moments_of(fields: Fields) -> Moments:
    """The weights' side: the sum over the center's sign, the integral over its own field."""
    gamma, conjugate, response, y = fields
    z = half_line_quadrature(WEIGHT_SPACING)
    center = jnp.array([1.0, -1.0])[None, :, None]
    h = jnp.sqrt(conjugate) * z.nodes[:, None, None] + gamma * center
    # By symmetry of cosh the field may point upwards; the nodes may depend on anything.
    size, side = jnp.abs(h), jnp.where(h < 0, -1.0, 1.0)
    own, log_measure = _around_weight(*jax.lax.stop_gradient((size, response, y)))
    v = size + jnp.sqrt(response / y) * own
    free, m = log_2cosh(v), side * jnp.tanh(v)
    log_weight = y * free + log_measure
    log_sum = jax.scipy.special.logsumexp(log_weight, axis=(1, 2))
    p = jnp.exp(log_weight - log_sum[:, None, None])

    def mean(values: jax.Array) -> jax.Array:
        return jnp.sum(p * values, axis=(1, 2))

    aligned, first = mean(center * m), mean(m)
    complement = z.weights @ mean(1 / jnp.cosh(v) ** 2)
    overlap = z.weights @ aligned
    return Moments(
        overlap,
        complement + y * (1 - complement - z.weights @ aligned**2),
        z.weights @ first**2,
        complement,
        y * (z.weights @ mean((m - first[:, None, None]) ** 2)),
        z.weights @ mean(free),
        z.weights @ log_sum,
    )


def patterns_of(moments: Moments, replicas: jax.Array) -> Patterns:
    """The patterns' side: the probability to the power y, averaged over a center's own field."""
    z = gaussian_quadrature(PATTERN_SPACING, REACH)
    variance, y = moments.complement, replicas
    h = jnp.sqrt(moments.q0) * z.nodes
    width = jnp.sqrt(moments.response / y)
    # The nodes may depend on anything: the integral does not depend on them.
    own, log_measure = _around_threshold(*jax.lax.stop_gradient((h, moments.response, variance, y)))
    u = (h[:, None] + width * own) / jnp.sqrt(variance)
    free, pull = log_tail(-u), hazard(-u) / jnp.sqrt(variance)
    log_weight = y * free + log_measure
    log_sum = jax.scipy.special.logsumexp(log_weight, axis=1)
    p = jnp.exp(log_weight - log_sum[:, None])
    first = jnp.sum(p * pull, axis=1)
    return Patterns(
        z.weights @ first**2,
        y * (z.weights @ jnp.sum(p * (pull - first[:, None]) ** 2, axis=1)),
        z.weights @ jnp.sum(p * free, axis=1),
        z.weights @ log_sum,
    )


def _around_weight(h: jax.Array, response: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Nodes of a center's own field, normal, and the logarithms of their weights, at fields h > 0.

    The y factors 2 cosh move the peak by up to sqrt(y dqhat), to v = h + dqhat tanh v, and widen
    it. The other peak, of the opposite sign, is inside the window unless it is far away, and then
    exponentially smaller: those h weigh most that are at least gamma.
    """

    def step(_: jax.Array, v: jax.Array) -> jax.Array:
        m = jnp.tanh(v)
        return v - (v - h - response * m) / (1 - response * (1 - m**2))

    # Monotone from above.
    v = jax.lax.fori_loop(0, NEWTON_STEPS, step, h + response)
    farthest = jnp.sqrt(y * response)
    peak = farthest * jnp.tanh(v)
    lowest = jnp.maximum(peak - WINDOW, -farthest - REACH)
    spacing = (jnp.minimum(peak + WINDOW, farthest + REACH) - lowest) / (WEIGHT_NODES - 1)
    nodes = lowest + spacing * jnp.arange(1.0 * WEIGHT_NODES)[None, None]
    return nodes, jnp.log(spacing) - nodes**2 / 2 - LOG_SQRT_2PI


def _around_threshold(
    h: jax.Array, response: jax.Array, variance: jax.Array, y: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Nodes of a center's own field, normal, and the logarithms of their weights, at fields h.

    As a function of the own field s the integrand is a Gaussian of the wide scale sqrt(dq / y),
    cut off where h + s gets negative, on the narrow scale sqrt((1 - q1) / y). With large responses
    the scales differ by orders of magnitude; the nodes are narrowly spaced about the cut and in
    proportion to the distance from it beyond.
    """
    wide, narrow = jnp.sqrt(response / y), 1 / jnp.sqrt(y / response + y / variance)
    peak = best_shift(h, jnp.log(response), variance).shift
    cut = jnp.minimum(h + peak, jnp.sqrt(variance))
    lowest = jnp.minimum(cut, 0) - 12 * jnp.sqrt(variance / y)
    lowest = jnp.maximum(peak - REACH * wide, lowest - h)
    first = jnp.arcsinh((lowest + h - cut) / narrow)
    last = jnp.arcsinh((peak + REACH * wide + h - cut) / narrow)
    step = (last - first) / (PATTERN_NODES - 1)
    t = first[:, None] + step[:, None] * jnp.arange(1.0 * PATTERN_NODES)[None]
    nodes = ((cut - h)[:, None] + narrow * jnp.sinh(t)) / wide
    log_spacing = jnp.log(jnp.cosh(t)) + jnp.log(step * narrow / wide)[:, None]
    return nodes, log_spacing - nodes**2 / 2 - LOG_SQRT_2PI
