"""The `committee` experiment: widths of the solutions of committee machines, by algorithm."""

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.committee import figures, measures, report
from benchmarks.committee.algorithms import ALGORITHMS, UNCORRELATED_ONLY
from benchmarks.committee.measures import Measures
from benchmarks.committee.problems import PROBLEMS, Sizes
from benchmarks.common import data as image_data
from benchmarks.common import environment
from benchmarks.common.data import ImageData
from benchmarks.common.errors import UsageError, check_known
from benchmarks.common.files import write_text
from entropix.committee import Committee

NOT_OF_THE_RESULT = ("output", "data_dir", "cache_dir")


@dataclass(frozen=True)
class CommitteeMachines:
    """Compare algorithms by the widths of the solutions they find, on committee machines."""

    experiments: tuple[str, ...] = tuple(PROBLEMS)
    """Which: random (patterns), images (two classes), shuffled (the images' pixels)."""
    algorithms: tuple[str, ...] = tuple(ALGORITHMS)
    """Which algorithms; focusing_bp is for random patterns only."""
    seeds: int = 5
    """Number of instances of each experiment."""
    num_hidden: int = 9
    """Hidden units, K, an odd number."""
    num_inputs: int = 999
    """Inputs of the tree, a multiple of K."""
    alpha: float = 1.0
    """Load of the tree: random patterns per weight."""
    dataset: str = "fashion_mnist"
    """Images: digits (built in), or a TFDS set such as fashion_mnist."""
    pair: tuple[int, int] = (3, 4)
    """The two classes; 3 and 4 are dress and coat in fashion_mnist."""
    per_class: int = 250
    """Training images of each class."""
    max_epochs: int = 2000
    """Passes over the patterns after which an algorithm gives up."""
    data_dir: Path | None = None
    """Where TFDS keeps its sets; by default $TFDS_DATA_DIR, else TFDS's own."""
    cache_dir: Path | None = None
    """Where decoded images are kept; by default entropix in $XDG_CACHE_HOME or ~/.cache."""
    output: Path | None = None
    """Folder to write; by default runs/committee-<time>."""


def run(config: CommitteeMachines) -> int:
    """Runs the experiments; the exit status."""
    check(config)
    folder = config.output or Path("runs") / f"committee-{time.strftime('%Y%m%d-%H%M%S')}"
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"--output {folder} is not empty")
    images = load_images(config)
    found: dict[str, Any] = {
        "configuration": json.loads(json.dumps(configuration(config))),
        "command": environment.command(),
        "environment": environment.describe(),
        "images": None if images is None else images.name,
        "measures": measures.settings(),
        "experiments": {},
        "correlations": {},
    }
    with Progress() as progress:
        for name in config.experiments:
            found["experiments"][name] = {"title": PROBLEMS[name][2], "algorithms": {}}
            run_experiment(config, name, images, found, folder, progress)
    found["correlations"] = correlations(found)
    write(folder, found)
    report.write(folder, found)
    show(found, folder)
    return 0


def configuration(config: CommitteeMachines) -> dict[str, Any]:
    """What a result depends on."""
    fields = dataclasses.asdict(config)
    return {name: field for name, field in fields.items() if name not in NOT_OF_THE_RESULT}


def check(config: CommitteeMachines) -> None:
    """Raises a `UsageError` for impossible values."""
    for name in config.experiments:
        check_known("experiment", name, PROBLEMS)
    for name in config.algorithms:
        check_known("algorithm", name, ALGORITHMS)
    for name, chosen in (("experiments", config.experiments), ("algorithms", config.algorithms)):
        if not chosen or len(set(chosen)) < len(chosen):
            raise UsageError(f"--{name} must name each once, got {' '.join(chosen)!r}")
    for name in ("seeds", "per_class", "max_epochs"):
        if getattr(config, name) < 1:
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag} must be at least 1, got {getattr(config, name)}")
    if not 0 < config.alpha < float("inf"):
        raise UsageError(f"--alpha must be above 0, got {config.alpha:g}")
    try:
        Committee(config.num_inputs, config.num_hidden, weights="spherical")
    except ValueError as error:
        raise UsageError(str(error)) from None


def load_images(config: CommitteeMachines) -> ImageData | None:
    """The image set, where an experiment is of images."""
    if not any(PROBLEMS[name][1] for name in config.experiments):
        return None
    images = image_data.load(config.dataset, data_dir=config.data_dir, cache_dir=config.cache_dir)
    if config.pair[0] == config.pair[1]:
        raise UsageError(f"--pair must be of two different classes, got {config.pair[0]} twice")
    for one in config.pair:
        available = int((images.y_train == one).sum())
        if available < config.per_class:
            raise UsageError(
                f"--per-class must be at most the {available} training images of class {one} "
                f"in {images.name}, got {config.per_class}"
            )
    return images


def run_experiment(
    config: CommitteeMachines,
    name: str,
    images: ImageData | None,
    found: dict[str, Any],
    folder: Path,
    progress: Progress,
) -> None:
    """All algorithms on all instances, written after each."""
    make, correlated, _ = PROBLEMS[name]
    chosen = [one for one in config.algorithms if not (correlated and one in UNCORRELATED_ONLY)]
    experiment = found["experiments"][name]
    sizes = Sizes(config.num_hidden, config.num_inputs, config.alpha, config.pair, config.per_class)
    task = progress.add_task(name, total=len(chosen) * config.seeds)
    measure = None
    for seed in range(config.seeds):
        problem = make(sizes, images, jax.random.key(seed))
        measure = measure or Measures(problem.model)
        experiment |= {
            "weights": problem.model.num_weights,
            "patterns": len(problem.train.labels),
            "test": 0 if problem.test is None else len(problem.test.labels),
        }
        for algorithm in chosen:
            start = time.perf_counter()
            answer = ALGORITHMS[algorithm](problem, jax.random.key(seed), config.max_epochs)
            seconds = time.perf_counter() - start
            record = {
                "errors": answer.errors,
                "passes": answer.passes,
                "seconds_with_compilation": seconds,
                **measure(problem, answer.weights, jax.random.key(seed)),
            }
            experiment["algorithms"].setdefault(algorithm, []).append(record)
            write(folder, found)
            progress.advance(task)


def correlations(found: dict[str, Any]) -> dict[str, Any]:
    """Of local entropy and local energy with the test error, over all runs on images.

    Nothing where they are not defined: fewer than three runs, or all alike.
    """
    experiment = found["experiments"].get("images")
    if experiment is None:
        return {}
    points = np.array(
        [
            figures.coordinates(record, found["measures"])
            for records in experiment["algorithms"].values()
            for record in records
        ]
    )
    points = points[np.all(np.isfinite(points), axis=1)]
    if len(points) < 3 or np.any(np.ptp(points, axis=0) == 0):
        return {}
    matrix = np.corrcoef(points.T)
    return {
        "local_entropy": float(matrix[0, 2]),
        "local_energy": float(matrix[1, 2]),
        "runs": len(points),
    }


def write(folder: Path, found: dict[str, Any]) -> None:
    """Writes results.json."""
    write_text(folder / "results.json", json.dumps(found, indent=1) + "\n")


def show(found: dict[str, Any], folder: Path) -> None:
    """A table for each experiment, means over the instances."""
    console = Console()
    for name, experiment in found["experiments"].items():
        title = report.title(name, experiment)
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        for at, column in enumerate(report.HEAD):
            table.add_column(column, justify="right" if at else "left", no_wrap=not at)
        for row in report.rows(experiment, found["measures"]):
            table.add_row(*row)
        console.print(table)
    for line in report.correlation_lines(found):
        console.print(line)
    console.print(f"Written: {folder / 'report.html'}")
