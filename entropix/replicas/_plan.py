"""A step written for one replica, run on y replicas over D devices."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from numpy.typing import NDArray

from entropix._checks import check_integer
from entropix.replicas._transfer import all_rows, moved, put

Backend = Literal["pmap", "shard_map", "jit"]
Step = Callable[[Any, Any], tuple[Any, Any]]

# Mapped axes: devices that hold different replicas, replicas in one device, devices that share
# their replicas and divide the mini-batches.
_DEVICES, _REPLICAS, _DATA = "replica_devices", "replicas", "data"


@dataclass(frozen=True)
class Plan:
    """How y replicas lie on D devices; made by `plan`.

    Where y is a multiple of D each device holds y / D replicas. Where D is a multiple of y, D / y
    devices share a replica and divide its mini-batch.

    Attributes:
      replicas: y.
      devices: the D devices.
      backend: what maps the step: ``"pmap"``, ``"shard_map"``, or ``"jit"`` over sharded arrays.
    """

    replicas: int
    devices: tuple[jax.Device, ...]
    backend: Backend

    @property
    def data_shards(self) -> int:
        """Devices that share a replica."""
        return max(1, len(self.devices) // self.replicas)

    @property
    def axis_name(self) -> tuple[str, ...]:
        """Names of the mapped axes of the replicas, for `entropix.couple_replicas`."""
        return (_REPLICAS,) if self.backend == "jit" else (_DEVICES, _REPLICAS)

    def data_mean(self, tree: Any) -> Any:
        """The mean over the devices that share a replica, to be taken inside a step.

        Args:
          tree: gradients, losses, batch statistics of one device's part of the mini-batch.

        Returns:
          Their mean over the whole mini-batch; the tree itself where it is not divided.
        """
        if self.data_shards == 1 or self.backend == "jit":
            return tree
        if self.backend == "shard_map":
            return jax.lax.pmean(tree, _DATA)
        groups = np.arange(len(self.devices)).reshape(-1, self.data_shards).tolist()
        return jax.lax.pmean(tree, _DEVICES, axis_index_groups=groups)

    def place(self, state: Any) -> Any:
        """Puts a state on the devices.

        Args:
          state: replicas stacked on the first axis of every leaf; leaves without axes are shared,
            see `entropix.replicas.stack_states`. In several processes each gives the whole.

        Returns:
          The state as `run` takes it.

        Raises:
          ValueError: a leaf has axes and not y replicas on the first.
        """
        for path, leaf in jax.tree.leaves_with_path(state):
            if leaf.ndim and leaf.shape[0] != self.replicas:
                raise ValueError(
                    f"state must have {self.replicas} replicas on the first axis of every leaf "
                    f"with axes, got shape {leaf.shape} at state{jax.tree_util.keystr(path)}"
                )
        if self.backend != "pmap":
            return jax.tree.map(put, state, self._state_shardings(state))
        rows = self._local_rows()
        # The sharding of what pmap gives back, so that the second call is not compiled anew.
        mesh = Mesh(np.asarray(self.devices)[rows], (_DEVICES,))
        return jax.tree.map(
            lambda x: (
                jax.device_put(self._rows(x)[rows], NamedSharding(mesh, P(_DEVICES)))
                if x.ndim
                else jax.device_put(x, NamedSharding(mesh, P()))
            ),
            state,
        )

    def place_batch(self, batch: Any) -> Any:
        """Puts the mini-batches of one step on the devices.

        Args:
          batch: of each replica, stacked: leaves of shape (y, b, ...). In several processes each
            gives its own part, see `local_part`.

        Returns:
          The batch as `run` takes it.

        Raises:
          ValueError: a leaf does not hold a batch for each replica, or b does not divide by the
            number of devices that share a replica.
        """
        shards, local_devices = self.data_shards, len(self._local_rows())
        replicas = len(self._local_replicas())
        for path, leaf in jax.tree.leaves_with_path(batch):
            where = f"batch{jax.tree_util.keystr(path)}"
            if not np.ndim(leaf) or np.shape(leaf)[0] != replicas:
                raise ValueError(
                    f"batch must have {replicas} replicas on the first axis of every leaf, "
                    f"got shape {np.shape(leaf)} at {where}"
                )
            if shards > 1 and (np.ndim(leaf) < 2 or np.shape(leaf)[1] % len(self._local_shards())):
                raise ValueError(
                    "batch must have examples on the second axis, in a multiple of "
                    f"{len(self._local_shards())}, the devices that share a replica, "
                    f"got shape {np.shape(leaf)} at {where}"
                )
        if self.backend != "pmap":
            sharding = NamedSharding(self._mesh(), self._batch_spec())
            return jax.tree.map(
                lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch
            )

        def split(x: Any) -> Any:
            x = np.asarray(x)
            if shards == 1:
                return x.reshape(local_devices, -1, *x.shape[1:])
            return x.reshape(local_devices, 1, -1, *x.shape[2:])

        return jax.tree.map(split, batch)

    def local_part(self, batch: Any) -> Any:
        """What this process feeds of the batches of all replicas; all of them where it is alone.

        Args:
          batch: leaves of shape (y, b, ...), such as the places of the examples in a data set, so
            that each process reads only its own.

        Returns:
          Leaves of shape (replicas here, examples here, ...).

        Raises:
          ValueError: b does not divide by the number of devices that share a replica.
        """
        replicas, shards = self._local_replicas(), self._local_shards()

        def part(x: Any) -> Any:
            mine = np.asarray(x)[replicas]
            if self.data_shards == 1:
                return mine
            if mine.ndim < 2 or mine.shape[1] % self.data_shards:
                raise ValueError(
                    f"batch must have examples on the second axis, in a multiple of "
                    f"{self.data_shards}, the devices that share a replica, got shape {np.shape(x)}"
                )
            split = mine.reshape(len(mine), self.data_shards, -1, *mine.shape[2:])[:, shards]
            return split.reshape(len(mine), -1, *mine.shape[2:])

        return jax.tree.map(part, batch)

    def collect(self, tree: Any) -> Any:
        """The replicas stacked on the first axis again.

        Args:
          tree: a state or an answer of `run`.

        Returns:
          Arrays of shape (y, ...) that every process has whole.
        """
        if self.backend != "pmap":
            return moved(tree, NamedSharding(self._mesh(), P()))

        def stacked(x: jax.Array) -> Any:
            if not x.ndim:
                return x
            rows = x if jax.process_count() == 1 else all_rows(x)
            return rows[:: self.data_shards].reshape(self.replicas, *rows.shape[2:])

        return jax.tree.map(stacked, tree)

    def run(self, step: Step) -> Step:
        """Maps a step over all replicas, compiled.

        The integers without axes in the state, such as the step counters of Optax, are shared by
        the replicas, so that a branch on them stays a branch, and the collectives in it are passed
        over on the other steps.

        Args:
          step: ``step(state, batch) -> (state, answer)`` of ONE replica, with ``axis_name`` as the
            axes of its coupling, and its gradients through `data_mean`.

        Returns:
          A function of a state of `place` and a batch of `place_batch` to the new state and the
          answers, to be read by `collect`.
        """
        if self.backend == "pmap":
            return _Pmapped(self, step)

        def mapped(state: Any, batch: Any) -> tuple[Any, Any]:
            return _mapped_here(step, state, batch)

        def on_mesh(state: Any, batch: Any) -> tuple[Any, Any]:
            specs = jax.tree.map(lambda x: P(_DEVICES) if x.ndim else P(), state)
            return jax.shard_map(
                mapped,
                mesh=self._mesh(),
                in_specs=(specs, self._batch_spec()),
                out_specs=(specs, P(_DEVICES)),
                # A mean over a mapped and a device axis at once fails the check.
                check_vma=False,
            )(state, batch)

        def sharded(state: Any, batch: Any) -> tuple[Any, Any]:
            state, answer = mapped(state, batch)
            return jax.lax.with_sharding_constraint(state, self._state_shardings(state)), answer

        return jax.jit(on_mesh if self.backend == "shard_map" else sharded)

    def _mesh(self) -> Mesh:
        shape = (len(self.devices) // self.data_shards, self.data_shards)
        types = (AxisType.Auto, AxisType.Auto)
        return Mesh(np.asarray(self.devices).reshape(shape), (_DEVICES, _DATA), axis_types=types)

    def _state_shardings(self, state: Any) -> Any:
        mesh = self._mesh()
        return jax.tree.map(lambda x: NamedSharding(mesh, P(_DEVICES) if x.ndim else P()), state)

    def _batch_spec(self) -> P:
        return P(_DEVICES) if self.data_shards == 1 else P(_DEVICES, _DATA)

    def _local_rows(self) -> NDArray[np.int64]:
        """The places of this process's devices among all."""
        here = jax.process_index()
        return np.flatnonzero([device.process_index == here for device in self.devices])

    def _local_replicas(self) -> NDArray[np.int64]:
        """The replicas that this process's devices hold."""
        groups = np.unique(self._local_rows() // self.data_shards)
        per_group = max(1, self.replicas // len(self.devices))
        return (groups[:, None] * per_group + np.arange(per_group)).ravel()

    def _local_shards(self) -> NDArray[np.int64]:
        """Which parts of a replica's mini-batch this process's devices take."""
        return np.unique(self._local_rows() % self.data_shards)

    def _rows(self, x: jax.Array) -> jax.Array:
        """(y, ...) as what each device holds, (D, y / D or 1, ...)."""
        if self.data_shards > 1:
            return x[np.repeat(np.arange(self.replicas), self.data_shards)][:, None]
        return x.reshape(len(self.devices), -1, *x.shape[1:])


class _Pmapped:
    """A step mapped by ``pmap``, which must be told which leaves are shared, in a hashable way."""

    def __init__(self, plan: Plan, step: Step) -> None:
        self._plan, self._step = plan, step
        self._compiled: dict[Any, Any] = {}

    def __call__(self, state: Any, batch: Any) -> tuple[Any, Any]:
        leaves, structure = jax.tree.flatten(state)
        leaves, answer = self._mapped(leaves, structure)(tuple(leaves), batch)
        return jax.tree.unflatten(structure, leaves), answer

    def lower(self, state: Any, batch: Any) -> Any:
        """The lowered program, as of a jitted function."""
        leaves, structure = jax.tree.flatten(state)
        return self._mapped(leaves, structure).lower(tuple(leaves), batch)

    def _mapped(self, leaves: Sequence[jax.Array], structure: Any) -> Any:
        """The pmapped function of the leaves of states of one structure."""
        axes = tuple(0 if leaf.ndim else None for leaf in leaves)

        def on_leaves(leaves: tuple[jax.Array, ...], batch: Any) -> tuple[tuple[Any, ...], Any]:
            state, answer = _mapped_here(self._step, jax.tree.unflatten(structure, leaves), batch)
            return tuple(jax.tree.leaves(state)), answer

        if (structure, axes) not in self._compiled:
            self._compiled[structure, axes] = jax.pmap(
                on_leaves,
                axis_name=_DEVICES,
                in_axes=(axes, 0),
                out_axes=(axes, 0),
                devices=self._plan.devices,
            )
        return self._compiled[structure, axes]


def _mapped_here(step: Step, state: Any, batch: Any) -> tuple[Any, Any]:
    """The step of all replicas of one device, or of all devices together."""
    axes = jax.tree.map(lambda x: 0 if x.ndim else None, state)
    mapped = jax.vmap(step, in_axes=(axes, 0), out_axes=(axes, 0), axis_name=_REPLICAS)
    answer: tuple[Any, Any] = mapped(state, batch)
    return answer


def plan(
    replicas: int,
    *,
    devices: Sequence[jax.Device] | int | None = None,
    backend: Backend = "jit",
) -> Plan:
    """Lays y replicas over D devices, to run a step written for one replica on all of them.

    All backends give what ``vmap`` on one device gives. Between couplings nothing travels, but for
    the gradients of devices that share a replica; a coupling is one all-reduce.

    Args:
      replicas: y, at least 1. A multiple of the number of devices, or a divisor of it.
      devices: the devices, or how many of ``jax.devices()``. Default: all.
      backend: ``"jit"`` (the default) over a mesh with sharded arrays, ``"shard_map"``, or
        ``"pmap"``.

    Returns:
      A `Plan`.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: there are not as many devices; y and D do not divide; the backend is unknown.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, entropix
      >>> plan = entropix.replicas.plan(4, devices=1)
      >>> tx = entropix.replicated_sgd(0.1, gamma=1.0, every=1, axis_name=plan.axis_name)
      >>> def step(state, target):
      ...     x, opt_state = state
      ...     grad = plan.data_mean(2 * (x - target))
      ...     updates, opt_state = tx.update(grad, opt_state, x)
      ...     return (optax.apply_updates(x, updates), opt_state), None
      >>> x = entropix.replicas.replicate(jnp.zeros(()), 4)
      >>> state = plan.place((x, entropix.replicas.stack_states(tx.init, x)))
      >>> run = plan.run(step)
      >>> for _ in range(100):
      ...     state, _ = run(state, plan.place_batch(jnp.array([0.0, 1.0, 2.0, 5.0])))
      >>> print(f"{plan.collect(state)[0].mean():.3f}")
      2.000

    Reference:
      Pittorino et al., Entropic gradient descent algorithms and wide flat minima, ICLR 2021,
      Algorithm 2.
    """
    check_integer("replicas", replicas, at_least=1)
    if backend not in get_args(Backend):
        raise ValueError(f"backend must be one of {get_args(Backend)}, got {backend!r}")
    if devices is None or isinstance(devices, int):
        there = jax.devices()
        asked = len(there) if devices is None else devices
        check_integer("devices", asked, at_least=1)
        if asked > len(there):
            raise ValueError(
                f"devices must be at most {len(there)}, as many as there are, got {asked}"
            )
        devices = there[:asked]
    count = len(devices)
    if not count or (replicas % count and count % replicas):
        raise ValueError(
            "replicas must be a multiple of the number of devices or a divisor of it, "
            f"got {replicas} replicas on {count} devices"
        )
    return Plan(replicas, tuple(devices), backend)
