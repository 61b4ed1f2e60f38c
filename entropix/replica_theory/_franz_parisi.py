"""Local entropy around a typical solution: the Franz-Parisi potential."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Real

from entropix._gaussian import hazard, log_tail
from entropix.replica_theory._energy import Overlap, output_overlap, output_slope
from entropix.replica_theory._inputs import (
    Weights,
    check_distance,
    check_one_or_infinite,
    check_precision,
    check_weights,
    load,
    overlap_at,
)
from entropix.replica_theory._near_reference import (
    REACH,
    Fields,
    Overlaps,
    Reference,
    binary_moments,
)
from entropix.replica_theory._points import Points, one_by_one, padded, shaped
from entropix.replica_theory._quadrature import gaussian_quadrature
from entropix.replica_theory._replica_symmetric import replica_symmetric
from entropix.replica_theory._solvers import newton

TOLERANCE = 1e-9
# Overlaps of spherical weights come close to 1, and the integrands close to steps.
SPACING = {"binary": 0.1, "spherical": 0.05}
PLAIN_ITERATIONS = 25


class FranzParisi(NamedTuple):
    """Answer of `franz_parisi`; every field has the shape of loads and distances together.

    Attributes:
      entropy: of the solutions at that distance of a typical solution, for each weight: logarithm
        of their number (binary), or of the fraction that they are of the weights at that distance
        (spherical). Negative for binary weights where the typical solution is isolated: there are
        none at that distance.
      overlap: p, with the reference.
      mutual_overlap: q1, of two solutions at that distance.
      cross_overlap: t, with another typical solution.
      beyond_capacity: whether there are no typical solutions at this load to refer to.
      residual: largest of the saddle-point equations.
      iterations: of Newton's method.
      converged: whether the residual is within 1e-9 and the reference was found.
    """

    entropy: jax.Array
    overlap: jax.Array
    mutual_overlap: jax.Array
    cross_overlap: jax.Array
    beyond_capacity: jax.Array
    residual: jax.Array
    iterations: jax.Array
    converged: jax.Array


def franz_parisi(
    alpha: Real[ArrayLike, "..."],
    distance: Real[ArrayLike, "..."],
    *,
    weights: Weights,
    num_hidden: float = 1,
) -> FranzParisi:
    r"""Entropy of the solutions at a distance from a typical solution of the same patterns.

    The reference is drawn from all solutions; the others are counted at the overlap p with it:
    p = 1 - 2 d for binary weights at the Hamming distance d (as a fraction of the weights), and
    :math:`p = \sqrt{1 - D}` for spherical ones at the squared sine D of the angle. With q the
    typical overlap and t, q1 those of a solution there with other references and other solutions,

    .. math:: V = \operatorname*{extr} \alpha \!\int\! Dx \, \Phi(r x)^{-1} \!\!\int\! Ds \,
       \Phi\!\left(\frac{\sigma r x + C s}{B}\right)
       \log \Phi\!\left(\frac{t x / \sqrt q + \sigma s}{\sqrt{1 - q_1}}\right) + S(p, t, q_1)

    where :math:`r^2 = q / (1 - q)`, :math:`\sigma^2 = q_1 - t^2 / q`,
    :math:`C = (p - t) / \sqrt{1 - q}`, :math:`B^2 = \sigma^2 - C^2`, and S is the entropy of the
    weights under these overlaps. For the tree committee with infinitely many hidden units every
    overlap in the first term is replaced by its :math:`(2/\pi) \arcsin`.

    Args:
      alpha: load, patterns for each weight, at least 0; a number or an array.
      distance: binary: Hamming distance d; spherical: squared sine D. Inside (0, 1); a number or an
        array, broadcast with ``alpha``: ``alpha[:, None], distance[None]`` gives all curves in one
        call.
      weights: ``"binary"`` or ``"spherical"``.
      num_hidden: 1 (the perceptron, default) or ``math.inf``.

    Returns:
      A `FranzParisi`. Loads beyond the capacity are reported there, and so are points where the
      equations were not solved: where the overlap p equals q, at which they are singular, and at
      loads and distances near the ends of their ranges.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: double precision is off, or an argument is out of its range.

    Examples:
      Typical solutions of the binary perceptron have no others close by:

      >>> import jax, jax.numpy as jnp
      >>> with jax.enable_x64(True):
      ...     curve = franz_parisi(0.6, jnp.array([0.1, 0.05, 0.01]), weights="binary")
      ...     print(curve.entropy.round(6))
      [ 0.118687  0.053944 -0.008743]

    Reference:
      Franz and Parisi, Recipes for metastable states in spin glasses, J. Physique I 5 (1995);
      Huang and Kabashima, Origin of the computational hardness for learning with binary synapses,
      Phys. Rev. E 90 (2014).
    """
    check_precision()
    check_weights(weights)
    check_one_or_infinite(num_hidden)
    check_distance(distance)
    alpha, distance = jnp.broadcast_arrays(load(alpha), jnp.asarray(distance, float))
    answers = _franz_parisi(padded(alpha, distance), weights=weights, num_hidden=num_hidden)
    return shaped(answers, alpha.shape)


@functools.partial(jax.jit, static_argnames=("weights", "num_hidden"))
def _franz_parisi(points: Points, *, weights: Weights, num_hidden: float) -> FranzParisi:
    """The compiled part of `franz_parisi`."""
    binary = weights == "binary"
    moments = binary_moments if binary else _spherical_moments
    patterns = functools.partial(_patterns, num_hidden=num_hidden, spacing=SPACING[weights])
    aligned = _align_binary if binary else _align_spherical

    def solve(alpha: jax.Array, p: jax.Array, q: jax.Array, conjugate: jax.Array) -> FranzParisi:
        reference = Reference(q, conjugate)

        def fields_of(overlaps: Overlaps) -> tuple[jax.Array, jax.Array]:
            _, cross, variance = patterns(overlaps, reference)
            excess = alpha * variance - (alpha * cross) ** 2 / reference.conjugate
            return alpha * cross, jnp.log(excess)

        def iterate(_: jax.Array, unknowns: jax.Array) -> jax.Array:
            fields = Fields(*unknowns)
            overlaps, _ = moments(fields, reference)
            t, log_excess = fields_of(overlaps)
            return jnp.stack(aligned(Fields(fields.p, t, log_excess), overlaps, p, reference))

        def equations(unknowns: jax.Array) -> jax.Array:
            fields = Fields(*unknowns)
            overlaps, _ = moments(fields, reference)
            t, log_excess = fields_of(overlaps)
            return jnp.stack([overlaps.p - p, fields.t - t, fields.log_excess - log_excess])

        free = jnp.arctanh(p) if binary else p / (1 - p**2)
        start = jnp.stack([free, p * reference.conjugate, -6 * jnp.ones_like(p)])
        # The plain iteration goes to the saddle point from far away, but slowly.
        start = jax.lax.fori_loop(0, PLAIN_ITERATIONS, iterate, start)
        solution = newton(equations, start, tolerance=TOLERANCE)
        fields = Fields(*solution.x)
        overlaps, entropy = moments(fields, reference)
        cost, _, _ = patterns(overlaps, reference)
        return FranzParisi(
            entropy + alpha * cost, overlaps.p, overlaps.q1, overlaps.t, jnp.zeros([], bool),
            solution.residual, solution.iterations, solution.converged,
        )  # fmt: skip

    alpha, distance = points.arguments
    typical = replica_symmetric(alpha, weights=weights, num_hidden=num_hidden)
    arguments = alpha, overlap_at(distance, weights), typical.overlap, typical.conjugate
    answers = one_by_one(solve, points._replace(arguments=arguments))
    return answers._replace(
        beyond_capacity=typical.beyond_capacity,
        converged=answers.converged & typical.converged,
    )


def _patterns(
    overlaps: Overlaps, reference: Reference, num_hidden: float, spacing: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean log-probability of a pattern under a solution near the reference, and its correlations.

    Returns:
      The mean, that of lambda lambda_ref dQ/dt, and that of lambda^2 dQ/dq1, lambda being the slope
      of the log-probability in the field: alpha times the latter are the conjugates of t and q1.
    """
    line = gaussian_quadrature(spacing, REACH)
    x, s = line.nodes[:, None], line.nodes[None]
    weights = line.weights[:, None] * line.weights[None]

    def output(q: jax.Array) -> Overlap:
        return output_overlap(Overlap(q, 1 - q), num_hidden)

    def slope(q: jax.Array) -> jax.Array:
        return output_slope(Overlap(q, 1 - q), num_hidden)

    q, p, t, q1 = map(output, (reference.q, *overlaps))
    sigma2 = q1.q - t.q**2 / q.q
    sigma, c = jnp.sqrt(sigma2), (p.q - t.q) / jnp.sqrt(q.complement)
    b = jnp.sqrt(sigma2 - c**2)
    right = -jnp.sqrt(q.q / q.complement) * x
    posterior = weights * jnp.exp(log_tail((sigma * right - c * s) / b) - log_tail(right))
    field = -(t.q * x / jnp.sqrt(q.q) + sigma * s) / jnp.sqrt(q1.complement)
    pull = hazard(field) / jnp.sqrt(q1.complement)
    pull_of_reference = hazard(right) / jnp.sqrt(q.complement)
    return (
        jnp.sum(posterior * log_tail(field)),
        slope(overlaps.t) * jnp.sum(posterior * pull * pull_of_reference),
        slope(overlaps.q1) * jnp.sum(posterior * pull**2),
    )


def _spherical_moments(fields: Fields, reference: Reference) -> tuple[Overlaps, jax.Array]:
    """Overlaps and entropy of weights on the sphere; the entropy of all at overlap p is 0."""
    q, own = reference.q, fields.p - fields.t
    # |field|^2; weights of the mean v * field and the variance v have the norm 1.
    power = fields.variance(reference) + own**2 + 2 * fields.t * own * (1 - q)
    v = 2 / (1 + jnp.sqrt(1 + 4 * power))
    p = v * (fields.p - q * fields.t)
    t = v * ((1 - q) * fields.t + q * own)
    q1 = 1 - v
    c = (p**2 - t**2 - q * (p - t) ** 2 / (1 - q)) / (1 - q)
    entropy = (jnp.log(v) + (q1 - c) / v - jnp.log1p(-(p**2))) / 2
    return Overlaps(p, t, q1), entropy


def _align_binary(fields: Fields, overlaps: Overlaps, p: jax.Array, reference: Reference) -> Fields:
    """One Newton step of phat toward the overlap p; dp / dphat = 1 - q1."""
    del reference
    return fields._replace(p=fields.p + (p - overlaps.p) / (1 - overlaps.q1))


def _align_spherical(
    fields: Fields, overlaps: Overlaps, p: jax.Array, reference: Reference
) -> Fields:
    """The phat of the overlap p, where the norm is 1: p^2 + v^2 across + v = 1."""
    del overlaps
    across = fields.variance(reference) - ((1 - reference.q) * fields.t) ** 2
    v = 2 * (1 - p**2) / (1 + jnp.sqrt(1 + 4 * (1 - p**2) * across))
    return fields._replace(p=p / v + reference.q * fields.t)
