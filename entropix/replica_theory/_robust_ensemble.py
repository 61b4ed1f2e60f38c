"""Local entropy around a center chosen by finitely many replicas: the robust ensemble."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Real

from entropix._checks import check_number
from entropix.replica_theory._coupled_replicas import (
    Entropies,
    Fields,
    Moments,
    entropies,
    moments_of,
    patterns_of,
)
from entropix.replica_theory._inputs import (
    check_distance,
    check_precision,
    load,
    overlap_at,
)
from entropix.replica_theory._points import Points, one_by_one, padded, shaped
from entropix.replica_theory._replica_symmetric import capacity
from entropix.replica_theory._solvers import Solution, newton

TOLERANCE = 1e-9
# At this distance the plain iteration finds the saddle point from afar at all loads; smaller
# distances are approached from it, by this factor at a time.
FIRST_DISTANCE, APPROACH = 0.1, 0.9
FIRST_REPLICAS = 12.0
PLAIN_ITERATIONS, STEP = 80, 0.3


class RobustEnsemble(NamedTuple):
    """Answer of `robust_ensemble`; every field has the shape of all arguments together.

    Attributes:
      entropy: Phi, logarithm of the number of solutions at that distance of a center, for each
        weight.
      replicas: y, of each center.
      external_entropy: Omega, logarithm of the number of such centers, for each weight; where it is
        negative there are none.
      attraction: gamma, the field that holds the replicas at that distance.
      mutual_overlap: q1, of two replicas of a center.
      cross_overlap: q0, of replicas of two centers.
      beyond_capacity: whether there are no typical solutions at this load.
      residual: largest of the saddle-point equations.
      iterations: of Newton's method.
      converged: whether the residual is within 1e-9.
    """

    entropy: jax.Array
    replicas: jax.Array
    external_entropy: jax.Array
    attraction: jax.Array
    mutual_overlap: jax.Array
    cross_overlap: jax.Array
    beyond_capacity: jax.Array
    residual: jax.Array
    iterations: jax.Array
    converged: jax.Array


def robust_ensemble(
    alpha: Real[ArrayLike, "..."],
    distance: Real[ArrayLike, "..."],
    *,
    replicas: Real[ArrayLike, "..."] | None = None,
) -> RobustEnsemble:
    r"""Local entropy of the binary perceptron around centers that y replicas have chosen.

    Binary centers w are weighed by the number of solutions at the Hamming distance d = (1 - S) / 2
    to the power y, which is the measure of y replicas that are solutions at the overlap S with w.
    With one step of replica symmetry breaking, of blocks of y,

    .. math:: A(y) = \operatorname*{extr} -\gamma S - \tfrac12 \hat q_1 (1 - q_1)
       + \tfrac y2 (q_0 \hat q_0 - q_1 \hat q_1)
       + \frac1y \int\! Dz_0 \log \sum_{w = \pm 1} \int\! Dz_1 (2 \cosh v_w)^y
       + \frac\alpha y \int\! Dz_0 \log \int\! Dz_1 \, \Phi(u)^y

    with the fields :math:`v_w = \sqrt{\hat q_0} z_0 + \sqrt{\hat q_1 - \hat q_0} z_1 + \gamma w`
    and :math:`u = (\sqrt{q_0} z_0 + \sqrt{q_1 - q_0} z_1) / \sqrt{1 - q_1}`. The local entropy is
    :math:`\Phi = d(y A) / dy`, and the external entropy, of the centers, is
    :math:`\Omega = y (A - \Phi) = -y^2 dA / dy`. It falls as y grows. The best centers there are
    have no external entropy, which fixes y: more replicas (`wide_minima` has infinitely many) ask
    for centers that do not exist, at the least in this approximation.

    Up to a load of about 0.767 the entropy so found grows with the distance all the way. Above it
    the curve breaks up about d = 0.043, where the equations lose their solution: the dense region
    of solutions that algorithms find comes to its end.

    Args:
      alpha: load, patterns for each weight, above 0; a number or an array.
      distance: Hamming distance d from the center, as a fraction of the weights, inside (0, 1); a
        number or an array, broadcast with ``alpha``.
      replicas: y, above 1; a number or an array, broadcast with the others. Default None: where
        the external entropy vanishes.

    Returns:
      A `RobustEnsemble`. Points where the equations were not solved are reported there: where the
      curve has broken up, at distances at which replicas need no attraction or very little, and at
      small loads and distances, where y grows past 1e4.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: double precision is off, or an argument is out of its range.

    Examples:
      Ever more replicas around a center, and as many as there are centers for:

      >>> import jax, jax.numpy as jnp
      >>> with jax.enable_x64(True):
      ...     some = robust_ensemble(0.75, 0.05, replicas=jnp.array([5.0, 500.0]))
      ...     best = robust_ensemble(0.75, jnp.array([0.05, 0.1]))
      ...     print(some.entropy.round(5), some.external_entropy.round(3))
      ...     print(best.entropy.round(5), best.replicas.round(1))
      [0.02809 0.04798] [ 0.137 -0.071]
      [0.04551 0.06869] [ 15.3 106.1]

    Reference:
      Baldassi et al., Subdominant dense clusters allow for simple learning and high computational
      performance in neural networks with discrete synapses, Phys. Rev. Lett. 115 (2015); Baldassi
      et al., Unreasonable effectiveness of learning neural networks: from accessible states and
      robust ensembles to basic algorithmic schemes, PNAS 113 (2016).
    """
    check_precision()
    check_distance(distance)
    free = replicas is None
    if not free:
        check_number("replicas", replicas, above=1)
    alpha, distance, replicas = jnp.broadcast_arrays(
        load(alpha, above=0),
        jnp.asarray(distance, float),
        jnp.asarray(FIRST_REPLICAS if free else replicas, float),
    )
    answers = _robust_ensemble(padded(alpha, distance, replicas), jnp.asarray(free))
    answers = shaped(answers, alpha.shape)
    return answers._replace(beyond_capacity=alpha >= capacity(weights="binary").load)


@jax.jit
def _robust_ensemble(points: Points, free: jax.Array) -> RobustEnsemble:
    """The compiled part of `robust_ensemble`: from y replicas, and with y of them unless free."""

    def solve(alpha: jax.Array, distance: jax.Array, replicas: jax.Array) -> RobustEnsemble:
        solution = _saddle_point(alpha, distance, replicas, free)
        fields = _fields(solution.x)
        moments, _, entropy = _sides(fields, alpha, overlap_at(distance, "binary"))
        return RobustEnsemble(
            entropy.local, fields.replicas, entropy.external, fields.attraction,
            1 - moments.complement, moments.q0, jnp.zeros([], bool),
            solution.residual, solution.iterations, solution.converged,
        )  # fmt: skip

    return one_by_one(solve, points)


def _fields(unknowns: jax.Array) -> Fields:
    """The unknowns are gamma and the logarithms of q0hat, dqhat and y."""
    return Fields(unknowns[0], *jnp.exp(unknowns[1:]))


def _sides(
    fields: Fields, alpha: jax.Array, overlap: jax.Array
) -> tuple[Moments, jax.Array, Entropies]:
    """The moments, the logarithms of the q0hat and dqhat that they imply, and the entropies."""
    moments = moments_of(fields)
    patterns = patterns_of(moments, fields.replicas)
    implied = jnp.log(alpha * jnp.stack([patterns.conjugate, patterns.response]))
    return moments, implied, entropies(fields, moments, patterns, alpha, overlap)


def _saddle_point(
    alpha: jax.Array, distance: jax.Array, replicas: jax.Array, free: jax.Array
) -> Solution:
    """Plain iteration far from the center, then Newton's method on the way to it."""

    def iterate(_: jax.Array, unknowns: jax.Array) -> jax.Array:
        moments, implied = _sides(_fields(unknowns), alpha, first)[:2]
        attraction = unknowns[0] + (first - moments.overlap) / moments.susceptibility
        target = jnp.concatenate([jnp.stack([attraction]), implied, unknowns[3:]])
        return unknowns + STEP * (target - unknowns)

    def root(distance: jax.Array, start: jax.Array) -> Solution:
        overlap = overlap_at(distance, "binary")

        def equations(unknowns: jax.Array) -> jax.Array:
            moments, implied, found = _sides(_fields(unknowns), alpha, overlap)
            number = jnp.where(free, found.external, unknowns[3] - jnp.log(replicas))
            return jnp.concatenate(
                [
                    jnp.stack([moments.overlap - overlap]),
                    unknowns[1:3] - implied,
                    jnp.stack([number]),
                ]
            )

        return newton(equations, start, tolerance=TOLERANCE)

    far = jnp.maximum(distance, FIRST_DISTANCE)
    first = overlap_at(far, "binary")
    start = jnp.stack(
        [jnp.arctanh(first), jnp.log(alpha / 2), jnp.log(alpha / 2), jnp.log(replicas)]
    )
    start = jax.lax.fori_loop(0, PLAIN_ITERATIONS, iterate, start)
    steps = jnp.ceil(jnp.log(distance / far) / jnp.log(APPROACH)).astype(jnp.int32)

    def approach(step: jax.Array, solution: Solution) -> Solution:
        way = jnp.where(step == steps, 1, step / jnp.maximum(steps, 1))
        return root(far * (distance / far) ** way, solution.x)

    nowhere = Solution(start, jnp.inf * far, steps * 0, steps < 0)
    return jax.lax.fori_loop(0, steps + 1, approach, nowhere)
