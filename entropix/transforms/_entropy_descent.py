"""Entropy-SGD: gradient descent on the local entropy, for any pair of Optax optimizers."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from entropix._canary import warn_if_backend_is_faulty
from entropix._checks import check_float_leaves, check_integer, check_number
from entropix._keys import check_key, fresh_key
from entropix.transforms._branch import apply_when
from entropix.transforms._langevin import add_noise, at


class EntropyDescentState(NamedTuple):
    """State of `entropy_descent`.

    Attributes:
      inner_step: position l in the inner loop, 0 <= l < L. # shape=(), dtype=int32
      outer_step: number t of outer steps made. # shape=(), dtype=int32
      key: the typed key that the noise of every inner step is derived from.
      anchor: the weights x that the inner loop started from; meaningful while inner_step > 0. None
        when opaque.
      lag: x' - mu, how far the running average mu trails the inner iterate. None when opaque.
      inner_state: state of the inner optimizer. Empty when opaque and reset at every outer step.
      outer_state: state of the outer optimizer.
    """

    inner_step: jax.Array
    outer_step: jax.Array
    key: jax.Array
    anchor: optax.Params | None
    lag: optax.Params | None
    inner_state: optax.OptState
    outer_state: optax.OptState


class _Loop(NamedTuple):
    """What one inner loop carries besides x'."""

    anchor: optax.Params
    lag: optax.Params
    inner_state: optax.OptState


def entropy_descent(
    outer: optax.GradientTransformation,
    inner: optax.GradientTransformation,
    *,
    inner_steps: int,
    gamma: optax.ScalarOrSchedule,
    noise_std: optax.ScalarOrSchedule = 0.0,
    ema_decay: optax.ScalarOrSchedule = 0.75,
    debias: bool = False,
    scale_by_gamma: bool = False,
    reset_inner: bool = True,
    opaque: bool = False,
    key: jax.Array | int = 0,
    accumulator_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Descends the local entropy with any outer and any inner optimizer.

    The local entropy of the loss f around x and its gradient are

    .. math:: F(x, \gamma) = \log \int e^{-f(x') - \frac{\gamma}{2} |x - x'|^2} dx', \qquad
              -\nabla F = \gamma (x - \langle x' \rangle).

    The mean is estimated by L inner steps from x' = mu = x, each with a fresh mini-batch:

    .. math:: d &= \nabla f(x') + \gamma (x' - x) \\
              x' &\leftarrow \mathrm{inner}(x', d) + s z, \quad z \sim N(0, I) \\
              \mu &\leftarrow \alpha \mu + (1 - \alpha) x'

    after which :math:`x \leftarrow \mathrm{outer}(x, x - \mu)`.

    **Transparent use** (the default): one ``update`` per gradient, as for every Optax optimizer.
    The parameters that the training loop holds are x', and `eval_params` gives x. Each L-th update
    merges the outer step into the last inner one, so that no gradient is wasted.

    **Opaque use** (``opaque=True``): one ``update`` per outer step. The extra argument
    ``grad_fn(params, step)`` is called for step = 0, ..., L - 1 inside one loop, and the parameters
    of the training loop are x. The ``updates`` argument is not looked at: pass the parameters, and
    no gradient is wasted. For models with side effects such as batch statistics; not for use inside
    ``optax.masked`` or ``optax.flatten``, where ``grad_fn`` would be handed a tree that the model
    does not know.

    Args:
      outer: optimizer of x, fed with x - mu. Its schedules count outer steps.
      inner: optimizer of x', fed with d. It gets ``outer_step`` as an extra argument.
      inner_steps: L, gradients per outer step. At least 1.
      gamma: coupling (scope) of the paper, in units of 1 / parameter^2, or a schedule of the outer
        step. At least 0. See `entropix.scoping`.
      noise_std: standard deviation s of the noise of one inner step, in units of the parameters, or
        a schedule of the outer step. At least 0, default 0.
      ema_decay: alpha, the weight of the old average, 0 <= alpha < 1, or a schedule of the inner
        step. Default 0.75: each new iterate has weight 0.25, as in the released code.
      debias: whether to divide x - mu by 1 - alpha^L, which takes out the weight that the start x
        still has in mu (24 % at L = 5, 0.3 % at L = 20; the product of a schedule's values).
        Default False.
      scale_by_gamma: whether the outer optimizer is fed with gamma (x - mu), the gradient itself.
        Default
        False: gamma's growth would fight the learning rate's decay.
      reset_inner: whether the inner optimizer starts afresh at every outer step. Default True.
      opaque: see above. Default False.
      key: an integer seed or a key of ``jax.random.key``, for the noise. Default 0. Replicas under
        ``vmap`` need a key each, see `langevin_noise`.
      accumulator_dtype: dtype of the running average; None (the default) means that of the
        parameters.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with state `EntropyDescentState`. Extra arguments
      of ``update`` reach both optimizers.

    Raises:
      TypeError: an argument or a parameter is of the wrong type.
      ValueError: an argument is out of its range; ``update`` without params; opaque without
        ``grad_fn``.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, entropix
      >>> loss = lambda x: jnp.sum(jnp.array([1.0, 10.0]) * x**2)
      >>> tx = entropix.entropy_descent(optax.adam(0.02), optax.sgd(0.04), inner_steps=5, gamma=0.1)
      >>> x = jnp.array([1.0, 1.0])
      >>> state = tx.init(x)
      >>> @jax.jit
      ... def step(x, state):
      ...     updates, state = tx.update(jax.grad(loss)(x), state, x)
      ...     return optax.apply_updates(x, updates), state
      >>> for _ in range(500):
      ...     x, state = step(x, state)
      >>> bool(loss(entropix.eval_params(state, x)) < 1e-2)
      True

    Reference:
      Chaudhari et al., `Entropy-SGD: Biasing Gradient Descent Into Wide Valleys
      <https://arxiv.org/abs/1611.01838>`_, ICLR 2017, Algorithm 1; Pittorino et al., `Entropic
      gradient descent algorithms and wide flat minima <https://arxiv.org/abs/2006.07897>`_, ICLR
      2021, Algorithm 1.
    """
    check_integer("inner_steps", inner_steps, at_least=1)
    check_number("gamma", gamma, at_least=0)
    check_number("noise_std", noise_std, at_least=0)
    check_number("ema_decay", ema_decay, at_least=0, below=1)
    check_key(key)
    inner = optax.with_extra_args_support(inner)
    outer = optax.with_extra_args_support(outer)

    def init_fn(params: optax.Params) -> EntropyDescentState:
        warn_if_backend_is_faulty()
        check_float_leaves("params", params)
        return EntropyDescentState(
            inner_step=jnp.zeros([], jnp.int32),
            outer_step=jnp.zeros([], jnp.int32),
            key=fresh_key(key),
            anchor=None if opaque else optax.tree.zeros_like(params),
            lag=None if opaque else optax.tree.zeros_like(params, dtype=accumulator_dtype),
            inner_state=optax.EmptyState() if opaque and reset_inner else inner.init(params),
            outer_state=outer.init(params),
        )

    def start(params: optax.Params, inner_state: optax.OptState) -> _Loop:
        """The loop at its start: x' = mu = x."""
        return _Loop(
            anchor=jax.tree.map(jnp.copy, params),
            lag=optax.tree.zeros_like(params, dtype=accumulator_dtype),
            inner_state=inner.init(params) if reset_inner else inner_state,
        )

    def iterate(
        grads: optax.Updates,
        params: optax.Params,
        loop: _Loop,
        inner_step: jax.Array,
        state: EntropyDescentState,
        extra_args: dict[str, Any],
    ) -> tuple[optax.Updates, _Loop]:
        """One pass of the inner loop at x' = params: the step of x', and the loop after it."""
        coupling = at(gamma, state.outer_step)
        drift = jax.tree.map(
            lambda g, x, a: g + jnp.asarray(coupling, g.dtype) * (x - a).astype(g.dtype),
            grads, params, loop.anchor,
        )  # fmt: skip
        updates, inner_state = inner.update(
            drift, loop.inner_state, params, **({"outer_step": state.outer_step} | extra_args)
        )
        noise_step = state.outer_step * inner_steps + inner_step
        noise_key = jax.random.fold_in(state.key, noise_step)
        updates = add_noise(updates, noise_key, at(noise_std, state.outer_step))
        # mu <- alpha mu + (1 - alpha) x' in terms of x' - mu, which needs neither mu nor the
        # anchor.
        decay = at(ema_decay, inner_step)
        lag = jax.tree.map(
            lambda e, u: jnp.asarray(decay, e.dtype) * (e + u.astype(e.dtype)),
            loop.lag,
            updates,
        )
        return updates, _Loop(loop.anchor, lag, inner_state)

    def weight_of_start() -> Any:
        """What x, where mu started, weighs in mu after L steps."""
        if callable(ema_decay):
            return jnp.prod(jax.vmap(ema_decay)(jnp.arange(inner_steps)))
        return ema_decay**inner_steps

    def finish(
        params: optax.Params,
        loop: _Loop,
        state: EntropyDescentState,
        outer_state: optax.OptState,
        extra_args: dict[str, Any],
    ) -> tuple[optax.Updates, optax.OptState]:
        """The outer step from the anchor x, with mu = x' - lag at x' = params."""
        factor = 1 / (1 - weight_of_start()) if debias else 1
        if scale_by_gamma:
            factor = factor * at(gamma, state.outer_step)

        def direction(a: jax.Array, x: jax.Array, e: jax.Array) -> jax.Array:
            return (jnp.asarray(factor, e.dtype) * ((a - x).astype(e.dtype) + e)).astype(a.dtype)

        directions = jax.tree.map(direction, loop.anchor, params, loop.lag)
        return outer.update(directions, outer_state, loop.anchor, **extra_args)

    def transparent_update_fn(
        updates: optax.Updates,
        state: EntropyDescentState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, EntropyDescentState]:
        params = _required(params)
        starts = state.inner_step == 0
        closes = state.inner_step == inner_steps - 1
        loop = apply_when(
            starts,
            lambda loop: start(params, loop.inner_state),
            _Loop(state.anchor, state.lag, state.inner_state),
        )
        inner_updates, loop = iterate(updates, params, loop, state.inner_step, state, extra_args)

        def close(
            carry: tuple[optax.Updates, optax.OptState],
        ) -> tuple[optax.Updates, optax.OptState]:
            inner_updates, outer_state = carry
            last = optax.apply_updates(params, inner_updates)
            outer_updates, outer_state = finish(last, loop, state, outer_state, extra_args)
            # The training loop holds x', so the step to the new x goes by way of the anchor.
            merged = jax.tree.map(
                lambda a, x, u, like: ((a - x) + u.astype(x.dtype)).astype(like.dtype),
                loop.anchor, params, outer_updates, inner_updates,
            )  # fmt: skip
            return merged, outer_state

        merged_updates, outer_state = apply_when(closes, close, (inner_updates, state.outer_state))
        return merged_updates, EntropyDescentState(
            inner_step=jnp.where(closes, 0, state.inner_step + 1).astype(jnp.int32),
            outer_step=jnp.where(closes, optax.safe_increment(state.outer_step), state.outer_step),
            key=state.key,
            anchor=loop.anchor,
            lag=loop.lag,
            inner_state=loop.inner_state,
            outer_state=outer_state,
        )

    def opaque_update_fn(
        updates: optax.Updates,
        state: EntropyDescentState,
        params: optax.Params | None = None,
        *,
        grad_fn: Callable[[optax.Params, jax.Array], optax.Updates] | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, EntropyDescentState]:
        del updates
        params = _required(params)
        if grad_fn is None:
            raise ValueError(
                "grad_fn(params, step) must be passed to update when opaque=True, got None"
            )

        def body(inner_step: jax.Array, carry: tuple[Any, _Loop]) -> tuple[Any, _Loop]:
            params, loop = carry
            grads = grad_fn(params, inner_step)
            inner_updates, loop = iterate(grads, params, loop, inner_step, state, extra_args)
            return optax.apply_updates(params, inner_updates), loop

        loop = start(params, state.inner_state)
        last, loop = jax.lax.fori_loop(0, inner_steps, body, (params, loop))
        outer_updates, outer_state = finish(last, loop, state, state.outer_state, extra_args)
        return outer_updates, state._replace(
            outer_step=optax.safe_increment(state.outer_step),
            inner_state=state.inner_state if reset_inner else loop.inner_state,
            outer_state=outer_state,
        )

    return optax.GradientTransformationExtraArgs(
        init_fn, opaque_update_fn if opaque else transparent_update_fn
    )


def _required(params: optax.Params | None) -> optax.Params:
    if params is None:
        raise ValueError(
            "params must be passed to update: tx.update(grads, state, params), got None"
        )
    return params


def eval_params(opt_state: optax.OptState, params: optax.Params) -> optax.Params:
    """The weights to evaluate: the anchor x of every `entropy_descent` found in an optimizer state.

    In transparent use the training loop holds the inner iterate x'. This gives x wherever the state
    sits: in a chain, under ``masked``, ``partition``, ``MultiSteps``, ``inject_hyperparams``, with
    or without a leading axis of replicas. Leaves that no `entropy_descent` touches are those of
    ``params``.

    Args:
      opt_state: the state of any optimizer that contains at least one `entropy_descent`.
      params: the parameters that the training loop holds.

    Returns:
      A tree like ``params``; between two outer loops it equals ``params``.

    Raises:
      ValueError: the state holds no `entropy_descent`.

    Examples:
      >>> import jax.numpy as jnp, optax, entropix
      >>> tx = optax.chain(optax.clip(1.0), entropix.entropy_sgd(inner_steps=3))
      >>> x = jnp.ones(2)
      >>> updates, state = tx.update(x, tx.init(x), x)
      >>> held = optax.apply_updates(x, updates)
      >>> entropix.eval_params(state, held)
      Array([1., 1.], dtype=float32)

    Reference:
      Chaudhari et al., Entropy-SGD, ICLR 2017, Algorithm 1: the x of its last line.
    """
    descents = optax.tree.get_all_with_path(opt_state, "EntropyDescentState")
    local_sgds = optax.tree.get_all_with_path(opt_state, "DiLoCoState")
    if not descents and not local_sgds:
        raise ValueError(
            "opt_state must hold the state of an entropy_descent or of a diloco, found none in it"
        )
    found = [(state, state.inner_step == 0) for _, state in descents]
    found += [(s, (s.inner_step == 0) & (s.outer_step == 0)) for _, s in local_sgds]
    for state, starts in found:
        if state.anchor is not None:
            params = jax.tree.map(
                lambda a, x, starts=starts: _anchor_or(a, x, starts),
                state.anchor, params,
                is_leaf=lambda leaf: isinstance(leaf, optax.MaskedNode),
            )  # fmt: skip
    return params


def _anchor_or(anchor: Any, held: jax.Array, starts: jax.Array) -> jax.Array:
    """The anchor, but the leaf held by the training loop at a loop's start or where masked out."""
    if isinstance(anchor, optax.MaskedNode):
        return held
    replica_axes = jnp.reshape(starts, starts.shape + (1,) * (held.ndim - starts.ndim))
    return jnp.where(replica_axes, held, anchor.astype(held.dtype))
