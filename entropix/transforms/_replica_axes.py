"""Where the replicas are: on an axis of every leaf, on mapped axes, or both."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class ReplicaAxes(NamedTuple):
    """Where the replicas are.

    Attributes:
      axis: the axis of every leaf along which replicas are stacked, or None.
      names: of the mapped axes along which the step is mapped.
    """

    axis: int | None
    names: tuple[str, ...]

    def mean(self, tree: Any) -> Any:
        """The mean over the replicas that are finite, with length 1 on the stacked axis.

        A replica that has diverged thus keeps its trouble to itself. XLA merges the reductions of
        all leaves into one all-reduce.
        """
        if not jax.tree.leaves(tree):
            return tree
        finite = self._finite(tree)
        share = self._pmean(jnp.mean(finite.astype(jnp.float32)))

        def mean(x: jax.Array) -> jax.Array:
            if self.axis is None:
                kept = jnp.where(finite, x, jnp.zeros_like(x))
            else:
                others = [at for at in range(x.ndim) if at != self.axis % x.ndim]
                kept = jnp.where(jnp.expand_dims(finite, others), x, jnp.zeros_like(x))
                kept = jnp.mean(kept, self.axis, keepdims=True)
            return self._pmean(kept) / share.astype(x.dtype)

        return jax.tree.map(mean, tree)

    def _finite(self, tree: Any) -> jax.Array:
        """Which of the replicas here are finite, shape (y,) or () where one is mapped."""

        def finite(x: jax.Array) -> jax.Array:
            others = [at for at in range(x.ndim) if self.axis is None or at != self.axis % x.ndim]
            # A sum is finite where its terms are, and cheaper to take than a check of each.
            dtype = jnp.float32 if jnp.finfo(x.dtype).bits < 32 else x.dtype
            return jnp.isfinite(jnp.sum(x, tuple(others), dtype=dtype))

        return functools.reduce(jnp.logical_and, map(finite, jax.tree.leaves(tree)))

    def _pmean(self, x: jax.Array) -> jax.Array:
        return jax.lax.pmean(x, self.names) if self.names else x

    def zeros_like_mean(self, leaf: jax.Array) -> jax.Array:
        """Zeros of the shape, dtype and sharding of the mean of one leaf, which may be abstract."""
        if self.axis is None:
            return jnp.zeros_like(leaf)
        mean = jax.eval_shape(lambda x: jnp.mean(x, self.axis, keepdims=True), leaf)
        return jnp.zeros_like(mean)

    def check_stack(self, params: Any, *, at_least: int) -> None:
        """Raises unless every leaf has the axis, of one length, long enough where it is alone."""
        if self.axis is None:
            return
        lengths = {}
        for path, leaf in jax.tree.leaves_with_path(params):
            where = f"params{jax.tree_util.keystr(path)}"
            if not -leaf.ndim <= self.axis < leaf.ndim:
                raise ValueError(
                    f"axis {self.axis} must be the replica axis of every leaf, "
                    f"but {where} has shape {leaf.shape}"
                )
            lengths[where] = leaf.shape[self.axis]
        if len(set(lengths.values())) > 1:
            raise ValueError(f"axis {self.axis} must have one length for all leaves, got {lengths}")
        length = next(iter(lengths.values()), at_least)
        if not self.names and length < at_least:
            raise ValueError(
                f"axis {self.axis} of params must hold {at_least} replicas or more, "
                f"got length {length}"
            )

    def check_names(self, *, at_least: int) -> None:
        """Raises unless every name is of a mapped axis, long enough together where alone."""
        size = 1
        for name in self.names:
            try:
                size *= jax.lax.axis_size(name)
            except NameError:
                raise ValueError(
                    f"axis_name {name!r} must be the name of an axis that update is mapped over "
                    "(vmap, pmap or shard_map), and no such axis is bound here"
                ) from None
        if self.axis is None and size < at_least:
            raise ValueError(
                f"axis_name {self.names!r} must span {at_least} replicas or more, got {size}"
            )


def replica_axes(axis: int | None, axis_name: str | tuple[str, ...] | None) -> ReplicaAxes:
    """Where the replicas are, from the arguments of a factory.

    Args:
      axis: the axis of every leaf along which the replicas are stacked.
      axis_name: name, or tuple of names, of the mapped axes.

    Returns:
      Both, checked.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: neither is given.
    """
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
    return ReplicaAxes(axis, names)
