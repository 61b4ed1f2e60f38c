"""What the methods of a comparison share: images, network, budget; and training one of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax
import tyro

from benchmarks.common.batches import BatchOrder
from benchmarks.common.budget import Budget, plan_budget
from benchmarks.common.data import Dataset, load_for
from benchmarks.common.evaluation import Evaluator, Scores
from benchmarks.common.family import ALL_METHODS
from benchmarks.common.methods import Course, Hyperparameters, Method
from benchmarks.common.models import MODELS
from benchmarks.common.network import BatchStats, Network, Params
from benchmarks.common.options import (
    ABOVE_ZERO,
    POSITIVE,
    SHARE,
    Among,
    ImageOptions,
    UsageError,
    Within,
    check_known,
)
from benchmarks.common.training import Trainer, TrainState, starts
from entropix import scoping


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(ImageOptions):
    """How networks are trained, whatever the method."""

    model: Annotated[str, Among("model", lambda: MODELS)] = "mlp"
    """Network: mlp, mnistfc, smallconv, lenet or allcnn; for a text gpt_small, gpt_tiny or
    char_lstm."""
    seeds: Annotated[int, POSITIVE] = 3
    """Number of training runs of each method; they share nothing but the data."""
    seed: Annotated[int, Within(0, 2**31)] = 0
    """The first seed; the others follow it."""
    gradients: Annotated[int, POSITIVE] = 2400
    """Budget: gradient evaluations of one run (replicated_sgd_y gets them for each replica)."""
    epochs: Annotated[float | None, ABOVE_ZERO] = None
    """The budget in passes of SGD over the training set, instead of --gradients."""
    batch_size: Annotated[int | None, POSITIVE] = None
    """Images, or windows of a text, per gradient; by default the model's own: 128, or 12."""
    replicas: Annotated[int, Within(2)] = 3
    """Copies of the network, y, in the replicated methods."""
    devices: Annotated[int, POSITIVE] = 1
    """Spread the copies of the replicated methods over so many devices, a divisor of them."""
    dropout: Annotated[float | None, SHARE] = None
    """Probability of dropping a unit; by default the model's own."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="METHOD.NAME=VALUE")] = ()
    """Hyper-parameters other than the defaults, such as sgd.learning_rate=0.05."""
    holdout: Annotated[float, SHARE] = 0.0
    """Share of the training images to judge by instead of the test set, for trying values."""

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """One for each training run."""
        return tuple(range(self.seed, self.seed + self.seeds))

    @property
    def examples(self) -> int:
        """Examples per gradient."""
        return self.batch_size or MODELS[self.model].batch_size


class Scene:
    """Images on the device, the network, and the budget of each method.

    Attributes:
      options: how networks are trained.
      methods: each method's entry of the registry, by name.
      values: each method's hyper-parameters.
      images: what is trained on.
      network: the model.
      train: training images and classes, on the device.
      evaluator: scores weights.
      budget: gradients for each method.
    """

    def __init__(self, options: TrainingOptions, methods: Sequence[str], points: int) -> None:
        """Reads the images.

        Args:
          options: within their bounds.
          methods: names of those to train.
          points: of a learning curve, about.

        Raises:
          UsageError: the options do not go together.
        """
        if options.replicas % options.devices or options.devices > len(jax.devices()):
            raise UsageError(
                f"--devices must divide --replicas {options.replicas} and be at most "
                f"{len(jax.devices())}, as many as there are, got {options.devices}"
            )
        self.options = options
        chosen = read_settings(options.set, methods)
        self.methods: dict[str, Method] = {name: ALL_METHODS[name] for name in methods}
        self.values = {
            name: method.hyperparameters(options.model, chosen[name])
            for name, method in self.methods.items()
        }
        self.images, self.network = images_and_network(options)
        self.train = jax.device_put((self.images.x_train, self.images.y_train))
        test = jax.device_put((self.images.x_test, self.images.y_test))
        self.evaluator = Evaluator(self.network, self.train, test)
        self.budget = self._budget(points)

    def trainer(self, name: str) -> Trainer:
        """The trainer of one method on all seeds."""
        method, values, options = self.methods[name], self.values[name], self.options
        replicas = self.budget.copies(method)
        gamma = self._balanced_gamma if method.replicated else 0.0
        steps = self.budget.steps(method)

        def build(key: jax.Array, axis_name: tuple[str, ...]) -> optax.GradientTransformation:
            names = axis_name if method.replicated else ()
            return method.build(values, Course(steps, gamma, names), key)

        return Trainer(
            self.network,
            build,
            self.train,
            options.all_seeds,
            batch_size=options.examples,
            replicas=replicas,
            weights=method.weights,
            smooth=method.smooth and method.smooth(values),
            devices=options.devices if method.replicated else 1,
            alike=method.alike,
        )

    def settled(self, trainer: Trainer, state: TrainState) -> tuple[Params, BatchStats]:
        """The evaluation weights of all seeds and their recomputed batch statistics."""
        params, stats = trainer.evaluation_weights(state)
        return params, self.evaluator.statistics(params, stats)

    def glance(self, trainer: Trainer, state: TrainState) -> Scores:
        """Scores of all seeds at the evaluation weights, for a point of a curve."""
        return self.evaluator.glance(*self.settled(trainer, state))

    def header(self) -> dict[str, Any]:
        """What results.json says of images, model and budget."""
        return {
            "data": {
                "name": self.images.name,
                "train": len(self.images.x_train),
                "test": len(self.images.x_test),
                "shape": list(self.images.example_shape),
                "judged_on": judged_on(self.images, self.options.holdout),
                "is_text": self.images.is_text,
                "predictions": self.images.predictions,
                "batch_size": self.options.examples,
            },
            "model": {
                "summary": MODELS[self.options.model].summary,
                "parameters": self.network.num_parameters(),
                "dropout": dropout(self.options),
            },
            "budget": asdict(self.budget),
        }

    def _budget(self, points: int) -> Budget:
        """The budget asked for, rounded down to whole cycles of all methods."""
        options = self.options
        order = BatchOrder(len(self.images.x_train), options.examples, ())
        asked = options.gradients
        if options.epochs is not None:
            asked = int(options.epochs * order.steps_per_epoch)
        methods = [(method, self.values[name]) for name, method in self.methods.items()]
        return plan_budget(asked, options.replicas, points, methods)

    @cached_property
    def _balanced_gamma(self) -> float:
        """The coupling at which pull and loss of untrained replicas are of one size."""
        seeds = jnp.asarray(self.options.all_seeds, jnp.uint32)
        start = starts(self.network, seeds, self.options.replicas)
        couplings = []
        for at in range(len(seeds)):
            one = jax.tree.map(lambda x, at=at: x[:, at], (start.params, start.batch_stats))
            loss = jnp.mean(jnp.asarray(self.evaluator.glance(*one).train_loss))
            couplings.append(float(scoping.automatic(loss, one[0])))
        return sum(couplings) / len(couplings)


def images_and_network(options: TrainingOptions) -> tuple[Dataset, Network]:
    """The images or texts to train on and to judge by, and the model for them."""
    model = MODELS[options.model]
    if model.block is not None and options.dropout:
        raise UsageError(f"--dropout must be 0 for {options.model}, got {options.dropout:g}")
    images = load_for(
        options, batch_size=options.examples, holdout=options.holdout, block=model.block
    )
    module = model.build(images.num_classes, dropout(options))
    return images, Network(module, images.example_shape)


def judged_on(images: Dataset, holdout: float) -> str:
    """What the final numbers are of."""
    if images.is_text:
        return "held-out training text" if holdout else "validation text"
    return "held-out training images" if holdout else "test images"


def dropout(options: TrainingOptions) -> float:
    """The probability of dropping a unit: the user's or the model's own."""
    return MODELS[options.model].dropout if options.dropout is None else options.dropout


def read_settings(settings: Sequence[str], methods: Sequence[str]) -> Mapping[str, Hyperparameters]:
    """Hyper-parameters chosen by the user, method by method."""
    chosen: dict[str, dict[str, float]] = {name: {} for name in methods}
    for setting in settings:
        place, equals, text = setting.partition("=")
        name, dot, parameter = place.partition(".")
        if not (equals and dot):
            raise UsageError(f"--set takes METHOD.NAME=VALUE, got {setting!r}")
        check_known("method", name, methods)
        defaults = ALL_METHODS[name].defaults
        check_known(f"hyper-parameter of {name}", parameter, defaults)
        chosen[name][parameter] = read_value(place, text, defaults[parameter])
    return chosen


def read_value(place: str, text: str, default: float) -> float:
    """A value of at least 0; whole and at least 1 where the default is whole."""
    try:
        value = float(text)
    except ValueError:
        raise UsageError(f"--set {place} takes a number, got {text!r}") from None
    if isinstance(default, int):
        if not (value >= 1 and value.is_integer()):
            raise UsageError(f"--set {place} takes a whole number of at least 1, got {text!r}")
        return int(value)
    if not 0 <= value < math.inf:
        raise UsageError(f"--set {place} takes a number of at least 0, got {text!r}")
    return value
