"""Replicated SGD: several copies of a network, pulled towards their mean."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from entropix._canary import warn_if_backend_is_faulty
from entropix._validation import check_float_leaves, check_integer, check_number
from entropix.transforms._branch import apply_when
from entropix.transforms.langevin import at


class CoupleReplicasState(NamedTuple):
    """State of `couple_replicas`.

    Attributes:
      step: number t of updates made, one count for all stacked replicas. # shape=(), dtype=int32
    """

    step: jax.Array


def couple_replicas(
    gamma: optax.ScalarOrSchedule,
    *,
    every: int = 1,
    axis: int | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> optax.GradientTransformation:
    r"""Adds to each replica's gradient the pull towards the mean of all y replicas.

    .. math:: d^a \leftarrow d^a + K \gamma (x^a - \bar x), \qquad \bar x = \frac{1}{y} \sum_a x^a,
              \qquad \text{on every step } t \equiv 0 \pmod K

    The mean is that of the weights before the step, and no gradient goes through it. Put it first
    in a chain, so that the pull goes through the momentum like the gradient:
    ``optax.chain(couple_replicas(gamma, axis=0), optax.adam(1e-3))`` is replicated Adam. Wrap it in
    ``optax.masked`` to couple some layers only.

    Say where the replicas are by ``axis``, by ``axis_name``, or by both when some of them are
    stacked here and the rest is elsewhere. On the K - 1 uncoupled steps nothing is averaged and
    nothing travels between devices.

    Args:
      gamma: coupling of the paper, in units of 1 / parameter^2, or a schedule of the number of
        updates made. At least 0. See `entropix.scoping` for schedules and the units of other
        papers.
      every: K, steps between couplings. At least 1, default 1.
      axis: the axis of every leaf along which the replicas are stacked.
      axis_name: name, or tuple of names, of the mapped axes (``vmap``, ``pmap``, ``shard_map``)
        along which the step, written for one replica, is mapped.

    Returns:
      An ``optax.GradientTransformation`` with state `CoupleReplicasState`.

    Raises:
      TypeError: an argument or a parameter is of the wrong type.
      ValueError: an argument is out of its range; neither ``axis`` nor ``axis_name`` is given; a
        leaf lacks the axis; the leaves disagree on its length; there is one replica only; the name
        is of no mapped axis; ``update`` without params.

    Example:
      Two replicas of one weight, without a gradient, meet at their mean:

      >>> import jax.numpy as jnp, optax, entropix
      >>> tx = optax.chain(entropix.couple_replicas(0.5, axis=0), optax.sgd(1.0))
      >>> x = jnp.array([0.0, 4.0])
      >>> updates, state = tx.update(jnp.zeros(2), tx.init(x), x)
      >>> optax.apply_updates(x, updates)
      Array([1., 3.], dtype=float32)

    Reference:
      Pittorino et al., `Entropic gradient descent algorithms and wide flat minima
      <https://arxiv.org/abs/2006.07897>`_, ICLR 2021, Algorithm 2.
    """
    check_number("gamma", gamma, at_least=0)
    check_integer("every", every, at_least=1)
    if axis is not None and (isinstance(axis, bool) or not isinstance(axis, int)):
        raise TypeError(
            f"axis must be a Python integer, got {axis!r}; "
            "under optax.inject_hyperparams name it in static_args"
        )
    names = (axis_name,) if isinstance(axis_name, str) else axis_name or ()
    if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"axis_name must be a string or a tuple of strings, got {axis_name!r}")
    if axis is None and not names:
        raise ValueError(
            f"axis or axis_name must say where the replicas are, got {axis} and {axis_name!r}"
        )

    def init_fn(params: optax.Params) -> CoupleReplicasState:
        warn_if_backend_is_faulty()
        check_float_leaves("params", params)
        if axis is not None:
            _check_stack(params, axis, alone=not names)
        return CoupleReplicasState(step=jnp.zeros([], jnp.int32))

    def centre(params: optax.Params) -> optax.Params:
        if axis is not None:
            params = jax.tree.map(lambda x: jnp.mean(x, axis, keepdims=True), params)
        return jax.lax.pmean(params, names) if names else params

    def update_fn(
        updates: optax.Updates, state: CoupleReplicasState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, CoupleReplicasState]:
        if params is None:
            raise ValueError(
                "params must be passed to update: tx.update(grads, state, params), got None"
            )
        if axis is not None:
            _check_stack(params, axis, alone=not names)
        _check_names(names, alone=axis is None)
        coupling = at(gamma, state.step) * every

        def pulled(updates: optax.Updates) -> optax.Updates:
            # Without the barrier XLA on CPU computes the mean again for each replica that uses it.
            mean = jax.lax.optimization_barrier(centre(params))
            return jax.tree.map(
                lambda g, x, c: g + jnp.asarray(coupling, g.dtype) * (x - c).astype(g.dtype),
                updates, params, mean,
            )  # fmt: skip

        meets = state.step % every == 0
        updates = apply_when(meets, pulled, updates, in_place=False)
        return updates, CoupleReplicasState(optax.safe_increment(state.step))

    return optax.GradientTransformation(init_fn, update_fn)


def _check_stack(params: optax.Params, axis: int, *, alone: bool) -> None:
    """Raises unless every leaf has the axis, of one length, and of 2 or more where it is alone."""
    lengths = {}
    for path, leaf in jax.tree.leaves_with_path(params):
        where = f"params{jax.tree_util.keystr(path)}"
        if not -leaf.ndim <= axis < leaf.ndim:
            raise ValueError(
                f"axis {axis} must be the replica axis of every leaf, "
                f"but {where} has shape {leaf.shape}"
            )
        lengths[where] = leaf.shape[axis]
    if len(set(lengths.values())) > 1:
        raise ValueError(f"axis {axis} must have one length for all leaves, got {lengths}")
    if alone and 1 in lengths.values():
        raise ValueError(f"axis {axis} of params must hold 2 replicas or more, got length 1")


def _check_names(names: tuple[str, ...], *, alone: bool) -> None:
    """Raises unless every name is of a mapped axis, together of 2 or more where they are alone."""
    size = 1
    for name in names:
        try:
            size *= jax.lax.axis_size(name)
        except NameError:
            raise ValueError(
                f"axis_name {name!r} must be the name of an axis that update is mapped over "
                "(vmap, pmap or shard_map), and no such axis is bound here"
            ) from None
    if alone and size == 1 and names:
        raise ValueError(f"axis_name {names!r} must span 2 replicas or more, got 1")


def replicated_sgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    gamma: optax.ScalarOrSchedule,
    every: int = 10,
    momentum: float | None = 0.9,
    nesterov: bool = True,
    weight_decay: float = 0.0,
    axis: int | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> optax.GradientTransformation:
    r"""Replicated SGD: y copies of a network on their own mini-batches, coupled every K steps.

    .. math:: d^a &= \nabla f(x^a) + K \gamma (x^a - \bar x) [t \equiv 0 \bmod K] + \lambda x^a \\
              x^a &\leftarrow \mathrm{SGD}(x^a, d^a)

    The robust network to evaluate is the centre :math:`\bar x`: the mean over ``axis``, with batch
    statistics recomputed by `entropix.nn.recompute_batch_stats`.

    Args:
      learning_rate: step size, a number or a schedule of the number of updates made.
      gamma: coupling, a number or a schedule of the number of updates made. At least 0.
      every: K, steps between couplings. Default 10.
      momentum: decay of the momentum that gradient, pull and weight decay go through, or None.
        Default 0.9.
      nesterov: whether the momentum is Nesterov's. Default True.
      weight_decay: lambda, in units of 1 / parameter^2, the same for one replica as for plain SGD.
        Default 0.
      axis: the axis of every leaf along which the replicas are stacked.
      axis_name: name, or tuple of names, of the mapped axes of the replicas. See `couple_replicas`.

    Returns:
      An ``optax.GradientTransformation``.

    Raises:
      TypeError: see `couple_replicas`.
      ValueError: see `couple_replicas`.

    Example:
      Four replicas with different data meet between their minima:

      >>> import jax, jax.numpy as jnp, optax, entropix
      >>> data = jnp.array([0.0, 1.0, 2.0, 5.0])
      >>> tx = entropix.replicated_sgd(0.1, gamma=10.0, every=1, momentum=None, axis=0)
      >>> x = jnp.zeros(4)
      >>> state = tx.init(x)
      >>> for _ in range(100):
      ...     updates, state = tx.update(2 * (x - data), state, x)
      ...     x = optax.apply_updates(x, updates)
      >>> print(f"{x.mean():.3f} {jnp.ptp(x):.2f}")
      2.000 0.83

    Reference:
      Pittorino et al., `Entropic gradient descent algorithms and wide flat minima
      <https://arxiv.org/abs/2006.07897>`_, ICLR 2021, Algorithm 2. Their released code multiplies
      the effective weight decay by y and counts gamma in half units
      (`entropix.scoping.from_sacreddnn`).
    """
    check_number("learning_rate", learning_rate, at_least=0)
    check_number("weight_decay", weight_decay, at_least=0)
    return optax.chain(
        couple_replicas(gamma, every=every, axis=axis, axis_name=axis_name),
        optax.add_decayed_weights(weight_decay),
        optax.sgd(learning_rate, momentum=momentum, nesterov=nesterov),
    )
