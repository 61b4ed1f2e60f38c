"""`python -m benchmarks table`: the tuned methods on fresh seeds, the test images read once."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax

from benchmarks.common import environment
from benchmarks.common.data import Dataset
from benchmarks.common.network import Network
from benchmarks.common.options import (
    FREE,
    DataOptions,
    ResumeOptions,
    UsageError,
    Within,
    configuration,
)
from benchmarks.common.report import MARKDOWN
from benchmarks.common.run_folder import (
    open_folder,
    stored_results,
    write_results,
    write_text,
)
from benchmarks.common.terminal import progress_bars, say, show_table
from benchmarks.tuning import report
from benchmarks.tuning.entropic import CONTENDERS
from benchmarks.tuning.measures import Widths, on_images
from benchmarks.tuning.rows import Row, network_of, prepare, whole
from benchmarks.tuning.search import Plan, Store
from benchmarks.tuning.statistics import comparable
from benchmarks.tuning.training import Trainings, Trial
from benchmarks.tuning.tune import finished, row_of

# Fresh: those of tuning are the numbers of the folds.
FIRST_SEED = 1000
TRIALS = "trials.json"
DIGITS = 5


@dataclass(frozen=True, kw_only=True)
class Table(DataOptions, ResumeOptions):
    """Retrain the winners of `tune` on fresh seeds and all training images, and judge them once.

    Writes results.json, trials.json with every trial of `tune`, and report.md.
    """

    tuned: Annotated[Path, FREE]
    """Folder of a finished `tune`."""
    seeds: Annotated[int | None, Within(5)] = None
    """Fresh trainings of each winner; by default the row's number."""
    width_seeds: Annotated[int, Within(1)] = 5
    """Of how many of them the width of the minimum is measured."""
    together: Annotated[bool, FREE] = False
    """Train seeds side by side, for an accelerator."""


def run(options: Table) -> int:
    """Trains, judges and writes; the exit status."""
    tuned = finished(options.tuned)
    name = tuned["configuration"]["row"]
    folder = open_folder(options, f"tuned-{name}")
    row, plan = row_of(name, tuned["configuration"]["gradients"]), Plan(**tuned["plan"])
    data = prepare(row, options.data_dir, options.cache_dir, plan.seed)
    network = network_of(row, data)
    count = options.seeds or row.seeds
    seeds = range(FIRST_SEED, FIRST_SEED + count)
    if options.width_seeds > count:
        raise UsageError(f"--width-seeds {options.width_seeds} must be at most --seeds {count}")
    found = stored_results(folder, options) or {
        "configuration": configuration(options),
        "command": f"python -m benchmarks tune --row {name}",
        "environment": environment.describe(),
        "row": tuned["row"],
        "name": name,
        "plan": tuned["plan"],
        "data": {
            "name": data.name,
            "train": len(data.x_train),
            "test": len(data.x_test),
            "parameters": network.num_parameters(),
        },
        "seeds": list(seeds),
        "tuned": tuned["methods"],
        "methods": {},
    }
    widths = Widths(network, data)
    with progress_bars("{task.fields[note]}") as bars:
        task = bars.add_task(name, total=len(tuned["methods"]), note="")
        for method, best in tuned["methods"].items():
            if method not in found["methods"]:
                bars.update(task, note=method)
                found["methods"][method] = judge(
                    row, method, best["values"], network, data, seeds, widths,
                    options.width_seeds, plan.folds, options.together,
                )  # fmt: skip
                write_results(folder, found)
            bars.advance(task)
    store = Store(options.tuned)
    trials = {method: store.load(method, plan.trials) for method in tuned["methods"]}
    write_text(folder / TRIALS, json.dumps(rounded(trials), separators=(",", ":")) + "\n")
    if not comparable(found):
        say(f"No report without an entropic method and a baseline; results: {folder}")
        return 0
    report.write(folder, found)
    show_table(report.error_table(found), found["row"]["title"])
    say(report.sentence(found))
    say(f"Report: {folder / MARKDOWN}")
    return 0


def judge(
    row: Row,
    method: str,
    values: dict[str, float],
    network: Network,
    data: Dataset,
    seeds: Sequence[int],
    widths: Widths,
    width_seeds: int,
    folds: int,
    together: bool,
) -> dict[str, Any]:
    """One method: its numbers by seed, and what it cost."""
    contender = CONTENDERS[method]
    images = jax.device_put((data.x_train, data.y_train))
    records: list[dict[str, float]] = []
    seconds = 0.0
    # As many at a time as there were folds: it is the program that `tune` has compiled.
    for start in range(0, len(seeds), folds):
        block = seeds[start : start + folds]
        trainings = Trainings(
            network, contender, images, whole(block, len(data.x_train)),
            batch_size=row.batch_size, gradients=row.gradients, together=together,
        )  # fmt: skip
        begin = time.perf_counter()
        trials = [Trial(values, at) for at in range(len(block))]
        for trained in trainings.train(trials, row.gradients):
            jax.block_until_ready(trained.params)
            seconds += time.perf_counter() - begin
            found = on_images(network, data, trained.params, trained.batch_stats)
            for at, record in enumerate(found):
                if len(records) < width_seeds:
                    weights = trained.params, trained.batch_stats
                    params, stats = jax.tree.map(lambda leaf, at=at: leaf[at], weights)
                    record |= widths.measure(params, stats, seeds[len(records)])
                records.append(record)
            begin = time.perf_counter()
    return {
        "gradients": contender.total(row.gradients),
        "updates": contender.updates(row.gradients),
        "seconds": seconds,
        "seeds": records,
    }


def rounded(value: Any) -> Any:
    """Numbers to a few significant digits, which is more than they are known to."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return value
