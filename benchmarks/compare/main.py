"""`python -m benchmarks compare`: errors and widths at the same number of gradients."""

import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

from benchmarks.common import data as image_data
from benchmarks.common import environment, results
from benchmarks.common.batches import BatchOrder
from benchmarks.common.budget import Budget, plan_budget
from benchmarks.common.data import ImageData
from benchmarks.common.errors import UsageError, check_known
from benchmarks.common.evaluation import Evaluator
from benchmarks.common.family import ALL_METHODS
from benchmarks.common.files import remove_parts
from benchmarks.common.method_run import Scene, forget_checkpoints, run_method
from benchmarks.common.methods import METHODS, Hyperparameters, Method
from benchmarks.common.models import MODELS
from benchmarks.common.network import Network
from benchmarks.compare import report, terminal
from benchmarks.compare.widths import Widths

CURVE_POINTS = 24
# What may differ between a run and the one that goes on with it.
NOT_OF_THE_RESULT = ("output", "resume", "data_dir", "cache_dir", "checkpoint_seconds")


@dataclass(frozen=True)
class Compare:
    """Train with SGD, SAM, Entropy-SGD, replicated SGD and others at the same number of gradients.

    Writes results.json, report.md, report.html, the plots, and the evaluation weights of each
    method into a folder of its own.
    """

    dataset: str = "digits"
    """Images: digits (built in), or a TFDS set such as mnist, fashion_mnist, cifar10, cifar100."""
    model: str = "mlp"
    """Network: mlp, mnistfc, smallconv, lenet or allcnn."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Which methods, in which order; also elastic_sgd, parle, heat_sgd, hopf_lax_sgd,
    replicated_adam, replicated_sam, partial_entropy_sgd, partial_replicated_sgd, local_average,
    local_entropy, gaussian_smoothing."""
    seeds: int = 3
    """Number of training runs of each method; they share nothing but the data."""
    seed: int = 0
    """The first seed; the others follow it."""
    gradients: int = 2400
    """Budget: gradient evaluations of one run (replicated_sgd_y gets them for each replica)."""
    epochs: float | None = None
    """The budget in passes of SGD over the training set, instead of --gradients."""
    batch_size: int = 128
    """Images per gradient."""
    replicas: int = 3
    """Copies of the network, y, in the replicated methods."""
    devices: int = 1
    """Spread the copies of the replicated methods over so many devices, a divisor of them."""
    dropout: float | None = None
    """Probability of dropping a unit; by default the model's own."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="METHOD.NAME=VALUE")] = ()
    """Hyper-parameters other than the defaults, such as sgd.learning_rate=0.05."""
    holdout: float = 0.0
    """Share of the training images to judge by instead of the test set, for trying values."""
    flatness_images: int = 1000
    """Training images on which local energy and Hessian are measured."""
    data_dir: Path | None = None
    """Where TFDS keeps its sets; by default $TFDS_DATA_DIR, else TFDS's own."""
    cache_dir: Path | None = None
    """Where decoded images are kept; by default entropix in $XDG_CACHE_HOME or ~/.cache."""
    output: Path | None = None
    """Folder to write; by default runs/compare-<dataset>-<model>-<time>."""
    resume: bool = False
    """Go on with the interrupted run in --output, bit for bit."""
    checkpoint_seconds: float = 30.0
    """Time between two checkpoints."""


def run(config: Compare) -> int:
    """Runs the comparison; the exit status."""
    chosen = check(config)
    folder = config.output or default_folder(config)
    stored = open_folder(config, folder)
    images = load_images(config)
    budget = make_budget(config, chosen, len(images.x_train))
    scene = make_scene(config, images, budget, folder)
    found = stored or results.begin(**header(config, images, scene))
    results.write(folder, found)
    with terminal.ProgressBars(folder) as progress:
        for name, method, values in chosen:
            if name in found["methods"]:
                continue
            show = progress.start(name, budget.total(method))
            found["methods"][name] = run_method(scene, name, method, values, show)
            results.write(folder, found)
    forget_checkpoints(folder)
    report.write(folder, found)
    terminal.show_tables(found, folder)
    return 0


def load_images(config: Compare) -> ImageData:
    """The images to train on and to judge by."""
    images = image_data.load(config.dataset, data_dir=config.data_dir, cache_dir=config.cache_dir)
    if config.holdout:
        images = image_data.hold_out(images, config.holdout)
    image_data.check_size(images, config.batch_size)
    return images


def make_network(config: Compare, images: ImageData) -> Network:
    """The model for these images."""
    module = MODELS[config.model].build(images.num_classes, dropout(config))
    return Network(module, images.image_shape)


def make_scene(config: Compare, images: ImageData, budget: Budget, folder: Path) -> Scene:
    """What all methods share, with the images on the device."""
    network = make_network(config, images)
    train = jax.device_put((images.x_train, images.y_train))
    test = jax.device_put((images.x_test, images.y_test))
    return Scene(
        network=network,
        train=train,
        evaluator=Evaluator(network, train, test),
        widths=Widths(network, train, config.flatness_images),
        budget=budget,
        seeds=tuple(range(config.seed, config.seed + config.seeds)),
        batch_size=config.batch_size,
        folder=folder,
        checkpoint_seconds=config.checkpoint_seconds,
        devices=config.devices,
    )


def dropout(config: Compare) -> float:
    """The probability of dropping a unit: the user's or the model's own."""
    return MODELS[config.model].dropout if config.dropout is None else config.dropout


def header(config: Compare, images: ImageData, scene: Scene) -> dict[str, Any]:
    """What results.json says of a run before its first method."""
    return {
        "configuration": configuration(config),
        "command": environment.command(),
        "environment": environment.describe(),
        "data": {
            "name": images.name,
            "train": len(images.x_train),
            "test": len(images.x_test),
            "shape": list(images.image_shape),
            "judged_on": "held-out training images" if config.holdout else "test images",
        },
        "model": {
            "summary": MODELS[config.model].summary,
            "parameters": count_parameters(scene.network),
            "dropout": dropout(config),
        },
        "budget": dataclasses.asdict(scene.budget),
        "widths": scene.widths.settings(),
    }


def check(config: Compare) -> list[tuple[str, Method, Hyperparameters]]:
    """Raises a `UsageError` for impossible values; answers the methods and their values."""
    check_known("model", config.model, MODELS)
    for name in config.methods:
        check_known("method", name, ALL_METHODS)
    if not config.methods or len(set(config.methods)) < len(config.methods):
        raise UsageError(f"--methods must name each method once, got {' '.join(config.methods)!r}")
    bounds = [
        ("seeds", config.seeds, 1, math.inf),
        ("seed", config.seed, 0, 2**31),
        ("gradients", config.gradients, 1, math.inf),
        ("batch-size", config.batch_size, 1, math.inf),
        ("replicas", config.replicas, 2, math.inf),
        ("devices", config.devices, 1, math.inf),
        ("flatness-images", config.flatness_images, 1, math.inf),
        ("checkpoint-seconds", config.checkpoint_seconds, 0, math.inf),
    ]
    for name, number, low, high in bounds:
        if not low <= number <= high:
            raise UsageError(f"--{name} must be at least {low}, got {number}")
    if config.epochs is not None and not 0 < config.epochs < math.inf:
        raise UsageError(f"--epochs must be above 0, got {config.epochs:g}")
    if config.dropout is not None and not 0 <= config.dropout < 1:
        raise UsageError(f"--dropout must be at least 0 and below 1, got {config.dropout:g}")
    if not 0 <= config.holdout < 1:
        raise UsageError(f"--holdout must be at least 0 and below 1, got {config.holdout:g}")
    if config.replicas % config.devices or config.devices > len(jax.devices()):
        raise UsageError(
            f"--devices must divide --replicas {config.replicas} and be at most "
            f"{len(jax.devices())}, as many as there are, got {config.devices}"
        )
    if config.resume and config.output is None:
        raise UsageError("--resume needs --output, the folder of the run to go on with")
    chosen = read_settings(config.set, config.methods)
    return [
        (name, ALL_METHODS[name], ALL_METHODS[name].hyperparameters(config.model, chosen[name]))
        for name in config.methods
    ]


def read_settings(
    settings: tuple[str, ...], methods: tuple[str, ...]
) -> dict[str, dict[str, float]]:
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


def make_budget(
    config: Compare, chosen: list[tuple[str, Method, Hyperparameters]], num_examples: int
) -> Budget:
    """The budget asked for, rounded down to whole cycles of all methods."""
    steps_per_epoch = BatchOrder(num_examples, config.batch_size, ()).steps_per_epoch
    asked = config.gradients if config.epochs is None else int(config.epochs * steps_per_epoch)
    methods = [(method, values) for _, method, values in chosen]
    return plan_budget(asked, config.replicas, CURVE_POINTS, methods)


def default_folder(config: Compare) -> Path:
    """A folder of its own under ``runs``."""
    moment = time.strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"compare-{config.dataset}-{config.model}-{moment}"


def open_folder(config: Compare, folder: Path) -> dict[str, Any] | None:
    """The results so far of a run to go on with; None for a new run.

    Raises:
      UsageError: the folder holds something and --resume is not given, or it holds another run.
    """
    if not folder.exists():
        return None
    if not config.resume:
        if any(folder.iterdir()):
            raise UsageError(f"--output {folder} is not empty; give --resume to go on with its run")
        return None
    remove_parts(folder)
    stored = results.read(folder)
    if stored is None:
        if any(folder.iterdir()):
            raise UsageError(f"--resume: {folder} holds no results.json of a run to go on with")
        return None
    mine = configuration(config)
    other = [name for name in mine if stored["configuration"].get(name) != mine[name]]
    if other:
        differences = ", ".join(
            f"{name} {stored['configuration'].get(name)!r} there, {mine[name]!r} here"
            for name in other
        )
        raise UsageError(f"--resume: {folder} holds a run of another configuration: {differences}")
    return stored


def configuration(config: Compare) -> dict[str, Any]:
    """What a result depends on, as JSON keeps it."""
    fields = dataclasses.asdict(config)
    kept = {name: field for name, field in fields.items() if name not in NOT_OF_THE_RESULT}
    return {
        name: list(field) if isinstance(field, tuple) else field for name, field in kept.items()
    }


def count_parameters(network: Network) -> int:
    """Trainable numbers of the network."""
    params, _ = jax.eval_shape(network.init, jax.random.key(0))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
