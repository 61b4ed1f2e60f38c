"""`python -m benchmarks flatness`: every estimator on one minimum."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
from rich.progress import Progress

from benchmarks.common import environment
from benchmarks.common.family import ALL_METHODS
from benchmarks.common.models import MODELS
from benchmarks.common.options import (
    ABOVE_ZERO,
    POSITIVE,
    Among,
    FolderOptions,
    ImageOptions,
    Within,
    configuration,
)
from benchmarks.common.run_folder import Results, open_folder, write_results
from benchmarks.common.scene import TrainingOptions
from benchmarks.common.terminal import progress_bars
from benchmarks.flatness import report
from benchmarks.flatness.measure import ESTIMATORS, Effort, Gauge, measure
from benchmarks.flatness.subject import Subject, from_run, train


@dataclass(frozen=True, kw_only=True)
class Flatness(ImageOptions, FolderOptions):
    """Measure how wide a minimum is: local energy, Hessian, gradient noise, sharpness, slices.

    Takes the weights of a finished comparison with --run, else trains a network first. Writes
    results.json, report.md, report.html and the plots into a folder of its own.
    """

    run: Path | None = None
    """Folder of a finished `compare`; its dataset and model are then taken."""
    method: Annotated[str, Among("method", lambda: ALL_METHODS)] = "sgd"
    """Which method of that run, or which method to train with."""
    seed: Annotated[int, Within(0, 2**31)] = 0
    """Which seed of that run, or which to train with; the estimators' draws follow it."""
    model: Annotated[str, Among("model", lambda: MODELS)] = "mlp"
    """Network to train, as in `compare`."""
    epochs: Annotated[float, ABOVE_ZERO] = 100.0
    """Passes over the training set."""
    batch_size: Annotated[int, POSITIVE] = 128
    """Images per gradient of the training."""
    set: tuple[str, ...] = ()
    """Hyper-parameters other than the defaults, such as sgd.learning_rate=0.05."""
    images: Annotated[int, POSITIVE] = 1000
    """Training images that the estimators look at."""
    draws: Annotated[int, Within(2)] = 100
    """Monte-Carlo draws of the local energy."""
    steps: Annotated[int, Within(2)] = 80
    """Lanczos steps of the spectrum."""
    probes: Annotated[int, Within(2)] = 10
    """Probe vectors of the spectrum."""
    eigenvalues: Annotated[int, POSITIVE] = 5
    """Eigenvalues to compute at each end of the spectrum."""
    points: Annotated[int, Within(2)] = 25
    """Points of a slice along each direction."""


def run(options: Flatness) -> int:
    """Gets the weights, measures, writes the report and prints the table; the exit status."""
    folder = open_folder(options, "flatness")
    with progress_bars() as bars:
        found = examine(options, folder, bars)
    write_results(folder, found)
    report.write(folder, found)
    report.show(found, folder)
    return 0


def examine(
    options: Flatness, folder: Path, bars: Progress, names: tuple[str, ...] = tuple(ESTIMATORS)
) -> Results:
    """The subject and what the estimators of these names say of it."""
    subject = get_subject(options, folder, bars)
    effort = Effort(
        images=min(options.images, len(subject.images.x_train)),
        draws=options.draws,
        steps=options.steps,
        probes=options.probes,
        eigenvalues=options.eigenvalues,
        points=options.points,
    )
    found = header(options, subject, effort)
    task = bars.add_task("measuring", total=len(names))
    for name, numbers in measure(Gauge(subject, effort, options.seed), names):
        found["measured"][name] = numbers
        bars.update(task, advance=1, description=f"measured {name}")
    return found


def get_subject(options: Flatness, folder: Path, bars: Progress) -> Subject:
    """The weights of a run, or those of a network trained now."""
    if options.run is not None:
        return from_run(
            options.run, options.method, options.seed, options.data_dir, options.cache_dir
        )
    task = bars.add_task(f"training {options.method}", total=None)
    return train(
        TrainingOptions(
            dataset=options.dataset,
            model=options.model,
            seeds=1,
            seed=options.seed,
            epochs=options.epochs,
            batch_size=options.batch_size,
            set=options.set,
            data_dir=options.data_dir,
            cache_dir=options.cache_dir,
        ),
        options.method,
        folder,
        lambda done, total: bars.update(task, completed=done, total=total),
    )


def header(options: Flatness, subject: Subject, effort: Effort) -> Results:
    """What results.json says before the first estimate."""
    images, training = subject.images, subject.training
    model = MODELS[training["configuration"]["model"]]
    held_out = training["configuration"]["holdout"]
    return {
        "configuration": configuration(options),
        "command": environment.command(),
        "environment": environment.describe(),
        "data": {
            "name": images.name,
            "train": len(images.x_train),
            "judged_on": "held-out training images" if held_out else "test images",
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
