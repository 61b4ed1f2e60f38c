"""The `partial` experiment: its options, its loop, its tables and figures."""

import dataclasses
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import track

from benchmarks.common import data as image_data
from benchmarks.common import environment
from benchmarks.common.batches import BatchOrder
from benchmarks.common.errors import UsageError, check_known
from benchmarks.common.evaluation import Evaluator
from benchmarks.common.files import remove_parts, write_text
from benchmarks.common.results import estimate
from benchmarks.partial import figures
from benchmarks.partial.cells import LOSSES, Cell, Setting, all_cells, temperatures, train_cell

RESULT = "partial.json"
NOT_OF_THE_RESULT = ("output", "resume", "data_dir", "cache_dir")


@dataclass(frozen=True)
class Partial:
    """Smooth the loss over single layers, pairs and all of them, and compare with the plain loss.

    Writes partial.json, partial.md and the figures into a folder of its own. The paper's values:
    fashion_mnist or mnist, width 784, batch 256, learning rate 1e-4, 120 epochs.
    """

    dataset: str = "digits"
    """Images: digits (built in), or a TFDS set such as mnist or fashion_mnist."""
    depths: tuple[int, ...] = (2, 3)
    """Layers of weights of the fully connected networks."""
    width: int = 64
    """Units of each hidden layer."""
    radii: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)
    """Half the side of the cube, in units of the weights."""
    loss: str = "local_entropy"
    """local_entropy (PLEA) or local_average (PLA)."""
    samples: int = 4
    """Displaced copies of the weights, y."""
    learning_rate: float = 0.01
    """Of SGD, constant."""
    momentum: float = 0.9
    """Heavy-ball momentum."""
    batch_size: int = 128
    """Images per gradient."""
    epochs: float = 40.0
    """Passes over the training set."""
    seeds: int = 5
    """Trainings of each kind; all kinds share the seeds."""
    temperature_points: int = 24
    """Moments of the plain training at which the layers' temperatures are measured."""
    data_dir: Path | None = None
    """Where TFDS keeps its sets; by default $TFDS_DATA_DIR, else TFDS's own."""
    cache_dir: Path | None = None
    """Where decoded images are kept; by default entropix in $XDG_CACHE_HOME or ~/.cache."""
    output: Path | None = None
    """Folder to write; by default runs/partial-<dataset>-<time>."""
    resume: bool = False
    """Go on with the interrupted run in --output; what is there is not trained again."""


def run(config: Partial) -> int:
    """Trains all cells, then draws; the exit status."""
    check(config)
    moment = time.strftime("%Y%m%d-%H%M%S")
    folder = config.output or Path("runs") / f"partial-{config.dataset}-{moment}"
    found = open_folder(config, folder)
    images = image_data.load(config.dataset, data_dir=config.data_dir, cache_dir=config.cache_dir)
    image_data.check_size(images, 2 * config.batch_size)
    setting = make_setting(config, images)
    cells = list(all_cells(config.depths, config.radii))
    missing = [cell for cell in cells if cell.name not in found["cells"]]
    for cell in track(missing, "training", transient=True):
        evaluator = Evaluator(setting.network(cell.depth), setting.train, setting.test)
        found["cells"][cell.name] = train_cell(setting, cell, evaluator)
        write(folder, found)
    for depth in config.depths:
        if str(depth) not in found["temperatures"]:
            measured = temperatures(setting, depth, config.temperature_points)
            found["temperatures"][str(depth)] = measured
            write(folder, found)
    pictures = figures.draw(folder, found)
    shown_below = "".join(f"\n![{name}]({name}.svg)\n" for name in pictures)
    write_text(folder / "partial.md", table(found, cells) + shown_below)
    Console().print(f"Written: {folder / 'partial.md'}")
    return 0


def check(config: Partial) -> None:
    """Raises a `UsageError` for impossible values."""
    check_known("loss", config.loss, LOSSES)
    if not config.depths or min(config.depths) < 2:
        raise UsageError(f"--depths takes numbers of at least 2, got {config.depths}")
    if not config.radii or not all(0 < radius < math.inf for radius in config.radii):
        raise UsageError(f"--radii takes numbers above 0, got {config.radii}")
    for name in ("width", "samples", "batch_size", "seeds", "temperature_points"):
        if getattr(config, name) < 1:
            option = name.replace("_", "-")
            raise UsageError(f"--{option} must be at least 1, got {getattr(config, name)}")
    for name in ("learning_rate", "epochs"):
        if not 0 < getattr(config, name) < math.inf:
            option = name.replace("_", "-")
            raise UsageError(f"--{option} must be above 0, got {getattr(config, name)}")
    if not 0 <= config.momentum < 1:
        raise UsageError(f"--momentum must be at least 0 and below 1, got {config.momentum}")
    if config.resume and config.output is None:
        raise UsageError("--resume needs --output, the folder of the run to go on with")


def open_folder(config: Partial, folder: Path) -> dict[str, Any]:
    """The results so far of a run to go on with, or empty ones."""
    mine = json.loads(json.dumps(configuration(config)))
    fresh = {
        "configuration": mine, "environment": environment.describe(), "cells": {},
        "temperatures": {},
    }  # fmt: skip
    if not folder.exists() or not any(folder.iterdir()):
        return fresh
    if not config.resume:
        raise UsageError(f"--output {folder} is not empty; give --resume to go on with its run")
    remove_parts(folder)
    if not (folder / RESULT).exists():
        raise UsageError(f"--resume: {folder} holds no {RESULT} of a run to go on with")
    stored: dict[str, Any] = json.loads((folder / RESULT).read_text())
    if stored["configuration"] != mine:
        raise UsageError(f"--resume: {folder} holds a run of another configuration")
    return stored


def configuration(config: Partial) -> dict[str, Any]:
    """What a result depends on."""
    fields = dataclasses.asdict(config)
    return {name: field for name, field in fields.items() if name not in NOT_OF_THE_RESULT}


def write(folder: Path, found: dict[str, Any]) -> None:
    """Writes the results, whole or not at all."""
    write_text(folder / RESULT, json.dumps(found, indent=1) + "\n")


def make_setting(config: Partial, images: image_data.ImageData) -> Setting:
    """What all cells share."""
    order = BatchOrder(len(images.x_train), config.batch_size, ())
    return Setting(
        images=images,
        train=jax.device_put((images.x_train, images.y_train)),
        test=jax.device_put((images.x_test, images.y_test)),
        width=config.width,
        loss=config.loss,
        samples=config.samples,
        learning_rate=config.learning_rate,
        momentum=config.momentum,
        batch_size=config.batch_size,
        seeds=tuple(range(config.seeds)),
        steps=max(1, round(config.epochs * order.steps_per_epoch)),
    )


def table(found: dict[str, Any], cells: list[Cell]) -> str:
    """The Markdown of all cells, each against the plain loss of the same seeds."""
    config = found["configuration"]
    lines = [
        "# Smoothing layer by layer",
        "",
        f"{config['dataset']}, fully connected networks of width {config['width']}, "
        f"{config['loss']} with {config['samples']} samples, SGD at {config['learning_rate']:g} "
        f"with momentum {config['momentum']:g}, batch {config['batch_size']}, "
        f"{config['epochs']:g} epochs, {config['seeds']} seeds. All trainings make the same number "
        f"of updates; a smoothed one takes {config['samples'] + 1} gradients for each. Made by "
        "`python -m benchmarks partial`.",
        "",
        "| network | smoothed | radius | test error % | minus plain, % | training loss |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for cell in cells:
        record = found["cells"][cell.name]
        plain = found["cells"][Cell(cell.depth, (), 0.0).name]["test_error"]
        error = estimate([100 * one for one in record["test_error"]])
        paired = [
            100 * (mine - other) for mine, other in zip(record["test_error"], plain, strict=True)
        ]
        difference = shown(*estimate(paired), sign="+") if cell.layers else ""
        lines.append(
            f"| {cell.depth} layers | {cell.label} | {cell.radius or ''} | {shown(*error)} | "
            f"{difference} | {estimate(record['train_loss']).mean:.4f} |"
        )
    return "\n".join(lines) + "\n"


def shown(mean: float, error: float | None, sign: str = "") -> str:
    """A mean and its standard error."""
    # Adding 0 takes the sign off a zero.
    return f"{round(mean, 2) + 0.0:{sign}.2f}" + ("" if error is None else f" ± {error:.2f}")
