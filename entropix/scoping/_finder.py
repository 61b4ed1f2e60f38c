"""A range test for gamma: how far the weights get at each coupling."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from entropix._checks import check_integer, check_number
from entropix.transforms import eval_params


class GammaRange(NamedTuple):
    """What `find_gamma` found.

    Attributes:
      gamma: the coupling at which the way is the asked share of that without a pull, interpolated;
        nan where the couplings that were tried do not enclose it.
      gammas: the couplings that were tried.
      ways: the way at each of them over that without a pull.
    """

    gamma: Float[Array, ""]
    gammas: Float[Array, " couplings"]
    ways: Float[Array, " couplings"]


def find_gamma(
    make: Callable[[jax.Array], optax.GradientTransformation],
    grad_fn: Callable[[Any, Any], Any],
    params: optax.Params,
    batches: Any,
    *,
    share: float = 0.5,
    low: float = 1e-4,
    high: float = 1e2,
    num_gammas: int = 13,
    axis: int | None = None,
) -> GammaRange:
    r"""The coupling at which the pull holds back half of the way, by a range test.

    Trains from ``params`` on the same mini-batches without a pull and at couplings in a geometric
    sequence, and measures the way D: of Entropy-SGD how far the anchor gets; of replicas
    (``axis``) the root mean square of their distances to their mean. The answer solves

    .. math:: D(\gamma) = c \, D(0), \qquad c = \tfrac12 .

    Along a direction of curvature h a loop that has settled goes the share h / (h + gamma) of the
    way to the minimum, so that the answer is h: the pull is as strong as the curvature. A loop that
    is too short to settle goes :math:`(1 - e^{-\gamma t}) / \gamma` times the gradient, t the sum
    of its learning rates over 1 - m, m the momentum: the answer is 1.59 / t. Replicas whose
    gradients always differ in the same way come apart by the first share, those whose gradients
    differ afresh at every step by :math:`\sqrt{h / (h + \gamma)}`: the answer is 3 h.

    The papers' gamma of 1e-4 is far below all of these, and does nothing there. The test takes one
    gradient for each mini-batch and coupling, 700 for a loop of 50 steps. It needs no validation
    data: it says where gamma begins to matter, not which gamma generalizes best. Take the weights
    after the first epoch rather than random ones.

    Args:
      make: from gamma, a traced scalar, to the optimizer that is to be used, such as ``lambda
        gamma: entropix.entropy_sgd(gamma=gamma)``.
      grad_fn: from (params, batch) of one network to its gradients.
      params: the weights to start from; with ``axis`` those of all replicas. Copies of one network
        are fine.
      batches: mini-batches, the leading axis of every leaf the step: of Entropy-SGD one loop, or
        several whole ones. With ``axis`` the second axis is the replica.
      share: c, 0 < c < 1. Default 0.5.
      low: smallest coupling to try, above 0. Default 1e-4.
      high: largest coupling to try. Default 1e2.
      num_gammas: couplings to try, at least 2. Default 13: two per power of ten.
      axis: the axis of every leaf of ``params`` along which replicas are stacked, or None (the
        default) for a single network.

    Returns:
      A `GammaRange`.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: an argument is out of its range.

    Examples:
      A parabola of curvature 3, on which a loop of 200 steps settles:

      >>> import jax, jax.numpy as jnp, entropix
      >>> found = entropix.scoping.find_gamma(
      ...     lambda gamma: entropix.entropy_sgd(
      ...         inner_learning_rate=0.01, inner_steps=200, gamma=gamma, noise=0.0
      ...     ),
      ...     lambda x, batch: 3.0 * x,
      ...     jnp.ones(2),
      ...     jnp.zeros(200),
      ... )
      >>> print(f"{found.gamma:.1f}")
      3.0

    Reference:
      None: the half-way rule is this library's. The range test is that of Smith, `Cyclical learning
      rates for training neural networks <https://arxiv.org/abs/1506.01186>`_, WACV 2017, for
      another number.
    """
    check_number("share", share, above=0, below=1)
    check_number("low", low, above=0)
    check_number("high", high, above=low)
    check_integer("num_gammas", num_gammas, at_least=2)
    gammas = jnp.asarray(np.geomspace(low, high, num_gammas), jnp.float32)
    if axis is not None:
        grad_fn = jax.vmap(grad_fn, (axis, 0), axis)

    def way(gamma: jax.Array) -> jax.Array:
        tx = make(gamma)

        def step(carry: tuple[Any, Any], batch: Any) -> tuple[tuple[Any, Any], None]:
            params, state = carry
            updates, state = tx.update(grad_fn(params, batch), state, params)
            return (optax.apply_updates(params, updates), state), None

        (held, state), _ = jax.lax.scan(step, (params, tx.init(params)), batches)
        end = eval_params(state, held)
        if axis is None:
            apart = jax.tree.map(lambda a, b: a - b, end, params)
        else:
            apart = jax.tree.map(lambda x: x - jnp.mean(x, axis, keepdims=True), end)
        return optax.tree.norm(apart)

    ways = jax.lax.map(way, jnp.concatenate([jnp.zeros(1), gammas]))
    shares = ways[1:] / ways[0]
    return GammaRange(crossing(gammas, shares, share), gammas, shares)


def crossing(gammas: jax.Array, shares: jax.Array, share: float) -> jax.Array:
    """Where the shares fall below one for the first time.

    At couplings too strong for the learning rate the weights diverge, and the way grows again. The
    logit of h / (h + gamma) is a line in log gamma, so that this is interpolated.
    """
    below = shares < share
    at = jnp.argmax(below)
    before = jnp.maximum(at - 1, 0)
    x, y = jnp.log(gammas), logit(shares)
    part = (y[before] - logit(jnp.float32(share))) / (y[before] - y[at])
    found = jnp.exp(x[before] + part * (x[at] - x[before]))
    return jnp.where(below.any() & (at > 0), found, jnp.nan)


def logit(share: jax.Array) -> jax.Array:
    """The log of the odds; a way may be longer than that without a pull."""
    share = jnp.clip(share, 1e-6, 1 - 1e-6)
    return jnp.log(share) - jnp.log1p(-share)
