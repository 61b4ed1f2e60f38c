"""`python -m benchmarks tune`: every method tuned alike on the training images of one row."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from benchmarks.common import environment
from benchmarks.common.options import (
    FREE,
    POSITIVE,
    Among,
    DataOptions,
    ResumeOptions,
    UsageError,
    Within,
    configuration,
)
from benchmarks.common.run_folder import (
    Results,
    open_folder,
    read_results,
    stored_results,
    write_results,
)
from benchmarks.common.terminal import progress_bars, say
from benchmarks.tuning.entropic import CONTENDERS
from benchmarks.tuning.rows import ROWS, Row, folds, network_of, prepare
from benchmarks.tuning.search import Plan, Store, rank, tune, winner


@dataclass(frozen=True, kw_only=True)
class Tune(DataOptions, ResumeOptions):
    """Tune every method alike, by cross-validation on the training images of one row.

    Each method gets the same number of points of its own space of hyper-parameters. All are judged
    on two folds, the best on all. No test image is read. Every trial is kept in trials.sqlite,
    which Optuna opens; `table` then judges the winners.
    """

    row: Annotated[str, Among("row", lambda: ROWS)] = "digits"
    """What to train on; the report of `found` lists the rows."""
    methods: Annotated[tuple[str, ...], Among("method", lambda: CONTENDERS)] = tuple(CONTENDERS)
    """Which methods, in which order."""
    trials: Annotated[int, POSITIVE] = Plan.trials
    """Points of each method's space."""
    kept: Annotated[int, POSITIVE] = Plan.kept
    """Points that are judged on all folds."""
    folds: Annotated[int, Within(2)] = Plan.folds
    """Parts of the training images; each in turn is judged on."""
    gradients: Annotated[int | None, POSITIVE] = None
    """Budget of one run instead of the row's: a multiple of 600, so that all end on a cycle."""
    seed: Annotated[int, Within(0, 2**31)] = 0
    """Of the points, the folds and the choice of images."""
    together: Annotated[bool, FREE] = False
    """Train trials side by side, for an accelerator."""


def run(options: Tune) -> int:
    """Tunes all methods; the exit status."""
    folder = open_folder(options, f"tune-{options.row}")
    row = row_of(options.row, options.gradients)
    plan = Plan(
        trials=options.trials, kept=options.kept, folds=options.folds, seed=options.seed,
        early_folds=min(Plan.early_folds, options.folds),
    )  # fmt: skip
    if plan.kept > plan.trials:
        raise UsageError(f"--kept {plan.kept} must be at most --trials {plan.trials}")
    found = stored_results(folder, options) or {
        "configuration": configuration(options),
        "command": environment.command(),
        "environment": environment.describe(),
        "row": asdict(row),
        "plan": asdict(plan),
        "methods": {},
    }
    write_results(folder, found)
    say(f"Writing to {folder}; after an interruption add --resume --output {folder}")
    data = prepare(row, options.data_dir, options.cache_dir, plan.seed)
    network, parts = network_of(row, data), folds(plan.folds, len(data.x_train), plan.seed)
    store = Store(folder)
    with progress_bars("gradients, {task.fields[note]}") as bars:
        costs = {name: plan.cost(CONTENDERS[name], row.gradients) for name in options.methods}
        everything = bars.add_task(options.row, total=sum(costs.values()), note="all methods")
        for name in options.methods:
            contender = CONTENDERS[name]
            task = bars.add_task(name, total=costs[name], note="")
            trials = store.load(name, plan.trials)
            if trials is None:

                def show(gradients: int, task: Any = task) -> None:
                    bars.advance(task, gradients)
                    bars.advance(everything, gradients)

                trials = tune(
                    row, plan, contender, network, data, parts, together=options.together, show=show
                )
                store.save(name, contender, trials)
            else:
                bars.advance(everything, costs[name])
            found["methods"][name] = summary(trials)
            write_results(folder, found)
            error = 100 * found["methods"][name]["error"]
            bars.update(task, completed=costs[name], note=f"error {error:.2f} %")
    say(f"Judge the winners: python -m benchmarks table --tuned {folder}")
    return 0


def row_of(name: str, gradients: int | None) -> Row:
    """A row, at another budget where one is asked for."""
    row = ROWS[name]
    return row if gradients is None else replace(row, gradients=gradients)


def summary(trials: list[dict[str, Any]]) -> dict[str, Any]:
    """The winner of a method, and the time that all its trials took."""
    best = winner(trials)
    error, loss = rank(best)
    return {
        "values": best["values"],
        "error": error,
        "loss": loss if loss < float("inf") else None,
        "seconds": sum(trial["seconds"] for trial in trials),
    }


def finished(folder: Path) -> Results:
    """What `tune` found in a folder.

    Raises:
      UsageError: there is nothing, or not all of it.
    """
    found = read_results(folder)
    if found is None or "plan" not in found:
        raise UsageError(f"--tuned {folder} holds no results of `tune`")
    missing = [one for one in found["configuration"]["methods"] if one not in found["methods"]]
    if missing:
        raise UsageError(f"--tuned {folder} is not finished, missing: {', '.join(missing)}")
    return found
