"""Entropy-SGD with one update per outer step, which asks for its gradients itself."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jaxtyping import Array, Int

from entropix._checks import required
from entropix.transforms._inner_loop import Course, EntropyDescentState, InnerLoop


def entropy_descent_with_grad_fn(
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
    key: jax.Array | int = 0,
    accumulator_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""`entropy_descent` with one ``update`` per outer step, given a function for the gradients.

    The algorithm is the same,

    .. math:: d &= \nabla f(x') + \gamma (x' - x), \quad
              x' \leftarrow \mathrm{inner}(x', d) + s z, \quad
              \mu \leftarrow \alpha \mu + (1 - \alpha) x' \qquad (L \text{ times}) \\
              x &\leftarrow \mathrm{outer}(x, x - \mu)

    but the parameters of the training loop are x, and the L inner steps run inside one ``update``,
    compiled once as a loop. That calls its extra argument ``grad_fn(params, step)`` for
    step = 0, ..., L - 1, which has to take the mini-batch of that step itself. The ``updates``
    argument is not looked at: pass the parameters, and no gradient is wasted.

    It is meant for models with side effects such as batch statistics, which then see only x' of one
    loop. Do not use it inside ``optax.masked`` or ``optax.flatten``, where ``grad_fn`` would be
    handed a tree that the model does not know.

    Args:
      outer: optimizer of x, fed with x - mu. Its schedules count outer steps.
      inner: optimizer of x', fed with d. It gets ``outer_step`` as an extra argument.
      inner_steps: L, gradients per outer step. At least 1.
      gamma: coupling, in units of 1 / parameter^2, or a schedule of the outer step. At least 0.
      noise_std: standard deviation s of the noise of one inner step, in units of the parameters, or
        a schedule of the outer step. At least 0, default 0.
      ema_decay: alpha, the weight of the old average, 0 <= alpha < 1, or a schedule of the inner
        step. Default 0.75.
      debias: whether to divide x - mu by 1 - alpha^L, the weight of all iterates but the start.
        Default False.
      scale_by_gamma: whether the outer optimizer is fed with gamma (x - mu). Default False.
      reset_inner: whether the inner optimizer starts afresh at every outer step. Default True.
      key: an integer seed or a key of ``jax.random.key``, for the noise. Default 0.
      accumulator_dtype: dtype of the running average; None (the default) means that of the
        parameters.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with state `EntropyDescentState`, to be called as
      ``tx.update(params, state, params, grad_fn=grad_fn)``. Other extra arguments reach both
      optimizers.

    Raises:
      TypeError: an argument or a parameter is of the wrong type.
      ValueError: an argument is out of its range; ``update`` without params or without ``grad_fn``.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, entropix
      >>> gradient = jax.grad(lambda x: jnp.sum((x - 1.0) ** 2))
      >>> tx = entropix.entropy_descent_with_grad_fn(
      ...     optax.sgd(1.0), optax.sgd(0.1), inner_steps=10, gamma=0.0
      ... )
      >>> x = jnp.zeros(1)
      >>> state = tx.init(x)
      >>> for _ in range(10):
      ...     updates, state = tx.update(x, state, x, grad_fn=lambda x, step: gradient(x))
      ...     x = optax.apply_updates(x, updates)
      >>> print(x.round(3))
      [1.]

    Reference:
      Chaudhari et al., `Entropy-SGD: Biasing Gradient Descent Into Wide Valleys
      <https://arxiv.org/abs/1611.01838>`_, ICLR 2017, Algorithm 1. The form of the call is that of
      ``optax.contrib.sam`` in its opaque mode.
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
    )
    return descent_with_grad_fn(outer, loop)


def descent_with_grad_fn(
    outer: optax.GradientTransformation, loop: InnerLoop
) -> optax.GradientTransformationExtraArgs:
    """The transformation of an outer optimizer and an inner loop."""
    outer = optax.with_extra_args_support(outer)

    def init_fn(params: optax.Params) -> EntropyDescentState:
        return loop.init(outer, params, whole_loop=True)

    def update_fn(
        updates: optax.Updates,
        state: EntropyDescentState,
        params: optax.Params | None = None,
        *,
        grad_fn: Callable[[optax.Params, Int[Array, ""]], optax.Updates] | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, EntropyDescentState]:
        del updates
        params = required(params)
        if grad_fn is None:
            raise ValueError(
                "grad_fn(params, step) must be passed to update, which makes a whole inner loop: "
                "tx.update(params, state, params, grad_fn=grad_fn), got None"
            )

        def body(inner_step: Int[Array, ""], carry: tuple[Any, Course]) -> tuple[Any, Course]:
            params, course = carry
            grads = grad_fn(params, inner_step)
            inner_updates, course = loop.iterate(
                grads, params, course, inner_step, state, extra_args
            )
            return optax.apply_updates(params, inner_updates), course

        course = loop.start(params, state.inner_state)
        last, course = jax.lax.fori_loop(0, loop.inner_steps, body, (params, course))
        direction = loop.direction(last, course, state.outer_step)
        outer_updates, outer_state = outer.update(
            direction, state.outer_state, course.anchor, **extra_args
        )
        return outer_updates, state._replace(
            outer_step=optax.safe_increment(state.outer_step),
            inner_state=state.inner_state if loop.reset_inner else course.inner_state,
            outer_state=outer_state,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
