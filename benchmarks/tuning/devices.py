"""`python -m benchmarks devices`: replicated beside data-parallel, by bytes and by steps."""

from dataclasses import dataclass
from typing import Annotated, Any

import pandas as pd
from matplotlib.figure import Figure

from benchmarks.common import environment
from benchmarks.common.data import Dataset
from benchmarks.common.intervals import with_error
from benchmarks.common.network import Network
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
from benchmarks.tuning.contenders import SHARED
from benchmarks.tuning.curves import (
    Course,
    difference,
    draw,
    last_errors,
    logarithmic,
    recorded_winners,
)
from benchmarks.tuning.entropic import CONTENDERS
from benchmarks.tuning.parallel import PARALLEL, rivals, sent, steps_between_meetings
from benchmarks.tuning.report import written
from benchmarks.tuning.rows import ROWS, Row, folds, network_of, prepare
from benchmarks.tuning.search import Plan, Store, as_json, tune
from benchmarks.tuning.statistics import word
from benchmarks.tuning.table import FIRST_SEED, rounded
from benchmarks.tuning.tune import row_of, summary

METHODS = ("replicated_sgd", "elastic_sgd", "parle", "diloco")
# On one device, for its steps.
ALONE = "sgd"
REPLICATED = tuple(
    name for name, one in CONTENDERS.items() if one.budgets == 1 and rivals(name)[0] in PARALLEL
)


@dataclass(frozen=True, kw_only=True)
class Devices(DataOptions, ResumeOptions):
    """Test error of replicated methods against bytes sent and steps made in parallel.

    A device has one copy of the network. Beside them data-parallel SGD and AdamW on as many
    devices, the mean gradient taken at each step, tuned here by the plan of the recorded table.
    """

    row: Annotated[str, Among("row", lambda: ROWS)] = "fashion_1000"
    """A row with a recorded table, whose winners are trained."""
    methods: Annotated[tuple[str, ...], Among("method", lambda: REPLICATED)] = METHODS
    """Which replicated methods."""
    points: Annotated[int, POSITIVE] = 16
    """Places along a run where the test error is taken, at most."""
    seeds: Annotated[int, Within(2)] = 5
    """Fresh trainings."""


def run(options: Devices) -> int:
    """Tunes the baselines, trains, judges, draws and writes; the exit status."""
    folder = open_folder(options, f"devices-{options.row}")
    tuned = recorded_winners(options.row, (*options.methods, ALONE))
    row, plan = row_of(options.row, tuned["row"]["gradients"]), Plan(**tuned["plan"])
    baselines = list(dict.fromkeys(one for name in options.methods for one in rivals(name)))
    for name in baselines:
        if row.gradients % PARALLEL[name].copies:
            raise UsageError(f"--row {options.row}: {row.gradients} gradients are not divided by "
                             f"{PARALLEL[name].copies} devices")  # fmt: skip
    data = prepare(row, options.data_dir, options.cache_dir, plan.seed)
    network = network_of(row, data)
    found = stored_results(folder, options) or {
        "configuration": configuration(options),
        "command": environment.command(),
        "environment": environment.describe(),
        "row": tuned["row"],
        "plan": tuned["plan"],
        "parameters": network.num_parameters(),
        "test": len(data.x_test),
        "tuned": {},
        "methods": {},
    }
    write_results(folder, found)
    store = Store(folder)
    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
    course = Course(row, network, data, seeds, row.gradients, options.points)
    with progress_bars("{task.fields[note]}") as bars:
        names = [ALONE, *options.methods, *baselines]
        task = bars.add_task(options.row, total=len(names), note="")
        for name in names:
            bars.update(task, note=name)
            if name in baselines and name not in found["tuned"]:
                found["tuned"][name] = tuned_baseline(name, row, plan, network, data, store)
                write_results(folder, found)
            if name not in found["methods"]:
                best = (found if name in baselines else tuned)["tuned"][name]["values"]
                found["methods"][name] = judge(name, best, row, course, found["parameters"])
                write_results(folder, found)
            bars.advance(task)
    save(folder, "devices", picture, found)
    write_report(
        folder, "tuning/devices.md.j2", f"{row.title}: bytes and steps of several devices",
        found=found, table=table(found), settings=setting_table(found),
    )  # fmt: skip
    show_table(table(found), row.title)
    say(f"Report: {folder / MARKDOWN}")
    return 0


def tuned_baseline(
    name: str, row: Row, plan: Plan, network: Network, data: Dataset, store: Store
) -> dict[str, Any]:
    """The winner of a data-parallel baseline, and all its trials."""
    contender = PARALLEL[name]
    trials = store.load(name, plan.trials)
    if trials is None:
        parts = folds(plan.folds, len(data.x_train), plan.seed)
        trials = tune(row, plan, contender, network, data, parts, show=lambda _: None)
        store.save(name, contender, trials)
    return {**summary(trials), "trials": [rounded(as_json(one)) for one in trials]}


def judge(
    name: str, values: dict[str, Any], row: Row, course: Course, parameters: int
) -> dict[str, Any]:
    """The curve of one method, with what each device had sent by then."""
    contender = PARALLEL.get(name) or CONTENDERS[name]
    curve = course.follow(name, contender, values, [row.gradients])[str(row.gradients)]
    return {
        "values": values,
        "devices": contender.copies,
        "every": steps_between_meetings(values) if contender.copies > 1 else None,
        **curve,
        "bytes": [sent(contender, values, parameters, updates) for updates in curve["updates"]],
    }


def table(found: Results) -> pd.DataFrame:
    """What each method reached, what it sent for it, and in how many steps."""
    methods = found["methods"]
    rows = []
    for name, record in methods.items():
        changes = ["", ""]
        if name in found["configuration"]["methods"]:
            found_changes = [difference(record, methods[rival]) for rival in rivals(name)]
            changes = [f"{written(one)}, {word(one)}" for one in found_changes]
        rows.append(
            {
                "method": name,
                "devices": str(record["devices"]),
                "steps between meetings": str(record["every"] or "-"),
                "parallel steps": f"{record['updates'][-1]:,}",
                "MB sent by each": f"{record['bytes'][-1] / 1e6:,.1f}",
                "test error %": with_error(100 * last_errors(record), 2),
                "minus data-parallel SGD": changes[0],
                "minus data-parallel AdamW": changes[1],
            }
        )
    return pd.DataFrame(rows)


def setting_table(found: Results) -> pd.DataFrame:
    """What won for the baselines that were tuned here."""
    return pd.DataFrame(
        [
            (name, f"{100 * one['error']:.2f}", *(f"{x:.3g}" for x in one["values"].values()))
            for name, one in found["tuned"].items()
        ],
        columns=["method", "validation error %", *SHARED],
    )


def picture(found: Results) -> Figure:
    """Test error against bytes and against steps, a row of panels for each number of devices."""
    methods = found["methods"]
    counts = sorted({one["devices"] for one in methods.values()} - {1})
    figure = Figure(figsize=(9, 0.8 + 3.1 * len(counts)), layout="constrained")
    panels = figure.subplots(len(counts), 2, squeeze=False, sharey=True)
    place = {name: at for at, name in enumerate(methods)}
    for (left, right), count in zip(panels, counts, strict=True):
        for name, record in methods.items():
            if record["devices"] == count:
                label = name.removesuffix(f"_{count}")
                draw(left, [one / 1e6 for one in record["bytes"]], record, label, place[name])
            if record["devices"] in (1, count):
                draw(right, record["updates"], record, name, place[name])
        left.set(xlabel="MB sent by each device", ylabel="test error %", xscale="log")
        left.xaxis.set_major_formatter("{x:g}")
        right.set(xlabel="steps, all devices at once")
        for axes in (left, right):
            axes.set_title(f"{count} devices")
            logarithmic(axes)
        right.legend(fontsize=8)
    return figure
