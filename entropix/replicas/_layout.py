"""Where y replicas lie on D devices: the mesh, its axes, and each process's part of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Int, PyTree

# Mapped axes: groups of devices that hold different replicas, and replicas in one group.
GROUPS, STACKED = "replica_devices", "replicas"
# The axis of the mesh along which the devices of one group divide its mini-batches.
DATA = "data"

Path = tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """A mesh of groups of devices; each group holds as many replicas as any other.

    Attributes:
      replicas: y.
      devices: the D devices, group after group.
      data_shards: how many parts a replica's mini-batch is divided into.
      model_axes: names and lengths of the mesh axes that only parameters are divided over.
      specs: how the parameters of one replica lie within its group, by their paths.
    """

    replicas: int
    devices: tuple[jax.Device, ...]
    data_shards: int
    model_axes: tuple[tuple[str, int], ...] = ()
    specs: tuple[tuple[Path, P], ...] = ()

    @property
    def groups(self) -> int:
        """Groups of devices that hold different replicas."""
        return len(self.devices) // (self.data_shards * self._model_shards)

    @property
    def per_group(self) -> int:
        """Replicas that one group holds, stacked."""
        return self.replicas // self.groups

    @property
    def _model_shards(self) -> int:
        return int(np.prod([size for _, size in self.model_axes]))

    @property
    def mesh(self) -> Mesh:
        """Groups, parts of a mini-batch, parts of the parameters."""
        names = (GROUPS, DATA, *(name for name, _ in self.model_axes))
        return Mesh(self._device_grid(), names, axis_types=(AxisType.Auto,) * len(names))

    def batch_spec(self) -> P:
        """How batches of shape (y, b, ...) lie on the mesh."""
        return P(GROUPS) if self.data_shards == 1 else P(GROUPS, DATA)

    def state_shardings(self, state: PyTree) -> PyTree:
        """How the leaves of a state, arrays or their shapes, lie on the mesh."""
        mesh, specs = self.mesh, dict(self.specs)
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: NamedSharding(mesh, self._leaf_spec(specs, path, leaf)), state
        )

    def _leaf_spec(self, specs: Mapping[Path, P], path: Any, leaf: Any) -> P:
        """The spec of one leaf of a state.

        An optimizer keeps what belongs to a parameter under the parameter's own path, so the spec
        is that of the longest end of the path that has one.
        """
        if not np.ndim(leaf):
            return P()
        names = path_names(path)
        ends = (names[at:] for at in range(len(names) + 1))
        spec = next((specs[end] for end in ends if end in specs), P())
        shape = np.shape(leaf)[1:]
        # A factored accumulator has fewer axes than its parameter, or a single entry.
        if len(spec) > len(shape) or any(
            size == 1 and axis is not None for size, axis in zip(shape, spec, strict=False)
        ):
            spec = P()
        return P(GROUPS, *spec)

    def local_replicas(self) -> Int[np.ndarray, " here"]:
        """The replicas that this process's devices hold."""
        groups = np.unique(self._local_places()[:, 0])
        return (groups[:, None] * self.per_group + np.arange(self.per_group)).ravel()

    def local_data_shards(self) -> Int[np.ndarray, " here"]:
        """Which parts of a replica's mini-batch this process's devices take."""
        return np.unique(self._local_places()[:, 1])

    def local_rows(self) -> Int[np.ndarray, " here"]:
        """The places of this process's devices among all."""
        here = jax.process_index()
        return np.flatnonzero([device.process_index == here for device in self.devices])

    def _local_places(self) -> Int[np.ndarray, "here axes"]:
        grid = self._device_grid()
        return np.stack(np.unravel_index(self.local_rows(), grid.shape), 1)

    def _device_grid(self) -> Any:
        lengths = (self.groups, self.data_shards, *(size for _, size in self.model_axes))
        return np.asarray(self.devices).reshape(lengths)


def path_names(path: Any) -> Path:
    """The names on a path through a pytree, whatever containers it goes through."""
    return tuple(jax.tree_util.keystr((entry,), simple=True) for entry in path)


def lay_out(replicas: int, devices: tuple[jax.Device, ...], model: PyTree | None) -> Layout:
    """The layout of y replicas on D devices.

    Args:
      replicas: y.
      devices: the D devices.
      model: ``PartitionSpec`` or ``NamedSharding`` of each parameter of one replica, or None.

    Returns:
      The layout.

    Raises:
      TypeError: a leaf of ``model`` is of another type.
      ValueError: the lengths do not divide; this process owns none of the devices.
    """
    specs, lengths = _specs_and_lengths(model)
    count = len(devices)
    unknown = [name for name, length in lengths.items() if length is None]
    if len(unknown) > 1:
        raise ValueError(
            "model must be of NamedSharding, whose mesh says how long each axis is, where it names "
            f"several axes, got PartitionSpec over {unknown}"
        )
    known = int(np.prod([length for length in lengths.values() if length is not None]))
    share = max(1, count // (replicas * known))
    axes = tuple((name, share if length is None else length) for name, length in lengths.items())
    in_model = known * (share if unknown else 1)
    groups_and_data = count // in_model
    if count % in_model:
        raise ValueError(
            f"model axes {dict(axes)} must divide the number of devices, got {count} devices"
        )
    if not groups_and_data or (replicas % groups_and_data and groups_and_data % replicas):
        raise ValueError(
            "replicas must be a multiple of the number of devices or a divisor of it, "
            f"got {replicas} replicas on {count} devices"
            + (f", of which {in_model} hold one model" if axes else "")
        )
    here = jax.process_index()
    if all(device.process_index != here for device in devices):
        raise ValueError(
            f"devices must include one of each process, got none of process {here} among "
            f"{count} devices of processes {sorted({d.process_index for d in devices})}; "
            "give devices of all processes, or do not call plan in this one"
        )
    return Layout(replicas, devices, max(1, groups_and_data // replicas), axes, specs)


def _specs_and_lengths(
    model: PyTree | None,
) -> tuple[tuple[tuple[Path, P], ...], dict[str, int | None]]:
    """The specs by path, and the lengths of the model axes, None where only the name is given."""
    specs: list[tuple[Path, P]] = []
    lengths: dict[str, int | None] = {}
    is_leaf = lambda leaf: isinstance(leaf, P | NamedSharding)  # noqa: E731
    for path, leaf in jax.tree_util.tree_leaves_with_path(model, is_leaf=is_leaf):
        if not is_leaf(leaf):
            raise TypeError(
                "model must hold a PartitionSpec or NamedSharding for each parameter, got "
                f"{leaf!r} at model{jax.tree_util.keystr(path)}"
            )
        spec = leaf if isinstance(leaf, P) else leaf.spec
        for entry in spec:
            for name in (entry,) if isinstance(entry, str) else entry or ():
                length = None if isinstance(leaf, P) else leaf.mesh.shape[name]
                if name != DATA and lengths.get(name) is None:
                    lengths[name] = length
        specs.append((path_names(path), spec))
    return tuple(specs), lengths
