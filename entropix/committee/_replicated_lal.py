"""Replicated learning of binary weights: the rule that entropic algorithms began with."""

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Real

from entropix._checks import check_integer, check_number
from entropix._keys import fresh_key
from entropix.committee._lal import correction
from entropix.committee._learning import (
    Learned,
    learning,
    random_batches,
    start_and_order,
    until_solved,
)
from entropix.committee._messages import Problem
from entropix.committee._model import Committee


def replicated_lal(
    model: Committee,
    patterns: Real[ArrayLike, "patterns inputs"],
    labels: Real[ArrayLike, " patterns"],
    key: jax.Array | int,
    *,
    replicas: int = 7,
    batch_size: int = 80,
    attraction: float | jax.Array = 0.75,
    gamma: float | jax.Array = 0.05,
    gamma_step: float | jax.Array = 0.001,
    max_epochs: int = 1000,
) -> Learned:
    r"""Least action learning of y replicas with binary weights around a center that is summed out.

    .. math:: H_a &\leftarrow H_a + 2 \sum_{\mu \in \text{batch}} s^\mu_a x^\mu \\
              H_a &\leftarrow H_a + \lambda \big(\tanh(\gamma y \bar c) - W_a\big), \qquad
       W_a = \mathrm{sgn}\, H_a, \quad \bar c = \frac1y \sum_a W_a

    after each mini-batch, each replica with its own and all from the same start. H are hidden
    variables, odd integers but for the attraction; s are the changes of `least_action`; the
    hyperbolic tangent is the mean of a center of weight :math:`e^{\gamma \sum_a c \cdot W_a}`.
    Ends as soon as the majority of the replicas, weight by weight, makes no error.

    Args:
      model: the network; its weights must be binary. For spherical ones see `entropic_lal`.
      patterns: x. # shape=(M, N)
      labels: sigma, each +1 or -1. # shape=(M,)
      key: an integer seed or a key of ``jax.random.key``, of the start and of the orders.
      replicas: y, odd and at least 3, so that the majority is decided. Default 7.
      batch_size: patterns in a mini-batch, at most M; a last smaller one is used as well. Default
        80, or M where that is fewer.
      attraction: lambda, at least 0. Default 0.75.
      gamma: coupling in the first pass, at least 0. Default 0.05.
      gamma_step: by which gamma grows from one pass to the next, at least 0. Default 0.001.
      max_epochs: passes at most. Default 1000.

    Returns:
      `Learned`, of the majority of the replicas.

    Raises:
      TypeError: a number is of the wrong type or ``key`` is not a key.
      ValueError: the weights are spherical, a number is out of its range, a shape does not fit, or
        a label is not of +-1.

    Examples:
      >>> from entropix.committee import Committee, random_patterns
      >>> model = Committee(105, 5)
      >>> found = replicated_lal(model, *random_patterns(model, 0.2, 0), 1)
      >>> bool(found.solved)
      True

    Reference:
      Baldassi et al., Unreasonable effectiveness of learning neural networks: from accessible
      states and robust ensembles to basic algorithmic schemes, PNAS 113 (2016).
    """
    if model.weights != "binary":
        raise ValueError(f"model must have binary weights, got {model.weights}; see entropic_lal")
    problem, dtype = learning(model, patterns, labels, key, max_epochs)
    check_integer("replicas", replicas, at_least=3)
    if replicas % 2 == 0:
        raise ValueError(f"replicas must be odd, got {replicas}")
    check_integer("batch_size", batch_size, at_least=1)
    for name, number in (("attraction", attraction), ("gamma", gamma), ("gamma_step", gamma_step)):
        check_number(name, number, at_least=0)
    return _replicated_lal(
        problem,
        fresh_key(key),
        jnp.asarray(attraction, dtype),
        jnp.asarray(gamma, dtype),
        jnp.asarray(gamma_step, dtype),
        model=model,
        replicas=replicas,
        batch_size=min(batch_size, problem.labels.shape[0]),
        max_epochs=max_epochs,
    )


@functools.partial(jax.jit, static_argnames=("model", "replicas", "batch_size", "max_epochs"))
def _replicated_lal(
    problem: Problem,
    key: jax.Array,
    attraction: jax.Array,
    gamma: jax.Array,
    gamma_step: jax.Array,
    *,
    model: Committee,
    replicas: int,
    batch_size: int,
    max_epochs: int,
) -> Learned:
    """The compiled part of `replicated_lal`."""
    count = problem.labels.shape[0]
    start_key, order_key = start_and_order(key)
    start = model.random_weights(start_key, attraction.dtype)

    def majority(hidden: jax.Array) -> jax.Array:
        return model.normalize(jnp.sum(model.normalize(hidden), axis=0))

    def batch_correction(hidden: jax.Array, batch: jax.Array) -> jax.Array:
        weights = model.normalize(hidden)
        each = jax.vmap(lambda example: correction(model, weights, problem, example))(batch)
        return jnp.sum(jnp.where((batch >= 0)[:, None, None], each, 0), axis=0)

    def epoch(hidden: jax.Array, index: jax.Array) -> jax.Array:
        keys = jax.random.split(jax.random.fold_in(order_key, index), replicas)
        coupling = (gamma + gamma_step * index.astype(gamma.dtype)) * replicas

        def learn(hidden: jax.Array, batch: jax.Array) -> tuple[jax.Array, None]:
            hidden = hidden + 2 * jax.vmap(batch_correction)(hidden, batch)
            weights = model.normalize(hidden)
            center = jnp.tanh(coupling * jnp.mean(weights, axis=0, keepdims=True))
            return hidden + attraction * (center - weights), None

        batches = jax.vmap(lambda one: random_batches(one, count, batch_size))(keys)
        hidden, _ = jax.lax.scan(learn, hidden, jnp.swapaxes(batches, 0, 1))
        return hidden

    hidden = jnp.broadcast_to(start, (replicas, *start.shape))
    return until_solved(model, problem, epoch, majority, hidden, max_epochs)
