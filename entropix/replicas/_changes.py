"""Stacks that change: in the number of replicas, or where some have diverged."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Int, PyTree

from entropix._checks import check_integer
from entropix.replicas._placement import relaid
from entropix.replicas._stacked import mean_of_replicas, num_replicas, with_distinct_keys


class Revived(NamedTuple):
    """Answer of `revive`.

    Attributes:
      params: parameters, all replicas finite.
      state: the state given, likewise.
      replaced: which replicas were replaced. # shape=(y,), dtype=bool
      num_replaced: how many. # shape=(), dtype=int32
    """

    params: PyTree
    state: PyTree
    replaced: Bool[Array, " replicas"]
    num_replaced: Int[Array, ""]


def resize(params: Any, replicas: int, state: Any = None) -> tuple[Any, Any]:
    r"""Takes y replicas to any other number, the center kept.

    .. math:: x'^b = x^{b \bmod y} - \frac{1}{y'} \sum_c x^{c \bmod y} + \bar x,
              \qquad b = 0, \dots, y' - 1

    The first y' of them, or all of them over and over, moved together so that their center stays
    where it was. An optimizer state follows its replica: its leaves with the replica axis are taken
    in the same order and not moved, since they may have to stay positive. Two kinds of leaves are
    an exception: the anchors of an `entropix.entropy_descent` and its averages are moved like the
    parameters, so that the center of `entropix.eval_params` stays where it was even in the middle
    of an inner loop; and a replica that is a copy gets keys of its own. Arrays on many devices stay
    divided as they were, but for the axis of the replicas.

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
    places = np.arange(replicas) % old

    def taken(x: Any) -> Any:
        return _laid_like(x, x[places]) if _is_stacked(x, old) else x

    def moved(x: Any) -> Any:
        if not _is_stacked(x, old):
            return x
        new = x[places]
        return _laid_like(x, new + (mean_of_replicas(x) - mean_of_replicas(new))[None])

    def follow(node: Any) -> Any:
        if not _has_anchor(node):
            return taken(node)
        kept = {name: jax.tree.map(moved, getattr(node, name)) for name in _ANCHORED}
        rest = {name: follow_all(part) for name, part in node._asdict().items() if name not in kept}
        return type(node)(**rest, **kept)

    def follow_all(tree: Any) -> Any:
        return jax.tree.map(follow, tree, is_leaf=_has_anchor)

    return jax.tree.map(moved, params), with_distinct_keys(follow_all(state))


# The fields of the state of an `entropix.entropy_descent` that are weights, or an average of them.
_ANCHORED = ("anchor", "lag")


def _has_anchor(node: Any) -> bool:
    return set(_ANCHORED) <= set(getattr(node, "_fields", ()))


def _laid_like(old: Any, new: jax.Array) -> jax.Array:
    """The new array, divided over devices like the old one where its replicas allow it."""
    sharding = getattr(old, "sharding", None)
    if isinstance(new, jax.core.Tracer) or not isinstance(sharding, NamedSharding):
        return new
    spec = (*sharding.spec, *(None,) * (new.ndim - len(sharding.spec)))
    along = (spec[0],) if isinstance(spec[0], str) else spec[0] or ()
    if new.shape[0] % math.prod(sharding.mesh.shape[name] for name in along):
        spec = (None, *spec[1:])
    return relaid(new, NamedSharding(sharding.mesh, P(*spec)))


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
        wide = jnp.promote_types(leaf.dtype, jnp.float32)
        kept = jnp.where(alive, leaf, jnp.zeros_like(leaf)).astype(wide)
        others = mean_of_replicas(kept) / jnp.mean(finite.astype(wide))
        return jnp.where(alive, leaf, others.astype(leaf.dtype)[None])

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
    return np.ndim(leaf) > 0 and np.shape(leaf)[0] == replicas
