"""Typical solutions: entropy, capacity and stability of the replica-symmetric saddle point."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Real

from entropix._checks import check_number
from entropix._gaussian import hazard, log_tail
from entropix.replica_theory._energy import (
    Overlap,
    energy,
    energy_slope,
    output_overlap,
    output_slope,
)
from entropix.replica_theory._inputs import (
    Weights,
    check_hidden_units,
    check_precision,
    check_weights,
    load,
)
from entropix.replica_theory._points import Points, one_by_one, padded, shaped
from entropix.replica_theory._quadrature import gaussian_quadrature, log_2cosh
from entropix.replica_theory._solvers import find_root

TOLERANCE = 1e-12
SPACING = 0.02
# The unknown is log qhat (binary) or log q / (1 - q) (spherical); the upper ends lie where the
# quadrature stops to resolve the integrands, well beyond the loads where solutions exist.
BRACKET = {"binary": (-40.0, 5.5), "spherical": (-40.0, 10.0)}


class ReplicaSymmetric(NamedTuple):
    """Answer of `replica_symmetric`; every field has the shape of the loads.

    Attributes:
      entropy: s, logarithm of the number (binary) or of the fraction of the sphere (spherical) of
        solutions, for each weight; -inf at and above the spherical capacity.
      overlap: q, of two typical solutions.
      conjugate: qhat, the variance of the fields that act on the weights.
      beyond_capacity: whether there is no typical solution at this load: the entropy of discrete
        weights is negative, or the volume of continuous ones has shrunk to nothing.
      residual: of the saddle-point equation, in units of the load.
      iterations: of the root finder.
      converged: whether the residual is within 1e-12.
    """

    entropy: jax.Array
    overlap: jax.Array
    conjugate: jax.Array
    beyond_capacity: jax.Array
    residual: jax.Array
    iterations: jax.Array
    converged: jax.Array


class Capacity(NamedTuple):
    """Answer of `capacity`.

    Attributes:
      load: alpha_c, patterns for each weight.
      overlap: q there, of two typical solutions.
      residual: of the equation that defines it.
      iterations: of the root finder; 0 for a closed form.
      converged: whether the residual is within 1e-12.
    """

    load: jax.Array
    overlap: jax.Array
    residual: jax.Array
    iterations: jax.Array
    converged: jax.Array


class _Prior(NamedTuple):
    """The weights' side of the saddle point, as a function of one unknown."""

    overlap: Overlap
    conjugate: jax.Array
    entropy: jax.Array


def replica_symmetric(
    alpha: Real[ArrayLike, "..."],
    *,
    weights: Weights,
    num_hidden: float = 1,
    margin: Real[ArrayLike, "..."] = 0.0,
) -> ReplicaSymmetric:
    r"""Entropy of the solutions of random patterns at load alpha, for typical solutions.

    Binary weights (Krauth and Mezard):

    .. math:: s = \operatorname*{extr}_{q, \hat q} -\tfrac12 \hat q (1 - q)
       + \int\! Dz \log 2\cosh(\sqrt{\hat q} z) + \alpha E(q)

    and spherical weights (Gardner), as a fraction of the sphere:

    .. math:: s = \operatorname*{extr}_q \tfrac12 \log(1 - q) + \frac{q}{2 (1 - q)} + \alpha E(q)

    where for a perceptron with margin kappa
    :math:`E(q) = \int Dz \log H((\kappa + \sqrt q z) / \sqrt{1 - q})`. The tree committee with
    disjoint inputs has the same entropic terms; E(q) is then the mean logarithm of the
    probability of a right majority of K independent units, and with infinitely many the
    perceptron's at :math:`Q = (2/\pi) \arcsin q`. The load determines q through one monotone
    equation, alpha(q) = alpha.

    For the binary perceptron the entropy is believed exact up to the capacity, for the spherical
    one it is; for committees it is an upper bound above the load of `de_almeida_thouless_load`.

    Args:
      alpha: load, patterns for each weight, at least 0; a number or an array.
      weights: ``"binary"``, w = +-1, or ``"spherical"``, |w|^2 = N.
      num_hidden: K: 1 (the perceptron, default), an odd integer, or ``math.inf``. From K = 5 on
        E(q) is an integral over K variables by a quasi-Monte-Carlo rule with an error of some 1e-5.
      margin: kappa, the least value of the field that counts as right, in units of its standard
        deviation; perceptron only. Default 0. Broadcast with ``alpha``.

    Returns:
      A `ReplicaSymmetric`, in the shape of alpha. Loads beyond the capacity are reported there.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: double precision is off, or an argument is out of its range.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> with jax.enable_x64(True):
      ...     theory = replica_symmetric(jnp.array([0.4, 0.8, 0.9]), weights="binary")
      ...     print(theory.entropy.round(6), theory.beyond_capacity)
      [ 0.396455  0.035306 -0.075776] [False False  True]

    Reference:
      Krauth and Mezard, Storage capacity of memory networks with binary couplings, J. Physique 50
      (1989); Gardner, The space of interactions in neural network models, J. Phys. A 21 (1988);
      Barkai, Hansel and Sompolinsky, Broken symmetries in multilayered perceptrons, Phys. Rev. A 45
      (1992).
    """
    check_precision()
    check_weights(weights)
    _check_committee(num_hidden, margin)
    check_number("margin", margin)
    alpha, margin = jnp.broadcast_arrays(load(alpha), jnp.asarray(margin, float))
    answers = _replica_symmetric(padded(alpha, margin), weights=weights, num_hidden=num_hidden)
    return shaped(answers, alpha.shape)


def capacity(
    *, weights: Weights, num_hidden: float = 1, margin: Real[ArrayLike, "..."] = 0.0
) -> Capacity:
    r"""Largest load at which random patterns have typical solutions.

    For binary weights the load at which the replica-symmetric entropy is 0; for spherical ones that
    at which the overlap of two solutions reaches 1, in closed form:

    .. math:: 1 / \alpha_c(\kappa) = \int_{-\kappa}^\infty\! Dt \, (t + \kappa)^2

    for the perceptron, and for the tree committee :math:`1/\alpha_c` is the mean over K normal
    fields of the least squared change that makes their majority positive. For committees both are
    upper bounds: the replica symmetry breaks before, and the true capacity of the spherical one
    grows as :math:`\sqrt{\log K}`, not without bound as here.

    Args:
      weights: ``"binary"`` or ``"spherical"``.
      num_hidden: K: 1 (the perceptron, default), an odd integer, or, for binary weights,
        ``math.inf``.
      margin: kappa; perceptron only. Default 0.

    Returns:
      A `Capacity`.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: double precision is off, or an argument is out of its range.

    Examples:
      >>> import jax
      >>> with jax.enable_x64(True):
      ...     binary, spherical = capacity(weights="binary"), capacity(weights="spherical")
      ...     print(f"{binary.load:.7f} {spherical.load:.7f}")
      0.8330786 2.0000000

    Reference:
      As for `replica_symmetric`; Monasson and Zecchina, Weight space structure and internal
      representations, Phys. Rev. Lett. 75 (1995).
    """
    check_precision()
    check_weights(weights)
    _check_committee(num_hidden, margin)
    check_number("margin", margin)
    if weights == "spherical" and num_hidden == math.inf:
        raise ValueError(
            "num_hidden must be finite for spherical weights, got inf: "
            "their replica-symmetric capacity grows without bound"
        )
    margin = jnp.asarray(margin, float)
    if weights == "spherical":
        return _spherical_capacity(margin, num_hidden=int(num_hidden))
    return _binary_capacity(margin, num_hidden=num_hidden)


def de_almeida_thouless_load() -> Capacity:
    r"""Load above which the replica symmetry of the large spherical tree committee is broken.

    .. math:: \alpha \left[ Q'^2 \int\! Dz \, (\partial^2 \log Z)^2
       + Q'' \int\! Dz \, (\partial \log Z)^2 \right] = \frac{1}{(1 - q)^2}, \qquad
       Z = H(-h / \sqrt{1 - Q}), \; h = \sqrt Q z

    with :math:`Q = (2/\pi) \arcsin q` and derivatives of log Z with respect to h.

    Returns:
      A `Capacity` with that load and the overlap there.

    Raises:
      ValueError: double precision is off.

    Examples:
      >>> import jax
      >>> with jax.enable_x64(True):
      ...     print(f"{de_almeida_thouless_load().load:.5f}")
      2.98782

    Reference:
      de Almeida and Thouless, Stability of the Sherrington-Kirkpatrick solution, J. Phys. A 11
      (1978); Barkai, Hansel and Sompolinsky, Phys. Rev. A 45 (1992).
    """
    check_precision()
    return _de_almeida_thouless_load()


def _check_committee(num_hidden: float, margin: Any) -> None:
    """Raises unless the energetic term is known for this machine."""
    check_hidden_units(num_hidden, accepted="an odd integer or math.inf")
    if num_hidden != 1 and not (isinstance(margin, int | float) and margin == 0):
        raise ValueError(f"margin must be 0 for a committee, got {margin}")


@functools.partial(jax.jit, static_argnames=("weights", "num_hidden"))
def _replica_symmetric(points: Points, *, weights: Weights, num_hidden: float) -> ReplicaSymmetric:
    """The compiled part of `replica_symmetric`."""
    z = gaussian_quadrature(SPACING)

    def solve(alpha: jax.Array, margin: jax.Array) -> ReplicaSymmetric:
        solution = find_root(
            lambda x: _load_of(x, margin, weights, num_hidden) - alpha,
            *BRACKET[weights],
            tolerance=TOLERANCE,
        )
        prior = _prior(solution.x, weights)
        entropy = prior.entropy + alpha * energy(prior.overlap, margin, num_hidden, z)
        beyond, q = entropy < 0, prior.overlap.q
        if weights == "spherical":
            beyond = jnp.zeros_like(beyond)
            if num_hidden != math.inf:
                limit = _spherical_capacity(margin, num_hidden=int(num_hidden)).load
                beyond = alpha >= limit
            entropy, q = jnp.where(beyond, -jnp.inf, entropy), jnp.where(beyond, 1, q)
        return ReplicaSymmetric(
            entropy, q, prior.conjugate, beyond,
            solution.residual, solution.iterations, solution.converged,
        )  # fmt: skip

    if num_hidden in (1, math.inf):
        return jax.vmap(solve)(*points.arguments)
    return one_by_one(solve, points)


def _prior(x: jax.Array, weights: Weights) -> _Prior:
    """Overlap, conjugate and entropic term at the unknown x."""
    if weights == "spherical":
        overlap = Overlap(jax.nn.sigmoid(x), jax.nn.sigmoid(-x))
        conjugate = jnp.exp(x) / overlap.complement
        return _Prior(overlap, conjugate, (jnp.log(overlap.complement) + jnp.exp(x)) / 2)
    z = gaussian_quadrature(SPACING)
    conjugate = jnp.exp(x)
    field = jnp.sqrt(conjugate) * z.nodes
    complement = z.weights @ (1 / jnp.cosh(field) ** 2)
    entropy = z.weights @ log_2cosh(field) - conjugate * complement / 2
    return _Prior(Overlap(z.weights @ jnp.tanh(field) ** 2, complement), conjugate, entropy)


def _load_of(x: jax.Array, margin: jax.Array, weights: Weights, num_hidden: float) -> jax.Array:
    """alpha(x), the load at which x solves the saddle point: -qhat / 2 over dE/dq."""
    z = gaussian_quadrature(SPACING)
    prior = _prior(x, weights)
    return -prior.conjugate / (2 * energy_slope(prior.overlap, margin, num_hidden, z))


@functools.partial(jax.jit, static_argnames=("num_hidden",))
def _binary_capacity(margin: jax.Array, *, num_hidden: float) -> Capacity:
    """The load of zero entropy."""
    z = gaussian_quadrature(SPACING)

    def solve(margin: jax.Array) -> Capacity:
        def negative_entropy(x: jax.Array) -> jax.Array:
            prior = _prior(x, "binary")
            alpha = _load_of(x, margin, "binary", num_hidden)
            return -prior.entropy - alpha * energy(prior.overlap, margin, num_hidden, z)

        solution = find_root(negative_entropy, *BRACKET["binary"], tolerance=TOLERANCE)
        return Capacity(
            _load_of(solution.x, margin, "binary", num_hidden),
            _prior(solution.x, "binary").overlap.q,
            solution.residual, solution.iterations, solution.converged,
        )  # fmt: skip

    answers = jax.vmap(solve)(margin.ravel())
    return jax.tree.map(lambda field: field.reshape(margin.shape), answers)


@functools.partial(jax.jit, static_argnames=("num_hidden",))
def _spherical_capacity(margin: jax.Array, *, num_hidden: int) -> Capacity:
    """The load at which the overlap of two solutions is 1."""
    if num_hidden == 1:
        tail = jnp.exp(log_tail(-margin))
        cost = (1 + margin**2) * tail + margin * hazard(-margin) * tail
    else:
        cost = jnp.broadcast_to(_least_change_of_majority(num_hidden), margin.shape)
    zero = jnp.zeros_like(cost)
    iterations = jnp.zeros(cost.shape, jnp.int32)
    return Capacity(1 / cost, zero + 1, zero, iterations, jnp.ones(cost.shape, bool))


def _least_change_of_majority(units: int) -> jax.Array:
    """Mean least sum of squared changes that makes the majority of K normal fields positive.

    With m > K / 2 fields negative, the m - (K - 1) / 2 smallest of them change sign. One of m has
    j smaller ones with the probability of j successes in m - 1 trials.
    """
    z = gaussian_quadrature(SPACING)
    positive = jnp.where(z.nodes > 0, 2 * z.weights, 0)
    smaller = 1 - 2 * jnp.exp(log_tail(jnp.abs(z.nodes)))
    cost = jnp.zeros([])
    for negative in range((units + 1) // 2, units + 1):
        probability = math.comb(units, negative) / 2**units
        for rank in range(negative - (units - 1) // 2):
            others = math.comb(negative - 1, rank) * (
                smaller**rank * (1 - smaller) ** (negative - 1 - rank)
            )
            cost += probability * negative * (positive @ (z.nodes**2 * others))
    return cost


@jax.jit
def _de_almeida_thouless_load() -> Capacity:
    """The compiled part of `de_almeida_thouless_load`."""
    z = gaussian_quadrature(SPACING)
    no_margin = jnp.zeros([])

    def instability(x: jax.Array) -> jax.Array:
        overlap = _prior(x, "spherical").overlap
        q, complement = overlap
        Q = output_overlap(overlap, math.inf)
        first = output_slope(overlap, math.inf)
        second = first * q / (complement * (1 + q))
        field = -jnp.sqrt(Q.q / Q.complement) * z.nodes
        slope = hazard(field)
        curvature = slope * (slope - field)
        growth = first**2 * (z.weights @ curvature**2) / Q.complement**2
        growth += second * (z.weights @ slope**2) / Q.complement
        return _load_of(x, no_margin, "spherical", math.inf) * growth * complement**2 - 1

    solution = find_root(instability, *BRACKET["spherical"], tolerance=TOLERANCE)
    return Capacity(
        _load_of(solution.x, no_margin, "spherical", math.inf),
        _prior(solution.x, "spherical").overlap.q,
        solution.residual, solution.iterations, solution.converged,
    )  # fmt: skip
