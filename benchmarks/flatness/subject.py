"""The minimum to measure: the weights of a finished comparison, or of a network trained here."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import results, weights
from benchmarks.common.data import ImageData
from benchmarks.common.errors import UsageError, check_known
from benchmarks.common.evaluation import Scores, unstacked
from benchmarks.common.method_run import evaluate, make_trainer, settled
from benchmarks.common.network import BatchStats, Network, Params
from benchmarks.compare import main as compare

# Called with (gradients done, gradients in all).
Report = Callable[[int, int], None]


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
    images: ImageData
    scores: Scores
    training: dict[str, Any]


def train(config: compare.Compare, folder: Path, report: Report) -> Subject:
    """Trains one seed of one method; ``folder`` gets its weights."""
    ((name, method, values),) = chosen = compare.check(config)
    images = compare.load_images(config)
    budget = compare.make_budget(config, chosen, len(images.x_train))
    scene = compare.make_scene(config, images, budget, folder)
    trainer = make_trainer(scene, method, values)
    state, step = trainer.init(), 0
    for stop in budget.stops(method):
        state, _ = trainer.advance(state, step, stop)
        step = stop
        report(step, budget.steps(method))
    params, stats = settled(scene, trainer, state)
    weights.save(folder, name, params, stats)
    return Subject(
        network=scene.network,
        params=unstacked(params, 1)[0],
        stats=unstacked(stats, 1)[0],
        images=images,
        scores=evaluate(scene, trainer, state, whole=True),
        training={
            "configuration": compare.configuration(config),
            "method": name,
            "seed": config.seed,
            "hyperparameters": values,
            "gradients": budget.total(method),
        },
    )


def from_run(
    run: Path, method: str, seed: int, data_dir: Path | None, cache_dir: Path | None
) -> Subject:
    """One seed of one method of a finished comparison.

    Raises:
      UsageError: there is no such run, method or seed.
    """
    found = results.read(run)
    if found is None or "methods" not in found:
        raise UsageError(f"--run: {run} holds no results.json of a comparison")
    check_known("method of the run", method, found["methods"])
    fields: dict[str, Any] = {
        name: tuple(field) if isinstance(field, list) else field
        for name, field in found["configuration"].items()
    }
    config = compare.Compare(**fields, data_dir=data_dir, cache_dir=cache_dir)
    seed_index = seed - config.seed
    if not 0 <= seed_index < config.seeds:
        last = config.seed + config.seeds - 1
        raise UsageError(f"--seed must be from {config.seed} to {last} in this run, got {seed}")
    record = found["methods"][method]
    images = compare.load_images(config)
    network = compare.make_network(config, images)
    params, stats = weights.load(run, method, seed_index, network)
    return Subject(
        network=network,
        params=params,
        stats=stats,
        images=images,
        scores=Scores(**{name: [record["final"][name][seed_index]] for name in Scores._fields}),
        training={
            "configuration": found["configuration"],
            "method": method,
            "seed": seed,
            "hyperparameters": record["hyperparameters"],
            "gradients": record["gradients"],
        },
    )
