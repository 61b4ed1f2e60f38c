"""`python -m benchmarks committee`: widths of the solutions of committee machines, by algorithm."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
from rich.progress import Progress

from benchmarks.committee import figures, measures, report
from benchmarks.committee.algorithms import ALGORITHMS, UNCORRELATED_ONLY
from benchmarks.committee.measures import Measures
from benchmarks.committee.problems import PROBLEMS, Sizes
from benchmarks.common import environment
from benchmarks.common.data import Dataset, load_for
from benchmarks.common.options import (
    ABOVE_ZERO,
    POSITIVE,
    Among,
    ImageOptions,
    ResumeOptions,
    UsageError,
    configuration,
)
from benchmarks.common.run_folder import Results, open_folder, stored_results, write_results
from benchmarks.common.terminal import progress_bars
from entropix.committee import Committee


@dataclass(frozen=True, kw_only=True)
class CommitteeMachines(ImageOptions, ResumeOptions):
    """Compare algorithms by the widths of the solutions they find, on committee machines."""

    experiments: Annotated[tuple[str, ...], Among("experiment", lambda: PROBLEMS)] = tuple(PROBLEMS)
    """Which: random (patterns), images (two classes), shuffled (the images' pixels)."""
    algorithms: Annotated[tuple[str, ...], Among("algorithm", lambda: ALGORITHMS)] = tuple(
        ALGORITHMS
    )
    """Which algorithms; focusing_bp is for random patterns only."""
    seeds: Annotated[int, POSITIVE] = 5
    """Number of instances of each experiment."""
    num_hidden: int = 9
    """Hidden units, K, an odd number."""
    num_inputs: int = 999
    """Inputs of the tree, a multiple of K."""
    alpha: Annotated[float, ABOVE_ZERO] = 1.0
    """Load of the tree: random patterns per weight."""
    dataset: str = "fashion_mnist"
    """Images: digits (built in), or a TFDS set such as fashion_mnist."""
    pair: tuple[int, int] = (3, 4)
    """The two classes; 3 and 4 are dress and coat in fashion_mnist."""
    per_class: Annotated[int, POSITIVE] = 250
    """Training images of each class."""
    max_epochs: Annotated[int, POSITIVE] = 2000
    """Passes over the patterns after which an algorithm gives up."""


def run(options: CommitteeMachines) -> int:
    """Runs the experiments; the exit status."""
    folder = open_folder(options, "committee")
    try:
        Committee(options.num_inputs, options.num_hidden, weights="spherical")
    except ValueError as error:
        raise UsageError(str(error)) from None
    images = load_images(options)
    found: Results = stored_results(folder, options) or {
        "configuration": configuration(options),
        "command": environment.command(),
        "environment": environment.describe(),
        "images": None if images is None else images.name,
        "measures": measures.settings(),
        "experiments": {},
        "correlations": {},
    }
    with progress_bars() as progress:
        for name in options.experiments:
            found["experiments"].setdefault(name, {"title": PROBLEMS[name][2], "algorithms": {}})
            run_experiment(options, name, images, found, folder, progress)
    found["correlations"] = correlations(found)
    write_results(folder, found)
    report.write(folder, found)
    report.show(found, folder)
    return 0


def load_images(options: CommitteeMachines) -> Dataset | None:
    """The image set, where an experiment is of images."""
    if not any(PROBLEMS[name][1] for name in options.experiments):
        return None
    images = load_for(options)
    if options.pair[0] == options.pair[1]:
        raise UsageError(f"--pair must be of two different classes, got {options.pair[0]} twice")
    for one in options.pair:
        available = int((images.y_train == one).sum())
        if available < options.per_class:
            raise UsageError(
                f"--per-class must be at most the {available} training images of class {one} "
                f"in {images.name}, got {options.per_class}"
            )
    return images


def run_experiment(
    options: CommitteeMachines,
    name: str,
    images: Dataset | None,
    found: dict[str, Any],
    folder: Path,
    progress: Progress,
) -> None:
    """All algorithms on all instances, written after each; those stored are not tried again."""
    make, correlated, _ = PROBLEMS[name]
    chosen = [one for one in options.algorithms if not (correlated and one in UNCORRELATED_ONLY)]
    experiment = found["experiments"][name]
    sizes = Sizes(
        options.num_hidden, options.num_inputs, options.alpha, options.pair, options.per_class
    )
    task = progress.add_task(name, total=len(chosen) * options.seeds)
    measure = None
    for seed in range(options.seeds):
        problem = make(sizes, images, jax.random.key(seed))
        measure = measure or Measures(problem.model)
        experiment |= {
            "weights": problem.model.num_weights,
            "patterns": len(problem.train.labels),
            "test": 0 if problem.test is None else len(problem.test.labels),
        }
        for algorithm in chosen:
            records = experiment["algorithms"].setdefault(algorithm, [])
            if len(records) > seed:
                progress.advance(task)
                continue
            start = time.perf_counter()
            answer = ALGORITHMS[algorithm](problem, jax.random.key(seed), options.max_epochs)
            seconds = time.perf_counter() - start
            record = {
                "errors": answer.errors,
                "passes": answer.passes,
                "seconds_with_compilation": seconds,
                **measure(problem, answer.weights, jax.random.key(seed)),
            }
            records.append(record)
            write_results(folder, found)
            progress.advance(task)


def correlations(found: dict[str, Any]) -> dict[str, Any]:
    """Of local entropy and local energy with the test error, over all runs on images.

    Also between the means of the algorithms, and within them, over the runs less these means: what
    an algorithm does to both says little about two runs of one. Nothing where they are not defined:
    fewer than three runs, or all alike.
    """
    experiment = found["experiments"].get("images")
    if experiment is None:
        return {}
    groups = []
    for records in experiment["algorithms"].values():
        runs = np.array([figures.coordinates(record, found["measures"]) for record in records])
        runs = runs[np.all(np.isfinite(runs), axis=1)]
        if len(runs):
            groups.append(runs)
    if not groups:
        return {}
    means = np.array([runs.mean(axis=0) for runs in groups])
    apart = np.concatenate([runs - runs.mean(axis=0) for runs in groups])
    points = np.concatenate(groups)
    if len(points) < 3 or np.any(np.ptp(points, axis=0) == 0):
        return {}
    answer: dict[str, Any] = {"runs": len(points)}
    for ending, rows in (("", points), ("_between", means), ("_within", apart)):
        for column, quantity in enumerate(("local_entropy", "local_energy")):
            pair = rows[:, [column, 2]]
            if len(pair) >= 3 and np.all(np.ptp(pair, axis=0) > 0):
                answer[quantity + ending] = float(np.corrcoef(pair.T)[0, 1])
    return answer
