"""Training of all seeds of one method, and nothing else that would cost time."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from numpy.typing import NDArray

from benchmarks.common.batches import BatchOrder
from benchmarks.common.methods import Method
from benchmarks.common.network import BatchStats, Network, Params
from entropix.losses import Loss, SmoothedLoss

# Steps in one call of the compiled loop: enough to hide the call, few enough to show progress.
STEPS_PER_CALL = 100


class TrainState(NamedTuple):
    """Everything that a step changes, for all seeds, stacked on a leading axis.

    Attributes:
      params: weights of the training loop; for a replicated method with a replica axis behind the
        seeds'.
      batch_stats: running batch statistics, stacked likewise.
      opt_state: the optimizer's state; its integer scalars are shared by all seeds.
      key: one key per seed, for dropout.
    """

    params: Params
    batch_stats: BatchStats
    opt_state: optax.OptState
    key: jax.Array


class Trainer:
    """Trains one method on all seeds at once; compiles once.

    Attributes:
      replicas: copies of the network per seed.
      axes: of a state, 0 for leaves with a seed axis, None for those that all seeds share.
    """

    def __init__(
        self,
        network: Network,
        method: Method,
        build: Callable[[jax.Array], optax.GradientTransformation],
        data: tuple[jax.Array, jax.Array],
        seeds: Sequence[int],
        *,
        batch_size: int,
        replicas: int,
        smooth: Callable[[Loss], SmoothedLoss] | None = None,
        devices: int = 1,
    ) -> None:
        """Compiles nothing yet.

        Args:
          network: the model.
          method: entry of the registry.
          build: the method's optimizer for a noise key.
          data: training images (n, height, width, channels) and their classes (n,), on the device.
          seeds: one run each.
          batch_size: images per gradient.
          replicas: copies per seed, 1 for a method without replicas.
          smooth: what turns the training loss into the one to train on.
          devices: over how many the replicas are spread; a divisor of their number.
        """
        self._network = network
        self._method = method
        self._build = build
        self._tx = build(jax.random.key(0))
        self._data = data
        self._seeds = tuple(seeds)
        self._order = BatchOrder(len(data[0]), batch_size, self._seeds, replicas)
        self.replicas = replicas
        self.axes = seed_axes(jax.eval_shape(self._init_seed, jax.random.key(0)))
        self._init = jax.jit(jax.vmap(self._init_seed, out_axes=self.axes))
        self._weights = jax.jit(jax.vmap(self._weights_of_seed, in_axes=(self.axes,)))
        self._smooth = smooth
        self._mesh = jax.make_mesh(
            (devices,), ("replicas",), (AxisType.Auto,), devices=jax.devices()[:devices]
        )
        if devices > 1:
            self._data = jax.device_put(data, NamedSharding(self._mesh, P()))
        self._compiled: Callable[..., TrainState] | None = None

    def init(self) -> TrainState:
        """The state at step 0. A seed's network starts the same whatever the method."""
        state: TrainState = self._init(seed_keys(self._seeds))
        return self._spread(state)

    def _spread(self, state: TrainState) -> TrainState:
        """The state with its replica axis, the one behind the seeds', over the devices."""
        if self._mesh.size == 1:
            return state

        def sharding(leaf: jax.Array) -> NamedSharding:
            is_stack = leaf.ndim > 1 and leaf.shape[1] == self.replicas
            return NamedSharding(self._mesh, P(None, "replicas") if is_stack else P())

        spread: TrainState = jax.device_put(state, jax.tree.map(sharding, state))
        return spread

    def _init_seed(self, key: jax.Array) -> TrainState:
        params, stats = initial_networks(self._network, key, self.replicas, self._method.replicated)
        noise_key, dropout_key = jax.random.split(jax.random.fold_in(key, self.replicas))
        return TrainState(params, stats, self._build(noise_key).init(params), dropout_key)

    def evaluation_weights(self, state: TrainState) -> tuple[Params, BatchStats]:
        """Weights to evaluate, and some batch statistics of theirs, stacked over the seeds."""
        params, stats = self._weights(state)
        if self._mesh.size > 1:
            params, stats = jax.device_put((params, stats), self._mesh.devices[0])
        return params, stats

    def _weights_of_seed(self, state: TrainState) -> tuple[Params, BatchStats]:
        stats = state.batch_stats
        if self._method.replicated:
            stats = jax.tree.map(lambda leaf: leaf[0], stats)
        return self._method.weights(state.opt_state, state.params), stats

    def compile(self, state: TrainState) -> None:
        """Compiles the step before the clock runs."""
        program = jax.jit(self._many_steps, donate_argnums=0)
        indices = pad_steps(self._order.indices(0, 1))
        self._compiled = program.lower(
            state, indices, np.int32(0), np.int32(0), self._data
        ).compile()

    def advance(self, state: TrainState, start: int, stop: int) -> tuple[TrainState, float]:
        """Trains all seeds from step ``start`` to ``stop``; answers state and seconds taken.

        The state given is donated: it must not be used again. Dividing a stretch of steps into
        several calls changes no bit of the result.
        """
        if self._compiled is None:
            self.compile(state)
        assert self._compiled is not None
        begin = time.perf_counter()
        for first in range(start, stop, STEPS_PER_CALL):
            last = min(first + STEPS_PER_CALL, stop)
            indices = pad_steps(self._order.indices(first, last))
            count = np.int32(last - first)
            state = self._compiled(state, indices, np.int32(first), count, self._data)
        jax.block_until_ready(state)
        return state, time.perf_counter() - begin

    def _many_steps(
        self,
        state: TrainState,
        indices: jax.Array,
        start: jax.Array,
        count: jax.Array,
        data: tuple[jax.Array, jax.Array],
    ) -> TrainState:
        """``count`` steps in a loop; the count is traced, so that every stretch is one program."""

        def body(at: jax.Array, state: TrainState) -> TrainState:
            return self._one_step(state, indices[at], start + at, data)

        return jax.lax.fori_loop(jnp.int32(0), count, body, state)

    def _one_step(
        self,
        state: TrainState,
        indices: jax.Array,
        step: jax.Array,
        data: tuple[jax.Array, jax.Array],
    ) -> TrainState:
        """One update of every seed, indices (seeds, replicas, batch)."""
        # The counters stay scalars: vmapped, each `cond` in an optimizer would run both its
        # branches.
        mapped = jax.vmap(
            partial(self._seed_step, step=step, data=data),
            in_axes=(self.axes, 0),
            out_axes=self.axes,
        )
        return mapped(state, indices)

    def _seed_step(
        self,
        state: TrainState,
        indices: jax.Array,
        *,
        step: jax.Array,
        data: tuple[jax.Array, jax.Array],
    ) -> TrainState:
        """One update of one seed, indices (replicas, batch)."""

        def gradient(
            params: Params, stats: BatchStats, places: jax.Array, key: jax.Array
        ) -> tuple[optax.Updates, BatchStats]:
            batch = data[0][places], data[1][places]
            if self._smooth is None:
                return jax.grad(self._network.training_loss, has_aux=True)(
                    params, stats, *batch, key
                )

            def loss(params: Params, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
                return self._network.training_loss(params, stats, *batch, key)[0]

            grads = jax.grad(self._smooth(loss))(params, batch, jax.random.fold_in(key, 0))
            # The running statistics are those of the weights themselves.
            return grads, self._network.training_loss(params, stats, *batch, key)[1]

        key = jax.random.fold_in(state.key, step)
        if self._method.replicated:
            keys = jax.random.split(key, self.replicas)
            grads, stats = jax.vmap(gradient)(state.params, state.batch_stats, indices, keys)
        else:
            grads, stats = gradient(state.params, state.batch_stats, indices[0], key)
        updates, opt_state = self._tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, stats, opt_state, state.key)


def seed_keys(seeds: Sequence[int]) -> jax.Array:
    """The root key of each seed, shape (seeds,)."""
    return jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))


def initial_networks(
    network: Network, key: jax.Array, replicas: int, stacked: bool
) -> tuple[Params, BatchStats]:
    """Fresh networks of one seed; the first of the replicas is that of a plain method."""
    if not stacked:
        return network.init(jax.random.fold_in(key, 0))
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(replicas, dtype=jnp.uint32))
    params, stats = jax.vmap(network.init)(keys)
    return params, stats


def seed_axes(state: TrainState) -> TrainState:
    """For each leaf of a state, the axis of the seeds: None for counters, which all share."""

    def axis(leaf: jax.ShapeDtypeStruct) -> int | None:
        counter = leaf.shape == () and jnp.issubdtype(leaf.dtype, jnp.integer)
        return None if counter else 0

    axes: TrainState = jax.tree.map(axis, state)
    return axes


def pad_steps(indices: NDArray[np.int32]) -> NDArray[np.int32]:
    """Indices of at most `STEPS_PER_CALL` steps, filled up to that for one shape in all calls."""
    missing = STEPS_PER_CALL - len(indices)
    return np.pad(indices, [(0, missing)] + [(0, 0)] * (indices.ndim - 1))
