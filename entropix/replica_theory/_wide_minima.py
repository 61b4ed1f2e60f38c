"""Local entropy of the widest minima: infinitely many replicas around a center."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Real

from entropix.replica_theory._binary_center import binary_center
from entropix.replica_theory._committee_replicas import Output, best_shifts
from entropix.replica_theory._energy import Overlap, output_overlap, output_slope
from entropix.replica_theory._inputs import (
    Weights,
    check_distance,
    check_machine,
    check_precision,
    check_weights,
    load,
    overlap_at,
)
from entropix.replica_theory._points import Points, one_by_one, padded, shaped
from entropix.replica_theory._quadrature import gaussian_quadrature
from entropix.replica_theory._replica_symmetric import capacity
from entropix.replica_theory._replicas import Shift, best_shift
from entropix.replica_theory._solvers import Solution, find_root
from entropix.replica_theory._units import symmetric_nodes

SPACING = 0.02
# Points of the quasi-Monte-Carlo rule for finitely many hidden units.
SEQUENCE = 2**9


class WideMinima(NamedTuple):
    """Answer of `wide_minima`; every field has the shape of loads and distances together.

    Attributes:
      entropy: of the solutions at that distance of the best center, for each weight: logarithm of
        their number (binary), or of the fraction that they are of the weights at that distance
        (spherical); 0 where all weights there are solutions. nan where ``beyond_typical``.
      mutual_overlap: q1, of two replicas.
      log_response: log dq, dq = lim y (q1 - q0) for y replicas, q0 the overlap of two groups of
        them: how freely the center can still be chosen.
      beyond_typical: whether two typical solutions are closer than the replicas: they then need no
        attraction, and the formula has no meaning (spherical weights).
      beyond_capacity: whether the load exceeds the perceptron's capacity; never said of committees,
        whose capacities are known as bounds only.
      residual: of the saddle-point equations.
      iterations: of the root finder.
      converged: whether the residual is within the tolerance.
    """

    entropy: jax.Array
    mutual_overlap: jax.Array
    log_response: jax.Array
    beyond_typical: jax.Array
    beyond_capacity: jax.Array
    residual: jax.Array
    iterations: jax.Array
    converged: jax.Array


def wide_minima(
    alpha: Real[ArrayLike, "..."],
    distance: Real[ArrayLike, "..."],
    *,
    weights: Weights,
    num_hidden: float = 1,
    output: Output = "majority",
) -> WideMinima:
    r"""Largest local entropy: of the solutions around the best center, at a distance from it.

    The number of solutions around a center is maximized over all centers, by y to infinity replicas
    with the mutual overlap q1. Spherical weights, with the replicas at D = 1 - q1 from their
    barycenter, in units of all weights there:

    .. math:: \mathcal G = \min_{\delta q \ge 0} \frac{q_1}{2 (1 - q_1 + \delta q)} + \alpha
       \int\! Dz \max_s \left[ -\frac{s^2}{2 Q_1' \delta q}
       + \log \Phi\!\left(\frac{\sqrt{Q_1} z + s}{\sqrt{1 - Q_1}}\right) \right]

    with :math:`Q_1 = q_1` for the perceptron and :math:`(2/\pi) \arcsin q_1` for the large
    committee; with K hidden units z and s have K components, the last term is the log-probability
    of a right output, and :math:`Q_1' = 1`. Binary weights have a binary center at the Hamming
    distance d, and an extremum over three more variables in place of the first term.

    With infinitely many hidden units the parity machine's output is uncorrelated at any distance:
    its curve is flat at :math:`-\alpha \log 2`, and it has no wide minima. At finite K it is not
    flat.

    The centers' own entropy comes out negative here: their replica symmetry is broken, which is
    neglected, so that the values are estimates.

    Args:
      alpha: load, patterns for each weight, above 0; a number or an array.
      distance: binary: Hamming distance d; spherical: squared sine D. Inside (0, 1); a number or an
        array, broadcast with ``alpha``.
      weights: ``"binary"`` (perceptron only) or ``"spherical"``.
      num_hidden: K of the tree committee: 1 (the perceptron, default), an integer, odd for
        ``"majority"``, or ``math.inf``. Between 1 and infinity the K-dimensional integral is over
        512 quasi-Monte-Carlo points, with errors of some 0.003 up to K = 9, and more above.
      output: ``"majority"`` (default) or ``"parity"``, how the hidden signs make the output.

    Returns:
      A `WideMinima`.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: double precision is off, or an argument is out of its range.

    Examples:
      The large committee has regions where every weight vector is a solution; the parity machine
      has not:

      >>> import jax, jax.numpy as jnp, math
      >>> distance = jnp.array([0.02, 0.1, 0.2])
      >>> with jax.enable_x64(True):
      ...     for output in ("majority", "parity"):
      ...         curve = wide_minima(
      ...             1.0, distance, weights="spherical", num_hidden=math.inf, output=output
      ...         )
      ...         print(curve.entropy.round(4))
      [-0.     -0.0529 -0.17  ]
      [-0.6931 -0.6931 -0.6931]

    Reference:
      Baldassi, Pittorino and Zecchina, Shaping the learning landscape in neural networks around
      wide flat minima, PNAS 117 (2020); Baldassi et al., Subdominant dense clusters allow for
      simple learning and high computational performance in neural networks with discrete synapses,
      Phys. Rev. Lett. 115 (2015).
    """
    check_precision()
    check_weights(weights)
    check_machine(num_hidden, output, weights)
    check_distance(distance)
    alpha = load(alpha, above=0)
    alpha, distance = jnp.broadcast_arrays(alpha, jnp.asarray(distance, float))
    answers = _wide_minima(
        padded(alpha, distance), weights=weights, num_hidden=num_hidden, output=output
    )
    return shaped(answers, alpha.shape)


@functools.partial(jax.jit, static_argnames=("weights", "num_hidden", "output"))
def _wide_minima(
    points: Points, *, weights: Weights, num_hidden: float, output: Output
) -> WideMinima:
    """The compiled part of `wide_minima`."""
    if num_hidden == math.inf and output == "parity":
        return _flat(*points.arguments)
    limit = capacity(weights=weights).load if num_hidden == 1 else jnp.inf

    def solve(alpha: jax.Array, distance: jax.Array) -> WideMinima:
        never = jnp.zeros([], bool)
        if weights == "binary":
            center = binary_center(alpha, overlap_at(distance, weights))
            return WideMinima(
                center.entropy, center.mutual_overlap, center.log_response, never, alpha >= limit,
                center.residual, center.iterations, center.converged,
            )  # fmt: skip
        entropy, solution, beyond = _spherical_center(alpha, distance, num_hidden, output)
        return WideMinima(
            jnp.where(beyond, jnp.nan, entropy), 1 - distance, solution.x, beyond, alpha >= limit,
            solution.residual, solution.iterations, solution.converged,
        )  # fmt: skip

    return one_by_one(solve, points)


def _flat(alpha: jax.Array, distance: jax.Array) -> WideMinima:
    """Half of all weights are right on each pattern, at any distance, whatever the center."""
    zero = jnp.zeros_like(alpha)
    no = jnp.zeros(alpha.shape, bool)
    return WideMinima(
        -alpha * math.log(2), 1 - distance, zero + jnp.inf, no, no, zero,
        jnp.zeros(alpha.shape, jnp.int32), ~no,
    )  # fmt: skip


def _spherical_center(
    alpha: jax.Array, distance: jax.Array, num_hidden: float, output: Output
) -> tuple[jax.Array, Solution, jax.Array]:
    """The minimum over x = log dq: the entropy, the root, and whether dq = 0 is already beyond."""
    q1 = Overlap(1 - distance, distance)
    slope = output_slope(q1, num_hidden)
    if num_hidden in (1, math.inf):
        bracket, tolerance = (-30.0, 1e5), 1e-10
        shifts, weights = _one_field(q1, slope, num_hidden)
    else:
        bracket, tolerance = (-10.0, 40.0), 1e-4
        shifts, weights = _many_fields(q1, int(num_hidden), output)

    def slope_in_response(x: jax.Array) -> jax.Array:
        growth = (1 + distance * jnp.exp(-x)) ** 2 / (slope * q1.q)
        return alpha * growth * (weights @ shifts(x).shift ** 2) - 1

    solution = find_root(slope_in_response, *bracket, tolerance=tolerance)
    freedom = q1.q / 2 * jnp.exp(-solution.x) / (1 + distance * jnp.exp(-solution.x))
    entropy = freedom + alpha * (weights @ shifts(solution.x).value)
    return entropy, solution, slope_in_response(jnp.asarray(bracket[0])) >= 0


def _one_field(
    q1: Overlap, slope: jax.Array, num_hidden: float
) -> tuple[Callable[[jax.Array], Shift], jax.Array]:
    """Best shifts of the output's field as a function of log dq, and their weights."""
    z = gaussian_quadrature(SPACING)
    Q = output_overlap(q1, num_hidden)
    field = jnp.sqrt(Q.q) * z.nodes
    return lambda x: best_shift(field, x + jnp.log(slope), Q.complement), z.weights


def _many_fields(
    q1: Overlap, num_hidden: int, output: Output
) -> tuple[Callable[[jax.Array], Shift], jax.Array]:
    """Best shifts of the fields of K hidden units as a function of log dq, and their weights."""
    nodes, weights = symmetric_nodes(num_hidden, SEQUENCE)
    best = jax.vmap(best_shifts, in_axes=(0, None, None, None))
    return lambda x: best(jnp.sqrt(q1.q) * nodes, x, q1.complement, output), weights
