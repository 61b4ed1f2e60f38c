"""Local entropy: how many solutions there are at each distance from a reference."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Real

from entropix._checks import check_number, holds
from entropix.committee._arguments import message_passing, stop_when
from entropix.committee._contradiction import unless_opposed
from entropix.committee._fixed_point import Stop, external, free_entropy, iterate, start
from entropix.committee._messages import Node, Problem, no_messages
from entropix.committee._model import Committee, check_signs, check_weights


class LocalEntropyCurve(NamedTuple):
    r"""Answer of `local_entropy_curve`, a point for each field strength.

    Attributes:
      strength: gamma, of the field toward the reference. # shape=(G,)
      overlap: S, mean overlap of the solutions found with the reference, per weight. # shape=(G,)
      distance: (1 - S) / 2, the share of flipped weights, for binary weights; 1 - S^2, the squared
        sine of the angle, for spherical ones. # shape=(G,)
      entropy: log of the number of solutions at that distance, or of the share of the sphere that
        they fill, per weight. # shape=(G,)
      relative_entropy: ``entropy`` less that of all weights at that distance, solutions or not: 0
        where every one is a solution. # shape=(G,)
      steps: sweeps made. # shape=(G,), dtype=int32
      residual: as of `belief_propagation`. # shape=(G,)
      converged: where not, the point is what the last sweep left. # shape=(G,), dtype=bool
      contradicted: as of `belief_propagation`; the entropies there are nan.
        # shape=(G,), dtype=bool
    """

    strength: Float[Array, "*batch G"]
    overlap: Float[Array, "*batch G"]
    distance: Float[Array, "*batch G"]
    entropy: Float[Array, "*batch G"]
    relative_entropy: jax.Array
    steps: Int[Array, "*batch G"]
    residual: Float[Array, "*batch G"]
    converged: Bool[Array, "*batch G"]
    contradicted: Bool[Array, "*batch G"]


def local_entropy_curve(
    model: Committee,
    weights: Real[ArrayLike, "units n"],
    patterns: Real[ArrayLike, "patterns inputs"],
    labels: Real[ArrayLike, " patterns"],
    strengths: Real[ArrayLike, " strengths"],
    *,
    node: Node | None = None,
    damping: float | jax.Array = 0.5,
    max_steps: int | jax.Array = 1000,
    tolerance: float | jax.Array = 1e-4,
    batch_size: int | None = None,
) -> LocalEntropyCurve:
    r"""Entropy of the solutions as a function of their distance from a reference.

    .. math:: N \Sigma(S) = \Phi(\gamma) - \gamma N S, \qquad
       \Phi(\gamma) = \log \sum_{W \, \text{solves}} e^{\gamma W \cdot \tilde W}, \qquad
       N S = \frac{d \Phi}{d \gamma} = \tilde W \cdot \langle W \rangle

    by belief propagation under the field gamma toward the reference. Each strength starts from the
    messages of the one before, or from none where that one did not converge: give them in falling
    order, from the reference outwards. Strengths at which the sweeps do not converge are told by
    ``converged``. Around a reference with hardly any margin, and on patterns with strong
    correlations, more damping helps up to a point.

    Args:
      model: the network.
      weights: the reference to look around, a solution or not: +-1 for binary weights, else of any
        norm but 0. # shape=(K, n)
      patterns: x, as for `belief_propagation`. # shape=(M, N)
      labels: sigma, each +1 or -1. # shape=(M,)
      strengths: gamma, at least 0. About 3 to 0 spans the distances of binary weights, 100 to 1
        those of spherical ones, where 1 - S^2 is near 1 / gamma around a wide solution.
        # shape=(G,)
      node: as of `belief_propagation`.
      damping: as of `belief_propagation`.
      max_steps: sweeps at most for each strength. Default 1000.
      tolerance: of the residual. Default 1e-4.
      batch_size: as of `belief_propagation`.

    Returns:
      `LocalEntropyCurve`.

    Raises:
      TypeError: a number is of the wrong type.
      ValueError: a number is out of its range; a shape does not fit; a label, or a weight or
        pattern where these must be, is not of +-1.

    Examples:
      Around a solution with a wide margin nearly all weights are solutions:

      >>> import jax.numpy as jnp
      >>> model, w = Committee(5), jnp.ones((1, 5))
      >>> curve = local_entropy_curve(
      ...     model, w, jnp.ones((1, 5)), jnp.ones(1), jnp.array([1.0]), node="exact"
      ... )
      >>> [f"{d:.2f} {s:.3f}" for d, s in zip(curve.distance, curve.relative_entropy)]
      ['0.11 -0.003']

    Reference:
      Baldassi et al., Subdominant dense clusters allow for simple learning and high computational
      performance in neural networks with discrete synapses, Phys. Rev. Lett. 115 (2015); Baldassi,
      Pittorino and Zecchina, `Shaping the learning landscape in neural networks around wide flat
      minima <https://arxiv.org/abs/1905.07833>`_, PNAS 117 (2020).
    """
    problem, dtype, node, batch_size = message_passing(
        model, patterns, labels, node=node, batch_size=batch_size
    )
    check_weights("weights", model, weights)
    check_reference(model, weights)
    # Not jax.numpy, which makes a tracer of it inside jit, whose values are not known.
    strengths = strengths if isinstance(strengths, jax.Array) else np.asarray(strengths, float)
    check_number("strengths", strengths, at_least=0)
    if np.ndim(strengths) != 1:
        raise ValueError(f"strengths must have shape (G,), got {np.shape(strengths)}")
    curve = _local_entropy_curve(
        problem,
        jnp.asarray(weights, dtype),
        jnp.asarray(strengths, dtype),
        stop_when(damping, max_steps, tolerance, dtype),
        model=model,
        node=node,
        batch_size=batch_size,
    )
    return unless_opposed(curve, model, problem)


@functools.partial(jax.jit, static_argnames=("model", "node", "batch_size"))
def _local_entropy_curve(
    problem: Problem,
    reference: jax.Array,
    strengths: jax.Array,
    stop: Stop,
    *,
    model: Committee,
    node: Node,
    batch_size: int,
) -> LocalEntropyCurve:
    """The compiled part of `local_entropy_curve`."""
    size = model.num_weights
    reference = reference * (size**0.5 / jnp.linalg.norm(reference))

    def point(messages: Any, strength: jax.Array) -> tuple[Any, LocalEntropyCurve]:
        prior = external(strength * reference)
        end = iterate(
            model, node, problem, prior, start(prior, messages, stop.damping), stop, batch_size
        )
        overlap = jnp.sum(reference * end.mean) / size
        found = free_entropy(model, node, problem, end, batch_size)
        entropy = found.value / size - strength * overlap
        distance, everything = _geometry(model, overlap)
        converged = (end.residual <= stop.tolerance) & ~found.contradicted
        usable = jax.tree.map(lambda every: jnp.where(converged, every, 0), end.messages)
        return usable, LocalEntropyCurve(
            strength=strength,
            overlap=overlap,
            distance=distance,
            entropy=entropy,
            relative_entropy=entropy - everything,
            steps=end.steps,
            residual=end.residual,
            converged=converged,
            contradicted=found.contradicted,
        )

    messages = no_messages(model, problem.labels.shape[0], reference.dtype)
    _, curve = jax.lax.scan(point, messages, strengths)
    return curve


def check_reference(model: Committee, weights: Any) -> None:
    """Raises unless there is something to be near to: signs, or a direction."""
    if model.weights == "binary":
        check_signs("weights", weights)
    elif not holds(jnp.any, weights):
        raise ValueError("weights must not all be 0, which is no direction, got only zeros")


def _geometry(model: Committee, overlap: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Distance at an overlap, and the entropy of all weights there."""
    overlap = jnp.clip(overlap, -1, 1)
    if model.weights == "spherical":
        distance = 1 - overlap**2
        return distance, jnp.log(distance) / 2
    distance = (1 - overlap) / 2
    return distance, jax.scipy.special.entr(distance) + jax.scipy.special.entr(1 - distance)
