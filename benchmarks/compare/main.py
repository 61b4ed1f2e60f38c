"""`python -m benchmarks compare`: errors and widths at the same number of gradients."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.progress import Progress

from benchmarks.common import environment, weights
from benchmarks.common.checkpoints import Checkpoints
from benchmarks.common.family import ALL_METHODS
from benchmarks.common.methods import METHODS
from benchmarks.common.options import (
    FREE,
    NOT_NEGATIVE,
    POSITIVE,
    Among,
    ResumeOptions,
    configuration,
)
from benchmarks.common.run_folder import open_folder, stored_results
from benchmarks.common.scene import Scene, TrainingOptions
from benchmarks.common.terminal import progress_bars, say
from benchmarks.compare import report, results
from benchmarks.compare.widths import Widths

CURVE_POINTS = 24
CHECKPOINTS = "checkpoints"
Show = Callable[[int, dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Compare(TrainingOptions, ResumeOptions):
    """Train with SGD, SAM, Entropy-SGD, replicated SGD and others at the same number of gradients.

    Writes results.json, report.md, report.html, the plots, and the evaluation weights of each
    method into a folder of its own.
    """

    methods: Annotated[tuple[str, ...], Among("method", lambda: ALL_METHODS)] = tuple(METHODS)
    """Which methods, in which order; also adamw, muon, schedule_free, sgd_ema, sgd_swa, lookahead,
    asam, diloco, diloco_1, elastic_sgd, parle, heat_sgd, hopf_lax_sgd,
    replicated_adam, replicated_sam, partial_entropy_sgd, partial_replicated_sgd, local_average,
    local_entropy, gaussian_smoothing."""
    flatness_images: Annotated[int, POSITIVE] = 1000
    """Training images, or characters of a text, on which local energy and Hessian are measured."""
    checkpoint_seconds: Annotated[float, FREE, NOT_NEGATIVE] = 30.0
    """Time between two checkpoints."""


def run(options: Compare) -> int:
    """Runs the comparison; the exit status."""
    folder = open_folder(options, f"compare-{options.dataset}-{options.model}")
    found = stored_results(folder, options)
    scene = Scene(options, options.methods, CURVE_POINTS)
    widths = Widths(scene.network, scene.train, options.flatness_images)
    if found is None:
        found = {
            "configuration": configuration(options),
            "command": environment.command(),
            "environment": environment.describe(),
            **scene.header(),
            "widths": widths.settings(),
            "methods": {},
        }
    results.write(folder, found)
    say(f"Writing to {folder}; after an interruption add --resume --output {folder}")
    judge = results.yardstick(found)
    with progress_bars(f"gradients, {judge.name} {{task.fields[reached]}}") as bars:
        for name in options.methods:
            if name not in found["methods"]:
                show = one_bar(bars, name, scene.budget.total(scene.methods[name]), judge)
                found["methods"][name] = run_method(
                    scene, widths, name, folder, options.checkpoint_seconds, show
                )
                results.write(folder, found)
    # The records of the methods are on disk.
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    report.write(folder, found)
    report.show(found, folder)
    return 0


def one_bar(bars: Progress, name: str, gradients: int, judge: results.Yardstick) -> Show:
    """Adds a method's bar; call the answer with (gradients done, last point of the curve)."""
    task = bars.add_task(name, total=gradients, reached="   --")

    def show(done: int, point: dict[str, Any]) -> None:
        seeds = point[judge.test]
        reached = f"{judge.scale * sum(seeds) / len(seeds):5.2f} {judge.unit}"
        bars.update(task, completed=done, reached=reached)

    return show


def run_method(
    scene: Scene, widths: Widths, name: str, folder: Path, checkpoint_seconds: float, show: Show
) -> dict[str, Any]:
    """Trains and evaluates one method on all seeds, from the start or its last checkpoint.

    Args:
      scene: what all methods share.
      widths: measures how wide the minimum is.
      name: of the method.
      folder: of the run.
      checkpoint_seconds: time between two checkpoints.
      show: called with the gradients done per seed and the last point of the learning curve.

    Returns:
      The method's part of results.json.
    """
    method, budget = scene.methods[name], scene.budget
    trainer = scene.trainer(name)
    checkpoints = Checkpoints(folder / CHECKPOINTS / name, say)
    state = trainer.init()
    seconds, curve = 0.0, list[dict[str, Any]]()
    if (found := checkpoints.latest(lambda _: trainer.shapes())) is not None:
        state, record = found
        seconds, curve = record["seconds"], record["curve"]
        show(curve[-1]["gradients"], curve[-1])
    begin = time.perf_counter()
    trainer.compile(state)
    compile_seconds = time.perf_counter() - begin

    saved = time.monotonic()
    stops = [stop for stop in budget.stops(method) if stop > int(state.step)]
    for stop in stops:
        state, taken = trainer.advance(state, stop)
        seconds += taken
        gradients = stop * budget.gradients_per_step(method)
        scores = scene.glance(trainer, state)
        curve.append({"gradients": gradients, "seconds": seconds} | scores._asdict())
        show(gradients, curve[-1])
        due = time.monotonic() - saved >= checkpoint_seconds
        if due or stop == stops[-1]:
            checkpoints.save(stop, state, {"seconds": seconds, "curve": curve})
            saved = time.monotonic()
    checkpoints.close()

    settled = scene.settled(trainer, state)
    weights.save(folder, name, *settled)
    return {
        "summary": method.summary,
        "hyperparameters": dict(scene.values[name]),
        "gradients": budget.total(method),
        "steps": budget.steps(method),
        "compile_seconds": compile_seconds,
        "train_seconds": seconds,
        "curve": curve,
        "final": scene.evaluator.scores(*settled, whole=True)._asdict(),
        "flatness": widths.measure(*settled, scene.options.all_seeds),
    }
