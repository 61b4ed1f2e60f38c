"""DiLoCo: local steps on every replica, and an outer optimizer on the mean of what they did."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from entropix._canary import warn_if_backend_is_faulty
from entropix._checks import check_below, check_float_leaves, check_integer, check_number, required
from entropix.transforms._average_updates import checked
from entropix.transforms._branch import apply_when
from entropix.transforms._exchange import Compression, Exchange
from entropix.transforms._langevin import at
from entropix.transforms._replica_axes import ReplicaAxes, replica_axes


class DiLoCoState(NamedTuple):
    """State of `diloco`.

    Attributes:
      inner_step: position in the inner loop, 0 <= l < H. # shape=(), dtype=int32
      outer_step: number of meetings so far. # shape=(), dtype=int32
      anchor: the shared weights, with length 1 on the stacked axis; zeros before the first update.
      pending: the mean outer gradient on its way, with length 1 on the stacked axis. None without
        delay.
      residual: what compression has taken away so far, for error feedback. None without it.
      inner_state: state of the inner optimizer, which goes on over the meetings.
      outer_state: state of the outer optimizer, for one copy of the weights.
    """

    inner_step: jax.Array
    outer_step: jax.Array
    anchor: optax.Params
    pending: optax.Updates | None
    residual: optax.Updates | None
    inner_state: optax.OptState
    outer_state: optax.OptState


def diloco(
    inner: optax.GradientTransformation,
    outer: optax.GradientTransformation | None = None,
    *,
    inner_steps: int | jax.Array,
    phase: int | jax.Array = 0,
    delay: int = 0,
    blend: optax.ScalarOrSchedule = 1.0,
    compression: Compression | None = None,
    accumulator_dtype: Any = None,
    axis: int | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""DiLoCo: replicas make H steps on their own, then an outer optimizer steps for all of them.

    From the shared weights theta every replica a makes H steps of the inner optimizer on its own
    mini-batches, to x^a. Then

    .. math:: \Delta = \frac{1}{y} \sum_a (\theta - x^a), \qquad
              \theta \leftarrow \mathrm{outer}(\theta, \Delta), \qquad x^a \leftarrow \theta.

    The outer gradient points from where the replicas went back to where they started, so that the
    outer optimizer descends it like any gradient. Replicas whose weights are not finite are left
    out of the mean. The inner optimizer keeps its state. Between meetings nothing travels between
    devices, and a meeting is one all-reduce.

    The training loop holds x^a, and `eval_params` gives theta. Every H-th update merges the outer
    step into the last inner one. Special cases:

    - local SGD, FedAvg: ``diloco(inner, optax.sgd(1.0), inner_steps=H, ...)``, which averages the
      parameters; post-local SGD is ``inner_steps=1`` first and H later (a schedule of training
      loops, or two optimizers, as the state has the same form).
    - data parallelism: ``diloco(optax.sgd(lr), optax.sgd(1.0), inner_steps=1, ...)``.
    - single-worker DiLoCo: neither ``axis`` nor ``axis_name``. With ``outer=optax.sgd(k)`` it is
      Lookahead with slow step k, and with the default outer optimizer Lookahead with momentum.
    - streaming DiLoCo: ``optax.partition`` over `fragments`, each with another ``phase``.

    **Overlap.** With ``delay`` = tau the replicas go on while the mean is on its way: the outer
    step for the meeting at step t is taken at step t + tau, where

    .. math:: x^a \leftarrow (1 - \beta) x^a + \beta \theta.

    The streaming paper's alpha is 1 - beta. ``delay=0`` and ``blend=1`` is the plain method.

    Args:
      inner: optimizer of each replica.
      outer: optimizer of theta, fed with the outer gradient. Its schedules count meetings. None
        (default) is ``optax.sgd(0.7, momentum=0.9, nesterov=True)``.
      inner_steps: H, gradients between meetings. At least 1.
      phase: steps by which the first loop is shorter, 0 <= phase < H. Default 0.
      delay: tau, steps between a meeting and the use of its result, 0 <= tau < H; a Python
        integer. Default 0.
      blend: beta, the weight of theta where a replica takes it up, from 0 to 1, or a schedule of
        the number of meetings. Default 1.
      compression: how differences travel, a `Compression`, or None (default) for in full.
      accumulator_dtype: dtype of theta and of the state of the outer optimizer; None (default) is
        that of the parameters.
      axis: the axis of every leaf along which the replicas are stacked. They share theta and the
        outer state. Should they start unlike, theta starts at their mean.
      axis_name: name, or tuple of names, of the mapped axes (``vmap``, ``pmap``, ``shard_map``)
        along which the step, written for one replica, is mapped. These replicas must start alike.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with state `DiLoCoState`. Extra arguments of
      ``update`` reach both optimizers.

    Raises:
      TypeError: an argument or a parameter is of the wrong type.
      ValueError: an argument is out of its range; a leaf lacks the axis; the leaves disagree on its
        length; the name is of no mapped axis; ``compression`` without replicas; ``update`` without
        params.

    Examples:
      Four replicas whose data differ find the minimum of the mean loss:

      >>> import jax.numpy as jnp, optax, entropix
      >>> data = jnp.array([0.0, 1.0, 2.0, 5.0])
      >>> tx = entropix.diloco(optax.sgd(0.1), inner_steps=5, axis=0)
      >>> x = jnp.zeros(4)
      >>> state = tx.init(x)
      >>> for _ in range(200):
      ...     updates, state = tx.update(x - data, state, x)
      ...     x = optax.apply_updates(x, updates)
      >>> print(entropix.eval_params(state, x).round(3))
      [2. 2. 2. 2.]

    Reference:
      Douillard et al., `DiLoCo: Distributed Low-Communication Training of Language Models
      <https://arxiv.org/abs/2311.08105>`_, 2023, Algorithm 1; `Streaming DiLoCo
      <https://arxiv.org/abs/2501.18512>`_, 2025.
    """
    check_integer("inner_steps", inner_steps, at_least=1)
    check_below("phase", phase, "inner_steps", inner_steps)
    if isinstance(delay, bool) or not isinstance(delay, int):
        raise TypeError(
            f"delay must be a Python integer, got {delay!r}; "
            "under optax.inject_hyperparams name it in static_args"
        )
    check_below("delay", delay, "inner_steps", inner_steps)
    check_number("blend", blend, at_least=0, at_most=1)
    single = axis is None and not axis_name
    if single and compression is not None:
        raise ValueError(
            f"compression must be None for a single replica, got {compression!r}; "
            "axis or axis_name must say where the replicas are"
        )
    replicas = ReplicaAxes(None, ()) if single else replica_axes(axis, axis_name)
    exchange = Exchange(replicas, checked(compression))
    inner = optax.with_extra_args_support(inner)
    if outer is None:
        outer = optax.sgd(0.7, momentum=0.9, nesterov=True)
    outer = optax.with_extra_args_support(outer)

    def shared(x: jax.Array) -> jax.Array:
        """One leaf of theta where all replicas hold it."""
        if replicas.axis is not None:
            x = jnp.mean(x, replicas.axis, keepdims=True)
        return jnp.array(x, accumulator_dtype)

    def init_fn(params: optax.Params) -> DiLoCoState:
        warn_if_backend_is_faulty()
        check_float_leaves("params", params)
        replicas.check_stack(params, at_least=1)
        anchor = jax.tree.map(
            lambda x: jnp.zeros_like(replicas.zeros_like_mean(x), dtype=accumulator_dtype), params
        )
        return DiLoCoState(
            inner_step=jnp.zeros([], jnp.int32),
            outer_step=jnp.zeros([], jnp.int32),
            anchor=anchor,
            pending=jax.tree.map(jnp.zeros_like, anchor) if delay else None,
            residual=exchange.init(params, accumulator_dtype),
            inner_state=inner.init(params),
            outer_state=outer.init(anchor),
        )

    def update_fn(
        updates: optax.Updates,
        state: DiLoCoState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, DiLoCoState]:
        params = required(params)
        replicas.check_stack(params, at_least=1)
        replicas.check_names(at_least=1)
        anchor = apply_when(
            (state.outer_step == 0) & (state.inner_step == 0),
            lambda _: jax.tree.map(shared, params),
            state.anchor,
        )
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra_args)
        shortened = jnp.where(state.outer_step == 0, phase, 0)
        closes = state.inner_step == inner_steps - 1 - shortened

        # A branch takes what it changes from its operand: XLA copies what it closes over too.
        def outer_gradient(
            anchor: optax.Params, updates: optax.Updates, residual: Any
        ) -> tuple[optax.Updates, Any]:
            last = optax.apply_updates(params, updates)
            away = jax.tree.map(lambda a, x: a - x.astype(a.dtype), anchor, last)
            return (away, residual) if single else exchange.mean(away, residual)

        def outer_step(
            gradient: optax.Updates,
            anchor: optax.Params,
            outer_state: optax.OptState,
            updates: optax.Updates,
        ) -> tuple[optax.Params, optax.OptState, optax.Updates]:
            outer_updates, outer_state = outer.update(gradient, outer_state, anchor, **extra_args)
            theta = optax.apply_updates(anchor, outer_updates)
            # Without the barrier XLA on CPU computes it again for each replica that uses it.
            theta = jax.lax.optimization_barrier(theta)
            weight = at(blend, state.outer_step)

            def taken_up(a: jax.Array, x: jax.Array, u: jax.Array) -> jax.Array:
                whole = (a - x.astype(a.dtype)).astype(u.dtype)
                if isinstance(weight, (int, float)) and weight == 1:
                    return whole
                part = jnp.asarray(weight, u.dtype)
                return (1 - part) * u + part * whole

            return theta, outer_state, jax.tree.map(taken_up, theta, params, updates)

        pending, residual, outer_state = state.pending, state.residual, state.outer_state
        if delay:
            pending, residual = apply_when(
                closes,
                lambda carry: outer_gradient(anchor, updates, carry[1]),
                (pending, residual),
            )
            lands = (state.outer_step > 0) & (state.inner_step == delay - 1)
            anchor, outer_state, updates = apply_when(
                lands,
                lambda carry: outer_step(pending, *carry),
                (anchor, outer_state, updates),
            )
        else:

            def meet(carry: Any) -> Any:
                anchor, residual, outer_state, updates = carry
                gradient, residual = outer_gradient(anchor, updates, residual)
                anchor, outer_state, updates = outer_step(gradient, anchor, outer_state, updates)
                return anchor, residual, outer_state, updates

            anchor, residual, outer_state, updates = apply_when(
                closes, meet, (anchor, residual, outer_state, updates)
            )
        return updates, DiLoCoState(
            inner_step=jnp.where(closes, 0, state.inner_step + 1).astype(jnp.int32),
            outer_step=jnp.where(closes, optax.safe_increment(state.outer_step), state.outer_step),
            anchor=anchor,
            pending=pending,
            residual=residual,
            inner_state=inner_state,
            outer_state=outer_state,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
