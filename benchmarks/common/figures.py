"""Tables of quotients of times: on the terminal, in results.json and in a report."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from benchmarks.common import environment
from benchmarks.common.report import MARKDOWN, write_report
from benchmarks.common.run_folder import write_results
from benchmarks.common.terminal import progress_bars, say, show_table
from benchmarks.common.timing import Figure


def present(
    folder: Path, title: str, measured: Mapping[str, Iterable[Sequence[Figure]]], rounds: int
) -> None:
    """Prints each table as soon as it is measured, and writes them all at the end.

    Args:
      folder: of the run.
      title: of the report.
      measured: of each part of the library the tables, each measured when it is asked for.
      rounds: how often each candidate was run.
    """
    figures: list[Figure] = []
    with progress_bars() as bars:
        task = bars.add_task("", total=len(measured))
        for name, parts in measured.items():
            bars.update(task, description=name)
            for lines in parts:
                show(lines)
                figures += lines
            bars.advance(task)
    found = {
        "command": environment.command(),
        "environment": environment.describe(),
        "rounds": rounds,
        "figures": [dataclasses.asdict(line) for line in figures],
    }
    write_results(folder, found)
    write_report(
        folder,
        "common/templates/figures.md.j2",
        title,
        found=found,
        tables={name: (table(lines), notes(lines)) for name, lines in by_section(figures).items()},
    )
    say(f"Written: {folder / MARKDOWN}")


def by_section(figures: Sequence[Figure]) -> dict[str, list[Figure]]:
    """The figures of each part of the library."""
    sections: dict[str, list[Figure]] = {}
    for line in figures:
        sections.setdefault(line.section, []).append(line)
    return sections


def show(figures: Sequence[Figure]) -> None:
    """One table per section, its notes below it."""
    for section, lines in by_section(figures).items():
        show_table(table(lines), section)
        for note in notes(lines):
            say(note)


def table(lines: Sequence[Figure]) -> pd.DataFrame:
    """What was measured against what."""
    return pd.DataFrame(
        {
            "measured": [line.name for line in lines],
            "against": [line.reference for line in lines],
            "ratio": [quotient(line) for line in lines],
            "target": [target(line) for line in lines],
            "ms": [milliseconds(line.seconds) for line in lines],
            "MiB": [mebibytes(line.memory_bytes) for line in lines],
            "its ms": [milliseconds(line.reference_seconds) for line in lines],
            "its MiB": [mebibytes(line.reference_memory_bytes) for line in lines],
        }
    )


def notes(lines: Sequence[Figure]) -> list[str]:
    """What a reader needs to know to read the lines rightly."""
    return [f"{line.name} / {line.reference}: {line.note}" for line in lines if line.note]


def quotient(line: Figure) -> str:
    """The ratio with its spread."""
    if line.ratio is None:
        return "not measured"
    return f"{line.ratio:.3f} ± {line.ratio_spread:.3f}"


def target(line: Figure) -> str:
    """The largest ratio that is accepted, and whether it is kept."""
    if line.target is None:
        return ""
    missed = line.ratio is not None and line.ratio > line.target
    return f"{line.target:.2f}" + ", missed" * missed


def milliseconds(seconds: float | None) -> str:
    """A time, as text; nothing where there is none."""
    return "" if seconds is None else f"{seconds * 1e3:.2f}"


def mebibytes(count: int | None) -> str:
    """A size, as text; nothing where there is none."""
    return "" if count is None else f"{count / 2**20:.0f}"
