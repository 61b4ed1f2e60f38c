"""The weights to evaluate, found in the state of any optimizer."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, PyTree

from entropix.transforms._diloco import DiLoCoState
from entropix.transforms._inner_loop import EntropyDescentState
from entropix.transforms._replica_axes import replica_axes


def eval_params(
    opt_state: optax.OptState,
    params: optax.Params,
    *,
    axis: int | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> optax.Params:
    r"""The weights to evaluate, for any optimizer: the anchor, the center of the replicas, or both.

    In `entropy_descent` and `diloco` the training loop holds an inner iterate, and the answer is
    the anchor x. It is found wherever the state sits: in a chain, under ``masked``,
    ``partition``, ``flatten``, ``MultiSteps``, ``inject_hyperparams``, with or without a leading
    axis of replicas. Leaves without an anchor are those of ``params``.

    Where ``axis`` or ``axis_name`` says where replicas are, the answer is their center,

    .. math:: \bar x = \frac{1}{y} \sum_a x^a,

    the mean over the anchors :math:`x^a` of the replicas that are finite. Batch statistics of it
    are to be recomputed on data, by `entropix.nn.recompute_batch_stats`.

    Args:
      opt_state: the state of any optimizer, of JAX's arrays or NumPy's.
      params: the parameters that the training loop holds.
      axis: the axis of every leaf along which replicas are stacked, to take their center. Default
        None: the replicas stay apart.
      axis_name: name, or tuple of names, of the mapped axes along which replicas lie, to take
        their center. Default None.

    Returns:
      A tree like ``params``, without ``axis`` where that is given.

    Raises:
      TypeError: ``axis`` or ``axis_name`` is of the wrong type.
      ValueError: a leaf lacks the axis, or the name is of no mapped axis.

    Examples:
      >>> import jax.numpy as jnp, optax, entropix
      >>> tx = optax.chain(optax.clip(1.0), entropix.entropy_sgd(inner_steps=3))
      >>> x = jnp.array([[0.0, 2.0], [4.0, 4.0]])
      >>> updates, state = tx.update(x, tx.init(x), x)
      >>> held = optax.apply_updates(x, updates)
      >>> print(entropix.eval_params(state, held))
      [[0. 2.]
       [4. 4.]]
      >>> print(entropix.eval_params(state, held, axis=0))
      [2. 3.]

    Reference:
      Chaudhari et al., Entropy-SGD, ICLR 2017, Algorithm 1: the x of its last line; Pittorino et
      al., Entropic gradient descent algorithms and wide flat minima, ICLR 2021: the center.
    """
    # As `Plan.collect` brings them to the host.
    opt_state, params = jax.tree.map(
        lambda leaf: jnp.asarray(leaf) if isinstance(leaf, np.ndarray | np.generic) else leaf,
        (opt_state, params),
    )
    params = _anchored(opt_state, params)
    if axis is None and axis_name is None:
        return params
    replicas = replica_axes(axis, axis_name)
    replicas.check_stack(params, at_least=1)
    replicas.check_names(at_least=1)
    center = replicas.mean(params)
    return center if axis is None else jax.tree.map(lambda x: jnp.squeeze(x, axis), center)


def _anchored(opt_state: PyTree, params: PyTree) -> PyTree:
    """The anchors of the outermost loops in the state, where these are under way."""

    def is_loop(node: Any) -> bool:
        return isinstance(node, (EntropyDescentState, DiLoCoState))

    for state in filter(is_loop, jax.tree.leaves(opt_state, is_leaf=is_loop)):
        if state.anchor is not None:
            starts = state.inner_step == 0
            if isinstance(state, DiLoCoState):
                starts &= state.outer_step == 0
            anchor = _unflattened(state.anchor, params, num_stacked=starts.ndim)
            params = jax.tree.map(
                lambda a, x, starts=starts: _anchor_or(a, x, starts),
                anchor, params, is_leaf=_is_masked,
            )  # fmt: skip
        # A loop among the outer optimizers has an anchor of its own, further out than this one. One
        # among the inner optimizers is further in.
        params = _anchored(state.outer_state, params)
    return params


def _unflattened(anchor: PyTree, params: PyTree, *, num_stacked: int) -> PyTree:
    """The anchor as a tree like ``params``, where ``optax.flatten`` has made a vector of it."""
    if not isinstance(anchor, jax.Array) or isinstance(params, jax.Array):
        return anchor
    leaves, structure = jax.tree.flatten(params)
    sizes = [leaf[(0,) * num_stacked].size for leaf in leaves]
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    parts = jnp.split(anchor, ends[:-1], axis=-1)
    return jax.tree.unflatten(
        structure,
        [
            part.reshape(leaf.shape).astype(leaf.dtype)
            for part, leaf in zip(parts, leaves, strict=True)
        ],
    )


def _is_masked(leaf: Any) -> bool:
    return isinstance(leaf, optax.MaskedNode)


def _anchor_or(anchor: Any, held: jax.Array, starts: Bool[Array, "*replicas"]) -> jax.Array:
    """The anchor, but the leaf held by the training loop at a loop's start or where masked out."""
    if _is_masked(anchor):
        return held
    starts = jnp.reshape(starts, starts.shape + (1,) * (held.ndim - starts.ndim))
    return jnp.where(starts, held, anchor.astype(held.dtype))
