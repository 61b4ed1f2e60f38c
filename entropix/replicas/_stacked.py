"""Replicas stacked on the first axis of every leaf."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Inexact, Integer, Key, PyTree

from entropix._checks import check_float_leaves, check_integer, check_number
from entropix._hash_normal import normal_like
from entropix._keys import check_key, fresh_key
from entropix.replicas._placement import is_key

AnyArray = Array | np.ndarray


class Spread(NamedTuple):
    """Answer of `spread`.

    Attributes:
      total: root mean square distance of the replicas from their center, per parameter. # shape=()
      leaves: the same for each leaf alone, a tree like the parameters.
    """

    total: Float[Array, ""]
    leaves: PyTree


def num_replicas(params: Any) -> int:
    """The length of the first axis that all leaves share.

    Args:
      params: a pytree of arrays, replicas stacked on the first axis.

    Returns:
      y.

    Raises:
      ValueError: there is no leaf, a leaf has no axis, or the lengths differ; the message names the
        leaves.

    Examples:
      >>> import jax.numpy as jnp
      >>> num_replicas({"w": jnp.ones((4, 3)), "b": jnp.ones(4)})
      4
    """
    leaves = jax.tree.leaves_with_path(params)
    if not leaves:
        raise ValueError(f"params must hold at least one array, got {params!r}")
    lengths = {
        f"params{jax.tree_util.keystr(path)}": np.shape(leaf)[0] if np.ndim(leaf) else None
        for path, leaf in leaves
    }
    if len(set(lengths.values())) > 1 or None in lengths.values():
        raise ValueError(
            "params must have the replicas on the first axis of every leaf, of one length, "
            f"got {lengths}"
        )
    return int(leaves[0][1].shape[0])


def replicate(
    params: Any, replicas: int, *, std: float | jax.Array = 0.0, key: jax.Array | int = 0
) -> Any:
    r"""Stacks y replicas: copies of one network, perturbed copies, or y initializations.

    .. math:: x^a = x + s z^a, \qquad z^a \sim N(0, I)

    Args:
      params: x, a pytree of float arrays; or a function of a key that answers with one, which is
        called with a key of its own for each replica.
      replicas: y, at least 1.
      std: s, in units of the parameters. At least 0, default 0.
      key: an integer seed or a key of ``jax.random.key``, for the noise and the initializations.
        Default 0.

    Returns:
      A tree like ``params`` with a first axis of length y on every leaf.

    Raises:
      TypeError: a parameter is not a float array, or an argument is of the wrong type.
      ValueError: an argument is out of its range.

    Examples:
      >>> import jax, jax.numpy as jnp, entropix
      >>> entropix.replicas.replicate({"w": jnp.arange(3.0)}, 2)["w"].shape
      (2, 3)
      >>> init = lambda key: {"w": jax.random.normal(key, (3,))}
      >>> entropix.replicas.replicate(init, 4, key=1)["w"].shape
      (4, 3)

    Reference:
      Pittorino et al., Entropic gradient descent algorithms and wide flat minima, ICLR 2021, starts
      the replicas from y initializations.
    """
    check_integer("replicas", replicas, at_least=1)
    check_number("std", std, at_least=0)
    check_key(key)
    init_key, noise_key = jax.random.split(fresh_key(key))
    if callable(params):
        stacked = jax.vmap(params)(jax.random.split(init_key, replicas))
    else:
        stacked = jax.tree.map(lambda x: jnp.broadcast_to(x, (replicas, *jnp.shape(x))), params)
    check_float_leaves("params", stacked)
    if isinstance(std, (int, float)) and std == 0:
        return stacked
    return jax.tree.map(
        lambda x, z: x + jnp.asarray(std, x.dtype) * z, stacked, normal_like(noise_key, stacked)
    )


def mean_of_replicas(x: Inexact[AnyArray, " replicas *shape"]) -> Inexact[Array, "*shape"]:
    """The mean over the first axis; it overflows only where the mean itself would."""
    y = x.shape[0]
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # A power of two rounds nothing, and makes each term small enough for the sum of all.
    scale = 2.0 ** -(y - 1).bit_length()
    return (jnp.sum(wide * scale, 0) / (y * scale)).astype(x.dtype)


def center(params: Any) -> Any:
    r"""The center of the replicas, the network to evaluate: :math:`\bar x = \frac1y \sum_a x^a`.

    Args:
      params: replicas stacked on the first axis of every leaf.

    Returns:
      A tree without that axis. Batch statistics of it are to be recomputed on data, see
      `entropix.nn.recompute_batch_stats`.

    Raises:
      ValueError: the leaves disagree on the number of replicas.

    Examples:
      >>> import jax.numpy as jnp, entropix
      >>> entropix.replicas.center({"w": jnp.array([[0.0, 1.0], [4.0, 3.0]])})
      {'w': Array([2., 2.], dtype=float32)}

    Reference:
      Pittorino et al., Entropic gradient descent algorithms and wide flat minima, ICLR 2021.
    """
    num_replicas(params)
    return jax.tree.map(mean_of_replicas, params)


def spread(params: Any) -> Spread:
    r"""How far the replicas are from their center, in all and leaf by leaf.

    .. math:: s = \sqrt{\frac{1}{y N} \sum_{a=1}^{y} |x^a - \bar x|^2}

    Args:
      params: replicas stacked on the first axis of every leaf, N parameters each.

    Returns:
      A `Spread`, in units of the parameters.

    Raises:
      ValueError: the leaves disagree on the number of replicas.

    Examples:
      >>> import jax.numpy as jnp, entropix
      >>> found = entropix.replicas.spread({"w": jnp.array([0.0, 2.0]), "b": jnp.array([1.0, 1.0])})
      >>> print(f"{found.total:.3f} {found.leaves['w']:.1f} {found.leaves['b']:.1f}")
      0.707 1.0 0.0

    Reference:
      Pittorino et al., Entropic gradient descent algorithms and wide flat minima, ICLR 2021.
    """
    num_replicas(params)
    leaves, structure = jax.tree.flatten(jax.tree.map(_spread_of_leaf, params))
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    weights = jnp.asarray([size / sum(sizes) for size in sizes])
    total = _root_mean_square(jnp.stack([leaf.astype(jnp.float32) for leaf in leaves]), weights)
    return Spread(total, jax.tree.unflatten(structure, leaves))


def _spread_of_leaf(x: Float[AnyArray, " replicas *shape"]) -> Float[Array, ""]:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # Of half the replicas, whose differences cannot overflow.
    half = jnp.asarray(wide) / 2
    return 2 * _root_mean_square(half - mean_of_replicas(half)[None], 1 / x.size).astype(x.dtype)


def _root_mean_square(
    x: Float[Array, "*shape"], weights: Float[Array, "*shape"] | float
) -> Float[Array, ""]:
    """The root of the weighted sum of squares, taken relative to the largest of them."""
    largest = jnp.max(jnp.abs(x))
    scale = jnp.where(largest > 0, largest, 1)
    # In two steps, since the inverse of a number near the largest there is counts as zero.
    root = jax.lax.rsqrt(scale)
    return scale * jnp.sqrt(jnp.sum(weights * (x * root * root) ** 2))


def collapse(params: Any) -> Any:
    r"""Puts every replica at the center: :math:`x^a \leftarrow \bar x`.

    Args:
      params: replicas stacked on the first axis of every leaf.

    Returns:
      A tree like ``params``.

    Raises:
      ValueError: the leaves disagree on the number of replicas.

    Examples:
      >>> import jax.numpy as jnp, entropix
      >>> entropix.replicas.collapse(jnp.array([0.0, 4.0]))
      Array([2., 2.], dtype=float32)

    Reference:
      Chaudhari et al., Parle: parallelizing stochastic gradient descent, SysML 2018.
    """
    return replicate(center(params), num_replicas(params))


def stack_states(init: Callable[..., Any], *arguments: Any) -> Any:
    """Calls an ``init`` written for one replica on all of them: counters shared, keys distinct.

    A counter that each replica had for itself would make both sides of every branch on it run, and
    bring the traffic between devices back to the uncoupled steps. A key that replicas had in common
    would make them draw the same noise: the number of the replica is folded into each key that an
    earlier replica has too.

    Args:
      init: function of one replica's arguments to its state.
      *arguments: its arguments for all replicas, stacked on the first axis of every leaf.

    Returns:
      The states, stacked on the first axis of every leaf but the integers without axes, which are
      those of the first replica. Inside an ``optax.apply_if_finite``, by which each replica skips
      updates of its own, integers are stacked too.

    Raises:
      ValueError: the arguments disagree on the number of replicas; an ``optax.apply_if_finite`` is
        around a coupling, which replicas that skip different updates would meet at different times.

    Examples:
      >>> import jax.numpy as jnp, optax, entropix
      >>> state = entropix.replicas.stack_states(optax.adam(0.1).init, jnp.ones((4, 3)))
      >>> state[0].mu.shape, state[0].count.shape
      ((4, 3), ())

    Reference:
      None: see `entropix.couple_replicas`.
    """
    num_replicas(arguments)
    states = jax.vmap(init)(*arguments)
    return with_distinct_keys(jax.tree.map(_with_shared_counters, states, is_leaf=_skips_updates))


def _with_shared_counters(node: Any) -> Any:
    """One counter for all replicas, unless they count for themselves."""
    if _skips_updates(node):
        couplings = [
            type(part).__name__
            for part in jax.tree.leaves(node.inner_state, is_leaf=_meets_others)
            if _meets_others(part)
        ]
        if couplings:
            raise ValueError(
                "init must not make an optax.apply_if_finite around a coupling, which replicas "
                f"that skip different updates would meet at different times, got {couplings} in "
                "its state; use optax.chain(couple_replicas(...), optax.apply_if_finite(...)), or "
                "diloco(optax.apply_if_finite(...), ...)"
            )
        return node
    is_counter = node.ndim == 1 and jnp.issubdtype(node.dtype, jnp.integer)
    return node[0] if is_counter else node


def _skips_updates(node: Any) -> bool:
    return isinstance(node, optax.ApplyIfFiniteState)


def _meets_others(node: Any) -> bool:
    """Whether it is the state of a transform whose updates wait for other replicas."""
    name = type(node).__name__
    return name.endswith("State") and name.startswith(("Average", "Couple", "DiLoCo"))


def with_distinct_keys(state: PyTree) -> PyTree:
    """The state, its stacked keys distinct: those that repeat an earlier one are changed.

    Args:
      state: leaves of typed keys have the replicas on the first axis; the others stay.

    Returns:
      A tree like ``state``. The number a of the replica is folded into each key that a replica
      before a has too.
    """

    def distinct(leaf: Any) -> Any:
        if not is_key(leaf) or not leaf.ndim:
            return leaf
        data = jax.random.key_data(leaf).reshape(len(leaf), -1)
        same = jnp.all(data[:, None] == data[None], -1)
        repeats = jnp.any(jnp.tril(same, -1), 1)
        return jnp.where(
            repeats.reshape((-1,) + (1,) * (leaf.ndim - 1)),
            folded_in(leaf, jnp.arange(len(leaf))),
            leaf,
        )

    return jax.tree.map(distinct, state)


def folded_in(
    keys: Key[Array, " replicas *shape"], numbers: Integer[Array, " replicas"]
) -> Key[Array, " replicas *shape"]:
    """The keys of each replica with its number folded in."""
    flat = keys.reshape(len(keys), -1)
    fold = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)))
    return fold(flat, numbers).reshape(keys.shape)
