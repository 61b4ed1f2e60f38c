"""The directions in which replicas differ."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from entropix.replicas._stacked import mean_of_replicas, num_replicas


class Disagreement(NamedTuple):
    """Answer of `disagreement`.

    Attributes:
      singular_values: s_k, in descending order, in units of the parameters; s_k^2 / y is the
        variance of the replicas along direction k. # shape=(min(y - 1, N),)
      directions: a tree like the parameters, with the directions v_k on the first axis of every
        leaf. All leaves of one direction together have length 1, and different directions are
        orthogonal.
    """

    singular_values: Float[Array, " directions"]
    directions: PyTree


def disagreement(params: PyTree) -> Disagreement:
    r"""The subspace that the gaps between replicas and their center span.

    .. math:: x^a - \bar x = \sum_{k=1}^{y-1} u_{ak} s_k v_k, \qquad v_k \cdot v_l = \delta_{kl}

    Replicas that train on their own mini-batches spread where the gradient noise and the curvature
    are large, so the directions :math:`v_k` tell of the sharp directions of the loss without a
    single product with its Hessian.

    Args:
      params: y replicas stacked on the first axis of every leaf, y at least 2.

    Returns:
      A `Disagreement`, in float32 at least. The work is of order :math:`y^2 N` for N parameters
      of one replica, on one device: replicas that lie on many are brought together.

    Raises:
      ValueError: the leaves disagree on the number of replicas, or there is one replica only.

    Examples:
      >>> import jax.numpy as jnp, entropix
      >>> found = entropix.replicas.disagreement(jnp.array([[3.0, 1.0], [-3.0, 1.0]]))
      >>> print(found.singular_values.round(3), jnp.abs(found.directions))
      [4.243] [[1. 0.]]

    Reference:
      `The subspace of disagreement between replicas <https://arxiv.org/abs/2605.27739>`_.
    """
    y = num_replicas(params)
    if y < 2:
        raise ValueError(f"params must hold at least 2 replicas, got {y}")

    leaves, structure = jax.tree.flatten(params)
    dtype = jnp.promote_types(jnp.result_type(*leaves), jnp.float32)
    matrix = jnp.concatenate([jnp.reshape(leaf, (y, -1)).astype(dtype) for leaf in leaves], 1)
    # Halves of the replicas, whose gaps cannot overflow.
    gaps = matrix / 2 - mean_of_replicas(matrix / 2)[None]
    _, values, rows = jnp.linalg.svd(gaps, full_matrices=False)
    ends = np.cumsum([leaf.size // y for leaf in leaves])[:-1].tolist()
    parts = jnp.split(rows[: y - 1], ends, axis=1)
    directions = [
        part.reshape(-1, *leaf.shape[1:]) for part, leaf in zip(parts, leaves, strict=True)
    ]
    return Disagreement(2 * values[: y - 1], jax.tree.unflatten(structure, directions))
