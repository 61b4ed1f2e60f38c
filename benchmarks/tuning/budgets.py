"""`python -m benchmarks budgets`: the tuned methods at other budgets, errors all along the runs."""

from dataclasses import dataclass
from typing import Annotated

import pandas as pd
from matplotlib.figure import Figure

from benchmarks.common import environment
from benchmarks.common.intervals import with_error
from benchmarks.common.options import (
    POSITIVE,
    Among,
    DataOptions,
    ResumeOptions,
    UsageError,
    Within,
    configuration,
)
from benchmarks.common.plots import save
from benchmarks.common.report import MARKDOWN, write_report
from benchmarks.common.run_folder import Results, open_folder, stored_results, write_results
from benchmarks.common.terminal import progress_bars, say, show_table
from benchmarks.tuning.curves import (
    Course,
    difference,
    draw,
    last_errors,
    logarithmic,
    marks_of,
    recorded_winners,
)
from benchmarks.tuning.entropic import CONTENDERS
from benchmarks.tuning.report import written
from benchmarks.tuning.rows import ROWS, network_of, prepare
from benchmarks.tuning.search import Plan
from benchmarks.tuning.statistics import word
from benchmarks.tuning.table import FIRST_SEED
from benchmarks.tuning.tune import row_of

METHODS = (
    "sgd", "adamw", "muon", "sgd_ema", "schedule_free", "sam",
    "entropy_sgd", "heat_sgd", "replicated_sgd", "parle", "diloco",
)  # fmt: skip
RIVAL = "sgd"


@dataclass(frozen=True, kw_only=True)
class Budgets(DataOptions, ResumeOptions):
    """Train the winners of a recorded table at several budgets; test errors all along each run.

    The settings are those that were tuned at the row's own budget. Nothing is chosen by what is
    found here.
    """

    row: Annotated[str, Among("row", lambda: ROWS)] = "digits"
    """A row with a recorded table."""
    methods: Annotated[tuple[str, ...], Among("method", lambda: CONTENDERS)] = METHODS
    """Which of its methods; sgd is what the others are held against."""
    gradients: Annotated[tuple[int, ...], POSITIVE] = (600, 1200, 2400, 4800)
    """Budgets, each a whole number of cycles of every method: multiples of 600 always are."""
    points: Annotated[int, POSITIVE] = 8
    """Places along a run where the test error is taken, at most."""
    seeds: Annotated[int, Within(2)] = 5
    """Fresh trainings."""


def run(options: Budgets) -> int:
    """Trains, judges, draws and writes; the exit status."""
    folder = open_folder(options, f"budgets-{options.row}")
    tuned = recorded_winners(options.row, options.methods)
    if RIVAL not in options.methods:
        raise UsageError(f"--methods must name {RIVAL}, got {' '.join(options.methods)!r}")
    winners = {name: tuned["tuned"][name]["values"] for name in options.methods}
    for name, values in winners.items():
        for gradients in options.gradients:
            # Before anything is trained.
            marks_of(name, CONTENDERS[name], values, gradients, options.points)
    row = row_of(options.row, tuned["row"]["gradients"])
    data = prepare(row, options.data_dir, options.cache_dir, Plan(**tuned["plan"]).seed)
    network = network_of(row, data)
    found = stored_results(folder, options) or {
        "configuration": configuration(options),
        "command": environment.command(),
        "environment": environment.describe(),
        "row": tuned["row"],
        "train": len(data.x_train),
        "test": len(data.x_test),
        "methods": {},
    }
    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
    course = Course(row, network, data, seeds, max(options.gradients), options.points)
    with progress_bars("{task.fields[note]}") as bars:
        task = bars.add_task(options.row, total=len(winners), note="")
        for name, values in winners.items():
            bars.update(task, note=name)
            if name not in found["methods"]:
                curves = course.follow(name, CONTENDERS[name], values, options.gradients)
                found["methods"][name] = {"values": values, "budgets": curves}
                write_results(folder, found)
            bars.advance(task)
    save(folder, "budgets", picture, found)
    write_report(
        folder, "tuning/budgets.md.j2", f"{row.title}: other budgets",
        found=found, table=table(found), against=against(found),
    )  # fmt: skip
    show_table(table(found), row.title)
    say(f"Report: {folder / MARKDOWN}")
    return 0


def budgets_of(found: Results) -> list[str]:
    """The budgets, rising."""
    return [str(one) for one in sorted(found["configuration"]["gradients"])]


def heading(found: Results, budget: str) -> str:
    """A budget in gradients and in passes over the training images."""
    epochs = int(budget) * found["row"]["batch_size"] / found["train"]
    return f"{int(budget):,} gradients ({epochs:.3g} epochs)"


def table(found: Results) -> pd.DataFrame:
    """Test errors at the end of each run: methods down, budgets across."""
    columns = {
        heading(found, budget): [
            with_error(100 * last_errors(record["budgets"][budget]), 2)
            for record in found["methods"].values()
        ]
        for budget in budgets_of(found)
    }
    return pd.DataFrame({"method": list(found["methods"]), **columns})


def against(found: Results) -> pd.DataFrame:
    """Differences to SGD at each budget, paired by seed, and what they say."""
    methods = found["methods"]
    columns = {}
    for budget in budgets_of(found):
        changes = [
            difference(record["budgets"][budget], methods[RIVAL]["budgets"][budget])
            for name, record in methods.items()
            if name != RIVAL
        ]
        columns[f"{int(budget):,}"] = [f"{written(one)}, {word(one)}" for one in changes]
    return pd.DataFrame({"method": [one for one in methods if one != RIVAL], **columns})


def picture(found: Results) -> Figure:
    """Test error against gradients, a panel for each budget."""
    budgets = budgets_of(found)
    columns = min(2, len(budgets))
    lines = -(-len(budgets) // columns)
    figure = Figure(figsize=(9, 0.8 + 3.1 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
    for axes, budget in zip(panels, budgets, strict=False):
        for at, (name, record) in enumerate(found["methods"].items()):
            curve = record["budgets"][budget]
            draw(axes, curve["gradients"], curve, name, at)
        axes.set(title=heading(found, budget), xlabel="gradients", ylabel="test error %")
        axes.set_xlim(0, int(budget))
        logarithmic(axes)
    for axes in panels[len(budgets) :]:
        axes.remove()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return figure
