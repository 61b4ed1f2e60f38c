"""Both sides of the saddle point where a teacher made the labels: its weights, and its patterns.

The teacher is one more typical solution (Nishimori): the overlap of a solution with the teacher is
that of two solutions, q, and one number describes them all.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr

from entropix._gaussian import LOG_SQRT_2PI, log_tail
from entropix.replica_theory._energy import Overlap, output_overlap, output_slope
from entropix.replica_theory._inputs import Weights
from entropix.replica_theory._quadrature import (
    gaussian_quadrature,
    half_line_quadrature,
    log_2cosh,
)
from entropix.replica_theory._units import symmetric_nodes

SPACING, HALF_SPACING = 0.02, 0.02
# Past 9 standard deviations 1 / H still grows.
REACH = 12.0
# Of the fields of three units, and of the last one of them where the integrand has an edge.
THREE_SPACING, LAST_SPACING = 0.25, 0.02
SMALLEST = 1e-300
# Beyond it a binary weight is known to 1e-30, and the quadrature no longer tells how well.
LARGEST_CONJUGATE = 140.0


class Prior(NamedTuple):
    """The weights under fields of a signal-to-noise ratio.

    Attributes:
      overlap: q, of the mean weight with the teacher's.
      entropy: the entropic term of the free entropy.
    """

    overlap: Overlap
    entropy: jax.Array


class Errors(NamedTuple):
    """Probabilities to answer a new pattern differently from the teacher.

    Attributes:
      vote: of the majority of all solutions.
      gibbs: of one solution.
    """

    vote: jax.Array
    gibbs: jax.Array


def prior(conjugate: jax.Array, weights: Weights) -> Prior:
    """What a field sqrt(qhat) z + qhat w tells of the teacher's weight w.

    Binary weights: q = int Dz tanh(sqrt(qhat) z + qhat). Spherical ones: q = qhat / (1 + qhat).
    """
    if weights == "spherical":
        overlap = Overlap(conjugate / (1 + conjugate), 1 / (1 + conjugate))
        return Prior(overlap, (overlap.q - jnp.log1p(conjugate)) / 2)
    z = gaussian_quadrature(SPACING)
    field = jnp.sqrt(conjugate) * z.nodes + conjugate
    complement = z.weights @ (2 * jax.nn.sigmoid(-2 * field))
    entropy = z.weights @ log_2cosh(field) - conjugate * (2 - complement) / 2
    return Prior(Overlap(1 - complement, complement), entropy)


def information(overlap: Overlap, num_hidden: float) -> jax.Array:
    r"""qhat / alpha: what a pattern tells of the field that it sees, twice dE/dq.

    For the perceptron, after an integration by parts and a change of variables that make the
    integrand as wide at q = 1 as at 0,

    .. math:: \frac{1}{\pi \sqrt{1 - q^2}} \int\! Dy \, \frac{1}{H(\sqrt{q / (1 + q)} \, y)}

    and for three hidden units the mean of 2 |grad P|^2 / P over 1 - q.
    """
    if num_hidden in (1, math.inf):
        y = gaussian_quadrature(SPACING, REACH)
        Q = output_overlap(overlap, num_hidden)
        mean = y.weights @ jnp.exp(-log_tail(jnp.sqrt(Q.q / (1 + Q.q)) * y.nodes))
        scale = jnp.pi * jnp.sqrt(Q.complement * (1 + Q.q))
        return output_slope(overlap, num_hidden) * mean / scale
    fields, weights = _three_fields(overlap)
    yes, no = ndtr(fields), ndtr(-fields)
    # Whether the other two units disagree, and leave it to this one.
    others = jnp.roll(yes, 1, 0) * jnp.roll(no, 2, 0) + jnp.roll(no, 1, 0) * jnp.roll(yes, 2, 0)
    density = jnp.exp(-(fields**2) / 2 - LOG_SQRT_2PI)
    slopes = jnp.sum((density * others) ** 2, axis=0)
    return 2 / overlap.complement * (weights @ (slopes / _majority(yes, no)))


def planted_energy(overlap: Overlap, num_hidden: float) -> jax.Array:
    """E(q): mean logarithm of the probability that a pattern's label had, minus its entropy."""
    if num_hidden in (1, math.inf):
        Q = output_overlap(overlap, num_hidden)
        z = half_line_quadrature(HALF_SPACING)
        field = jnp.sqrt(Q.q / Q.complement) * z.nodes
        yes, no = log_tail(-field), log_tail(field)
        return z.weights @ (jnp.exp(yes) * yes + jnp.exp(no) * no)
    fields, weights = _three_fields(overlap)
    yes, no = ndtr(fields), ndtr(-fields)
    right, wrong = _majority(yes, no), _majority(no, yes)
    return weights @ (right * jnp.log(right) + wrong * jnp.log(wrong))


def errors(overlap: Overlap, num_hidden: float) -> Errors:
    """On a new pattern, of which the fields' means are known with the variance q.

    arccos(sqrt(Q)) / pi and arccos(Q) / pi for K = 1 and K infinite; the mean of min(P, 1 - P) and
    of 2 P (1 - P) between.
    """
    if num_hidden in (1, math.inf):
        Q = output_overlap(overlap, num_hidden)
        vote = jnp.arctan2(jnp.sqrt(Q.complement), jnp.sqrt(Q.q)) / jnp.pi
        return Errors(vote, 2 / jnp.pi * jnp.arcsin(jnp.sqrt(Q.complement / 2)))
    first, last = gaussian_quadrature(THREE_SPACING, 8.0), gaussian_quadrature(LAST_SPACING, 8.0)
    gain = jnp.sqrt(overlap.q / overlap.complement)
    yes, no = (ndtr(sign * gain * first.nodes) for sign in (1, -1))
    # The last field is integrated over on its own: min(P, 1 - P) has an edge in it.
    last_yes = ndtr(gain * last.nodes)[:, None, None]

    def at(last_yes: jax.Array) -> Errors:
        """Means over the first two fields."""
        both, neither = yes[:, None] * yes[None], no[:, None] * no[None]
        p = both + last_yes * (1 - both - neither)
        mean = lambda f: first.weights @ f @ first.weights  # noqa: E731
        return Errors(mean(jnp.minimum(p, 1 - p)), mean(2 * p * (1 - p)))

    found = jax.lax.map(at, last_yes)
    return Errors(last.weights @ found.vote, last.weights @ found.gibbs)


def _three_fields(overlap: Overlap) -> tuple[jax.Array, jax.Array]:
    """Fields of three units in units of their noise, (3, G), and their weights, (G,)."""
    nodes, weights = symmetric_nodes(3, spacing=THREE_SPACING)
    return jnp.sqrt(overlap.q / overlap.complement) * nodes.T, weights


def _majority(yes: jax.Array, no: jax.Array) -> jax.Array:
    """Probability that two or three of three units are +1, never quite 0."""
    pairs = yes * jnp.roll(yes, 1, 0) * jnp.roll(no, 2, 0)
    return jnp.maximum(jnp.sum(pairs, axis=0) + jnp.prod(yes, axis=0), SMALLEST)
