"""Bayes-optimal learning of a teacher's rule: what all solutions together know of it."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Real

from entropix.replica_theory._inputs import (
    Weights,
    check_one_three_or_infinite,
    check_precision,
    check_weights,
    load,
)
from entropix.replica_theory._planted import errors, information, planted_energy, prior
from entropix.replica_theory._points import Points, one_by_one, padded, shaped
from entropix.replica_theory._solvers import Solution, find_root

TOLERANCE = 1e-11
# Of log qhat. Along the branch of least overlap the load rises, for binary weights up to a maximum.
FINEST = 0.03
LOWEST, HIGHEST_BINARY, HIGHEST_SPHERICAL = -40.0, 3.0, 14.0


class BayesOptimal(NamedTuple):
    """Answer of `bayes_optimal`; every field has the shape of the loads.

    Attributes:
      overlap: q, of the mean solution with the teacher; also of two solutions.
      generalization_error: of the vote of all solutions, the least that is possible.
      gibbs_error: of one solution.
      free_entropy: for each weight, logarithm of the number of networks (binary) that agree with
        the teacher on all patterns, or of their share of the sphere.
      message_passing_overlap: q to which message passing comes that knows nothing of the teacher.
      message_passing_error: of the vote there.
      residual: of the saddle-point equation, in units of the load.
      iterations: of the root finder.
      converged: whether the residual is within 1e-11, and the integrals resolve the overlap.
    """

    overlap: jax.Array
    generalization_error: jax.Array
    gibbs_error: jax.Array
    free_entropy: jax.Array
    message_passing_overlap: jax.Array
    message_passing_error: jax.Array
    residual: jax.Array
    iterations: jax.Array
    converged: jax.Array


class PerfectGeneralization(NamedTuple):
    """Answer of `perfect_generalization`.

    Attributes:
      load: alpha, from which the teacher is the only solution left: the others' entropy is 0.
      overlap: q from which the overlap jumps to 1 there.
      spinodal: alpha, from which message passing finds the teacher; between the two loads it is
        the only solution, and hard to find.
      spinodal_overlap: q from which message passing jumps there.
      residual: the larger one of the two equations.
      converged: whether it is within 1e-11.
    """

    load: jax.Array
    overlap: jax.Array
    spinodal: jax.Array
    spinodal_overlap: jax.Array
    residual: jax.Array
    converged: jax.Array


class _Point(NamedTuple):
    """A solution of the saddle-point equations."""

    load: jax.Array
    free_entropy: jax.Array


def bayes_optimal(
    alpha: Real[ArrayLike, "..."], *, weights: Weights, num_hidden: float = 1
) -> BayesOptimal:
    r"""How well a teacher's rule is known from alpha patterns for each weight that it labeled.

    The teacher is a random network of the same kind, so that it is one of the typical solutions,
    and its overlap with another one is that of any two (Nishimori). With
    :math:`P(u)` the probability of the label +1 if the hidden units see the fields u with normal
    noise, and :math:`g = \sqrt{q / (1 - q)}`,

    .. math:: \phi = \operatorname*{extr}_{q, \hat q} \; S(\hat q) - \tfrac12 \hat q q + \alpha
       \int\! Dz \, [P \log P + (1 - P) \log(1 - P)](g z)

    where S is :math:`\int Dz \log 2\cosh(\sqrt{\hat q} z + \hat q) - \hat q / 2` for binary weights
    and :math:`\tfrac12 \hat q - \tfrac12 \log(1 + \hat q)` for spherical ones. New patterns are
    answered by the vote of all solutions with the error :math:`\int Dz \min(P, 1 - P)`, for the
    perceptron :math:`\arccos(\sqrt q) / \pi`, and by one solution with
    :math:`\int Dz \, 2 P (1 - P)`, for the perceptron :math:`\arccos(q) / \pi`.

    Binary weights have a second solution, q = 1 with the free entropy 0: the teacher itself. Where
    the other one counts fewer networks than one, the teacher is the only network left, and the
    errors are 0. Message passing stays at the other one as long as it exists
    (`perfect_generalization`).

    Args:
      alpha: load, patterns for each weight, at least 0; a number or an array.
      weights: ``"binary"`` or ``"spherical"``.
      num_hidden: K of the tree committee: 1 (the perceptron, default), 3, or ``math.inf``. With
        three hidden units the integrals over their fields are good to 1e-5 up to q = 0.9 and to
        1e-3 up to 0.97, beyond which a solution is reported as not converged.

    Returns:
      A `BayesOptimal`.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: double precision is off, or an argument is out of its range.

    Examples:
      Fifteen patterns for ten weights tell everything of a binary teacher, and message passing
      knows it; with thirteen it does not:

      >>> import jax, jax.numpy as jnp
      >>> with jax.enable_x64(True):
      ...     theory = bayes_optimal(jnp.array([1.0, 1.3, 1.5]), weights="binary")
      ...     print(theory.generalization_error.round(4), theory.message_passing_error.round(4))
      [0.2306 0.     0.    ] [0.2306 0.1754 0.    ]

    Reference:
      Györgyi, First-order transition to perfect generalization in a neural network with binary
      synapses, Phys. Rev. A 41 (1990); Opper and Haussler, Generalization performance of Bayes
      optimal classification algorithm for learning a perceptron, Phys. Rev. Lett. 66 (1991);
      Barbier et al., Optimal errors and phase transitions in high-dimensional generalized linear
      models, PNAS 116 (2019).
    """
    check_precision()
    check_weights(weights)
    check_one_three_or_infinite(num_hidden)
    alpha = load(alpha)
    answers = _bayes_optimal(padded(alpha), weights=weights, num_hidden=num_hidden)
    return shaped(answers, alpha.shape)


def perfect_generalization(*, num_hidden: float = 1) -> PerfectGeneralization:
    r"""Loads from which a binary teacher is known, and from which message passing knows it.

    The first is where the free entropy of `bayes_optimal` at the least overlap falls to 0, that of
    the teacher alone: a first-order transition. The second is the largest load at which there is
    such a solution, :math:`\max_q \alpha(q)`.

    Args:
      num_hidden: K of the tree committee, as for `bayes_optimal`. Default 1.

    Returns:
      A `PerfectGeneralization`.

    Raises:
      ValueError: double precision is off, or ``num_hidden`` is another number.

    Examples:
      >>> import jax
      >>> with jax.enable_x64(True):
      ...     theory = perfect_generalization()
      ...     print(f"{theory.load:.3f} {theory.spinodal:.3f}")
      1.245 1.493

    Reference:
      As for `bayes_optimal`.
    """
    check_precision()
    check_one_three_or_infinite(num_hidden)
    return _perfect_generalization(num_hidden=num_hidden)


def _point(x: jax.Array, weights: Weights, num_hidden: float) -> _Point:
    """The load at which x = log qhat solves the equations, and the free entropy there."""
    conjugate = jnp.exp(x)
    overlap, entropy = prior(conjugate, weights)
    alpha = conjugate / information(overlap, num_hidden)
    return _Point(alpha, entropy + alpha * planted_energy(overlap, num_hidden))


def _top(num_hidden: float) -> Solution:
    """Where the load of binary weights is largest."""

    def falling(x: jax.Array) -> jax.Array:
        return -jax.jvp(
            lambda y: jnp.log(_point(y, "binary", num_hidden).load), (x,), (jnp.ones_like(x),)
        )[1]

    return find_root(falling, -2.0, HIGHEST_BINARY, tolerance=TOLERANCE)


@functools.partial(jax.jit, static_argnames=("weights", "num_hidden"))
def _bayes_optimal(points: Points, *, weights: Weights, num_hidden: float) -> BayesOptimal:
    """The compiled part of `bayes_optimal`."""
    highest = jnp.asarray(HIGHEST_SPHERICAL)
    if weights == "binary":
        highest = _top(num_hidden).x
    # Of 1 - q, that the integrals over three fields resolve.
    finest = FINEST if num_hidden == 3 else 0.0
    spinodal = _point(highest, weights, num_hidden).load

    def solve(alpha: jax.Array) -> BayesOptimal:
        solution = find_root(
            lambda x: _point(x, weights, num_hidden).load - alpha,
            LOWEST, highest, tolerance=TOLERANCE,
        )  # fmt: skip
        overlap, entropy = prior(jnp.exp(solution.x), weights)
        free_entropy = entropy + alpha * planted_energy(overlap, num_hidden)
        wrong = errors(overlap, num_hidden)
        nowhere = jnp.zeros([], bool)
        beyond = alpha > spinodal if weights == "binary" else nowhere
        alone = beyond | (free_entropy < 0) if weights == "binary" else nowhere
        return BayesOptimal(
            jnp.where(alone, 1, overlap.q),
            jnp.where(alone, 0, wrong.vote),
            jnp.where(alone, 0, wrong.gibbs),
            jnp.where(alone, 0, free_entropy),
            jnp.where(beyond, 1, overlap.q),
            jnp.where(beyond, 0, wrong.vote),
            jnp.where(beyond, 0, solution.residual),
            solution.iterations,
            beyond | (solution.converged & (overlap.complement > finest)),
        )

    if num_hidden in (1, math.inf):
        return jax.vmap(solve)(*points.arguments)
    return one_by_one(solve, points)


@functools.partial(jax.jit, static_argnames=("num_hidden",))
def _perfect_generalization(*, num_hidden: float) -> PerfectGeneralization:
    """The compiled part of `perfect_generalization`."""
    top = _top(num_hidden)
    last = find_root(
        lambda x: -_point(x, "binary", num_hidden).free_entropy,
        LOWEST, top.x, tolerance=TOLERANCE,
    )  # fmt: skip
    residual = jnp.maximum(top.residual, last.residual)
    return PerfectGeneralization(
        _point(last.x, "binary", num_hidden).load,
        prior(jnp.exp(last.x), "binary").overlap.q,
        _point(top.x, "binary", num_hidden).load,
        prior(jnp.exp(top.x), "binary").overlap.q,
        residual,
        residual <= TOLERANCE,
    )
