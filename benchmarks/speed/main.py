"""The `speed` experiment: all figures of the library in one run, on the terminal and as JSON."""

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.common import environment
from benchmarks.common.errors import UsageError
from benchmarks.common.files import write_text
from benchmarks.common.timing import Figure
from benchmarks.speed import committee, flatness, training

SECTIONS = {
    "training": training.measure,
    "flatness": flatness.measure,
    "committee": committee.measure,
}
COLUMNS = ("measured", "ms", "MiB", "against", "ms", "MiB", "ratio", "target")


@dataclass(frozen=True)
class Speed:
    """Measure what the library costs, each figure a ratio of times taken in turn in one run."""

    sections: tuple[str, ...] = tuple(SECTIONS)
    """Which parts of the library."""
    rounds: int = 9
    """How often each candidate is run; the ratio is the median over the rounds."""
    output: Path | None = None
    """JSON file to write; by default runs/speed-<time>.json."""


def run(config: Speed) -> int:
    """Measures, prints the table, writes the JSON; the exit status."""
    if config.rounds < 2:
        raise UsageError(f"--rounds must be at least 2, got {config.rounds}")
    for name in config.sections:
        if name not in SECTIONS:
            raise UsageError(f"--sections must be of {', '.join(SECTIONS)}, got {name!r}")
    figures = [line for name in config.sections for line in SECTIONS[name](config.rounds)]
    show(figures)
    output = config.output or Path("runs") / f"speed-{time.strftime('%Y%m%d-%H%M%S')}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    found = {
        "environment": environment.describe(),
        "rounds": config.rounds,
        "figures": [dataclasses.asdict(line) for line in figures],
    }
    write_text(output, json.dumps(found, indent=2) + "\n")
    Console().print(f"Written: {output}")
    return 0


def show(figures: list[Figure]) -> None:
    """One table per section, its notes below it."""
    console = Console()
    for section in dict.fromkeys(line.section for line in figures):
        lines = [line for line in figures if line.section == section]
        table = Table(title=section, title_justify="left", box=box.SIMPLE_HEAD)
        for column in COLUMNS:
            left = column in ("measured", "against")
            table.add_column(
                column, justify="left" if left else "right", overflow="fold", no_wrap=not left
            )
        for line in lines:
            table.add_row(
                line.name,
                milliseconds(line.seconds),
                mebibytes(line.memory_bytes),
                line.reference,
                milliseconds(line.reference_seconds),
                mebibytes(line.reference_memory_bytes),
                quotient(line),
                "" if line.target is None else f"{line.target:.2f}",
            )
        console.print(table)
        for line in lines:
            if line.note:
                console.print(f"{line.name} / {line.reference}: {line.note}", markup=False)
        console.print()


def quotient(line: Figure) -> str:
    """The ratio with its spread, in red where it misses its target."""
    if line.ratio is None:
        return "not measured"
    missed = line.target is not None and line.ratio > line.target
    return f"{'[red]' if missed else ''}{line.ratio:.3f} ± {line.ratio_spread:.3f}"


def milliseconds(seconds: float | None) -> str:
    """A time, as text; nothing where there is none."""
    return "" if seconds is None else f"{seconds * 1e3:.2f}"


def mebibytes(count: int | None) -> str:
    """A size, as text; nothing where there is none."""
    return "" if count is None else f"{count / 2**20:.0f}"
