"""One training of the layer-by-layer experiment: an architecture, some layers, a radius."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import optax

from benchmarks.common.data import Dataset
from benchmarks.common.evaluation import Evaluator
from benchmarks.common.models import Dense
from benchmarks.common.network import Network
from benchmarks.common.training import Trainer
from entropix import losses
from entropix.flatness import layer_temperature

LOSSES = {"local_entropy": losses.local_entropy_loss, "local_average": losses.local_average_loss}


@dataclass(frozen=True)
class Cell:
    """One training.

    Attributes:
      depth: layers of weights.
      layers: the smoothed ones, from 1 at the images; none for the plain loss.
      radius: half the side of the cube, 0 for the plain loss.
    """

    depth: int
    layers: tuple[int, ...]
    radius: float

    @property
    def name(self) -> str:
        """A key for results."""
        return f"{self.depth} layers, {self.label}, radius {self.radius:g}"

    @property
    def label(self) -> str:
        """The smoothed layers in words."""
        if not self.layers:
            return "plain loss"
        if len(self.layers) == self.depth:
            return "all layers"
        return "layer " + " and ".join(map(str, self.layers))


def all_cells(depths: tuple[int, ...], radii: tuple[float, ...]) -> Iterator[Cell]:
    """The plain loss, then each layer, each pair and all layers, at each radius."""
    for depth in depths:
        yield Cell(depth, (), 0.0)
        layers = range(1, depth + 1)
        sizes = sorted({1, min(2, depth), depth})
        for size in sizes:
            for chosen in itertools.combinations(layers, size):
                for radius in radii:
                    yield Cell(depth, chosen, radius)


@dataclass(frozen=True)
class Setting:
    """What all cells share.

    Attributes:
      images: the set, standardized.
      train: its training part, on the device.
      test: its test part, on the device.
      width: units of each hidden layer.
      loss: name of the smoothed loss.
      samples: displaced copies of the weights.
      learning_rate: of SGD, constant.
      momentum: heavy-ball momentum.
      batch_size: images per gradient.
      seeds: one training each.
      steps: updates.
    """

    images: Dataset
    train: tuple[jax.Array, jax.Array]
    test: tuple[jax.Array, jax.Array]
    width: int
    loss: str
    samples: int
    learning_rate: float
    momentum: float
    batch_size: int
    seeds: tuple[int, ...]
    steps: int

    def network(self, depth: int) -> Network:
        """A fully connected network with so many layers of weights."""
        module = Dense((self.width,) * (depth - 1), self.images.num_classes, 0.0)
        return Network(module, self.images.example_shape)

    def trainer(self, cell: Cell) -> Trainer:
        """The trainer of one cell, compiled when it is first used."""
        optimizer = optax.sgd(self.learning_rate, momentum=self.momentum)
        smooth = None
        if cell.layers:
            smooth = lambda loss: LOSSES[self.loss](  # noqa: E731
                loss, radius=cell.radius, samples=self.samples, mask=weights_of(cell.layers)
            )
        return Trainer(
            self.network(cell.depth),
            lambda *_: optimizer,
            self.train,
            self.seeds,
            batch_size=self.batch_size,
            smooth=smooth,
        )


def weights_of(layers: tuple[int, ...]) -> Callable[[tuple[Any, ...]], bool]:
    """The mask of the weights of some layers, without their biases, as in the paper."""
    chosen = {f"Dense_{layer - 1}" for layer in layers}
    return lambda path: path[-1].key == "kernel" and path[-2].key in chosen


def train_cell(setting: Setting, cell: Cell, evaluator: Evaluator) -> dict[str, Any]:
    """Trains one cell on all seeds; its scores."""
    trainer = setting.trainer(cell)
    state, seconds = trainer.advance(trainer.init(), setting.steps)
    params, stats = trainer.evaluation_weights(state)
    scores = evaluator.scores(params, stats, whole=True)._asdict()
    return {
        "depth": cell.depth, "layers": list(cell.layers), "radius": cell.radius,
        "label": cell.label, "seconds": seconds, **scores,
    }  # fmt: skip


def temperatures(setting: Setting, depth: int, points: int) -> list[dict[str, Any]]:
    """Temperature and signal of each layer of the first seed's plain training, on the way."""
    trainer = setting.trainer(Cell(depth, (), 0.0))
    network = setting.network(depth)
    state = trainer.init()
    stops = sorted({max(1, round(setting.steps * at / points)) for at in range(1, points + 1)})
    found = []

    def loss(params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        logits = network.logits(params, {}, batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    def layer(path: tuple[Any, ...]) -> str | None:
        return path[-2].key if path[-1].key == "kernel" else None

    for stop in stops:
        state, _ = trainer.advance(state, stop)
        params = jax.tree.map(lambda leaf: leaf[0, 0], state.params)
        measured = layer_temperature(
            loss, params, setting.train, minibatch_size=setting.batch_size, group=layer
        )
        found.append(
            {"step": stop}
            | {
                field: {
                    f"layer {int(name.removeprefix('Dense_')) + 1}": float(number)
                    for name, number in getattr(measured, field).items()
                }
                for field in measured._fields
            }
        )
    return found
