"""Least action learning, and its entropic version with attracted replicas; neither uses gradients.

A pattern that is got wrong changes as few hidden signs as make it right, those whose fields are
nearest to changing.
"""

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Float, Real

from entropix._checks import check_integer, check_number
from entropix._keys import fresh_key
from entropix.committee._learning import (
    Learned,
    learning,
    random_order,
    start_and_order,
    until_solved,
)
from entropix.committee._messages import Problem
from entropix.committee._model import Committee, check_weights

# By how much a correction moves the field of a unit: one network settles with the first; with the
# second replicas keep the distance from each other that a wide region bears.
_SETTLING, _SPREADING = 0.5, 1.5


def least_action(model: Committee, fields: jax.Array, label: jax.Array) -> jax.Array:
    r"""Which units a pattern changes, and to which side: the least change that makes it right.

    For a majority that is short of right signs by some number, the units of that number among the
    wrong ones with the smallest :math:`|h_k|`; for a wrong parity the one unit with the smallest.

    Args:
      model: the network.
      fields: h of one pattern. # shape=(K,)
      label: sigma, +1 or -1. # shape=()

    Returns:
      +1 or -1 for units whose fields are to rise or fall, 0 for the others. # shape=(K,)

    Examples:
      >>> import jax.numpy as jnp
      >>> model = Committee(15, 5)
      >>> fields = jnp.array([-0.2, 3.0, -5.0, -0.1, -2.0])
      >>> least_action(model, fields, jnp.array(1.0)).tolist()
      [1.0, 0.0, 0.0, 1.0, 0.0]
    """
    gauged = label * fields
    if model.output == "parity":
        wrong = label * jnp.prod(jnp.sign(fields)) <= 0
        nearest = jnp.arange(len(fields), dtype=jnp.int32) == jnp.argmin(jnp.abs(fields))
        return jnp.where(wrong & nearest, -jnp.where(fields > 0, 1, -1), 0).astype(fields.dtype)
    short = (model.num_hidden + 1) // 2 - jnp.sum(gauged > 0, dtype=jnp.int32)
    cost = jnp.where(gauged > 0, jnp.inf, -gauged)
    rank = jnp.argsort(jnp.argsort(cost))
    return jnp.where(rank < short, label, 0).astype(fields.dtype)


def least_action_learning(
    model: Committee,
    patterns: Real[ArrayLike, "patterns inputs"],
    labels: Real[ArrayLike, " patterns"],
    key: jax.Array | int,
    *,
    learning_rate: float | jax.Array | None = None,
    max_epochs: int = 1000,
    init: Float[ArrayLike, "units n"] | None = None,
) -> Learned:
    r"""Learns pattern by pattern with the least change of the hidden signs.

    .. math:: w_k \leftarrow w_k + \eta\, s_k\, x^\mu \quad \text{for wrong patterns, with } s_k
       \text{ of } \texttt{least\_action}

    in an order drawn anew for each pass, until a pass ends without errors. For the perceptron it is
    Rosenblatt's rule. Spherical weights are brought back to their norm after each pass; binary
    weights are the signs of hidden variables that follow the rule, odd integers for the default
    rate. Greedy and fast, it ends in narrow regions of solutions.

    Args:
      model: the network.
      patterns: x. # shape=(M, N)
      labels: sigma, each +1 or -1. # shape=(M,)
      key: an integer seed or a key of ``jax.random.key``, of the start and of the orders.
      learning_rate: eta, above 0. Default 0.5 / sqrt(n), which moves a unit's field by half of what
        it is for random weights; much more never settles. For binary weights 2.
      max_epochs: passes at most. Default 1000.
      init: weights (hidden variables of binary ones) to start from. Default random.
        # shape=(K, n)

    Returns:
      `Learned`.

    Raises:
      TypeError: a number is of the wrong type or ``key`` is not a key.
      ValueError: a number is out of its range, a shape does not fit, or a label is not of +-1.

    Examples:
      >>> from entropix.committee import Committee, random_patterns
      >>> model = Committee(45, 3, weights="spherical")
      >>> found = least_action_learning(model, *random_patterns(model, 0.8, 0), 1)
      >>> bool(found.solved)
      True

    Reference:
      Mitchison and Durbin, Bounds on the learning capacity of some multi-layer networks, Biol.
      Cybern. 60 (1989).
    """
    problem, dtype = learning(model, patterns, labels, key, max_epochs)
    if learning_rate is None:
        learning_rate = 2.0 if model.weights == "binary" else _rate(model, _SETTLING)
    check_number("learning_rate", learning_rate, above=0)
    if init is not None:
        check_weights("init", model, init)
        init = jnp.asarray(init, dtype)
    return _least_action_learning(
        problem, fresh_key(key), jnp.asarray(learning_rate, dtype), init,
        model=model, max_epochs=max_epochs,
    )  # fmt: skip


def entropic_lal(
    model: Committee,
    patterns: Real[ArrayLike, "patterns inputs"],
    labels: Real[ArrayLike, " patterns"],
    key: jax.Array | int,
    *,
    replicas: int = 20,
    attraction: float | jax.Array = 0.005,
    learning_rate: float | jax.Array | None = None,
    max_epochs: int = 1000,
) -> Learned:
    r"""Least action learning of y replicas that are attracted to their mean, ever more strongly.

    .. math:: W_a \leftarrow W_a + \lambda (\bar W - W_a), \qquad
       \bar W = \frac1y \sum_a W_a, \qquad \lambda = \frac{\delta t}{M}

    after each pattern that each replica has seen, in an order of its own; t counts the passes, so a
    replica moves by about delta t of its distance to the center in one. Replicas start from the
    same weights and are brought back to their norm after each pass. Ends as soon as the center,
    at the norm of a replica, makes no error; the center is the answer. The attraction makes the
    replicas agree on a region that is wide enough for all of them.

    Args:
      model: the network; its weights must be spherical. For binary ones see `replicated_lal`.
      patterns: x. # shape=(M, N)
      labels: sigma, each +1 or -1. # shape=(M,)
      key: an integer seed or a key of ``jax.random.key``, of the start and of the orders.
      replicas: y, at least 2. Default 20.
      attraction: delta, by which the share of the distance covered in a pass grows from one pass to
        the next. At least 0. Above 0.1 replicas collapse before they have spread. Default 0.005.
      learning_rate: eta, above 0. Default 1.5 / sqrt(n), which moves a unit's field by one and a
        half times what it is for random weights, whatever n is: three times as much as one network
        settles with. The replicas never settle either; only a region as wide as their spread lets
        their center solve everything.
      max_epochs: passes at most. Default 1000.

    Returns:
      `Learned`, of the center.

    Raises:
      TypeError: a number is of the wrong type or ``key`` is not a key.
      ValueError: the weights are binary, a number is out of its range, a shape does not fit, or a
        label is not of +-1.

    Examples:
      >>> from entropix.committee import Committee, random_patterns
      >>> model = Committee(45, 3, weights="spherical")
      >>> found = entropic_lal(model, *random_patterns(model, 0.5, 0), 1, replicas=5)
      >>> bool(found.solved)
      True

    Reference:
      Baldassi, Pittorino and Zecchina, `Shaping the learning landscape in neural networks around
      wide flat minima <https://arxiv.org/abs/1905.07833>`_, PNAS 117 (2020). The schedule of the
      attraction is this library's.
    """
    if model.weights != "spherical":
        raise ValueError(
            f"model must have spherical weights, got {model.weights}; see replicated_lal"
        )
    problem, dtype = learning(model, patterns, labels, key, max_epochs)
    if learning_rate is None:
        learning_rate = _rate(model, _SPREADING)
    check_number("learning_rate", learning_rate, above=0)
    check_integer("replicas", replicas, at_least=2)
    check_number("attraction", attraction, at_least=0)
    return _entropic_lal(
        problem, fresh_key(key), jnp.asarray(learning_rate, dtype), jnp.asarray(attraction, dtype),
        model=model, replicas=replicas, max_epochs=max_epochs,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames=("model", "max_epochs"))
def _least_action_learning(
    problem: Problem,
    key: jax.Array,
    rate: jax.Array,
    init: jax.Array | None,
    *,
    model: Committee,
    max_epochs: int,
) -> Learned:
    """The compiled part of `least_action_learning`."""
    count = problem.labels.shape[0]
    start_key, order_key = start_and_order(key)
    hidden = model.random_weights(start_key, rate.dtype) if init is None else init

    def epoch(hidden: jax.Array, index: jax.Array) -> jax.Array:
        order = random_order(jax.random.fold_in(order_key, index), count)

        def learn(hidden: jax.Array, example: jax.Array) -> tuple[jax.Array, None]:
            return hidden + rate * correction(model, _used(model, hidden), problem, example), None

        hidden, _ = jax.lax.scan(learn, hidden, order)
        return hidden if model.weights == "binary" else model.normalize(hidden)

    return until_solved(model, problem, epoch, model.normalize, hidden, max_epochs)


@functools.partial(jax.jit, static_argnames=("model", "replicas", "max_epochs"))
def _entropic_lal(
    problem: Problem,
    key: jax.Array,
    rate: jax.Array,
    attraction: jax.Array,
    *,
    model: Committee,
    replicas: int,
    max_epochs: int,
) -> Learned:
    """The compiled part of `entropic_lal`."""
    count = problem.labels.shape[0]
    start_key, order_key = start_and_order(key)
    start = model.random_weights(start_key, rate.dtype)

    def center(weights: jax.Array) -> jax.Array:
        return model.normalize(jnp.mean(weights, axis=0))

    def epoch(weights: jax.Array, index: jax.Array) -> jax.Array:
        keys = jax.random.split(jax.random.fold_in(order_key, index), replicas)
        orders = jax.vmap(lambda one: random_order(one, count))(keys)
        pull = attraction * index.astype(rate.dtype) / count

        def learn(weights: jax.Array, examples: jax.Array) -> tuple[jax.Array, None]:
            corrections = jax.vmap(lambda w, example: correction(model, w, problem, example))(
                weights, examples
            )
            weights = weights + rate * corrections
            mean = jnp.mean(weights, axis=0, keepdims=True)
            return weights + pull * (mean - weights), None

        weights, _ = jax.lax.scan(learn, weights, orders.T)
        return jax.vmap(model.normalize)(weights)

    weights = jnp.broadcast_to(start, (replicas, *start.shape))
    return until_solved(model, problem, epoch, center, weights, max_epochs)


def _rate(model: Committee, move: float) -> float:
    """At which one correction moves a field by that much, of the size 1 of random weights'."""
    return move / float(model.shape[1]) ** 0.5


def _used(model: Committee, hidden: jax.Array) -> jax.Array:
    """The weights that classify: the signs of hidden variables, or these themselves."""
    return model.normalize(hidden) if model.weights == "binary" else hidden


def correction(
    model: Committee, weights: jax.Array, problem: Problem, example: jax.Array
) -> jax.Array:
    """What one example adds to the weights, for a rate of 1. # shape=(K, n)."""
    pattern = problem.patterns[example][None].astype(weights.dtype)
    label = problem.labels[example].astype(weights.dtype)
    sides = least_action(model, model.fields(weights, pattern)[0], label)
    return sides[:, None] * model.unit_inputs(pattern)[0]
