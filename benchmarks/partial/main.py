"""`python -m benchmarks partial`: smoothing layer by layer, and the layers' temperatures."""

from dataclasses import dataclass
from typing import Annotated, Any

import jax
import pandas as pd
from rich.progress import track

from benchmarks.common import data as image_data
from benchmarks.common import environment
from benchmarks.common.batches import BatchOrder
from benchmarks.common.evaluation import Evaluator
from benchmarks.common.options import (
    ABOVE_ZERO,
    POSITIVE,
    SHARE,
    Among,
    ImageOptions,
    ResumeOptions,
    Within,
    configuration,
)
from benchmarks.common.report import MARKDOWN, write_report
from benchmarks.common.run_folder import Results, open_folder, stored_results, write_results
from benchmarks.common.terminal import say
from benchmarks.partial import figures
from benchmarks.partial.cells import LOSSES, Cell, Setting, all_cells, temperatures, train_cell


@dataclass(frozen=True, kw_only=True)
class Partial(ImageOptions, ResumeOptions):
    """Smooth the loss over single layers, pairs and all of them, and compare with the plain loss.

    Writes results.json, report.md, report.html and the figures into a folder of its own. The
    paper's values: fashion_mnist or mnist, width 784, batch 256, learning rate 1e-4, 120 epochs.
    """

    depths: Annotated[tuple[int, ...], Within(2)] = (2, 3)
    """Layers of weights of the fully connected networks."""
    width: Annotated[int, POSITIVE] = 64
    """Units of each hidden layer."""
    radii: Annotated[tuple[float, ...], ABOVE_ZERO] = (0.01, 0.03, 0.1, 0.3)
    """Half the side of the cube, in units of the weights."""
    loss: Annotated[str, Among("loss", lambda: LOSSES)] = "local_entropy"
    """local_entropy (PLEA) or local_average (PLA)."""
    samples: Annotated[int, POSITIVE] = 4
    """Displaced copies of the weights, y."""
    learning_rate: Annotated[float, ABOVE_ZERO] = 0.01
    """Of SGD, constant."""
    momentum: Annotated[float, SHARE] = 0.9
    """Heavy-ball momentum."""
    batch_size: Annotated[int, POSITIVE] = 128
    """Images per gradient."""
    epochs: Annotated[float, ABOVE_ZERO] = 40.0
    """Passes over the training set."""
    seeds: Annotated[int, POSITIVE] = 5
    """Trainings of each kind; all kinds share the seeds."""
    temperature_points: Annotated[int, POSITIVE] = 24
    """Moments of the plain training at which the layers' temperatures are measured."""


def run(options: Partial) -> int:
    """Trains all cells, then draws; the exit status."""
    folder = open_folder(options, f"partial-{options.dataset}")
    found = stored_results(folder, options) or {
        "configuration": configuration(options),
        "command": environment.command(),
        "environment": environment.describe(),
        "cells": {},
        "temperatures": {},
    }
    images = image_data.load_for(options, batch_size=2 * options.batch_size)
    setting = make_setting(options, images)
    cells = list(all_cells(options.depths, options.radii))
    missing = [cell for cell in cells if cell.name not in found["cells"]]
    for cell in track(missing, "training", transient=True):
        evaluator = Evaluator(setting.network(cell.depth), setting.train, setting.test)
        found["cells"][cell.name] = train_cell(setting, cell, evaluator)
        write_results(folder, found)
    for depth in options.depths:
        if str(depth) not in found["temperatures"]:
            measured = temperatures(setting, depth, options.temperature_points)
            found["temperatures"][str(depth)] = measured
            write_results(folder, found)
    figures.draw(folder, found)
    write_report(
        folder,
        "partial/report.md.j2",
        "Smoothing layer by layer",
        found=found,
        config=found["configuration"],
        table=table(found, cells),
    )
    say(f"Written: {folder / MARKDOWN}")
    return 0


def make_setting(options: Partial, images: image_data.Dataset) -> Setting:
    """What all cells share."""
    order = BatchOrder(len(images.x_train), options.batch_size, ())
    return Setting(
        images=images,
        train=jax.device_put((images.x_train, images.y_train)),
        test=jax.device_put((images.x_test, images.y_test)),
        width=options.width,
        loss=options.loss,
        samples=options.samples,
        learning_rate=options.learning_rate,
        momentum=options.momentum,
        batch_size=options.batch_size,
        seeds=tuple(range(options.seeds)),
        steps=max(1, round(options.epochs * order.steps_per_epoch)),
    )


def table(found: Results, cells: list[Cell]) -> pd.DataFrame:
    """All cells, each against the plain loss of the same seeds."""
    errors = pd.DataFrame({name: one["test_error"] for name, one in found["cells"].items()}) * 100
    plain = {cell.name: Cell(cell.depth, (), 0.0).name for cell in cells}
    paired = pd.DataFrame({name: errors[name] - errors[plain[name]] for name in plain})
    return pd.DataFrame(
        {
            "network": [f"{cell.depth} layers" for cell in cells],
            "smoothed": [cell.label for cell in cells],
            "radius": [f"{cell.radius or ''}" for cell in cells],
            "test error %": [shown(errors[cell.name]) for cell in cells],
            "minus plain, %": [
                shown(paired[cell.name], sign="+") if cell.layers else "" for cell in cells
            ],
            "training loss": [
                f"{pd.Series(found['cells'][cell.name]['train_loss']).mean():.4f}" for cell in cells
            ],
        }
    )


def shown(numbers: "pd.Series[Any]", sign: str = "") -> str:
    """The mean over seeds and its standard error, which one seed has not."""
    text = f"{numbers.mean():{sign}z.2f}"
    return text if len(numbers) == 1 else f"{text} ± {numbers.sem():.2f}"
