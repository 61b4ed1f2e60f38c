"""One training of a language model by local SGD, and what its step sends."""

from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import jax
import numpy as np
import optax

import entropix
from benchmarks.common.batches import BatchOrder
from benchmarks.common.data import Dataset
from benchmarks.common.evaluation import Evaluator
from benchmarks.common.network import Network, Params
from benchmarks.common.traffic import formula, sent_per_step
from entropix import Compression, replicas

# nanoGPT's AdamW for a language model of this size.
B2, WEIGHT_DECAY = 0.99, 0.1
WARM_UP, LOWEST = 0.05, 0.1


@dataclass(frozen=True)
class Outer:
    """The outer optimizer: Nesterov's momentum on the mean way of the workers.

    Attributes:
      rate: outer learning rate.
      momentum: outer momentum.
    """

    rate: float
    momentum: float

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.rate:g}/{self.momentum:g}"

    @property
    def gain(self) -> float:
        """By how much it multiplies the inner learning rate in the long run."""
        return self.rate / (1 - self.momentum)


# One worker that meets itself after each step, and takes up what it did: the inner optimizer alone.
NONE = Outer(1.0, 0.0)


@dataclass(frozen=True)
class Cell:
    """One training.

    Attributes:
      workers: M.
      every: H, steps between meetings.
      outer: the outer optimizer.
      learning_rate: of the inner AdamW, at its peak.
      seed: of weights and mini-batches.
      compression: how differences travel; empty for in full.
      tuning: whether it is judged on held-out training text.
    """

    workers: int
    every: int
    outer: Outer
    learning_rate: float
    seed: int
    compression: str = ""
    tuning: bool = False

    @property
    def name(self) -> str:
        """A key for results."""
        return (
            f"{'tuning' if self.tuning else 'final'} M={self.workers} H={self.every} "
            f"{self.outer.name} rate={self.learning_rate:g} seed={self.seed}"
            + f" {self.compression}"
            * bool(self.compression)
        )

    def as_json(self) -> dict[str, Any]:
        """What the cell is, for results.json."""
        return asdict(self) | {"outer": self.outer.name}


@dataclass(frozen=True, eq=False)
class Setting:
    """What all cells share; one is equal to itself alone, so that each program is compiled once.

    Attributes:
      network: the model.
      data: the text.
      batch_size: windows per step, of all workers together.
      steps: of each worker.
    """

    network: Network
    data: Dataset
    batch_size: int
    steps: int


def optimizer(
    steps: int,
    every: Any,
    outer: tuple[Any, Any],
    learning_rate: Any,
    compression: str,
    **where: Any,
) -> optax.GradientTransformationExtraArgs:
    """DiLoCo around AdamW, whose rate warms up and falls; all numbers may be traced."""
    course = optax.warmup_cosine_decay_schedule(0.0, 1.0, round(WARM_UP * steps), steps, LOWEST)
    return entropix.diloco(
        optax.adamw(lambda step: learning_rate * course(step), b2=B2, weight_decay=WEIGHT_DECAY),
        optax.sgd(outer[0], momentum=outer[1], nesterov=True),
        inner_steps=every,
        # The first loop is shorter where that lets the last one end with the training.
        phase=-steps % every,
        compression=Compression(compression) if compression else None,  # type: ignore[arg-type]
        **where,
    )


def train(setting: Setting, cell: Cell) -> Params:
    """The shared weights at the end of a training."""
    share = setting.batch_size // cell.workers
    order = BatchOrder(len(setting.data.x_train), share, (cell.seed,), cell.workers)
    places = order.indices(0, setting.steps)[:, 0]
    run = _program(setting.network, setting.steps, cell.workers, cell.compression)
    trained: Params = run(
        jax.random.key(cell.seed),
        (setting.data.x_train[places], setting.data.y_train[places]),
        np.int32(cell.every),
        (np.float32(cell.outer.rate), np.float32(cell.outer.momentum)),
        np.float32(cell.learning_rate),
    )
    return trained


@cache
def _program(network: Network, steps: int, workers: int, compression: str) -> Any:
    """The whole training as one compiled program, of which all else is an argument."""

    def loss(params: Params, batch: Any) -> jax.Array:
        return network.training_loss(params, {}, batch[0], batch[1], jax.random.key(0))[0]

    def run(key: Any, batches: Any, every: Any, outer: Any, rate: Any) -> Params:
        tx = optimizer(steps, every, outer, rate, compression, axis=0)
        params = replicas.replicate(network.init(key)[0], workers)

        def step(carry: Any, batch: Any) -> Any:
            params, state = carry
            grads = jax.vmap(jax.grad(loss))(params, batch)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, state), _ = jax.lax.scan(step, (params, tx.init(params)), batches)
        return entropix.eval_params(state, params, axis=0)

    return jax.jit(run)


def losses(setting: Setting, params: Params) -> dict[str, float]:
    """Mean cross entropy per character, in nats, of what is judged and of some training text."""
    stacked = jax.tree.map(lambda leaf: leaf[None], params)
    scores = _evaluator(setting).scores(stacked, {}, whole=False)
    return {"loss": scores.test_loss[0], "train_loss": scores.train_loss[0]}


@cache
def _evaluator(setting: Setting) -> Evaluator:
    data = setting.data
    train, test = jax.device_put(((data.x_train, data.y_train), (data.x_test, data.y_test)))
    return Evaluator(setting.network, train, test)


def traffic(setting: Setting, workers: int, every: int, compression: str) -> dict[str, float]:
    """Bytes that each device sends in a mean step: by arithmetic, and in the compiled program."""
    counted = 0.0
    if workers > 1:
        counted = sent_per_step(_step_program(setting, workers, compression), every, workers)
    small = Compression(compression) if compression else None  # type: ignore[arg-type]
    parameters = setting.network.num_parameters()
    return {"formula": formula(parameters, every, workers, small), "counted": counted}


@cache
def _step_program(setting: Setting, workers: int, compression: str) -> str:
    """The text of one whole step with a device for each worker; H does not change it."""
    plan = replicas.plan(workers, devices=workers)
    tx = optimizer(setting.steps, 10, (0.7, 0.9), 1e-3, compression, axis_name=plan.axis_name)

    def loss(params: Params, batch: Any) -> jax.Array:
        return setting.network.training_loss(params, {}, batch[0], batch[1], jax.random.key(0))[0]

    def step(state: Any, batch: Any) -> Any:
        params, opt_state = state
        value, grads = jax.value_and_grad(loss)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    def start() -> Any:
        params = replicas.replicate(setting.network.init(jax.random.key(0))[0], workers)
        return params, replicas.stack_states(tx.init, params)

    shapes = jax.eval_shape(start)
    state = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        plan.shardings(shapes),
    )
    share = setting.batch_size // workers
    batch = plan.place_batch(
        jax.tree.map(
            lambda x: np.stack([x[:share]] * workers), (setting.data.x_train, setting.data.y_train)
        )
    )
    lowered = plan.run(step).lower(state, batch)  # type: ignore[attr-defined]
    # What machine code is made of it does not matter.
    compiled = lowered.compile(compiler_options={"xla_backend_optimization_level": 0})
    text: str = compiled.as_text()
    return text
