"""Where the replicas are: on an axis of every leaf, on mapped axes, or both."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, PyTree


class ReplicaAxes(NamedTuple):
    """Where the replicas are.

    Attributes:
      axis: the axis of every leaf along which replicas are stacked, or None.
      names: of the mapped axes along which the step is mapped.
    """

    axis: int | None
    names: tuple[str, ...]

    def mean(self, tree: PyTree) -> PyTree:
        """The mean over the replicas that are finite, with length 1 on the stacked axis.

        A replica that has diverged thus keeps its trouble to itself. XLA merges the reductions of
        all leaves into one all-reduce.
        """
        if not jax.tree.leaves(tree):
            return tree
        finite = self.finite(tree)
        # All is divided by a power of two that is no smaller than the number of replicas: the sum
        # of finite weights stays finite, and the division loses nothing.
        scale = 0.5 ** math.ceil(math.log2(self._count(tree)))
        share = self._psum(jnp.sum(finite.astype(jnp.float32) * np.float32(scale)))

        def mean(x: jax.Array) -> jax.Array:
            dtype = jnp.float32 if jnp.finfo(x.dtype).bits < 32 else x.dtype
            along = self.expanded(finite, x)
            kept = jnp.where(along, x, jnp.zeros_like(x)) * jnp.asarray(scale, x.dtype)
            if self.axis is not None:
                kept = jnp.sum(kept, self.axis, keepdims=True, dtype=dtype)
            # A sum in bfloat16 would round at each device, and XLA on CPU aborts on it where some
            # axes of the mesh are left to the compiler.
            return (self._psum(kept.astype(dtype)) / share.astype(dtype)).astype(x.dtype)

        return jax.tree.map(mean, tree)

    def own_key(self, key: Key[Array, ""]) -> Key[Array, ""]:
        """Another key for each mapped replica, the same wherever the mapped axes lie."""
        if not self.names:
            return key
        self.check_names(at_least=1)
        return jax.random.fold_in(key, jax.lax.axis_index(self.names))

    def _count(self, tree: PyTree) -> int:
        """How many replicas there are."""
        here = 1 if self.axis is None else jax.tree.leaves(tree)[0].shape[self.axis]
        return math.prod(map(jax.lax.axis_size, self.names), start=here)

    def finite(self, tree: PyTree) -> Bool[Array, "*replicas"]:
        """Which of the replicas here are finite: one axis of them, or none where one is mapped."""

        def probe(x: jax.Array) -> jax.Array:
            # 0 or, where anything is infinite or no number, NaN; a sum of x itself may overflow.
            return jnp.sum(jnp.zeros((), x.dtype) * x, self._others(x), dtype=jnp.float32)

        # Stacked, and kept apart from what makes the stack: a chain of conditions, one for each
        # leaf, takes XLA a time that is quadratic in their number.
        probes = jax.lax.optimization_barrier(jnp.stack(list(map(probe, jax.tree.leaves(tree)))))
        return jnp.all(probes == 0, axis=0)

    def norm(self, tree: PyTree) -> Float[Array, "*replicas"]:
        """The length of each replica here, over all its leaves, in float32 or wider."""
        leaves = jax.tree.leaves(tree)
        bits = max((jnp.finfo(x.dtype).bits for x in leaves), default=32)
        dtype = jnp.float64 if bits > 32 else jnp.float32
        squares = [jnp.sum(x.astype(dtype) ** 2, self._others(x)) for x in leaves]
        return jnp.sqrt(sum(squares, jnp.zeros([], dtype)))

    def expanded(self, numbers: jax.Array, x: jax.Array) -> jax.Array:
        """One number for each replica here, in the shape in which it meets a leaf."""
        return jnp.expand_dims(numbers, self._others(x))

    def _others(self, x: jax.Array) -> tuple[int, ...]:
        """The axes of a leaf that are no replicas."""
        return tuple(at for at in range(x.ndim) if self.axis is None or at != self.axis % x.ndim)

    def pmean(self, x: jax.Array) -> jax.Array:
        """The mean over the mapped axes."""
        return jax.lax.pmean(x, self.names) if self.names else x

    def _psum(self, x: jax.Array) -> jax.Array:
        return jax.lax.psum(x, self.names) if self.names else x

    def zeros_like_mean(self, leaf: jax.Array | jax.ShapeDtypeStruct) -> jax.Array:
        """Zeros of the shape, dtype and sharding of the mean of one leaf, which may be abstract."""
        if self.axis is None:
            return jnp.zeros_like(leaf)
        mean = jax.eval_shape(lambda x: jnp.mean(x, self.axis, keepdims=True), leaf)
        return jnp.zeros_like(mean)

    def check_stack(self, params: PyTree, *, at_least: int) -> None:
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
