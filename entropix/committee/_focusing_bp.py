"""Focusing belief propagation: message passing that seeks the densest regions of solutions."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Real

from entropix._checks import check_number, holds
from entropix._keys import check_key, fresh_key
from entropix.committee._arguments import message_passing, stop_when
from entropix.committee._fixed_point import (
    FixedPoint,
    Prior,
    Stop,
    external,
    iterate,
    norm_multiplier,
    normalized,
    start,
)
from entropix.committee._messages import Node, Normal, Problem, no_messages
from entropix.committee._model import Committee


class Protocol(NamedTuple):
    """Stages of `focusing_bp`.

    Attributes:
      gamma: coupling of each replica to the center, at least 0, may be infinite. # shape=(T,)
      replicas: y, at least 1, not necessarily an integer, may be infinite. # shape=(T,)
    """

    gamma: Float[Array, "*batch T"]
    replicas: Float[Array, "*batch T"]


def rising_coupling(gamma: Any, replicas: float = float("inf")) -> Protocol:
    """Grows the coupling at a fixed number of replicas.

    Args:
      gamma: rising couplings. # shape=(T,)
      replicas: y, at least 1. Default infinite, where the replicas have the least entropy of their
        own to lose and only the density around the center counts.

    Returns:
      `Protocol`.

    Raises:
      TypeError: ``gamma`` or ``replicas`` is not of numbers.
      ValueError: a number is out of its range.

    Examples:
      >>> rising_coupling([0.5, 1.0], 5.0).replicas.tolist()
      [5.0, 5.0]
    """
    if np.ndim(gamma) != 1 or not holds(lambda x: jnp.all(x >= 0), gamma):
        raise ValueError(f"gamma must have shape (T,) and be at least 0, got {gamma}")
    if not isinstance(replicas, (int, float)) or not replicas >= 1:
        raise ValueError(f"replicas must be a number of at least 1, got {replicas!r}")
    couplings = jnp.asarray(gamma, jnp.result_type(float))
    return Protocol(couplings, jnp.full_like(couplings, replicas))


def pseudo_reinforcement(rate: Any, exponent: float = 0.5) -> Protocol:
    r"""Grows coupling and number of replicas together.

    .. math:: \tanh \gamma = \rho^x, \qquad y = 1 + \frac{\rho^{1 - 2x}}{1 - \rho}

    Args:
      rate: rho, rising from 0 toward 1, which is excluded. # shape=(T,)
      exponent: x, from 0, where the coupling is infinite and this is the reinforcement of belief
        propagation with :math:`y = 1 / (1 - \rho)`, to 1/2. Default 1/2.

    Returns:
      `Protocol`.

    Raises:
      TypeError: ``exponent`` is not a number.
      ValueError: a number is out of its range.

    Examples:
      >>> protocol = pseudo_reinforcement([0.0, 0.5])
      >>> [f"{gamma:.3f} {y:.0f}" for gamma, y in zip(*protocol)]
      ['0.000 2', '0.881 3']
    """
    check_number("exponent", exponent, at_least=0, at_most=0.5)
    if np.ndim(rate) != 1 or not holds(lambda x: jnp.all((x >= 0) & (x < 1)), rate):
        raise ValueError(f"rate must have shape (T,) and be at least 0 and below 1, got {rate}")
    rho = jnp.asarray(rate, jnp.result_type(float))
    return Protocol(jnp.arctanh(rho**exponent), 1 + rho ** (1 - 2 * exponent) / (1 - rho))


class FocusingHistory(NamedTuple):
    """What happened at each stage; -1 or nan at stages that were not needed.

    Attributes:
      gamma: coupling. # shape=(T,)
      replicas: y. # shape=(T,)
      errors: misclassified patterns at the end of the stage. # shape=(T,), dtype=int32
      steps: sweeps made. # shape=(T,), dtype=int32
      residual: as of `belief_propagation`. # shape=(T,)
      damping: what the damping had become. # shape=(T,)
    """

    gamma: Float[Array, "*batch T"]
    replicas: Float[Array, "*batch T"]
    errors: Int[Array, "*batch T"]
    steps: Int[Array, "*batch T"]
    residual: Float[Array, "*batch T"]
    damping: Float[Array, "*batch T"]


class FocusingBP(NamedTuple):
    """Answer of `focusing_bp`.

    Attributes:
      weights: those of the stage with the fewest errors, the last one of these: signs of the mean
        of a replica, or that mean at norm sqrt(n) for each unit. # shape=(K, n)
      errors: patterns they misclassify. # shape=(), dtype=int32
      solved: whether there are none. # shape=(), dtype=bool
      stages: stages of the protocol that were run. # shape=(), dtype=int32
      mean: of each weight of a replica at the end of that stage. # shape=(K, n)
      history: `FocusingHistory`.
    """

    weights: jax.Array
    errors: Int[Array, "*batch"]
    solved: Bool[Array, "*batch"]
    stages: Int[Array, "*batch"]
    mean: Float[Array, "*batch K n"]
    history: FocusingHistory


def focusing_bp(
    model: Committee,
    patterns: Real[ArrayLike, "patterns inputs"],
    labels: Real[ArrayLike, " patterns"],
    protocol: Protocol,
    key: jax.Array | int,
    *,
    noise: float | jax.Array = 0.1,
    node: Node | None = None,
    damping: float | jax.Array = 0.5,
    max_steps: int | jax.Array = 20,
    tolerance: float | jax.Array = 1e-3,
    batch_size: int | None = None,
    stop_when_solved: bool = True,
) -> FocusingBP:
    r"""Finds a solution with many others around it.

    Belief propagation on y identical replicas that are attracted to a common center, written for
    one of them: the others act back on it through the center as a field of its own. With
    :math:`h_i` what the patterns say of a binary weight,

    .. math:: c_i = \tanh^{-1}(\tanh h_i \tanh \gamma), \qquad
       H_i = h_i + \tanh^{-1}\big(\tanh((y - 1) c_i) \tanh \gamma\big)

    and likewise for spherical weights, where replicas and center each keep their norm. The coupling
    grows stage by stage; a stage need not converge. Stops after the first stage at whose end the
    signs (the directions) of a replica's means make no error. The best stage is the answer,
    whatever happens after it.

    Args:
      model: the network.
      patterns: x, as for `belief_propagation`. # shape=(M, N)
      labels: sigma, each +1 or -1. # shape=(M,)
      protocol: stages, such as `rising_coupling` and `pseudo_reinforcement` make. For spherical
        weights all gamma must be finite.
      key: an integer seed or a key of ``jax.random.key``, of the fields that the weights start
        from; it breaks the symmetry of units that share their inputs.
      noise: standard deviation of those fields. Default 0.1.
      node: as of `belief_propagation`. ``"relaxed"`` runs away now and then where ``"gaussian"``
        does not, above all with shared inputs.
      damping: as of `belief_propagation`.
      max_steps: sweeps at most for each stage. Default 20.
      tolerance: of the residual; a stage ends there. Default 1e-3.
      batch_size: as of `belief_propagation`.
      stop_when_solved: False runs all stages, toward ever denser regions. Default True.

    Returns:
      `FocusingBP`.

    Raises:
      TypeError: a number is of the wrong type.
      ValueError: a number is out of its range; a shape does not fit; a label, or a pattern of
        binary weights, is not of +-1; the coupling of spherical weights is infinite.

    Examples:
      >>> from entropix.committee import Committee, random_patterns, rising_coupling
      >>> model = Committee(201)
      >>> examples = random_patterns(model, 0.4, 0)
      >>> found = focusing_bp(model, *examples, rising_coupling([0.2, 0.4, 0.6, 0.8, 1.0]), 1)
      >>> bool(found.solved), int(model.errors(found.weights, *examples))
      (True, 0)

    Reference:
      Baldassi et al., Unreasonable effectiveness of learning neural networks: from accessible
      states and robust ensembles to basic algorithmic schemes, PNAS 113 (2016); for spherical
      weights Baldassi, Pittorino and Zecchina, `Shaping the learning landscape in neural networks
      around wide flat minima <https://arxiv.org/abs/1905.07833>`_, PNAS 117 (2020).
    """
    problem, dtype, node, batch_size = message_passing(
        model, patterns, labels, node=node, batch_size=batch_size
    )
    check_key(key)
    check_number("noise", noise, at_least=0)
    _check_protocol(model, protocol)
    return _focusing_bp(
        problem,
        Protocol(*(jnp.asarray(stage, dtype) for stage in protocol)),
        fresh_key(key),
        jnp.asarray(noise, dtype),
        stop_when(damping, max_steps, tolerance, dtype),
        model=model,
        node=node,
        batch_size=batch_size,
        stop_when_solved=stop_when_solved,
    )


class _Course(NamedTuple):
    """What the stages hand on: their number, the messages, and the best mean with its errors."""

    stage: jax.Array
    at: FixedPoint
    best: jax.Array
    errors: jax.Array
    history: FocusingHistory


@functools.partial(jax.jit, static_argnames=("model", "node", "batch_size", "stop_when_solved"))
def _focusing_bp(
    problem: Problem,
    protocol: Protocol,
    key: jax.Array,
    noise: jax.Array,
    stop: Stop,
    *,
    model: Committee,
    node: Node,
    batch_size: int,
    stop_when_solved: bool,
) -> FocusingBP:
    """The compiled part of `focusing_bp`."""
    dtype = noise.dtype
    stages = protocol.gamma.shape[0]

    def goes_on(carry: _Course) -> jax.Array:
        return (carry.stage < stages) & ((carry.errors != 0) | (not stop_when_solved))

    def run(carry: _Course) -> _Course:
        stage, begin, best, fewest, history = carry
        gamma, replicas = protocol.gamma[stage], protocol.replicas[stage]
        begin = begin._replace(
            steps=jnp.zeros_like(begin.steps), residual=jnp.full_like(begin.residual, jnp.inf)
        )
        prior = self_interaction(gamma, replicas)
        end = iterate(model, node, problem, prior, begin, stop, batch_size)
        errors = model.errors(model.normalize(end.mean), problem.patterns, problem.labels)
        now = FocusingHistory(gamma, replicas, errors, end.steps, end.residual, end.damping)
        history = jax.tree.map(lambda rows, row: rows.at[stage].set(row), history, now)
        better = errors <= fewest
        best, fewest = jnp.where(better, end.mean, best), jnp.minimum(errors, fewest)
        return _Course(stage + 1, end, best, fewest, history)

    messages = no_messages(model, problem.labels.shape[0], dtype)
    noisy = external(noise * jax.random.normal(key, model.shape, dtype))
    begin = start(noisy, messages, stop.damping)
    nothing, unknown = jnp.full(stages, -1, jnp.int32), jnp.full(stages, jnp.nan, dtype)
    history = FocusingHistory(unknown, unknown, nothing, nothing, unknown, unknown)
    zero, all_wrong = jnp.zeros([], jnp.int32), jnp.asarray(problem.labels.shape[0], jnp.int32)
    course = _Course(zero, begin, begin.mean, all_wrong, history)
    end = jax.lax.while_loop(goes_on, run, course)
    return FocusingBP(
        weights=model.normalize(end.best),
        errors=end.errors,
        solved=end.errors == 0,
        stages=end.stage,
        mean=end.best,
        history=end.history,
    )


def self_interaction(gamma: jax.Array, replicas: jax.Array) -> Prior:
    """What y - 1 other replicas in the same state do to a replica through the center.

    Args:
      gamma: coupling. # shape=()
      replicas: y. # shape=()
    """

    def prior(sums: Any, multiplier: jax.Array) -> tuple[Any, jax.Array]:
        if isinstance(sums, Normal):
            return normalized(_spherical_interaction(sums, multiplier, gamma, replicas))
        center = through_coupling(sums, gamma)
        others = jnp.where(center == 0, 0, (replicas - 1) * center)
        # One replica has no others, whatever the field; nor is an infinite one multiplied by 0.
        others = jnp.where(replicas == 1, 0, others)
        return sums + through_coupling(others, gamma), multiplier

    return prior


def through_coupling(
    field: Float[ArrayLike, "..."], gamma: Float[ArrayLike, ""]
) -> Float[Array, "..."]:
    r"""Field that one sign exerts on another: :math:`\tanh^{-1}(\tanh h \tanh \gamma)`.

    Written so that either may be infinite.

    Args:
      field: h, on the first sign.
      gamma: coupling of the two, at least 0. # shape=()

    Returns:
      Of the shape of ``field``.
    """
    size = jnp.abs(field)
    apart = jnp.where(jnp.isinf(gamma), jnp.inf, jnp.abs(size - gamma))
    rounding = jnp.log1p(jnp.exp(-2 * (size + gamma))) - jnp.log1p(jnp.exp(-2 * apart))
    return jnp.sign(field) * (jnp.minimum(size, gamma) + rounding / 2)


def _spherical_interaction(
    sums: Normal, multiplier: jax.Array, gamma: jax.Array, replicas: jax.Array
) -> Normal:
    """The patterns' messages and the center's, for weights and center on their spheres.

    A replica's own precision is what the patterns and the multiplier of the sweep before give.
    """
    own = multiplier + sums.precision
    # Infinitely many replicas hold the center where it is: only its direction is left to find.
    held = jnp.isinf(replicas)
    others = jnp.where(held, 1, replicas - 1)
    precision = -others * gamma**2 / own
    field = others * gamma * sums.field / own
    fluctuation = jnp.where(held, 0, 1).astype(own.dtype)
    precision = precision + norm_multiplier(precision, field, fluctuation)
    narrowing = fluctuation * gamma**2 / precision
    return Normal(sums.precision - narrowing, sums.field + gamma * field / precision)


def _check_protocol(model: Committee, protocol: Protocol) -> None:
    """Raises unless it has stages with couplings and replicas in their ranges; tracers pass."""
    shapes = [np.shape(stage) for stage in protocol]
    if len(shapes[0]) != 1 or shapes[0] != shapes[1] or 0 in shapes[0]:
        raise ValueError(
            "protocol must have gamma and replicas of one shape (T,), T > 0, "
            f"got {shapes[0]} and {shapes[1]}"
        )
    if any(isinstance(stage, jax.core.Tracer) for stage in protocol):
        return
    gamma, replicas = (np.asarray(stage) for stage in protocol)
    if not np.all(gamma >= 0) or not np.all(replicas >= 1):
        raise ValueError(f"protocol must have gamma >= 0 and replicas >= 1, got {protocol}")
    if np.any(np.isinf(gamma) & np.isinf(replicas)):
        raise ValueError("protocol must not have gamma and replicas infinite at the same stage")
    if model.weights == "spherical" and np.any(np.isinf(gamma)):
        raise ValueError("protocol must have finite gamma for spherical weights, got inf")
