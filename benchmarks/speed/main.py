"""`python -m benchmarks speed`: all figures of the library in one run."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import pandas as pd

from benchmarks.common import environment
from benchmarks.common.options import Among, FolderOptions, Within
from benchmarks.common.report import MARKDOWN, write_report
from benchmarks.common.run_folder import open_folder, write_results
from benchmarks.common.terminal import say, show_table
from benchmarks.common.timing import Figure
from benchmarks.speed import committee, flatness, training

SECTIONS = {
    "training": training.measure,
    "flatness": flatness.measure,
    "committee": committee.measure,
}


@dataclass(frozen=True, kw_only=True)
class Speed(FolderOptions):
    """Measure what the library costs, each figure a ratio of times taken in turn in one run."""

    sections: Annotated[tuple[str, ...], Among("section", lambda: SECTIONS)] = tuple(SECTIONS)
    """Which parts of the library."""
    rounds: Annotated[int, Within(2)] = 9
    """How often each candidate is run; the ratio is the median over the rounds."""


def run(options: Speed) -> int:
    """Measures, prints the tables, writes them; the exit status."""
    folder = open_folder(options, "speed")
    figures = [line for name in options.sections for line in SECTIONS[name](options.rounds)]
    show(figures)
    found = {
        "command": environment.command(),
        "environment": environment.describe(),
        "rounds": options.rounds,
        "figures": [dataclasses.asdict(line) for line in figures],
    }
    write_results(folder, found)
    write_report(
        folder,
        "speed/report.md.j2",
        "What the library costs",
        found=found,
        tables={name: (table(lines), notes(lines)) for name, lines in by_section(figures).items()},
    )
    say(f"Written: {folder / MARKDOWN}")
    return 0


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
