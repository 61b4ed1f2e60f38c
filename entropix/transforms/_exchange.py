"""The mean over replicas, in full or in few bits."""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from entropix._checks import check_integer
from entropix.transforms._replica_axes import ReplicaAxes

_MOST = {"bfloat16": None, "int8": 127}


@dataclass(frozen=True)
class Compression:
    r"""How differences between replicas travel: in two bytes or in one instead of four.

    .. math:: q_i = \mathrm{round}(v_i / s), \quad s = \max_{i \in \mathrm{block}} |v_i| / 127
              \quad (\mathrm{int8}), \qquad
              v = d + e, \quad e \leftarrow v - s q

    What is sent is the difference d to something that all replicas share, never the weights. What
    rounding takes away is kept in e by its sender and added to what it sends the next time (error
    feedback), so that nothing is lost for good. An exchange has two parts, each in the small type:
    every device receives its share of all differences and takes their mean, and then all receive
    all means. What the second rounding takes away is kept by the device that made it. The mean
    itself is taken in float32 or wider.

    The bytes on the wire are half (``"bfloat16"``) or a quarter plus 4 / ``block_size`` of a byte
    per parameter and part (``"int8"``) of those of an all-reduce of float32, for any number of
    devices. The differences are laid out as one vector: where a replica is itself sharded, that
    gathers it.

    Attributes:
      dtype: ``"int8"`` (default) or ``"bfloat16"``.
      block_size: parameters that share one float32 scale s, for ``"int8"``. At least 1, default
        256.
      error_feedback: whether e is kept, at the cost of one float32 copy of the parameters per
        sender. Default True.

    Raises:
      TypeError: ``block_size`` is not an integer.
      ValueError: the dtype is unknown, or ``block_size`` is below 1.

    Examples:
      >>> import entropix
      >>> entropix.Compression("bfloat16")
      Compression(dtype='bfloat16', block_size=256, error_feedback=True)

    Reference:
      Karimireddy et al., `Error feedback fixes SignSGD <https://arxiv.org/abs/1901.09847>`_, ICML
      2019; Douillard et al., `Streaming DiLoCo <https://arxiv.org/abs/2501.18512>`_, 2025, whose
      outer gradients travel in four bits.
    """

    dtype: Literal["bfloat16", "int8"] = "int8"
    block_size: int = 256
    error_feedback: bool = True

    def __post_init__(self) -> None:
        if self.dtype not in _MOST:
            raise ValueError(f"dtype must be 'bfloat16' or 'int8', got {self.dtype!r}")
        check_integer("block_size", self.block_size, at_least=1)

    def encode(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """What is sent of x, whose last axis is a multiple of ``block_size``."""
        if self.dtype == "bfloat16":
            # As integers: XLA on CPU would widen a collective of bfloat16 to float32.
            return (jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16),)
        blocks = x.reshape(*x.shape[:-1], -1, self.block_size)
        scale = (jnp.max(jnp.abs(blocks), -1) / 127).astype(jnp.float32)
        unit = jnp.where(scale > 0, scale, 1).astype(x.dtype)
        steps = jnp.clip(jnp.round(blocks / unit[..., None]), -127, 127)
        return steps.astype(jnp.int8).reshape(x.shape), scale

    def decode(self, code: tuple[jax.Array, ...], dtype: Any) -> jax.Array:
        """What arrives."""
        if self.dtype == "bfloat16":
            return jax.lax.bitcast_convert_type(code[0], jnp.bfloat16).astype(dtype)
        steps, scale = code
        blocks = steps.reshape(*scale.shape, self.block_size).astype(dtype)
        return (blocks * scale[..., None].astype(dtype)).reshape(steps.shape)


class _Layout(NamedTuple):
    """How the leaves of a tree lie in vectors, one for each sender here."""

    structure: Any
    shapes: list[tuple[int, ...]]
    dtypes: list[Any]


@dataclass(frozen=True)
class Exchange:
    """The mean over replicas that `average_updates` and `diloco` take when replicas meet.

    Attributes:
      replicas: where they are.
      compression: how differences travel; None is in full.
    """

    replicas: ReplicaAxes
    compression: Compression | None = None

    def init(self, params: Any, dtype: Any = None) -> Any:
        """What the senders here keep of what rounding took away: zeros, or None.

        Args:
          params: the parameters.
          dtype: of what is to travel; None is that of the parameters.
        """
        if self.compression is None or not self.compression.error_feedback:
            return None
        return jax.tree.map(
            lambda x: jnp.zeros_like(
                self.replicas.zeros_like_mean(x) if self.replicas.names else x,
                dtype=_wide(x.dtype if dtype is None else dtype),
            ),
            params,
        )

    def mean(self, tree: Any, residual: Any) -> tuple[Any, Any]:
        """The mean over the finite replicas, with length 1 on the stacked axis, and the residual.

        It is typed as varying over the mapped axes, like the state that takes it up.
        """
        if not jax.tree.leaves(tree):
            return tree, residual
        if self.compression is None:
            mean = self.replicas.mean(tree)
        else:
            mean, residual = self._compressed(tree, residual, self.compression)
        if self.replicas.names:
            mean = jax.tree.map(lambda m, x: _varying_like(m, x, self.replicas.axis), mean, tree)
        return mean, residual

    def _compressed(self, tree: Any, residual: Any, compression: Compression) -> tuple[Any, Any]:
        """The mean of what arrives, as `Compression` tells; senders are devices, or stacked rows.

        Where replicas are mapped, each mapped instance sends the mean over those stacked in it.
        """
        replicas = self.replicas
        finite = replicas.finite(tree)
        share = replicas.pmean(jnp.mean(finite.astype(jnp.float32)))
        own = jax.tree.map(lambda x: _kept_where(finite, x, replicas.axis), tree)
        if replicas.names and replicas.axis is not None:
            own = jax.tree.map(lambda x: jnp.mean(x, replicas.axis, keepdims=True), own)
        own = jax.tree.map(lambda x: x.astype(_wide(x.dtype)), own)
        if residual is not None:
            own = jax.tree.map(jnp.add, own, residual)
        vectors, layout = self._as_vectors(own)
        senders, length = vectors.shape
        mapped = math.prod(jax.lax.axis_size(name) for name in replicas.names)
        parties = mapped if replicas.names else senders
        chunk = -(-length // (parties * compression.block_size)) * compression.block_size
        vectors = jnp.pad(vectors, ((0, 0), (0, parties * chunk - length)))
        parts = vectors.reshape(senders, parties, chunk)

        code = compression.encode(parts)
        kept = parts - compression.decode(code, parts.dtype)
        if replicas.names:
            code = jax.tree.map(self._scatter, code)
        means = jnp.mean(compression.decode(code, parts.dtype), 0)
        code = compression.encode(means)
        lost = means - compression.decode(code, parts.dtype)
        here = jnp.arange(senders)
        if replicas.names:
            code = jax.tree.map(self._gather, code)
            here = jax.lax.axis_index(replicas.names)[None]
        # What the second rounding takes away of a part is kept by the sender that averaged it.
        averaged_here = here[:, None, None] == jnp.arange(parties)[None, :, None]
        kept = kept + jnp.where(averaged_here, parties * lost[None], jnp.zeros_like(lost)[None])
        vector = compression.decode(code, parts.dtype).reshape(1, -1)[:, :length]
        mean = self._as_tree(vector, layout)
        mean = jax.tree.map(lambda m, x: (m / share.astype(m.dtype)).astype(x.dtype), mean, tree)
        if residual is None:
            return mean, None
        return mean, self._as_tree(kept.reshape(senders, -1)[:, :length], layout)

    def _scatter(self, x: jax.Array) -> jax.Array:
        """(1, parties, ...) on each sender to (senders, 1, ...): each its part of all."""
        arrived = jax.lax.all_to_all(x[0], self.replicas.names, 0, 0, tiled=True)
        return arrived[:, None]

    def _gather(self, x: jax.Array) -> jax.Array:
        """(1, ...) on each to (parties, ...) on all."""
        for name in reversed(self.replicas.names):
            x = jax.lax.all_gather(x, name, tiled=True)
        return x

    def _as_vectors(self, tree: Any) -> tuple[jax.Array, _Layout]:
        """The tree as an array (senders here, parameters)."""
        leaves, structure = jax.tree.flatten(tree)
        if not self.replicas.names and self.replicas.axis is not None:
            leaves = [jnp.moveaxis(x, self.replicas.axis, 0) for x in leaves]
        else:
            leaves = [x[None] for x in leaves]
        wide = max((x.dtype for x in leaves), key=lambda dtype: jnp.finfo(dtype).bits)
        layout = _Layout(structure, [x.shape[1:] for x in leaves], [x.dtype for x in leaves])
        rows = [x.astype(wide).reshape(x.shape[0], -1) for x in leaves]
        return jnp.concatenate(rows, 1), layout

    def _as_tree(self, vectors: jax.Array, layout: _Layout) -> Any:
        """What `_as_vectors` laid out; a stack of one row for a single vector."""
        ends = [math.prod(shape) for shape in layout.shapes]
        starts = [sum(ends[:at]) for at in range(len(ends))]
        leaves = [
            vectors[:, start : start + size].reshape(-1, *shape).astype(dtype)
            for start, size, shape, dtype in zip(
                starts, ends, layout.shapes, layout.dtypes, strict=True
            )
        ]
        if not self.replicas.names and self.replicas.axis is not None:
            axis = self.replicas.axis
            leaves = [jnp.moveaxis(x, 0, axis) for x in leaves]
        else:
            leaves = [x[0] for x in leaves]
        return jax.tree.unflatten(layout.structure, leaves)


def _wide(dtype: Any) -> Any:
    """The type that differences of a type are added up in."""
    return dtype if jnp.finfo(dtype).bits > 32 else jnp.float32


def _kept_where(finite: jax.Array, x: jax.Array, axis: int | None) -> jax.Array:
    """Zeros in place of the replicas that are not finite."""
    others = [] if axis is None else [at for at in range(x.ndim) if at != axis % x.ndim]
    return jnp.where(jnp.expand_dims(finite, others), x, jnp.zeros_like(x))


def _varying_like(mean: jax.Array, own: jax.Array, axis: int | None) -> jax.Array:
    """The mean, typed by shard_map as a value that may differ between devices, as states are.

    Both branches of a conditional must answer with one type. XLA drops the choice between equals.
    """
    own = own if axis is None else jax.lax.index_in_dim(own, 0, axis)
    return jnp.where(jnp.isnan(own), mean, mean)
