"""Training: one step of one network, and the loop over all seeds and replicas of a method."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

import entropix
from benchmarks.common.batches import BatchOrder
from benchmarks.common.network import BatchStats, Network, Params
from entropix import replicas as stacks
from entropix.losses import Loss, SmoothedLoss

# Steps in one call of the compiled loop: enough to hide the call, few enough to show progress.
STEPS_PER_CALL = 100

Batch = tuple[jax.Array, jax.Array]
# The weights to evaluate, from the optimizer's state and those that are trained.
Weights = Callable[[optax.OptState, Params], Params]
# The optimizer of one replica, from a noise key and the names of the axes that replicas are on.
Build = Callable[[jax.Array, tuple[str, ...]], optax.GradientTransformation]


class TrainState(NamedTuple):
    """Everything that a step changes, of one network or stacked; integers are not stacked.

    Attributes:
      params: weights of the training loop.
      batch_stats: running batch statistics.
      opt_state: the optimizer's state.
      key: for dropout.
      step: steps made, shared by all. # shape=(), dtype=int32
    """

    params: Params
    batch_stats: BatchStats
    opt_state: optax.OptState
    key: jax.Array
    step: jax.Array


Step = Callable[[TrainState, Batch], tuple[TrainState, jax.Array]]


def make_step(
    network: Network,
    tx: optax.GradientTransformation,
    smooth: Callable[[Loss], SmoothedLoss] | None = None,
) -> Step:
    """One update of one network, with its training loss.

    Args:
      network: the model.
      tx: the optimizer of one replica.
      smooth: what turns the training loss into the one to train on.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, jax.Array]:
        key = jax.random.fold_in(state.key, state.step)

        def loss(params: Params, batch: Batch) -> tuple[jax.Array, BatchStats]:
            return network.training_loss(params, state.batch_stats, *batch, key)

        if smooth is None:
            (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(state.params, batch)
        else:
            smoothed = smooth(lambda params, batch: loss(params, batch)[0])
            grads = jax.grad(smoothed)(state.params, batch, jax.random.fold_in(key, 0))
            # The running statistics are those of the weights themselves.
            value, stats = loss(state.params, batch)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, stats, opt_state, state.key, state.step + 1), value

    return step


class Start(NamedTuple):
    """Where the training of one replica starts; depends on its key alone.

    Attributes:
      params: weights.
      batch_stats: batch statistics.
      noise_key: for the optimizer.
      dropout_key: for dropout.
    """

    params: Params
    batch_stats: BatchStats
    noise_key: jax.Array
    dropout_key: jax.Array


def start_of(network: Network, key: jax.Array) -> Start:
    """The start that belongs to a key."""
    init_key, noise_key, dropout_key = jax.random.split(key, 3)
    return Start(*network.init(init_key), noise_key, dropout_key)


def state_from(
    build: Callable[[jax.Array], optax.GradientTransformation], start: Start
) -> TrainState:
    """The state at step 0 of one replica, from its start."""
    opt_state = build(start.noise_key).init(start.params)
    return TrainState(
        start.params, start.batch_stats, opt_state, start.dropout_key, jnp.zeros([], jnp.int32)
    )


def initial_state(
    network: Network, build: Callable[[jax.Array], optax.GradientTransformation], key: jax.Array
) -> TrainState:
    """The state at step 0 of one replica; its network depends on the key alone."""
    return state_from(build, start_of(network, key))


@partial(jax.jit, static_argnames=("network", "replicas"))
def starts(network: Network, seeds: jax.Array, replicas: int) -> Start:
    """Where the replicas of all seeds start, leaves (replicas, seeds, ...).

    One program for all methods of a run: drawing a large network takes longer to compile than to
    do.
    """
    keys = jax.vmap(lambda seed: replica_keys(seed, replicas), out_axes=1)(seeds)
    return jax.vmap(jax.vmap(partial(start_of, network)))(keys)


def replica_keys(seed: int | jax.Array, count: int) -> jax.Array:
    """One key per replica, which does not depend on how many there are."""
    return jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(
        jnp.arange(count, dtype=jnp.uint32)
    )


class Trainer:
    """Trains one method on all seeds at once; compiles once.

    The leaves of its states are (replicas, seeds, ...), with one replica for a method without any.
    """

    def __init__(
        self,
        network: Network,
        build: Build,
        data: Batch,
        seeds: Sequence[int],
        *,
        batch_size: int,
        replicas: int = 1,
        weights: Weights | None = None,
        smooth: Callable[[Loss], SmoothedLoss] | None = None,
        devices: int = 1,
        alike: bool = False,
    ) -> None:
        """Compiles nothing yet.

        Args:
          network: the model.
          build: the method's optimizer.
          data: training images (n, height, width, channels) and their classes (n,).
          seeds: one run each.
          batch_size: images per gradient.
          replicas: copies per seed.
          weights: those to evaluate, of a method without replicas that `entropix.eval_params` does
            not know.
          smooth: what turns the training loss into the one to train on.
          devices: over how many the replicas are spread; a divisor of their number.
          alike: whether the replicas of a seed start from the same weights.
        """
        self._plan = plan = stacks.plan(replicas, devices=devices)

        def build_here(key: jax.Array) -> optax.GradientTransformation:
            return build(key, plan.axis_name)

        step = make_step(network, build_here(jax.random.key(0)), smooth)
        self._seeds = jnp.asarray(seeds, jnp.uint32)
        self._order = BatchOrder(len(data[0]), batch_size, tuple(seeds), replicas)
        self._data = data
        self._is_spread = devices > 1
        if self._is_spread:
            # What a device takes with its replicas; elsewhere all share one copy.
            self._data = plan.place_batch(
                jax.tree.map(lambda x: np.broadcast_to(x, (replicas, *x.shape)), data)
            )

        init = partial(state_from, build_here)
        axes = replica_axes(
            jax.eval_shape(lambda key: init(start_of(network, key)), jax.random.key(0))
        )
        self._step = jax.vmap(step, in_axes=(axes, 0), out_axes=(axes, 0))
        self._starts = partial(starts, network, self._seeds, replicas)

        def init_all(start: Start) -> TrainState:
            if alike:
                eldest = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), start.params)
                start = start._replace(params=eldest)
            return jax.vmap(jax.vmap(init, out_axes=axes), out_axes=axes)(start)

        self._init = jax.jit(init_all)
        behind = jax.tree.map(lambda axis: axis + 1, axes.opt_state)

        def evaluated(opt_state: optax.OptState, params: Params) -> Params:
            if weights is None:
                return entropix.eval_params(opt_state, params, axis=0)
            one = jax.tree.map(lambda leaf: leaf[0] if leaf.ndim else leaf, (opt_state, params))
            return weights(*one)

        evaluated_seeds = jax.vmap(evaluated, in_axes=(behind, 1))
        self._weights = jax.jit(
            lambda state: (
                evaluated_seeds(state.opt_state, state.params),
                jax.tree.map(lambda x: x[0], state.batch_stats),
            )
        )
        self._compiled: Callable[..., TrainState] | None = None

    def init(self) -> TrainState:
        """The state at step 0. A seed's network starts the same whatever the method."""
        state: TrainState = self._plan.place(self._init(self._starts()))
        return state

    def shapes(self) -> TrainState:
        """Shapes, dtypes and shardings of a state, to restore one into."""
        whole: TrainState = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
            self.init(),
        )
        return whole

    def evaluation_weights(self, state: TrainState) -> tuple[Params, BatchStats]:
        """Weights to evaluate, and some batch statistics of theirs, stacked over the seeds."""
        params, stats = self._weights(state)
        if len(self._plan.devices) > 1:
            params, stats = jax.device_put((params, stats), self._plan.devices[0])
        return params, stats

    def compile(self, state: TrainState) -> None:
        """Compiles the loop before the clock runs."""
        program = jax.jit(self._many_steps, donate_argnums=0)
        places = self._plan.place_batch(self._places(0, 1))
        self._compiled = program.lower(state, places, np.int32(0), self._data).compile()

    def advance(self, state: TrainState, stop: int) -> tuple[TrainState, float]:
        """Trains all seeds up to step ``stop``; answers state and seconds taken.

        The state given is donated: it must not be used again. Dividing a stretch of steps into
        several calls changes no bit of the result.
        """
        if self._compiled is None:
            self.compile(state)
        assert self._compiled is not None
        first = int(state.step)
        begin = time.perf_counter()
        for start in range(first, stop, STEPS_PER_CALL):
            end = min(start + STEPS_PER_CALL, stop)
            places = self._plan.place_batch(self._places(start, end))
            state = self._compiled(state, places, np.int32(end - start), self._data)
        jax.block_until_ready(state)
        return state, time.perf_counter() - begin

    def _places(self, start: int, stop: int) -> NDArray[np.int32]:
        """Places in the training set, (replicas, steps, seeds, batch), padded to one shape."""
        places = self._order.indices(start, stop)
        missing = STEPS_PER_CALL - len(places)
        return np.pad(places, [(0, missing), (0, 0), (0, 0), (0, 0)]).transpose(2, 0, 1, 3)

    def _many_steps(
        self, state: TrainState, places: jax.Array, count: jax.Array, data: Batch
    ) -> TrainState:
        """``count`` steps in a loop; the count is traced, so that every stretch is one program."""

        def of_replica(state: TrainState, batch: Any) -> tuple[TrainState, None]:
            places, (images, labels) = batch if self._is_spread else (batch, data)

            def body(at: jax.Array, state: TrainState) -> TrainState:
                return self._step(state, (images[places[at]], labels[places[at]]))[0]

            return jax.lax.fori_loop(jnp.int32(0), count, body, state), None

        batch = (places, data) if self._is_spread else places
        new_state: TrainState = self._plan.run(of_replica)(state, batch)[0]
        return new_state


def replica_axes(state: TrainState) -> TrainState:
    """Axes to map the states of replicas or seeds over: 0, and None for counters.

    Counters stay scalars: mapped, each `cond` in an optimizer would run both its branches.

    Args:
      state: of one replica, or its shapes.
    """

    def axis(leaf: jax.ShapeDtypeStruct) -> int | None:
        counter = not leaf.ndim and jnp.issubdtype(leaf.dtype, jnp.integer)
        return None if counter else 0

    axes: TrainState = jax.tree.map(axis, state)
    return axes
