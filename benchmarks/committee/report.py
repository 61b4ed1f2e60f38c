"""What the committee experiments show: tables on the terminal, report.md and report.html."""

import math
import statistics
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.committee import figures
from benchmarks.common.report import PAGE, write_report
from benchmarks.common.run_folder import Results
from benchmarks.common.terminal import say, show_table

HEAD = [
    "algorithm", "solved", "passes", "distance", "local entropy", "local energy %",
    "noisy error %", "test error %",
]  # fmt: skip


def write(folder: Path, found: Results) -> None:
    """Writes the pictures, report.md and report.html."""
    pictures = figures.draw(folder, found)
    experiments = found["experiments"].items()
    write_report(
        folder,
        "committee/report.md.j2",
        "Widths of the solutions of committee machines",
        found=found,
        tables={title(name, one): table(one, found["measures"]) for name, one in experiments},
        correlations=correlation_lines(found) if "correlation" in pictures else [],
    )


def show(found: Results, folder: Path) -> None:
    """A table for each experiment, and where the rest is."""
    for name, experiment in found["experiments"].items():
        show_table(table(experiment, found["measures"]), title(name, experiment))
    for line in correlation_lines(found):
        say(line)
    say(f"Report: {folder / PAGE}")


def title(name: str, experiment: dict[str, Any]) -> str:
    """Of the table of an experiment."""
    return (
        f"{name}: {experiment['title']}; {experiment['patterns']:,} patterns, "
        f"{experiment['weights']:,} weights"
    )


def table(experiment: dict[str, Any], measures: dict[str, Any]) -> pd.DataFrame:
    """A row for each algorithm, means over the instances."""
    at = figures.reference_point(measures)
    rows = [
        (
            algorithm,
            f"{sum(record['errors'] == 0 for record in records)}/{len(records)}",
            f"{statistics.fmean(record['passes'] for record in records):.0f}",
            mean([r["distance"][at] for r in records if figures.known(r, measures)], ".3f"),
            mean([figures.reference_entropy(one, measures) for one in records], ".1e"),
            mean([100 * record["local_energy"][-1] for record in records], ".2f"),
            mean([100 * record["noise_error"][-1] for record in records], ".2f"),
            mean([100 * record["test_error"] for record in records], ".2f")
            if experiment["test"]
            else "",
        )
        for algorithm, records in experiment["algorithms"].items()
    ]
    return pd.DataFrame(rows, columns=HEAD)


def mean(numbers: list[float], form: str) -> str:
    """The mean in that format over the instances that have a number, a dash where none has."""
    known = [number for number in numbers if math.isfinite(number)]
    return format(statistics.fmean(known), form) if known else "-"


def correlation_lines(found: dict[str, Any]) -> list[str]:
    """How width and test error go together, a line for each measure of width."""
    correlations = found["correlations"]
    return [
        f"correlation of {quantity.replace('_', ' ')} with test error: "
        f"{correlations[quantity]:+.2f} over {correlations['runs']} runs"
        + "".join(
            f", {correlations[quantity + ending]:+.2f} {words}"
            for ending, words in (
                ("_between", "between the means of the algorithms"),
                ("_within", "within an algorithm"),
            )
            if quantity + ending in correlations
        )
        for quantity in ("local_entropy", "local_energy")
        if correlations
    ]
