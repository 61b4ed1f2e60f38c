"""What a comparison shows: its tables, on the terminal and in report.md and report.html."""

from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.common.methods import TUNING
from benchmarks.common.report import PAGE, write_report, written_values
from benchmarks.common.run_folder import Results
from benchmarks.common.terminal import say, show_table
from benchmarks.compare import plots
from benchmarks.compare.results import BASELINE, ERROR, summarize, yardstick
from benchmarks.compare.verdict import verdict

# Of each quantity: name in a table of differences, unit, digits.
QUANTITIES = {
    "test_error": ("error (points)", 100, 2),
    "test_loss": ("cross entropy", 1, 4),
    "train_error": ("train error (points)", 100, 2),
    "train_loss": ("train loss", 1, 4),
    "local_energy": ("local energy (points)", 100, 2),
    "top_eigenvalue": ("top eigenvalue", 1, 2),
    "trace": ("trace", 1, 1),
}


def write(folder: Path, found: Results) -> None:
    """Writes the plots, report.md and report.html."""
    plots.draw(folder, found)
    write_report(
        folder,
        "compare/report.md.j2",
        f"Comparison on {found['data']['name']} with {found['configuration']['model']}",
        found=found,
        verdict=verdict(found),
        results=result_table(found),
        judge=yardstick(found),
        differences=difference_table(found),
        methods=method_table(found),
        tuning=TUNING,
    )


def show(found: Results, folder: Path) -> None:
    """The final tables, errors and widths, and where the rest is."""
    table, judge = result_table(found), yardstick(found)
    numbers = [judge.column, "minus SGD", *(["cross entropy"] if judge is ERROR else [])]
    show_table(table[["method", "gradients", *numbers, "seconds"]], "Errors")
    widths = [f"train {judge.column}", "local energy", "top eigenvalue", "trace"]
    show_table(table[["method", *widths]], "Widths")
    for sentence in verdict(found):
        say(sentence)
    seeds = found["configuration"]["seeds"]
    say(f"Seeds: {seeds}. Mean ± standard error. Report: {folder / PAGE}")


def result_table(found: Results) -> pd.DataFrame:
    """The results, one row per method, as text."""
    summary, records, judge = summarize(found), found["methods"], yardstick(found)

    def average(quantity: str, scale: float, digits: int) -> list[str]:
        return spread(summary[quantity], "mean", scale, f"z,.{digits}f")

    losses = {"cross entropy": average("test_loss", 1, 3)}
    train_losses = {"train loss": average("train_loss", 1, 4)}
    return pd.DataFrame(
        {
            "method": list(records),
            "gradients": [f"{record['gradients']:,}" for record in records.values()],
            judge.column: average(judge.test, judge.scale, judge.digits),
            "minus SGD": differences(summary, judge.test, judge.scale, judge.digits),
            **(losses if judge is ERROR else {}),
            f"train {judge.column}": average(judge.train, judge.scale, judge.digits),
            **(train_losses if judge is ERROR else {}),
            "local energy": average("local_energy", judge.scale, judge.digits),
            "top eigenvalue": average("top_eigenvalue", 1, 2),
            "trace": average("trace", 1, 1),
            "seconds": [f"{record['train_seconds']:.1f}" for record in records.values()],
        }
    )


def difference_table(found: Results) -> pd.DataFrame:
    """The paired differences to SGD of every quantity."""
    summary = summarize(found)
    quantities = dict(QUANTITIES)
    judge = yardstick(found)
    if judge is not ERROR:
        quantities["local_energy"] = ("local energy (nats)", 1, judge.digits)
    columns = {
        title: differences(summary, name, scale, digits)
        for name, (title, scale, digits) in quantities.items()
    }
    table = pd.DataFrame({"method": list(found["methods"]), **columns})
    return table[table["method"] != BASELINE]


def method_table(found: Results) -> pd.DataFrame:
    """What each method is and was told."""
    return pd.DataFrame(
        [
            (name, record["summary"], written_values(record["hyperparameters"]))
            for name, record in found["methods"].items()
        ],
        columns=["method", "what it is", "values"],
    )


def differences(summary: pd.DataFrame, quantity: str, scale: float, digits: int) -> list[str]:
    """The difference to SGD of each method; empty for SGD itself, and where SGD did not run."""
    if (quantity, "minus_sgd") not in summary:
        return [""] * len(summary)
    texts = spread(summary[quantity], "minus_sgd", scale, f"+z,.{digits}f")
    return [
        "" if name == BASELINE else text for name, text in zip(summary.index, texts, strict=True)
    ]


def spread(table: pd.DataFrame, what: str, scale: float, form: str) -> list[str]:
    """Means with their standard errors, as text; without an error where there is one seed."""
    error = "std_error" if what == "mean" else f"{what}_std_error"
    return [
        f"{scale * mean:{form}}" + ("" if np.isnan(bar) else f" ± {scale * bar:{form.lstrip('+')}}")
        for mean, bar in zip(table[what], table[error], strict=True)
    ]
