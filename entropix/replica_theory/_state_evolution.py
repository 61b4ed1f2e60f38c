"""State evolution: how message passing learns a teacher's rule, iteration by iteration."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from entropix._checks import check_integer, check_number
from entropix.replica_theory._energy import Overlap
from entropix.replica_theory._inputs import (
    Weights,
    check_one_three_or_infinite,
    check_precision,
    check_weights,
    load,
)
from entropix.replica_theory._planted import LARGEST_CONJUGATE, errors, information, prior


class StateEvolution(NamedTuple):
    """Answer of `state_evolution`; the last axis is that of the iterations, the start included.

    Attributes:
      overlap: q, of the mean with the teacher's weights, and of the mean with itself.
        # shape=(..., T + 1)
      generalization_error: of the vote of the network's distribution. # shape=(..., T + 1)
    """

    overlap: Float[Array, "*loads T"]
    generalization_error: Float[Array, "*loads T"]


def state_evolution(
    alpha: Real[ArrayLike, "..."],
    *,
    weights: Weights,
    num_hidden: float = 1,
    num_steps: int = 50,
    start: Real[ArrayLike, ""] = 0.0,
) -> StateEvolution:
    r"""Overlap with the teacher after each iteration of approximate message passing.

    .. math:: \hat q_{t + 1} = 2 \alpha \frac{dE}{dq}(q_t), \qquad q_{t + 1} = \begin{cases}
       \int\! Dz \tanh(\sqrt{\hat q_{t + 1}} z + \hat q_{t + 1}) & \text{binary weights} \\
       \hat q_{t + 1} / (1 + \hat q_{t + 1}) & \text{spherical weights} \end{cases}

    with E(q) the integral over the patterns in the free entropy of `bayes_optimal`, of which this
    is an ascent: where it ends is a saddle point. It holds for infinitely many inputs, without
    damping.

    Args:
      alpha: load, patterns for each weight, at least 0; a number or an array.
      weights: ``"binary"`` or ``"spherical"``.
      num_hidden: K of the tree committee: 1 (the perceptron, default), 3, or ``math.inf``.
      num_steps: T, at least 1. Default 50.
      start: q before the first iteration, at least 0 and below 1: what is known of the teacher.
        Default 0.

    Returns:
      `StateEvolution`.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: double precision is off, or an argument is out of its range.

    Examples:
      >>> import jax
      >>> with jax.enable_x64(True):
      ...     theory = state_evolution(1.0, weights="binary", num_steps=3)
      ...     print(theory.overlap.round(4))
      [0.     0.4146 0.5099 0.5414]

    Reference:
      Bayati and Montanari, The dynamics of message passing on dense graphs, with applications to
      compressed sensing, IEEE Trans. Inf. Theory 57 (2011); Barbier et al., Optimal errors and
      phase transitions in high-dimensional generalized linear models, PNAS 116 (2019).
    """
    check_precision()
    check_weights(weights)
    check_one_three_or_infinite(num_hidden)
    check_integer("num_steps", num_steps, at_least=1)
    check_number("start", start, at_least=0, below=1)
    return _state_evolution(
        load(alpha), jnp.asarray(start, float),
        weights=weights, num_hidden=num_hidden, num_steps=num_steps,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames=("weights", "num_hidden", "num_steps"))
def _state_evolution(
    alpha: jax.Array, start: jax.Array, *, weights: Weights, num_hidden: float, num_steps: int
) -> StateEvolution:
    """The compiled part of `state_evolution`."""

    def course(alpha: jax.Array) -> StateEvolution:
        def iterate(known: Overlap, _: None) -> tuple[Overlap, Overlap]:
            conjugate = jnp.minimum(alpha * information(known, num_hidden), LARGEST_CONJUGATE)
            after = prior(conjugate, weights).overlap
            return after, after

        _, later = jax.lax.scan(iterate, Overlap(start, 1 - start), length=num_steps)
        known = Overlap(jnp.append(start, later.q), jnp.append(1 - start, later.complement))
        wrong = jax.lax.map(lambda one: errors(one, num_hidden).vote, known)
        return StateEvolution(known.q, wrong)

    found = jax.lax.map(course, alpha.ravel())
    return jax.tree.map(lambda x: x.reshape(*alpha.shape, num_steps + 1), found)
