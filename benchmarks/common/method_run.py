"""One method from its first gradient, or its last checkpoint, to its record."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.common import weights
from benchmarks.common.budget import Budget
from benchmarks.common.checkpoints import Checkpoints, Progress
from benchmarks.common.evaluation import Evaluator, Scores
from benchmarks.common.methods import Course, Hyperparameters, Method
from benchmarks.common.network import BatchStats, Network, Params
from benchmarks.common.training import Trainer, TrainState, initial_networks, seed_keys
from benchmarks.compare.widths import Widths
from entropix import scoping

CHECKPOINTS = "checkpoints"
Report = Callable[[int, float], None]


@dataclass(frozen=True)
class Scene:
    """What all methods of a run share.

    Attributes:
      network: the model.
      train: training images and classes, on the device.
      evaluator: scores weights.
      widths: measures how wide their minimum is.
      budget: gradients for each method.
      seeds: one training run each.
      batch_size: images per gradient.
      folder: the run's folder, for checkpoints.
      checkpoint_seconds: time between two checkpoints.
      devices: over how many the replicas of a replicated method are spread.
    """

    network: Network
    train: tuple[jax.Array, jax.Array]
    evaluator: Evaluator
    widths: Widths
    budget: Budget
    seeds: tuple[int, ...]
    batch_size: int
    folder: Path
    checkpoint_seconds: float
    devices: int = 1


def run_method(
    scene: Scene, name: str, method: Method, values: Hyperparameters, report: Report
) -> dict[str, Any]:
    """Trains and evaluates one method on all seeds.

    Args:
      scene: what all methods share.
      name: the method's name, of its checkpoint folder.
      method: its entry in the registry.
      values: its hyper-parameters.
      report: called with (gradients done per seed, mean test error in the last evaluation).

    Returns:
      The method's part of `results.json`.
    """
    trainer = make_trainer(scene, method, values)
    folder = scene.folder / CHECKPOINTS / name
    checkpoints = Checkpoints(folder)
    state = trainer.init()
    progress = Progress(step=0, seconds=0.0, curve=[])
    if (found := checkpoints.latest(state)) is not None:
        state, progress = found
        report(progress.curve[-1]["gradients"], mean_error(progress.curve[-1]))
    begin = time.perf_counter()
    trainer.compile(state)
    compile_seconds = time.perf_counter() - begin

    per_step = scene.budget.gradients_per_step(method)
    saved = time.monotonic()
    for stop in scene.budget.stops(method):
        if stop <= progress.step:
            continue
        state, seconds = trainer.advance(state, progress.step, stop)
        scores = evaluate(scene, trainer, state, whole=False)
        point = {"gradients": stop * per_step, "seconds": progress.seconds + seconds}
        curve = [*progress.curve, point | scores._asdict()]
        progress = Progress(stop, progress.seconds + seconds, curve)
        report(stop * per_step, mean_error(curve[-1]))
        if time.monotonic() - saved >= scene.checkpoint_seconds or stop == scene.budget.steps(
            method
        ):
            checkpoints.save(state, progress)
            saved = time.monotonic()

    weights.save(scene.folder, name, *settled(scene, trainer, state))
    record = {
        "summary": method.summary,
        "hyperparameters": dict(values),
        "gradients": scene.budget.total(method),
        "steps": scene.budget.steps(method),
        "compile_seconds": compile_seconds,
        "train_seconds": progress.seconds,
        "curve": progress.curve,
        "final": evaluate(scene, trainer, state, whole=True)._asdict(),
        "flatness": measure(scene, trainer, state),
    }
    checkpoints.close()
    return record


def mean_error(point: dict[str, Any]) -> float:
    """The error to judge by at one point of a learning curve, mean over the seeds."""
    errors: list[float] = point["test_error"]
    return sum(errors) / len(errors)


def forget_checkpoints(folder: Path) -> None:
    """Removes the checkpoints of a finished run, whose records are on disk."""
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def make_trainer(scene: Scene, method: Method, values: Hyperparameters) -> Trainer:
    """The trainer of one method on all seeds of the run."""
    replicas = scene.budget.copies(method)
    gamma = balanced_gamma(scene, replicas) if method.replicated else 0.0
    course = Course(steps=scene.budget.steps(method), gamma=gamma)
    return Trainer(
        scene.network,
        method,
        lambda key: method.build(values, course, key),
        scene.train,
        seeds=scene.seeds,
        batch_size=scene.batch_size,
        replicas=replicas,
        smooth=method.smooth and method.smooth(values),
        devices=scene.devices if method.replicated else 1,
    )


def balanced_gamma(scene: Scene, replicas: int) -> float:
    """The coupling at which pull and loss of untrained replicas are of one size, mean of seeds."""
    draw = jax.jit(partial(initial_networks, scene.network, replicas=replicas, stacked=True))
    couplings = []
    for key in seed_keys(scene.seeds):
        params, stats = draw(key)
        losses = [
            scene.evaluator.scores(
                *jax.tree.map(one_of(at), (params, stats)), whole=False
            ).train_loss
            for at in range(replicas)
        ]
        couplings.append(float(scoping.automatic(jnp.mean(jnp.asarray(losses)), params)))
    return sum(couplings) / len(couplings)


def one_of(at: int) -> Callable[[jax.Array], jax.Array]:
    """Picks one of the stacked, keeping the axis."""
    return lambda leaf: leaf[at : at + 1]


def evaluate(scene: Scene, trainer: Trainer, state: TrainState, *, whole: bool) -> Scores:
    """Scores of all seeds at the evaluation weights, with batch statistics of their own."""
    return scene.evaluator.scores(*settled(scene, trainer, state), whole=whole)


def measure(scene: Scene, trainer: Trainer, state: TrainState) -> dict[str, Any]:
    """Local energy and Hessian of all seeds at the evaluation weights."""
    return scene.widths.measure(*settled(scene, trainer, state), scene.seeds)


def settled(scene: Scene, trainer: Trainer, state: TrainState) -> tuple[Params, BatchStats]:
    """The evaluation weights and their recomputed batch statistics."""
    params, stats = trainer.evaluation_weights(state)
    return params, scene.evaluator.statistics(params, stats)
