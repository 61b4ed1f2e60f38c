"""Local entropy around the minima of the cross-entropy loss."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from entropix._checks import check_number
from entropix._gaussian import LOG_SQRT_2PI, hazard, log_tail
from entropix.replica_theory._inputs import (
    check_distance,
    check_precision,
    load,
    overlap_at,
)
from entropix.replica_theory._near_reference import (
    Fields,
    Overlaps,
    Reference,
    binary_moments,
)
from entropix.replica_theory._points import Points, one_by_one, padded, shaped
from entropix.replica_theory._quadrature import gaussian_quadrature, half_line_quadrature, log_2cosh
from entropix.replica_theory._solvers import Solution, newton

TOLERANCE = 1e-9
# Of the weights' field, narrow because qhat exceeds 70; and of a pattern's: the part that all
# references share, the reference's own, and that of the weights near it.
WEIGHT_SPACING, SHARED_SPACING, OWN_SPACING, NEAR_SPACING = 0.04, 0.15, 0.12, 0.6
OWN_NODES = 131
HALVINGS = 40
PLAIN_ITERATIONS, ALIGNMENTS = 40, 6


class FranzParisiOfCrossEntropy(NamedTuple):
    """Answer of `franz_parisi_of_cross_entropy`; fields have the shape of all arguments together.

    Attributes:
      entropy: logarithm of the number of solutions at that distance of a reference, for each
        weight.
      overlap: p, with the reference.
      mutual_overlap: q1, of two solutions at that distance.
      cross_overlap: t, with another reference.
      beta: inverse temperature of the references.
      reference_entropy: logarithm of the number of references, for each weight.
      reference_overlap: q, of two references.
      error_rate: fraction of the patterns that a reference has wrong.
      residual: largest of the saddle-point equations.
      iterations: of Newton's method.
      converged: whether the residual is within 1e-9.
    """

    entropy: jax.Array
    overlap: jax.Array
    mutual_overlap: jax.Array
    cross_overlap: jax.Array
    beta: jax.Array
    reference_entropy: jax.Array
    reference_overlap: jax.Array
    error_rate: jax.Array
    residual: jax.Array
    iterations: jax.Array
    converged: jax.Array


class _Posterior(NamedTuple):
    """The reference's own field a on a pattern, given the field x that all references share.

    Attributes:
      own: a. # shape=(X, A)
      probability: of a given x. # shape=(X, A)
      log_sum: logarithm of the mean of exp(-beta f), given x. # shape=(X,)
      pull: derivative of log_sum in the pattern's field. # shape=(X,)
      loss: mean of f. # shape=()
      errors: probability of a negative stability. # shape=()
    """

    own: Float[Array, "*batch X A"]
    probability: Float[Array, "*batch X A"]
    log_sum: Float[Array, "*batch X"]
    pull: Float[Array, "*batch X"]
    loss: Float[Array, "*batch"]
    errors: Float[Array, "*batch"]


class _Typical(NamedTuple):
    """What q makes of the references: the log qhat that it implies, and the entropy."""

    q: jax.Array
    log_conjugate: jax.Array
    entropy: jax.Array
    posterior: _Posterior


def franz_parisi_of_cross_entropy(
    alpha: Real[ArrayLike, "..."],
    distance: Real[ArrayLike, "..."],
    *,
    gamma: Real[ArrayLike, "..."],
    beta: Real[ArrayLike, "..."] | None = None,
) -> FranzParisiOfCrossEntropy:
    r"""Entropy of the solutions at a distance from a minimum of the cross-entropy loss.

    For the binary perceptron. The reference is drawn with the weight :math:`e^{-\beta \sum f}`,
    where the sum is over the patterns and, in the stability u,

    .. math:: f(u) = \frac{1}{2 \gamma} \log\left(1 + e^{-2 \gamma u}\right)

    and solutions, without errors, are counted at the Hamming distance d from it. This is the
    potential of `franz_parisi` with :math:`e^{-\beta f}` in place of the reference's step function:

    .. math:: V = \operatorname*{extr} \alpha \!\int\! Dx \, \frac{\int\! Da \, e^{-\beta f(u)}
       \int\! Dy \log \Phi\!\left(\frac{t x / \sqrt q + C a + B y}{\sqrt{1 - q_1}}\right)}
       {\int\! Da \, e^{-\beta f(u)}} + S(p, t, q_1), \qquad u = \sqrt q x + \sqrt{1 - q} a

    with :math:`C = (p - t) / \sqrt{1 - q}` and :math:`B^2 = q_1 - t^2 / q - C^2`. Minima of the
    loss lie close to the middle of the densest regions of solutions.

    Args:
      alpha: load, patterns for each weight, above 0; a number or an array.
      distance: Hamming distance d, as a fraction of the weights, inside (0, 1); a number or an
        array, broadcast with ``alpha``.
      gamma: steepness of the loss, above 0; a number or an array, broadcast with the others.
      beta: inverse temperature, above 0; a number or an array, broadcast with the others. Default
        None: where the references' replica-symmetric entropy vanishes, which are the minima.

    Returns:
      A `FranzParisiOfCrossEntropy`. Points where the equations were not solved are reported there.
      The entropy is good to 1e-6 for gamma from 0.7 to 4; for smaller ones the minima are so close
      to each other (q = 0.96 at gamma = 0.5) that the integrals are wrong by some 1e-4.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: double precision is off, or an argument is out of its range.

    Examples:
      Around minima there are more solutions than around typical solutions, 0.204375:

      >>> import jax
      >>> with jax.enable_x64(True):
      ...     near = franz_parisi_of_cross_entropy(0.4, 0.1, gamma=2.0)
      ...     print(f"{near.entropy:.5f} {near.beta:.2f}")
      0.27506 228.55

    Reference:
      Baldassi, Pittorino and Zecchina, Shaping the learning landscape in neural networks around
      wide flat minima, PNAS 117 (2020).
    """
    check_precision()
    check_distance(distance)
    check_number("gamma", gamma, above=0)
    free = beta is None
    if not free:
        check_number("beta", beta, above=0)
    gamma = jnp.asarray(gamma, float)
    arguments = jnp.broadcast_arrays(
        load(alpha, above=0),
        jnp.asarray(distance, float),
        gamma,
        # A guess, from which the search for the minima starts.
        30 * gamma**2 if free else jnp.asarray(beta, float),
    )
    answers = _franz_parisi_of_cross_entropy(padded(*arguments), jnp.asarray(free))
    return shaped(answers, arguments[0].shape)


@jax.jit
def _franz_parisi_of_cross_entropy(points: Points, free: jax.Array) -> FranzParisiOfCrossEntropy:
    """The compiled part of `franz_parisi_of_cross_entropy`."""

    def solve(
        alpha: jax.Array, distance: jax.Array, gamma: jax.Array, beta: jax.Array
    ) -> FranzParisiOfCrossEntropy:
        found, typical = _reference(alpha, gamma, beta, free)
        reference = Reference(typical.q, jnp.exp(found.x[0]))
        solution, overlaps, entropy = _near(
            alpha, overlap_at(distance, "binary"), reference, typical.posterior
        )
        return FranzParisiOfCrossEntropy(
            entropy, overlaps.p, overlaps.q1, overlaps.t, jnp.exp(found.x[1]), typical.entropy,
            typical.q, typical.posterior.errors, jnp.maximum(found.residual, solution.residual),
            solution.iterations, found.converged & solution.converged,
        )  # fmt: skip

    return one_by_one(solve, points)


def _reference(
    alpha: jax.Array, gamma: jax.Array, beta: jax.Array, free: jax.Array
) -> tuple[Solution, _Typical]:
    """Logarithms of qhat and beta, at that beta or, if it is free, where the entropy vanishes."""

    def iterate(_: jax.Array, log_conjugate: jax.Array) -> jax.Array:
        typical = _typical(alpha, gamma, log_conjugate, beta)
        return (log_conjugate + typical.log_conjugate) / 2

    def equations(unknowns: jax.Array) -> jax.Array:
        typical = _typical(alpha, gamma, unknowns[0], jnp.exp(unknowns[1]))
        second = jnp.where(free, typical.entropy, unknowns[1] - jnp.log(beta))
        return jnp.stack([unknowns[0] - typical.log_conjugate, second])

    start = jax.lax.fori_loop(0, PLAIN_ITERATIONS, iterate, jnp.log(alpha))
    solution = newton(equations, jnp.stack([start, jnp.log(beta)]), tolerance=TOLERANCE)
    return solution, _typical(alpha, gamma, solution.x[0], jnp.exp(solution.x[1]))


def _typical(
    alpha: jax.Array, gamma: jax.Array, log_conjugate: jax.Array, beta: jax.Array
) -> _Typical:
    """The two sides of the references' replica-symmetric saddle point."""
    z, x = gaussian_quadrature(WEIGHT_SPACING), gaussian_quadrature(SHARED_SPACING)
    conjugate = jnp.exp(log_conjugate)
    field = jnp.sqrt(conjugate) * z.nodes
    complement = z.weights @ (1 / jnp.cosh(field) ** 2)
    posterior = _posterior(1 - complement, beta, gamma)
    entropy = z.weights @ log_2cosh(field) - conjugate * complement / 2
    entropy += alpha * (x.weights @ posterior.log_sum + beta * posterior.loss)
    implied = jnp.log(alpha * (x.weights @ posterior.pull**2))
    return _Typical(1 - complement, implied, entropy, posterior)


def _posterior(q: jax.Array, beta: jax.Array, gamma: jax.Array) -> _Posterior:
    """The reference's fields on a pattern, on a grid about the most probable."""
    x = gaussian_quadrature(SHARED_SPACING)
    scale = jnp.sqrt(1 - q)

    def loss(u: jax.Array) -> jax.Array:
        return jax.nn.softplus(-2 * gamma * u) / (2 * gamma)

    shared = jnp.sqrt(q) * x.nodes
    slope = jax.lax.stop_gradient(beta * scale)

    def halve(_: jax.Array, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bracket
        middle = (low + high) / 2
        above = middle > slope * jax.nn.sigmoid(-2 * gamma * (shared + scale * middle))
        return jnp.where(above, low, middle), jnp.where(above, middle, high)

    # The logarithm of the integrand is more curved than a normal density's about its peak.
    peak = jax.lax.fori_loop(0, HALVINGS, halve, (0 * shared, slope + 0 * shared))[0]
    grid = OWN_SPACING * (np.arange(float(OWN_NODES)) - OWN_NODES // 2)
    own = jax.lax.stop_gradient(peak)[:, None] + grid[None]
    f = loss(shared[:, None] + scale * own)
    log_weight = -beta * f - own**2 / 2 + (np.log(OWN_SPACING) - LOG_SQRT_2PI)
    log_sum = jax.scipy.special.logsumexp(log_weight, axis=1)
    probability = jnp.exp(log_weight - log_sum[:, None])
    # The half line of errors on its own, as its end is a jump; its rule's measure is 2 Dr.
    half = half_line_quadrature(0.1)
    log_errors = -beta * loss(-scale * half.nodes)[None]
    log_errors -= (shared[:, None] / scale + half.nodes[None]) ** 2 / 2 - half.nodes[None] ** 2 / 2
    errors = jnp.exp(log_errors - log_sum[:, None]) @ half.weights / 2
    return _Posterior(
        own, probability, log_sum, jnp.sum(probability * own, axis=1) / scale,
        x.weights @ jnp.sum(probability * f, axis=1), x.weights @ errors,
    )  # fmt: skip


def _near(
    alpha: jax.Array, p: jax.Array, reference: Reference, posterior: _Posterior
) -> tuple[Solution, Overlaps, jax.Array]:
    """The solutions at the overlap p with the reference: the saddle point, and the entropy."""

    def sides(unknowns: jax.Array) -> tuple[Overlaps, jax.Array, jax.Array, jax.Array]:
        overlaps, entropy = binary_moments(Fields(*unknowns), reference, WEIGHT_SPACING)
        cost, cross, variance = _patterns(overlaps, reference, posterior)
        excess = alpha * variance - (alpha * cross) ** 2 / reference.conjugate
        return overlaps, alpha * cross, jnp.log(excess), entropy + alpha * cost

    def align(_: jax.Array, unknowns: jax.Array) -> jax.Array:
        overlaps, _ = binary_moments(Fields(*unknowns), reference, WEIGHT_SPACING)
        return unknowns.at[0].add(jnp.clip((p - overlaps.p) / (1 - overlaps.q1), -1, 1))

    def iterate(_: jax.Array, unknowns: jax.Array) -> jax.Array:
        # Were p not kept, its field and that of t would run away together.
        unknowns = jax.lax.fori_loop(0, ALIGNMENTS, align, unknowns)
        t, log_excess = sides(unknowns)[1:3]
        step = jnp.stack([t - unknowns[1], t - unknowns[1], log_excess - unknowns[2]])
        return unknowns + step / 2

    def equations(unknowns: jax.Array) -> jax.Array:
        overlaps, t, log_excess, _ = sides(unknowns)
        return jnp.stack([overlaps.p - p, unknowns[1] - t, unknowns[2] - log_excess])

    start = jnp.stack([jnp.arctanh(p), 0.3 + 0 * p, -3 + 0 * p])
    start = jax.lax.fori_loop(0, PLAIN_ITERATIONS, iterate, start)
    solution = newton(equations, start, tolerance=TOLERANCE)
    overlaps, _, _, entropy = sides(solution.x)
    return solution, overlaps, entropy


def _patterns(
    overlaps: Overlaps, reference: Reference, posterior: _Posterior
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean log-probability of a pattern under a solution near the reference, and its correlations.

    Returns:
      The mean, and with lambda its slope in the field those of lambda lambda_ref and of lambda^2.
    """
    x = gaussian_quadrature(SHARED_SPACING)
    near = gaussian_quadrature(NEAR_SPACING, 6.6)
    q, (p, t, q1) = reference.q, overlaps
    c = (p - t) / jnp.sqrt(1 - q)
    b, scale = jnp.sqrt(q1 - t**2 / q - c**2), jnp.sqrt(1 - q1)
    mean = (t * x.nodes / jnp.sqrt(q))[:, None] + c * posterior.own
    weights = x.weights[:, None] * posterior.probability

    def add(sums: jax.Array, node: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        y, weight = node
        field = -(mean + b * y) / scale
        pull = hazard(field) / scale
        terms = [log_tail(field), pull * posterior.pull[:, None], pull**2]
        return sums + weight * jnp.stack([jnp.sum(weights * term) for term in terms]), None

    sums, _ = jax.lax.scan(add, jnp.zeros(3, x.nodes.dtype), (near.nodes, near.weights))
    return sums[0], sums[1], sums[2]
