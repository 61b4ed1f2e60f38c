"""`python -m benchmarks flatness`: every estimator on one minimum."""

import dataclasses
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.common import environment
from benchmarks.common.errors import UsageError
from benchmarks.common.files import write_text
from benchmarks.common.models import MODELS
from benchmarks.common.results import Results
from benchmarks.compare import main as compare
from benchmarks.flatness import report
from benchmarks.flatness.measure import ESTIMATORS, Effort, Gauge, measure
from benchmarks.flatness.subject import Subject, from_run, train


@dataclass(frozen=True)
class Flatness:
    """Measure how wide a minimum is: local energy, Hessian, gradient noise, sharpness, slices.

    Takes the weights of a finished comparison with --run, else trains a network first. Writes
    results.json, report.md, report.html and the plots into a folder of its own.
    """

    run: Path | None = None
    """Folder of a finished `compare`; its dataset and model are then taken."""
    method: str = "sgd"
    """Which method of that run, or which method to train with."""
    seed: int = 0
    """Which seed of that run, or which to train with; the estimators' draws follow it."""
    dataset: str = "digits"
    """Images to train on, as in `compare`."""
    model: str = "mlp"
    """Network to train, as in `compare`."""
    epochs: float = 100.0
    """Passes over the training set."""
    batch_size: int = 128
    """Images per gradient of the training."""
    set: tuple[str, ...] = ()
    """Hyper-parameters other than the defaults, such as sgd.learning_rate=0.05."""
    images: int = 1000
    """Training images that the estimators look at."""
    draws: int = 100
    """Monte-Carlo draws of the local energy."""
    steps: int = 80
    """Lanczos steps of the spectrum."""
    probes: int = 10
    """Probe vectors of the spectrum."""
    eigenvalues: int = 5
    """Eigenvalues to compute at each end of the spectrum."""
    points: int = 25
    """Points of a slice along each direction."""
    data_dir: Path | None = None
    """Where TFDS keeps its sets; by default $TFDS_DATA_DIR, else TFDS's own."""
    cache_dir: Path | None = None
    """Where decoded images are kept; by default entropix in $XDG_CACHE_HOME or ~/.cache."""
    output: Path | None = None
    """Folder to write; by default runs/flatness-<time>."""


def run(config: Flatness) -> int:
    """Gets the weights, measures, writes the report and prints the table; the exit status."""
    check(config)
    folder = config.output or Path("runs") / f"flatness-{time.strftime('%Y%m%d-%H%M%S')}"
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"--output {folder} is not empty")
    with progress_bars() as bars:
        found = examine(config, folder, bars)
    write(folder, found)
    show(found, folder)
    return 0


def examine(
    config: Flatness, folder: Path, bars: Progress, names: tuple[str, ...] = tuple(ESTIMATORS)
) -> Results:
    """The subject and what the estimators of these names say of it."""
    subject = get_subject(config, folder, bars)
    effort = Effort(
        images=min(config.images, len(subject.images.x_train)),
        draws=config.draws,
        steps=config.steps,
        probes=config.probes,
        eigenvalues=config.eigenvalues,
        points=config.points,
    )
    found = header(config, subject, effort)
    task = bars.add_task("measuring", total=len(names))
    for name, numbers in measure(Gauge(subject, effort, config.seed), names):
        found["measured"][name] = numbers
        bars.update(task, advance=1, description=f"measured {name}")
    return found


def get_subject(config: Flatness, folder: Path, bars: Progress) -> Subject:
    """The weights of a run, or those of a network trained now."""
    if config.run is not None:
        return from_run(config.run, config.method, config.seed, config.data_dir, config.cache_dir)
    task = bars.add_task(f"training {config.method}", total=None)
    return train(
        compare.Compare(
            dataset=config.dataset,
            model=config.model,
            methods=(config.method,),
            seeds=1,
            seed=config.seed,
            epochs=config.epochs,
            batch_size=config.batch_size,
            set=config.set,
            data_dir=config.data_dir,
            cache_dir=config.cache_dir,
        ),
        folder,
        lambda done, total: bars.update(task, completed=done, total=total),
    )


def header(config: Flatness, subject: Subject, effort: Effort) -> Results:
    """What results.json says before the first estimate."""
    images, training = subject.images, subject.training
    model = MODELS[training["configuration"]["model"]]
    return {
        "configuration": {
            name: str(field) if isinstance(field, Path) else field
            for name, field in dataclasses.asdict(config).items()
            if name not in ("output", "data_dir", "cache_dir")
        },
        "command": environment.command(),
        "environment": environment.describe(),
        "data": {
            "name": images.name,
            "train": len(images.x_train),
            "judged_on": "held-out training images"
            if training["configuration"]["holdout"]
            else "test images",
        },
        "model": {
            "summary": model.summary,
            "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(subject.params)),
        },
        "training": training,
        "scores": {name: values[0] for name, values in subject.scores._asdict().items()},
        "effort": dataclasses.asdict(effort),
        "measured": {},
    }


def check(config: Flatness) -> None:
    """Raises a `UsageError` for impossible values; `compare` checks those of the training."""
    bounds = [
        ("seed", config.seed, 0),
        ("images", config.images, 1),
        ("draws", config.draws, 2),
        ("steps", config.steps, 2),
        ("probes", config.probes, 2),
        ("eigenvalues", config.eigenvalues, 1),
        ("points", config.points, 2),
    ]
    for name, number, low in bounds:
        if number < low:
            raise UsageError(f"--{name} must be at least {low}, got {number}")


def progress_bars() -> Progress:
    """Bars for training and for the estimators."""
    return Progress(
        TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    )


def write(folder: Path, found: Results) -> None:
    """Writes results.json and the reports, each whole or not at all."""
    write_text(folder / "results.json", json.dumps(found, indent=1) + "\n")
    report.write(folder, found)


def show(found: dict[str, Any], folder: Path) -> None:
    """The table of the report."""
    table = Table(title=report.title(found), title_justify="left", box=box.SIMPLE_HEAD)
    for column in report.HEAD:
        table.add_column(column, overflow="fold")
    for row in report.rows(found):
        table.add_row(*row)
    console = Console()
    console.print(table)
    console.print(f"Report: {folder / 'report.html'}")
