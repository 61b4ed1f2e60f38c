"""The step of one replica, and the states and mini-batches of all of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import entropix
from benchmarks.common.batches import BatchOrder
from benchmarks.common.data import ImageData
from benchmarks.common.network import BatchStats, Network, Params
from entropix import replicas
from entropix.replicas import Plan


class RunState(NamedTuple):
    """Everything that a step changes, of one replica or stacked.

    Attributes:
      params: weights of the training loop.
      batch_stats: running batch statistics.
      opt_state: the optimizer's state.
      key: for dropout, a key of its own for each replica.
      step: steps made, shared by all. # shape=(), dtype=int32
    """

    params: Params
    batch_stats: BatchStats
    opt_state: optax.OptState
    key: jax.Array
    step: jax.Array


class Hyperparameters(NamedTuple):
    """What the three algorithms are told.

    Attributes:
      learning_rate: of SGD, or of Parle's inner loop.
      gamma: coupling between replicas; for Parle, of the inner loop.
      every: steps between couplings.
      momentum: Nesterov's.
    """

    learning_rate: float
    gamma: float
    every: int
    momentum: float


def _replicated_sgd(h: Hyperparameters, axis_name: tuple[str, ...]) -> Any:
    return entropix.replicated_sgd(
        h.learning_rate, gamma=h.gamma, every=h.every, momentum=h.momentum, axis_name=axis_name
    )


def _elastic_sgd(h: Hyperparameters, axis_name: tuple[str, ...]) -> Any:
    return entropix.elastic_sgd(
        h.learning_rate, gamma=h.gamma, every=h.every, momentum=h.momentum, axis_name=axis_name
    )


def _parle(h: Hyperparameters, axis_name: tuple[str, ...]) -> Any:
    return entropix.parle(
        gamma=h.gamma,
        rho=1.0,
        inner_learning_rate=h.learning_rate,
        inner_steps=h.every,
        inner_momentum=h.momentum,
        momentum=None,
        axis_name=axis_name,
    )


ALGORITHMS: dict[str, Callable[[Hyperparameters, tuple[str, ...]], Any]] = {
    "replicated_sgd": _replicated_sgd,
    "elastic_sgd": _elastic_sgd,
    "parle": _parle,
}


def make_step(network: Network, tx: Any, plan: Plan) -> Callable[[RunState, Any], Any]:
    """One update of one replica, with its training loss."""

    def step(state: RunState, batch: tuple[jax.Array, jax.Array]) -> tuple[RunState, jax.Array]:
        key = jax.random.fold_in(state.key, state.step)
        (value, stats), grads = jax.value_and_grad(network.training_loss, has_aux=True)(
            state.params, state.batch_stats, *batch, key
        )
        value, stats, grads = plan.data_mean((value, stats, grads))
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return RunState(params, stats, opt_state, state.key, state.step + 1), value

    return step


def initial_state(network: Network, tx: Any, seed: int, count: int) -> RunState:
    """Replicas that start from initializations of their own, stacked."""

    def init(key: jax.Array) -> RunState:
        params, stats = network.init(jax.random.fold_in(key, 0))
        return RunState(params, stats, tx.init(params), key, jnp.zeros([], jnp.int32))

    return replicas.stack_states(init, replica_keys(seed, count))


def replica_keys(seed: int, count: int) -> jax.Array:
    """One key per replica, which does not depend on how many there are."""
    return jax.vmap(lambda a: jax.random.fold_in(jax.random.key(seed), a))(
        jnp.arange(count, dtype=jnp.uint32)
    )


def resized(state: RunState, count: int, seed: int) -> RunState:
    """The state for another number of replicas, their center kept."""
    params, rest = replicas.resize(state.params, count, state._replace(params=None))
    return rest._replace(params=params, key=replica_keys(seed, count))


def mended(state: RunState) -> tuple[RunState, jax.Array]:
    """The state with replicas that diverged put at the center of the others, and how many."""
    revived = replicas.revive(state.params, state._replace(params=None))
    return revived.state._replace(params=revived.params), revived.num_replaced


class Feed:
    """The mini-batches of this process's replicas."""

    def __init__(self, data: ImageData, plan: Plan, seed: int, batch_size: int) -> None:
        """Keeps the set; nothing is drawn yet."""
        self._data, self._plan = data, plan
        self._order = BatchOrder(len(data.x_train), batch_size, (seed,), plan.replicas)

    def __call__(self, step: int) -> Any:
        """The batch of one step, on the devices."""
        places = self._plan.local_part(self._order.indices(step, step + 1)[0, 0])
        return self._plan.place_batch((self._data.x_train[places], self._data.y_train[places]))
