"""Binary weights around a binary center, for infinitely many replicas."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from entropix.replica_theory._quadrature import gaussian_quadrature, half_line_quadrature, log_2cosh
from entropix.replica_theory._replicas import best_shift
from entropix.replica_theory._solvers import newton

# Of the weights' field |z| in the variable of its rule, and of the patterns' field.
WEIGHT_SPACING, PATTERN_SPACING = 0.05, 0.02
TOLERANCE = 1e-9
# The plain iteration oscillates at high loads unless its steps are short.
PLAIN_ITERATIONS = 150
STEP = 0.1
NEWTON_STEPS = 30


class Center(NamedTuple):
    """The saddle point around the best binary center.

    Attributes:
      entropy: of the solutions at the given overlap with the center.
      mutual_overlap: q1, of two replicas.
      log_response: log dq.
      residual: largest of the equations.
      iterations: of Newton's method.
      converged: whether the residual is within 1e-9.
    """

    entropy: jax.Array
    mutual_overlap: jax.Array
    log_response: jax.Array
    residual: jax.Array
    iterations: jax.Array
    converged: jax.Array


class _Fields(NamedTuple):
    """The unknowns: the attraction to the center, and the logarithms of q1hat and dqhat."""

    attraction: jax.Array
    log_conjugate: jax.Array
    log_response: jax.Array


class _Moments(NamedTuple):
    """What the fields make of the weights: S, q1, dq, and the weights' free entropy."""

    overlap: jax.Array
    q1: jax.Array
    response: jax.Array
    free: jax.Array


def binary_center(alpha: jax.Array, overlap: jax.Array) -> Center:
    r"""Entropy at the overlap S with the best center w = +-1.

    .. math:: \Phi = \operatorname*{extr} -\gamma S - \tfrac12 \hat q_1 (1 - q_1)
       - \tfrac12 (q_1 \delta\hat q + \hat q_1 \delta q)
       + \int\! Dz \max_v \left[ -\frac{(v - \sqrt{\hat q_1} |z| - \gamma)^2}{2 \delta\hat q}
       + \log 2 \cosh v \right] + \alpha \int\! Dz\, M(\sqrt{q_1} z; \delta q, 1 - q_1)

    The center follows the sign of z, which makes it |z|, and M is that of `best_shift`. Given the
    fields, three of the six equations give S, q1 and dq; the other three are solved.
    """

    def implied(moments: _Moments) -> tuple[jax.Array, jax.Array]:
        variance, covariance, _ = _patterns(moments)
        return jnp.log(alpha * variance), jnp.log(alpha * (variance + covariance))

    def iterate(_: jax.Array, unknowns: jax.Array) -> jax.Array:
        fields = _Fields(*unknowns)
        moments = _weights(fields)
        attraction = fields.attraction + (overlap - moments.overlap) / (1 - moments.q1)
        return unknowns + STEP * (jnp.stack([attraction, *implied(moments)]) - unknowns)

    def equations(unknowns: jax.Array) -> jax.Array:
        fields = _Fields(*unknowns)
        moments = _weights(fields)
        log_conjugate, log_response = implied(moments)
        return jnp.stack(
            [
                moments.overlap - overlap,
                fields.log_conjugate - log_conjugate,
                fields.log_response - log_response,
            ]
        )

    start = jnp.stack([jnp.arctanh(overlap), jnp.log(alpha / 2), jnp.log(alpha / 2)])
    start = jax.lax.fori_loop(0, PLAIN_ITERATIONS, iterate, start)
    solution = newton(equations, start, tolerance=TOLERANCE)
    fields = _Fields(*solution.x)
    moments = _weights(fields)
    _, _, cost = _patterns(moments)
    conjugate, response = jnp.exp(fields.log_conjugate), jnp.exp(fields.log_response)
    coupled = fields.attraction * overlap + conjugate * (1 - moments.q1 + moments.response) / 2
    entropy = moments.free - coupled - moments.q1 * response / 2 + alpha * cost
    return Center(
        entropy, moments.q1, jnp.log(moments.response),
        solution.residual, solution.iterations, solution.converged,
    )  # fmt: skip


def _weights(fields: _Fields) -> _Moments:
    """The weights' side: v = f + dqhat tanh v by Newton's method, monotone from above."""
    z = half_line_quadrature(WEIGHT_SPACING)
    scale, response = jnp.exp(fields.log_conjugate / 2), jnp.exp(fields.log_response)
    field = scale * z.nodes + fields.attraction

    def step(_: jax.Array, v: jax.Array) -> jax.Array:
        m = jnp.tanh(v)
        return v - (v - field - response * m) / (1 - response * (1 - m**2))

    v = jax.lax.fori_loop(0, NEWTON_STEPS, step, field + response)
    m = jnp.tanh(v)
    q1 = z.weights @ m**2
    free = z.weights @ (log_2cosh(v) - (v - field) ** 2 / (2 * response))
    return _Moments(z.weights @ m, q1, z.weights @ (m * z.nodes) / scale - (1 - q1), free)


def _patterns(moments: _Moments) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The patterns' side: q1hat / alpha, (dqhat - q1hat) / alpha, and the mean of M."""
    z = gaussian_quadrature(PATTERN_SPACING)
    q1, variance = moments.q1, 1 - moments.q1
    field = jnp.sqrt(q1) * z.nodes
    best = best_shift(field, jnp.log(moments.response), variance)
    pull = best.shift / moments.response
    slope = pull * (z.nodes / jnp.sqrt(q1) + (field + best.shift) / variance)
    return z.weights @ pull**2, z.weights @ slope, z.weights @ best.value
