"""A step written for one replica, run on y replicas over D devices."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from entropix._checks import check_integer
from entropix.replicas._layout import GROUPS, STACKED, Layout, lay_out
from entropix.replicas._placement import is_key, on_host, placed, placed_part
from entropix.replicas._running import PmappedStep, Step, sharded_step
from entropix.replicas._stacked import with_distinct_keys

Backend = Literal["pmap", "shard_map", "jit"]


@dataclass(frozen=True)
class Plan:
    """How y replicas lie on D devices; made by `plan`.

    Where y is a multiple of D each device holds y / D replicas, stacked. Where D is a multiple of
    y, D / y devices form a group that shares a replica: they divide its mini-batch, its parameters,
    or both.

    Attributes:
      layout: the mesh of groups of devices.
      backend: what maps the step.
    """

    layout: Layout
    backend: Backend

    @property
    def replicas(self) -> int:
        """The number y of replicas."""
        return self.layout.replicas

    @property
    def devices(self) -> tuple[jax.Device, ...]:
        """The D devices."""
        return self.layout.devices

    @property
    def data_shards(self) -> int:
        """Into how many parts a replica's mini-batch is divided."""
        return self.layout.data_shards

    @property
    def axis_name(self) -> tuple[str, ...]:
        """Names of the mapped axes of the replicas, for `entropix.couple_replicas`."""
        if self.layout.groups == 1 < self.layout.per_group:
            # A mean over the one group would stay in the program as a collective.
            return (STACKED,)
        return (GROUPS,) if self.layout.per_group == 1 else (GROUPS, STACKED)

    def shardings(self, state: PyTree) -> PyTree:
        """How a state lies on the devices, to make or restore it there without a whole copy.

        ``jax.jit(init, out_shardings=plan.shardings(jax.eval_shape(init)))()`` makes a state that
        no single device could hold, and Orbax restores into such shardings.

        Args:
          state: a state as for `place`, or the shapes of one.

        Returns:
          A tree of ``NamedSharding``: the replicas over the groups of devices, and each leaf whose
          path ends like that of a parameter in ``model`` divided like the parameter.

        Raises:
          ValueError: the backend is ``"pmap"``, which has no such arrays; a leaf has axes and not y
            replicas on the first.
        """
        if self.backend == "pmap":
            raise ValueError("backend must be 'jit' or 'shard_map' for shardings, got 'pmap'")
        self._check_stacked(state)
        return self.layout.state_shardings(state)

    def place(self, state: PyTree) -> PyTree:
        """Copies a state to the devices.

        Args:
          state: replicas stacked on the first axis of every leaf; leaves without axes are shared,
            see `entropix.replicas.stack_states`. In several processes each gives the whole, or
            arrays that lie on the devices of all.

        Returns:
          The state as `run` takes it. None of its buffers is one of ``state``. Keys are never
          shared: one without axes becomes one for each replica, and keys that replicas have in
          common become distinct, so that no two draw the same numbers.

        Raises:
          ValueError: a leaf has axes and not y replicas on the first.
        """
        self._check_stacked(state)
        state = with_distinct_keys(jax.tree.map(self._with_all_keys, state))
        if self.backend != "pmap":
            return jax.tree.map(placed, state, self.layout.state_shardings(state))
        rows = self.layout.local_rows()
        # The sharding of what pmap gives back, so that the second call is not compiled anew.
        mesh = Mesh(np.asarray(self.devices)[rows], (GROUPS,))

        def place_rows(x: Any) -> jax.Array:
            if not np.ndim(x):
                return jax.device_put(x, NamedSharding(mesh, P()), may_alias=False)
            split = x.reshape(len(self.devices), -1, *x.shape[1:])[rows]
            return jax.device_put(split, NamedSharding(mesh, P(GROUPS)), may_alias=False)

        return jax.tree.map(place_rows, state)

    def place_batch(self, batch: PyTree) -> PyTree:
        """Puts the mini-batches of one step on the devices.

        Args:
          batch: of each replica, stacked: leaves of shape (y, b, ...). In several processes each
            gives its own part, see `local_part`.

        Returns:
          The batch as `run` takes it.

        Raises:
          ValueError: a leaf does not hold a batch for each replica, or b does not divide by the
            number of devices that share a mini-batch.
        """
        replicas, shards = len(self.layout.local_replicas()), len(self.layout.local_data_shards())
        for path, leaf in jax.tree.leaves_with_path(batch):
            where = f"batch{jax.tree_util.keystr(path)}"
            if not np.ndim(leaf) or np.shape(leaf)[0] != replicas:
                raise ValueError(
                    f"batch must have {replicas} replicas on the first axis of every leaf, "
                    f"got shape {np.shape(leaf)} at {where}"
                )
            if self.data_shards > 1:
                _check_divides(leaf, shards, where)
        if self.backend != "pmap":
            sharding = NamedSharding(self.layout.mesh, self.layout.batch_spec())
            return jax.tree.map(lambda x: placed_part(x, sharding), batch)
        devices = len(self.layout.local_rows())
        return jax.tree.map(lambda x: np.asarray(x).reshape(devices, -1, *np.shape(x)[1:]), batch)

    def local_part(self, batch: PyTree) -> PyTree:
        """What this process feeds of the batches of all replicas; all of them where it is alone.

        Args:
          batch: leaves of shape (y, b, ...), such as the places of the examples in a data set, so
            that each process reads only its own.

        Returns:
          Leaves of shape (replicas here, examples here, ...).

        Raises:
          ValueError: b does not divide by the number of devices that share a mini-batch.
        """
        replicas, shards = self.layout.local_replicas(), self.layout.local_data_shards()

        def part(path: Any, x: Any) -> Any:
            mine = np.asarray(x)[replicas]
            if self.data_shards == 1:
                return mine
            _check_divides(x, self.data_shards, f"batch{jax.tree_util.keystr(path)}")
            split = mine.reshape(len(mine), self.data_shards, -1, *mine.shape[2:])[:, shards]
            return split.reshape(len(mine), -1, *mine.shape[2:])

        return jax.tree_util.tree_map_with_path(part, batch)

    def collect(self, tree: PyTree) -> PyTree:
        """Brings all replicas to the host, stacked on the first axis again.

        Leaf after leaf, so that no device ever holds all replicas; to save a state that no host
        could hold, give the state itself to Orbax.

        Args:
          tree: a state or an answer of `run`.

        Returns:
          NumPy arrays of shape (y, ...) that every process has whole; keys stay ``jax`` arrays.
        """

        def stacked(x: Any) -> Any:
            whole = on_host(x)
            if self.backend != "pmap" or not x.ndim:
                return whole
            return whole.reshape(self.replicas, *whole.shape[2:])

        return jax.tree.map(stacked, tree)

    def run(self, step: Step, *, donate: bool = True) -> Step:
        """Maps a step over all replicas, compiled.

        Leaves without axes in the state, such as the step counters of Optax, are shared by the
        replicas, so that a branch on them stays a branch, and the collectives in it are passed over
        on the other steps. Where each group of devices holds one replica the step is called without
        ``vmap``, so that kernels without a batching rule work.

        Args:
          step: ``step(state, batch) -> (state, answer)`` of ONE replica and its whole mini-batch,
            with ``axis_name`` as the axes of its coupling.
          donate: whether the new state takes the memory of the old one, so that one copy of the
            state fits where two would not. Default True: a state given to the step cannot be read
            again, only the one that comes back.

        Returns:
          A function of a state of `place` and a batch of `place_batch` to the new state and the
          answers, to be read by `collect`.
        """
        if self.backend == "pmap":
            return PmappedStep(step, self.layout, donate=donate)
        return sharded_step(step, self.layout, donate=donate)

    def _with_all_keys(self, leaf: Any) -> Any:
        is_shared_key = is_key(leaf) and not leaf.ndim
        return jnp.broadcast_to(leaf, (self.replicas,)) if is_shared_key else leaf

    def _check_stacked(self, state: PyTree) -> None:
        for path, leaf in jax.tree.leaves_with_path(state):
            if np.ndim(leaf) and np.shape(leaf)[0] != self.replicas:
                raise ValueError(
                    f"state must have {self.replicas} replicas on the first axis of every leaf "
                    f"with axes, got shape {np.shape(leaf)} at state{jax.tree_util.keystr(path)}"
                )


def _check_divides(leaf: Any, shards: int, where: str) -> None:
    if np.ndim(leaf) < 2 or np.shape(leaf)[1] % shards:
        raise ValueError(
            f"batch must have examples on the second axis, in a multiple of {shards}, the devices "
            f"that share a replica, got shape {np.shape(leaf)} at {where}"
        )


def plan(
    replicas: int,
    *,
    devices: Sequence[jax.Device] | int | None = None,
    backend: Backend = "jit",
    model: PyTree | None = None,
) -> Plan:
    """Lays y replicas over D devices, to run a step written for one replica on all of them.

    Every plan gives what ``vmap`` on one device gives, up to rounding. Between couplings nothing
    travels, but for what devices that share a replica exchange; a coupling is one all-reduce.

    Args:
      replicas: y, at least 1. A multiple of the number of devices, or a divisor of it.
      devices: the devices, or how many of ``jax.devices()``. Default: all. In several processes at
        least one of each.
      backend: ``"jit"`` (the default): the replicas are mapped by hand, and the compiler divides
        the batch and the parameters of a replica among the devices that share it.
        ``"shard_map"`` leaves nothing to the compiler, and ``"pmap"`` is the oldest way: both need
        y to be a multiple of D.
      model: how one replica's parameters are divided among the devices that share it: a tree like
        the parameters of ``PartitionSpec``, where at most one axis besides ``"data"`` is named, or
        of ``NamedSharding``, whose mesh says how long each axis is. The axis ``"data"`` is the one
        that divides the mini-batch, so parameters divided over it are those of fully sharded data
        parallelism. Default: whole on each device.

    Returns:
      A `Plan`.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: there are not as many devices; y and D do not divide; the backend is unknown, or
        cannot let devices share a replica; this process owns none of the devices.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, entropix
      >>> plan = entropix.replicas.plan(4, devices=1)
      >>> tx = entropix.replicated_sgd(0.1, gamma=1.0, every=1, axis_name=plan.axis_name)
      >>> def step(state, target):
      ...     x, opt_state = state
      ...     updates, opt_state = tx.update(2 * (x - target), opt_state, x)
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
    layout = lay_out(replicas, tuple(devices), model)
    if backend != "jit" and layout.groups < len(layout.devices):
        raise ValueError(
            "backend must be 'jit' where devices share a replica, since batch normalization and "
            f"dropout must see its whole mini-batch, got {backend!r} for {replicas} replicas on "
            f"{len(layout.devices)} devices"
        )
    return Plan(layout, backend)
