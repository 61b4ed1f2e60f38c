"""Replicas stacked on the first axis of every leaf."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from entropix._checks import check_float_leaves, check_integer, check_number
from entropix._hash_normal import normal_like
from entropix._keys import check_key, fresh_key


class Spread(NamedTuple):
    """Answer of `spread`.

    Attributes:
      total: root mean square distance of the replicas from their center, per parameter. # shape=()
      leaves: the same for each leaf alone, a tree like the parameters.
    """

    total: jax.Array
    leaves: Any


class Revived(NamedTuple):
    """Answer of `revive`.

    Attributes:
      params: parameters, all replicas finite.
      state: the state given, likewise.
      replaced: which replicas were replaced. # shape=(y,), dtype=bool
      num_replaced: how many. # shape=(), dtype=int32
    """

    params: Any
    state: Any
    replaced: jax.Array
    num_replaced: jax.Array


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
        f"params{jax.tree_util.keystr(path)}": leaf.shape[0] if leaf.ndim else None
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
    return jax.tree.map(lambda x: jnp.mean(x, 0), params)


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
    squares = jax.tree.map(lambda x: jnp.mean((x - jnp.mean(x, 0, keepdims=True)) ** 2), params)
    leaves = jax.tree.leaves(params)
    total = sum(
        square * (leaf.size / sum(each.size for each in leaves))
        for square, leaf in zip(jax.tree.leaves(squares), leaves, strict=True)
    )
    return Spread(jnp.sqrt(jnp.asarray(total)), jax.tree.map(jnp.sqrt, squares))


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


def resize(params: Any, replicas: int, state: Any = None) -> tuple[Any, Any]:
    r"""Takes y replicas to any other number, the center kept.

    .. math:: x'^b = x^{b \bmod y} - \frac{1}{y'} \sum_c x^{c \bmod y} + \bar x,
              \qquad b = 0, \dots, y' - 1

    The first y' of them, or all of them over and over, moved together so that their center stays
    where it was. An optimizer state follows its replica: its leaves with the replica axis are taken
    in the same order and not moved, since they may have to stay positive.

    Args:
      params: y replicas stacked on the first axis of every leaf.
      replicas: y', at least 1.
      state: a pytree such as an optimizer state, whose leaves with a first axis of length y belong
        to the replicas; the others (counters, a moving center) are shared.

    Returns:
      Parameters and state for y' replicas.

    Raises:
      TypeError: ``replicas`` is not an integer.
      ValueError: it is below 1, or the leaves disagree on the number of replicas.

    Examples:
      >>> import jax.numpy as jnp, entropix
      >>> params, _ = entropix.replicas.resize(jnp.array([0.0, 1.0, 5.0]), 2)
      >>> print(params, params.mean())
      [1.5 2.5] 2.0

    Reference:
      Pittorino et al., Entropic gradient descent algorithms and wide flat minima, ICLR 2021.
    """
    check_integer("replicas", replicas, at_least=1)
    old = num_replicas(params)
    places = jnp.arange(replicas) % old

    def moved(x: jax.Array) -> jax.Array:
        taken = x[places]
        return taken + (jnp.mean(x, 0, keepdims=True) - jnp.mean(taken, 0, keepdims=True))

    new_state = jax.tree.map(lambda s: s[places] if _is_stacked(s, old) else s, state)
    return jax.tree.map(moved, params), new_state


def revive(params: Any, state: Any = None) -> Revived:
    """Replaces replicas that are not finite by the center of the others.

    The coupling itself leaves them out of its mean, so that they poison nobody in the meantime;
    call this every so often, jitted, to put them back to work. Nothing is moved while all are
    finite.

    Args:
      params: y replicas stacked on the first axis of every leaf.
      state: a pytree such as an optimizer state, whose leaves with a first axis of length y belong
        to the replicas and are mended likewise; integers and keys stay.

    Returns:
      A `Revived`. Without any finite replica, nothing is replaced and all count as such.

    Raises:
      ValueError: the leaves disagree on the number of replicas.

    Examples:
      >>> import jax.numpy as jnp, entropix
      >>> mended = entropix.replicas.revive(jnp.array([1.0, jnp.nan, 3.0]))
      >>> print(mended.params, mended.num_replaced)
      [1. 2. 3.] 1

    Reference:
      None: a safeguard of this library.
    """
    old = num_replicas(params)
    leaves, structure = jax.tree.flatten((params, state))
    mendable = [
        _is_stacked(leaf, old) and jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves
    ]
    stacked = [leaf for leaf, is_mendable in zip(leaves, mendable, strict=True) if is_mendable]
    finite = jnp.ones((old,), bool)
    for leaf in stacked:
        finite &= jnp.all(jnp.isfinite(leaf), axis=tuple(range(1, leaf.ndim)))

    def mend(leaf: jax.Array) -> jax.Array:
        alive = finite.reshape((old,) + (1,) * (leaf.ndim - 1))
        share = jnp.mean(alive.astype(leaf.dtype), 0, keepdims=True)
        others = jnp.mean(jnp.where(alive, leaf, jnp.zeros_like(leaf)), 0, keepdims=True) / share
        return jnp.where(alive, leaf, others)

    mended = jax.lax.cond(
        jnp.any(finite) & ~jnp.all(finite),
        lambda stacked: [mend(leaf) for leaf in stacked],
        lambda stacked: stacked,
        stacked,
    )
    result = iter(mended)
    leaves = [
        next(result) if is_mendable else leaf
        for leaf, is_mendable in zip(leaves, mendable, strict=True)
    ]
    new_params, new_state = jax.tree.unflatten(structure, leaves)
    return Revived(new_params, new_state, ~finite, jnp.sum(~finite, dtype=jnp.int32))


def _is_stacked(leaf: Any, replicas: int) -> bool:
    return leaf.ndim > 0 and leaf.shape[0] == replicas


def stack_states(init: Callable[..., Any], *arguments: Any) -> Any:
    """Calls an ``init`` written for one replica on all of them, their counters shared.

    A counter that each replica had for itself would make both sides of every branch on it run, and
    bring the traffic between devices back to the uncoupled steps.

    Args:
      init: function of one replica's arguments to its state.
      *arguments: its arguments for all replicas, stacked on the first axis of every leaf.

    Returns:
      The states, stacked on the first axis of every leaf but the integers without axes, which are
      those of the first replica.

    Raises:
      ValueError: the arguments disagree on the number of replicas.

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
    is_counter = lambda s: s.ndim == 1 and jnp.issubdtype(s.dtype, jnp.integer)  # noqa: E731
    return jax.tree.map(lambda s: s[0] if is_counter(s) else s, states)
