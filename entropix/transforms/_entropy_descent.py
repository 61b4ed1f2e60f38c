"""Entropy-SGD: gradient descent on the local entropy, for any pair of Optax optimizers."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from entropix._checks import required
from entropix.transforms._branch import apply_when
from entropix.transforms._grad_fn_descent import descent_with_grad_fn
from entropix.transforms._inner_loop import (
    Course,
    EntropyDescentState,
    InnerLoop,
    is_known_zero,
)


def entropy_descent(
    outer: optax.GradientTransformation,
    inner: optax.GradientTransformation,
    *,
    inner_steps: int | jax.Array,
    gamma: optax.ScalarOrSchedule,
    noise_std: optax.ScalarOrSchedule = 0.0,
    ema_decay: optax.ScalarOrSchedule = 0.75,
    debias: bool = False,
    scale_by_gamma: bool = False,
    reset_inner: bool = True,
    phase: int | jax.Array = 0,
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

    There is one ``update`` per gradient, as for every Optax optimizer. The parameters that the
    training loop holds are x', and `eval_params` gives x. Each L-th update merges the outer step
    into the last inner one, so that no gradient is wasted. Where one ``update`` should be a whole
    loop, as for models with side effects such as batch statistics, use
    `entropy_descent_with_grad_fn`.

    Replicas under ``vmap``, and under ``shard_map`` with ``check_vma``, draw different noise from
    one key. Under ``pmap`` replicas cannot be told from copies of one network, which must draw the
    same: there each replica needs a key of its own,
    ``jax.pmap(lambda key, params: entropy_descent(..., key=key).init(params))(keys, params)``.

    Args:
      outer: optimizer of x, fed with x - mu. Its schedules count outer steps.
      inner: optimizer of x', fed with d. It gets ``outer_step`` as an extra argument.
      inner_steps: L, gradients per outer step. At least 1.
      gamma: coupling (scope) of the paper, in units of 1 / parameter^2, or a schedule of the outer
        step, such as those of `entropix.scoping`. At least 0.
      noise_std: standard deviation s of the noise of one inner step, in units of the parameters, or
        a schedule of the outer step. At least 0, default 0.
      ema_decay: alpha, the weight of the old average, 0 <= alpha < 1, or a schedule of the inner
        step. Default 0.75: each new iterate has weight 0.25, as in the released code.
      debias: whether to divide x - mu by 1 - alpha^L, which takes out the weight that the start x
        still has in mu (24 % at L = 5, 0.3 % at L = 20; the product of a schedule's values).
        Default False.
      scale_by_gamma: whether the outer optimizer is fed with gamma (x - mu), the gradient itself.
        Default False: gamma's growth would fight the learning rate's decay.
      reset_inner: whether the inner optimizer starts afresh at every outer step. Default True.
      phase: steps by which the first loop is shorter, 0 <= phase < L, so that groups of parameters
        with other phases (`fragments`) end their loops at other steps. Default 0.
      opaque: whether to return `entropy_descent_with_grad_fn` of the other arguments. Default
        False.
      key: an integer seed or a key of ``jax.random.key``, for the noise. Default 0.
      accumulator_dtype: dtype of the running average; None (the default) means that of the
        parameters.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with state `EntropyDescentState`. Extra arguments
      of ``update`` reach both optimizers.

    Raises:
      TypeError: an argument or a parameter is of the wrong type.
      ValueError: an argument is out of its range; a phase and ``opaque``; ``update`` without
        params.

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
    loop = InnerLoop(
        optimizer=inner,
        inner_steps=inner_steps,
        gamma=gamma,
        noise_std=noise_std,
        ema_decay=ema_decay,
        debias=debias,
        scale_by_gamma=scale_by_gamma,
        reset_inner=reset_inner,
        key=key,
        accumulator_dtype=accumulator_dtype,
        phase=phase,
    )
    return descent(outer, loop, opaque=opaque)


def descent(
    outer: optax.GradientTransformation, loop: InnerLoop, *, opaque: bool
) -> optax.GradientTransformationExtraArgs:
    """The transformation of an outer optimizer and an inner loop."""
    if opaque and not is_known_zero(loop.phase):
        raise ValueError(
            f"phase must be 0 where one update is a whole loop (opaque=True), got {loop.phase}"
        )
    if opaque:
        return descent_with_grad_fn(outer, loop)
    outer = optax.with_extra_args_support(outer)

    def init_fn(params: optax.Params) -> EntropyDescentState:
        return loop.init(outer, params, whole_loop=False)

    def update_fn(
        updates: optax.Updates,
        state: EntropyDescentState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, EntropyDescentState]:
        params = required(params)
        starts = state.inner_step == 0
        closes = loop.closes(state.inner_step, state.outer_step)
        course = apply_when(
            starts,
            lambda course: loop.start(params, course.inner_state),
            Course(state.anchor, state.lag, state.inner_state),
        )
        inner_updates, course = loop.iterate(
            updates, params, course, state.inner_step, state, extra_args
        )

        def close(
            carry: tuple[optax.Updates, optax.OptState],
        ) -> tuple[optax.Updates, optax.OptState]:
            inner_updates, outer_state = carry
            last = optax.apply_updates(params, inner_updates)
            direction = loop.direction(last, course, state.outer_step)
            outer_updates, outer_state = outer.update(
                direction, outer_state, course.anchor, **extra_args
            )
            # The training loop holds x', so the step to the new x goes by way of the anchor.
            merged = jax.tree.map(
                lambda a, x, u, like: ((a - x) + u.astype(x.dtype)).astype(like.dtype),
                course.anchor, params, outer_updates, inner_updates,
            )  # fmt: skip
            return merged, outer_state

        merged_updates, outer_state = apply_when(closes, close, (inner_updates, state.outer_state))
        return merged_updates, EntropyDescentState(
            inner_step=jnp.where(closes, 0, state.inner_step + 1).astype(jnp.int32),
            outer_step=jnp.where(closes, optax.safe_increment(state.outer_step), state.outer_step),
            key=state.key,
            anchor=course.anchor,
            lag=course.lag,
            inner_state=course.inner_state,
            outer_state=outer_state,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
