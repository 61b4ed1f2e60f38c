"""Updates of unit norm, replica by replica."""

import jax
import jax.numpy as jnp
import optax

from entropix.transforms._replica_axes import ReplicaAxes, replica_axes


def normalize_updates(*, axis: int | None = None) -> optax.GradientTransformation:
    r"""Divides the updates of each replica by their norm over all leaves; zero stays zero.

    .. math:: u^a \leftarrow \frac{u^a}{|u^a|}, \qquad |u^a|^2 = \sum_i (u^a_i)^2

    It is the first half of an ascent of fixed length, as in sharpness-aware minimization:
    ``optax.contrib.sam(descent, optax.chain(normalize_updates(axis=0), optax.sgd(rho)))`` lets each
    of the stacked replicas climb by rho along its own gradient. ``optax.contrib.normalize`` takes
    one norm of the whole stack, and makes a zero gradient no number.

    Args:
      axis: the axis of every leaf along which replicas are stacked. Default None: the tree is that
        of one replica, which is also right where the step is mapped over the replicas.

    Returns:
      An ``optax.GradientTransformation`` without state.

    Raises:
      TypeError: ``axis`` is not an integer.
      ValueError: a leaf lacks the axis, or the leaves disagree on its length.

    Examples:
      >>> import jax.numpy as jnp, entropix
      >>> tx = entropix.normalize_updates(axis=0)
      >>> updates, _ = tx.update(jnp.array([[3.0, 4.0], [0.0, 0.0]]), tx.init(jnp.zeros((2, 2))))
      >>> print(updates.round(3))
      [[0.6 0.8]
       [0.  0. ]]

    Reference:
      Foret et al., `Sharpness-aware minimization for efficiently improving generalization
      <https://arxiv.org/abs/2010.01412>`_, ICLR 2021, eq. (2).
    """
    replicas = ReplicaAxes(None, ()) if axis is None else replica_axes(axis, None)

    def update_fn(
        updates: optax.Updates, state: optax.EmptyState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del params
        replicas.check_stack(updates, at_least=1)

        norm = replicas.norm(updates)
        divisor = jnp.where(norm > 0, norm, jnp.ones_like(norm))

        def unit(u: jax.Array) -> jax.Array:
            return (u / replicas.expanded(divisor, u).astype(u.dtype)).astype(u.dtype)

        return jax.tree.map(unit, updates), state

    return optax.GradientTransformation(optax.init_empty_state, update_fn)
