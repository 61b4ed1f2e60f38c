"""IVON: Newton's method on a Gaussian posterior of the weights, one gradient for one step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class IvonState(NamedTuple):
    """State of `ivon`.

    Attributes:
      step: updates made.
      key: of the draws.
      mean: of the posterior, where the network is evaluated.
      momentum: running average of the gradients.
      curvature: estimated diagonal of the Hessian.
    """

    step: jax.Array
    key: jax.Array
    mean: optax.Params
    momentum: optax.Updates
    curvature: optax.Updates


def ivon(
    learning_rate: optax.Schedule,
    *,
    size: Any,
    curvature: Any,
    decay: Any,
    b1: Any = 0.9,
    curvature_rate: Any,
    key: jax.Array,
) -> optax.GradientTransformation:
    r"""Improved variational online Newton, with one draw of the weights for each gradient.

    The training loop holds theta ~ N(m, s^2) with s^2 = 1 / (size (h + delta)), and g is the
    gradient there:

    .. math:: \hat h &= g (\theta - m) / s^2 \\
              h &\leftarrow b_2 h + (1 - b_2) \hat h
                 + \tfrac12 (1 - b_2)^2 (h - \hat h)^2 / (h + \delta) \\
              \bar g &\leftarrow b_1 \bar g + (1 - b_1) g \\
              m &\leftarrow m - \eta (h_0 + \delta)
                 \frac{\bar g / (1 - b_1^t) + \delta m}{h + \delta}

    The learning rate is in units of gradient descent's, by the factor h_0 + delta. The first
    gradient is at the mean itself, which tells nothing of the curvature: h stays as it is.

    Args:
      learning_rate: eta, by the step.
      size: inverse temperature of the posterior of the mean loss, in the paper the number of
        training images.
      curvature: h_0, above 0.
      decay: delta, the precision of the prior over ``size``; at least 0.
      b1: weight of the old average of gradients. Default 0.9.
      curvature_rate: 1 - b_2, the weight of a new curvature.
      key: for the draws.

    Returns:
      A transformation with state `IvonState`.

    Reference:
      Shen et al., Variational learning is effective for large deep networks, ICML 2024.
    """

    def init(params: optax.Params) -> IvonState:
        return IvonState(
            jnp.zeros([], jnp.int32),
            key,
            jax.tree.map(jnp.copy, params),
            jax.tree.map(jnp.zeros_like, params),
            jax.tree.map(lambda x: jnp.full_like(x, curvature), params),
        )

    def update(
        updates: optax.Updates, state: IvonState, params: optax.Params
    ) -> tuple[optax.Updates, IvonState]:
        first = state.step == 0

        def curved(g: jax.Array, x: jax.Array, m: jax.Array, h: jax.Array) -> jax.Array:
            seen = jnp.where(first, h, g * (x - m) * size * (h + decay))
            shift = curvature_rate * (seen - h)
            return h + shift + 0.5 * shift**2 / (h + decay)

        found = jax.tree.map(curved, updates, params, state.mean, state.curvature)
        momentum = jax.tree.map(lambda a, g: b1 * a + (1 - b1) * g, state.momentum, updates)
        rate = learning_rate(state.step) * (curvature + decay)
        debias = 1 - b1 ** (state.step + 1.0)
        mean = jax.tree.map(
            lambda m, a, h: m - rate * (a / debias + decay * m) / (h + decay),
            state.mean, momentum, found,
        )  # fmt: skip
        leaves, tree = jax.tree.flatten(mean)
        keys = jax.random.split(jax.random.fold_in(state.key, state.step), len(leaves))
        drawn = jax.tree.map(
            lambda m, h, one: m + jax.random.normal(one, m.shape) / jnp.sqrt(size * (h + decay)),
            mean, found, jax.tree.unflatten(tree, list(keys)),
        )  # fmt: skip
        changes = jax.tree.map(lambda new, x: new - x, drawn, params)
        return changes, IvonState(state.step + 1, state.key, mean, momentum, found)

    return optax.GradientTransformation(init, update)


def mean_of(opt_state: optax.OptState, params: optax.Params) -> optax.Params:
    """The mean of the posterior that `ivon` has found."""
    del params
    mean: optax.Params = optax.tree.get(opt_state, "IvonState").mean
    return mean
