"""Gradient descent on a committee with smooth units that turn into signs as it learns."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from entropix._checks import check_integer, check_number
from entropix._keys import fresh_key
from entropix.committee._learning import (
    Learned,
    learning,
    random_batches,
    start_and_order,
    until_solved,
)
from entropix.committee._messages import Problem
from entropix.committee._model import Committee

# Of beta and gamma: beyond it the units are signs, and its products still are finite numbers.
_SHARPEST = 1e6


def cross_entropy(x: Float[ArrayLike, "..."], gamma: Real[ArrayLike, ""]) -> Float[Array, "..."]:
    r"""Loss of an output x that should be positive.

    .. math:: f_\gamma(x) = -\frac x2 + \frac{1}{2 \gamma} \log(2 \cosh \gamma x)
       = \frac{1}{2 \gamma} \log(1 + e^{-2 \gamma x})

    Cross entropy for gamma = 1; the larger gamma, the nearer to max(-x, 0), which asks for no
    margin.

    Args:
      x: output times label.
      gamma: above 0, in units of 1 / x.

    Returns:
      Of the shape of ``x``.

    Examples:
      >>> import jax.numpy as jnp
      >>> [f"{x:.4f}" for x in cross_entropy(jnp.array([0.0, -2.0]), 9.0)]
      ['0.0385', '2.0000']

    Reference:
      Baldassi, Pittorino and Zecchina, `Shaping the learning landscape in neural networks around
      wide flat minima <https://arxiv.org/abs/1905.07833>`_, PNAS 117 (2020).
    """
    x, gamma = jnp.asarray(x), jnp.asarray(gamma)
    return jax.nn.softplus(-2 * gamma * x) / (2 * gamma)


def surrogate_loss(
    model: Committee, *, beta: float | jax.Array, gamma: float | jax.Array
) -> Callable[[jax.Array, tuple[jax.Array, jax.Array]], jax.Array]:
    r"""Loss of the committee with tanh units, for gradients and Hessians.

    .. math:: f(w) = \frac1M \sum_\mu f_\gamma\Big(\sigma^\mu \frac{1}{\sqrt K} \sum_k
       \tanh(\beta h^\mu_k)\Big)

    and for a parity with the product of the tanh in place of their sum over the root of K.

    Args:
      model: the network.
      beta: steepness of the units, in units of 1 / h. Infinite steepness is the sign.
      gamma: of `cross_entropy`.

    Returns:
      f(weights, (patterns, labels)) -> scalar, such as `entropix.flatness` takes.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> loss = surrogate_loss(Committee(3, 1), beta=1.0, gamma=1.0)
      >>> examples = jnp.array([[1.0, 1.0, -1.0]]), jnp.array([1.0])
      >>> jax.grad(loss)(jnp.zeros((1, 3)), examples).round(3)
      Array([[-0.289, -0.289,  0.289]], dtype=float32)

    Reference:
      As of `cross_entropy`.
    """

    def loss(weights: jax.Array, examples: tuple[jax.Array, jax.Array]) -> jax.Array:
        return jnp.mean(_losses(model, weights, *examples, beta, gamma))

    return loss


def _losses(
    model: Committee,
    weights: jax.Array,
    patterns: jax.Array,
    labels: jax.Array,
    beta: float | jax.Array,
    gamma: float | jax.Array,
) -> jax.Array:
    """Loss of each pattern. # shape=(M,)."""
    units = jnp.tanh(beta * model.fields(weights, patterns))
    if model.output == "parity":
        output = jnp.prod(units, axis=1)
    else:
        output = jnp.sum(units, axis=1) / model.num_hidden**0.5
    return cross_entropy(labels.astype(weights.dtype) * output, gamma)


def surrogate_sgd(
    model: Committee,
    patterns: Real[ArrayLike, "patterns inputs"],
    labels: Real[ArrayLike, " patterns"],
    tx: optax.GradientTransformation,
    key: jax.Array | int,
    *,
    beta: float | jax.Array = 0.5,
    gamma: float | jax.Array = 0.5,
    growth: float | jax.Array = 1.005,
    batch_size: int = 50,
    max_epochs: int = 2000,
    replicas: int | None = None,
    eval_params: Callable[[Any, Any], Any] | None = None,
) -> Learned:
    r"""Learns by any Optax optimizer on `surrogate_loss`, which slowly becomes the sign network.

    .. math:: \beta_t = \beta_0 (1 + r)^t, \qquad \gamma_t = \gamma_0 (1 + r)^t

    with t the passes over the patterns and 1 + r the growth. Each unit's weights are held at norm
    sqrt(n), in the loss and after each step, so that beta and gamma are the norms of the network.
    Slow growth lets it find wider solutions; with fast growth it freezes early. Ends as soon as the
    network of signs makes no error.

    Args:
      model: the network; its weights must be spherical.
      patterns: x. # shape=(M, N)
      labels: sigma, each +1 or -1. # shape=(M,)
      tx: any optimizer of Optax, such as ``optax.sgd(1.0)`` or ``entropix.entropy_sgd()``. Compiled
        once for each object. The weights are one array of shape (K, n), or (y, K, n) where
        ``replicas`` is y.
      key: an integer seed or a key of ``jax.random.key``, of the start and of the mini-batches.
      beta: steepness of the units in the first pass, above 0. Default 0.5.
      gamma: of the loss in the first pass, above 0. Default 0.5.
      growth: factor of both from one pass to the next, at least 1. Default 1.005, slow; 1.05 is
        fast.
      batch_size: patterns in a mini-batch, at most M; a last smaller one is used as well. Default
        50, or M where that is fewer.
      max_epochs: passes at most. Default 2000.
      replicas: y, copies of the network from the same start, each with its own mini-batches, that
        ``tx`` couples along axis 0 (``entropix.replicated_sgd(..., axis=0)``). Their mean is judged
        and returned. Default None, one network.
      eval_params: (optimizer state, weights) -> weights to be judged, such as
        ``entropix.eval_params`` for `entropy_sgd`. Default the weights.

    Returns:
      `Learned`.

    Raises:
      TypeError: a number is of the wrong type or ``key`` is not a key.
      ValueError: the weights are binary, a number is out of its range, a shape does not fit, or a
        label is not of +-1.

    Examples:
      >>> import optax
      >>> from entropix.committee import Committee, random_patterns
      >>> model = Committee(45, 3, weights="spherical")
      >>> found = surrogate_sgd(model, *random_patterns(model, 0.5, 0), optax.sgd(5.0), 1)
      >>> bool(found.solved)
      True

    Reference:
      As of `cross_entropy`; its schedules are this library's.
    """
    if model.weights != "spherical":
        raise ValueError(f"model must have spherical weights, got {model.weights}")
    problem, dtype = learning(model, patterns, labels, key, max_epochs)
    check_number("beta", beta, above=0)
    check_number("gamma", gamma, above=0)
    check_number("growth", growth, at_least=1)
    check_integer("batch_size", batch_size, at_least=1)
    if replicas is not None:
        check_integer("replicas", replicas, at_least=2)
    return _surrogate_sgd(
        problem,
        fresh_key(key),
        jnp.asarray(beta, dtype),
        jnp.asarray(gamma, dtype),
        jnp.asarray(growth, dtype),
        model=model,
        tx=tx,
        batch_size=min(batch_size, problem.labels.shape[0]),
        max_epochs=max_epochs,
        replicas=replicas,
        eval_params=eval_params,
    )


@functools.partial(
    jax.jit,
    static_argnames=("model", "tx", "batch_size", "max_epochs", "replicas", "eval_params"),
)
def _surrogate_sgd(
    problem: Problem,
    key: jax.Array,
    beta: jax.Array,
    gamma: jax.Array,
    growth: jax.Array,
    *,
    model: Committee,
    tx: optax.GradientTransformation,
    batch_size: int,
    max_epochs: int,
    replicas: int | None,
    eval_params: Callable[[Any, Any], Any] | None,
) -> Learned:
    """The compiled part of `surrogate_sgd`."""
    count = problem.labels.shape[0]
    start_key, batch_key = start_and_order(key)
    normalize = model.normalize if replicas is None else jax.vmap(model.normalize)

    def network(state: tuple[jax.Array, Any]) -> jax.Array:
        weights, opt_state = state
        judged = weights if eval_params is None else eval_params(opt_state, weights)
        return model.normalize(judged if replicas is None else jnp.mean(judged, axis=0))

    def loss(weights: jax.Array, batch: jax.Array, beta: jax.Array, gamma: jax.Array) -> jax.Array:
        losses = _losses(
            model, model.normalize(weights), problem.patterns[batch], problem.labels[batch],
            beta, gamma,
        )  # fmt: skip
        drawn = batch >= 0
        return jnp.sum(jnp.where(drawn, losses, 0)) / jnp.sum(drawn).astype(losses.dtype)

    gradient = jax.grad(loss)
    if replicas is not None:
        gradient = jax.vmap(gradient, in_axes=(0, 0, None, None))

    def batches(key: jax.Array) -> jax.Array:
        if replicas is None:
            return random_batches(key, count, batch_size)
        keys = jax.random.split(key, replicas)
        each = jax.vmap(lambda one: random_batches(one, count, batch_size))(keys)
        return jnp.swapaxes(each, 0, 1)

    def epoch(state: tuple[jax.Array, Any], index: jax.Array) -> tuple[jax.Array, Any]:
        grown = growth ** index.astype(growth.dtype)
        sharp = [jnp.minimum(start * grown, _SHARPEST) for start in (beta, gamma)]

        def learn(
            state: tuple[jax.Array, Any], batch: jax.Array
        ) -> tuple[tuple[jax.Array, Any], None]:
            weights, opt_state = state
            updates, opt_state = tx.update(gradient(weights, batch, *sharp), opt_state, weights)
            return (normalize(optax.apply_updates(weights, updates)), opt_state), None

        state, _ = jax.lax.scan(learn, state, batches(jax.random.fold_in(batch_key, index)))
        return state

    start = model.random_weights(start_key, beta.dtype)
    if replicas is not None:
        start = jnp.broadcast_to(start, (replicas, *start.shape))
    return until_solved(model, problem, epoch, network, (start, tx.init(start)), max_epochs)
