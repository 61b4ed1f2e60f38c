"""Approximate message passing: belief propagation with a number for each weight and each unit."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Real

from entropix.committee import _nodes
from entropix.committee._arguments import message_passing, stop_when
from entropix.committee._contradiction import unless_opposed
from entropix.committee._fixed_point import IMPOSSIBLE, Stop, adapted, external
from entropix.committee._messages import (
    Normal,
    Problem,
    gauged,
    log_partition,
    moments,
    output_evidence,
)
from entropix.committee._model import Committee, check_weights

_SHARED_DAMPING = 0.3
# The products of a GPU are else rounded to 10 bits.
_EXACT = jax.lax.Precision.HIGHEST


class ApproximateMessagePassing(NamedTuple):
    r"""Answer of `approximate_message_passing`.

    Attributes:
      mean: of each weight over the solutions. # shape=(K, n)
      variance: of each weight. # shape=(K, n)
      free_entropy: as of `Beliefs`. # shape=()
      entropy: as of `Beliefs`. # shape=()
      steps: iterations made. # shape=(), dtype=int32
      residual: largest change of a mean in the last iteration, divided by 1 - damping. # shape=()
      converged: whether the residual is within the tolerance, no two patterns contradict each other
        and none is all but surely wrong for the signs that binary weights are frozen to.
        # shape=(), dtype=bool
    """

    mean: Float[Array, "*batch K n"]
    variance: Float[Array, "*batch K n"]
    free_entropy: Float[Array, "*batch"]
    entropy: Float[Array, "*batch"]
    steps: Int[Array, "*batch"]
    residual: Float[Array, "*batch"]
    converged: Bool[Array, "*batch"]


class _State(NamedTuple):
    """Between two iterations.

    Attributes:
      mean: m. # shape=(K, n)
      variance: v. # shape=(K, n)
      slope: g, of each pattern on each unit's field. # shape=(M, K)
      natural: of the weights: (A, B) of normal ones, B + h of signs. # shape=(K, n)
      precision: A. # shape=(K, n)
      multiplier: lambda, that holds the norm. # shape=()
      steps: # shape=(), dtype=int32
      residual: # shape=()
      damping: of the next iteration. # shape=()
    """

    mean: Float[Array, "*batch K n"]
    variance: Float[Array, "*batch K n"]
    slope: Float[Array, "*batch M K"]
    natural: Any
    precision: Float[Array, "*batch K n"]
    multiplier: Float[Array, "*batch"]
    steps: Int[Array, "*batch"]
    residual: Float[Array, "*batch"]
    damping: Float[Array, "*batch"]


def approximate_message_passing(
    model: Committee,
    patterns: Real[ArrayLike, "patterns inputs"],
    labels: Real[ArrayLike, " patterns"],
    *,
    field: Float[ArrayLike, "units n"] | None = None,
    damping: float | jax.Array | None = None,
    max_steps: int | jax.Array = 1000,
    tolerance: float | jax.Array = 1e-4,
) -> ApproximateMessagePassing:
    r"""Counts solutions by the iteration that belief propagation becomes for many inputs.

    Messages of one weight differ from each other by 1 / sqrt(n), which is put in by hand (Onsager):

    .. math:: V_{\mu k} = \sum_i x_{\mu i}^2 v_{ki}, \qquad
       \omega_{\mu k} = \sum_i x_{\mu i} m_{ki} - V_{\mu k} g_{\mu k}, \qquad
       g_{\mu k} = \partial_{\omega_{\mu k}} \log Z_\mu(\omega, V)

    .. math:: A_{ki} = -\sum_\mu x_{\mu i}^2 \, \partial_{\omega_{\mu k}} g_{\mu k}, \qquad
       B_{ki} = \sum_\mu x_{\mu i} g_{\mu k} + A_{ki} m_{ki}, \qquad
       m_{ki} = \tanh(h_{ki} + B_{ki}) \ \text{ or } \ \frac{h_{ki} + B_{ki}}{\lambda + A_{ki}}

    where the g in the second equation is that of the iteration before, Z is the probability of the
    right output of normal fields with means omega and variances V, and lambda holds the norm of
    spherical weights. A sweep takes M N operations and the memory of the patterns, where
    `belief_propagation` needs a number for each weight and pattern. On patterns with independent
    inputs and many of them (some hundreds) the two agree; elsewhere trust the other one.

    On patterns labeled by a teacher (`teacher_student`) the mean is the Bayes-optimal estimate of
    its weights, its overlap with the teacher is that with itself, and both follow state evolution,
    from one iteration to the next, as long as nothing is damped. Where nearly all binary weights
    are frozen, as beyond the load at which a teacher is found, the sums of the others are not
    normal any more, and the iteration wanders about; `belief_propagation` converges there.

    Args:
      model: the network.
      patterns: x, as for `belief_propagation`. # shape=(M, N)
      labels: sigma, each +1 or -1. # shape=(M,)
      field: h, external field on each weight. Default none. # shape=(K, n)
      damping: share of the old slopes g and of the old means that is kept, at least 0, below 1. It
        rises by itself while the residual grows, and falls back. Default 0 for a tree, 0.3 for
        shared inputs, where the iteration would else go around in circles.
      max_steps: iterations at most. Default 1000.
      tolerance: of the residual. Default 1e-4.

    Returns:
      `ApproximateMessagePassing`.

    Raises:
      TypeError: a number is of the wrong type.
      ValueError: a number is out of its range; a shape does not fit; a label, or a pattern of
        binary weights, is not of +-1.

    Examples:
      The overlap of the mean with a teacher's weights is that with itself:

      >>> from entropix.committee import Committee, teacher_student
      >>> model = Committee(1001)
      >>> examples, teacher = teacher_student(model, 1.0, 0)
      >>> found = approximate_message_passing(model, *examples)
      >>> with_teacher, with_itself = (found.mean * teacher).mean(), (found.mean**2).mean()
      >>> bool(found.converged), bool(abs(with_teacher - with_itself) < 0.05)
      (True, True)

    Reference:
      Donoho, Maleki and Montanari, Message-passing algorithms for compressed sensing, PNAS 106
      (2009); Rangan, Generalized approximate message passing for estimation with random linear
      mixing, ISIT 2011; for the perceptron Mézard, J. Phys. A 22 (1989).
    """
    problem, dtype, _, _ = message_passing(model, patterns, labels, node=None, batch_size=None)
    if damping is None:
        damping = 0.0 if model.architecture == "tree" else _SHARED_DAMPING
    stop = stop_when(damping, max_steps, tolerance, dtype)
    if field is None:
        field = jnp.zeros(model.shape, dtype)
    check_weights("field", model, field)
    found = _approximate_message_passing(problem, jnp.asarray(field, dtype), stop, model=model)
    return unless_opposed(found, model, problem)


@functools.partial(jax.jit, static_argnames="model")
def _approximate_message_passing(
    problem: Problem, field: jax.Array, stop: Stop, *, model: Committee
) -> ApproximateMessagePassing:
    """The compiled part of `approximate_message_passing`."""
    binary = model.weights == "binary"
    smallest = _nodes.SMALLEST_VARIANCE_OF_SIGNS if binary else _nodes.SMALLEST_VARIANCE
    patterns, labels = (part.astype(field.dtype) for part in problem)
    inputs = model.unit_inputs(gauged(model, patterns, labels))
    # The squares of signs, none of which need be stored.
    squares = jnp.ones_like(inputs[:1]) if binary else inputs**2
    prior = external(field)

    def sums_of(at: _State) -> _nodes.Sums:
        spread = jnp.maximum(_over_inputs(model, squares, at.variance), smallest)
        return _nodes.Sums(_over_inputs(model, inputs, at.mean) - spread * at.slope, spread)

    def step(at: _State) -> _State:
        sums = sums_of(at)
        down, _ = output_evidence(model, sums, labels)
        slope, curvature = _nodes.channel(sums, down)
        slope = slope + at.damping * (at.slope - slope)
        if binary:
            curvature = jnp.sum(curvature, axis=0, keepdims=True)
        precision = _over_patterns(model, squares, curvature)
        evidence = _over_patterns(model, inputs, slope) + precision * at.mean
        likelihood = evidence if binary else Normal(precision, evidence)
        natural, multiplier = prior(likelihood, at.multiplier)
        mean, variance = moments(natural)
        mean = mean + at.damping * (at.mean - mean)
        residual = jnp.max(jnp.abs(mean - at.mean)) / (1 - at.damping)
        damping = adapted(at.damping, stop.damping, residual > at.residual)
        return _State(
            mean, variance, slope, natural, precision, multiplier, at.steps + 1, residual, damping
        )

    def goes_on(at: _State) -> jax.Array:
        return (at.residual > stop.tolerance) & (at.steps < stop.max_steps)

    zero, none = jnp.zeros([], field.dtype), jnp.zeros_like(field)
    natural, multiplier = prior(none if binary else Normal(none, none), zero)
    mean, variance = moments(natural)
    slope = jnp.zeros((labels.shape[0], model.num_hidden), field.dtype)
    steps, residual = jnp.zeros([], jnp.int32), jnp.full_like(zero, jnp.inf)
    begin = _State(mean, variance, slope, natural, none, multiplier, steps, residual, stop.damping)
    end = jax.lax.while_loop(goes_on, step, begin)
    sums = sums_of(end)
    _, log_z = output_evidence(model, sums, labels)
    contradicted = ~(jnp.min(log_z) > IMPOSSIBLE) if binary else jnp.zeros([], bool)
    free_entropy = jnp.sum(log_z) + jnp.sum(sums.variance * end.slope**2) / 2
    total = end.natural if binary else end.natural.field
    weights = log_partition(end.natural) - (total - field) * end.mean
    if not binary:
        log_2pi = jnp.log(jnp.asarray(2 * jnp.pi, field.dtype))
        weights = weights + (end.precision * (end.mean**2 + end.variance) - log_2pi) / 2
        weights = weights + (end.multiplier - 1) / 2
    free_entropy = free_entropy + jnp.sum(weights)
    return ApproximateMessagePassing(
        mean=end.mean,
        variance=end.variance,
        free_entropy=free_entropy,
        entropy=free_entropy - jnp.sum(field * end.mean),
        steps=end.steps,
        residual=end.residual,
        converged=(end.residual <= stop.tolerance) & ~contradicted,
    )


def _over_inputs(model: Committee, inputs: jax.Array, weights: jax.Array) -> jax.Array:
    """Sums over the inputs of each unit. # shape=(M, K)."""
    if model.architecture == "full":
        return jnp.einsum("mn,kn->mk", inputs[:, 0], weights, precision=_EXACT)
    return jnp.einsum("mkn,kn->mk", inputs, weights, precision=_EXACT)


def _over_patterns(model: Committee, inputs: jax.Array, units: jax.Array) -> jax.Array:
    """Sums over the patterns. # shape=(K, n)."""
    if model.architecture == "full":
        return jnp.einsum("mn,mk->kn", inputs[:, 0], units, precision=_EXACT)
    return jnp.einsum("mkn,mk->kn", inputs, units, precision=_EXACT)
