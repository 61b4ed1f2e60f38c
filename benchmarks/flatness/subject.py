"""The minimum to measure: the weights of a finished comparison, or of a network trained here."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import weights
from benchmarks.common.data import Dataset
from benchmarks.common.evaluation import Scores, unstacked
from benchmarks.common.network import BatchStats, Network, Params
from benchmarks.common.options import UsageError, check_known, configuration
from benchmarks.common.run_folder import read_results
from benchmarks.common.scene import Scene, TrainingOptions, images_and_network

# Called with (gradients done, gradients in all).
Report = Callable[[int, int], None]
# Moments at which the progress is shown.
POINTS = 24


@dataclass(frozen=True)
class Subject:
    """A trained network.

    Attributes:
      network: the model.
      params: its weights.
      stats: its batch statistics.
      images: what it was trained on.
      scores: errors and losses at the weights, on all images.
      training: how it was trained, as `results.json` keeps it.
    """

    network: Network
    params: Params
    stats: BatchStats
    images: Dataset
    scores: Scores
    training: dict[str, Any]


def train(options: TrainingOptions, method: str, folder: Path, report: Report) -> Subject:
    """Trains one seed of one method; ``folder`` gets its weights."""
    scene = Scene(options, (method,), POINTS)
    trainer, budget = scene.trainer(method), scene.budget
    state = trainer.init()
    for stop in budget.stops(scene.methods[method]):
        state, _ = trainer.advance(state, stop)
        report(stop, budget.steps(scene.methods[method]))
    params, stats = scene.settled(trainer, state)
    weights.save(folder, method, params, stats)
    return Subject(
        network=scene.network,
        params=unstacked(params, 1)[0],
        stats=unstacked(stats, 1)[0],
        images=scene.images,
        scores=scene.evaluator.scores(params, stats, whole=True),
        training={
            "configuration": configuration(options),
            "method": method,
            "seed": options.seed,
            "hyperparameters": scene.values[method],
            "gradients": budget.total(scene.methods[method]),
        },
    )


def from_run(
    run: Path, method: str, seed: int, data_dir: Path | None, cache_dir: Path | None
) -> Subject:
    """One seed of one method of a finished comparison.

    Raises:
      UsageError: there is no such run, method or seed.
    """
    found = read_results(run)
    if found is None or "methods" not in found:
        raise UsageError(f"--run: {run} holds no results.json of a comparison")
    check_known("method of the run", method, found["methods"])
    known = {field.name for field in dataclasses.fields(TrainingOptions)}
    fields: dict[str, Any] = {
        name: tuple(field) if isinstance(field, list) else field
        for name, field in found["configuration"].items()
        if name in known
    }
    options = TrainingOptions(**fields, data_dir=data_dir, cache_dir=cache_dir)
    if seed not in options.all_seeds:
        raise UsageError(
            f"--seed must be from {options.seed} to {options.all_seeds[-1]} in this run, got {seed}"
        )
    record, at = found["methods"][method], options.all_seeds.index(seed)
    images, network = images_and_network(options)
    params, stats = weights.load(run, method, at, network)
    return Subject(
        network=network,
        params=params,
        stats=stats,
        images=images,
        scores=Scores(**{name: [record["final"][name][at]] for name in Scores._fields}),
        training={
            "configuration": found["configuration"],
            "method": method,
            "seed": seed,
            "hyperparameters": record["hyperparameters"],
            "gradients": record["gradients"],
        },
    )
