"""The mean of the updates over the replicas."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from entropix._checks import check_float_leaves
from entropix.transforms._exchange import Compression, Exchange
from entropix.transforms._replica_axes import replica_axes


class AverageUpdatesState(NamedTuple):
    """State of `average_updates`.

    Attributes:
      residual: what compression has taken away so far, for error feedback. None without it.
    """

    residual: optax.Updates | None


def average_updates(
    *,
    axis: int | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    compression: Compression | None = None,
) -> optax.GradientTransformation:
    r"""Replaces the updates of each replica by their mean over all replicas.

    .. math:: u^a \leftarrow \frac{1}{y} \sum_b u^b

    The mean is over the replicas whose updates are finite, and takes one all-reduce. In front of an
    optimizer, ``optax.chain(average_updates(axis_name="replica"), optax.adamw(1e-3))``, it is data
    parallelism. In front of the outer optimizer of `entropy_descent` it makes the replicas share
    one anchor: Entropy-SGD over replicas, which `diloco` is a limit of.

    Args:
      axis: the axis of every leaf along which the replicas are stacked.
      axis_name: name, or tuple of names, of the mapped axes (``vmap``, ``pmap``, ``shard_map``)
        along which the step, written for one replica, is mapped.
      compression: how the updates travel, a `Compression`, or None (default) for in full.

    Returns:
      An ``optax.GradientTransformation`` with state `AverageUpdatesState`.

    Raises:
      TypeError: an argument or a parameter is of the wrong type.
      ValueError: neither ``axis`` nor ``axis_name`` is given; a leaf lacks the axis; the leaves
        disagree on its length; the name is of no mapped axis.

    Examples:
      >>> import jax.numpy as jnp, entropix
      >>> tx = entropix.average_updates(axis=0)
      >>> x = jnp.zeros(2)
      >>> tx.update(jnp.array([1.0, 3.0]), tx.init(x), x)[0]
      Array([2., 2.], dtype=float32)

    Reference:
      McMahan et al., `Communication-efficient learning of deep networks from decentralized data
      <https://arxiv.org/abs/1602.05629>`_, AISTATS 2017, for the two uses, FedSGD and FedAvg.
    """
    replicas = replica_axes(axis, axis_name)
    exchange = Exchange(replicas, checked(compression))

    def init_fn(params: optax.Params) -> AverageUpdatesState:
        check_float_leaves("params", params)
        replicas.check_stack(params, at_least=1)
        return AverageUpdatesState(exchange.init(params))

    def update_fn(
        updates: optax.Updates, state: AverageUpdatesState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, AverageUpdatesState]:
        del params
        replicas.check_stack(updates, at_least=1)
        replicas.check_names(at_least=1)
        mean, residual = exchange.mean(updates, state.residual)
        # Without the barrier XLA on CPU computes the mean again for each replica that uses it.
        mean = jax.lax.optimization_barrier(mean)
        updates = jax.tree.map(lambda u, m: jnp.where(jnp.ones_like(u, bool), m, u), updates, mean)
        return updates, AverageUpdatesState(residual)

    return optax.GradientTransformation(init_fn, update_fn)


def checked(compression: Compression | None) -> Compression | None:
    """The argument ``compression`` of a factory.

    Raises:
      TypeError: it is something else.
    """
    if compression is not None and not isinstance(compression, Compression):
        raise TypeError(f"compression must be a Compression or None, got {compression!r}")
    return compression
