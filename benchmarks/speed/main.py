"""`python -m benchmarks speed`: all figures of the library in one run."""

from dataclasses import dataclass
from typing import Annotated

from benchmarks.common.figures import present
from benchmarks.common.options import Among, FolderOptions, Within
from benchmarks.common.run_folder import open_folder
from benchmarks.speed import committee, flatness, meetings, training

SECTIONS = {
    "training": training.measure,
    "meetings": meetings.measure,
    "flatness": flatness.measure,
    "committee": committee.measure,
    "instances": committee.instances,
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
    measured = {name: SECTIONS[name](options.rounds) for name in options.sections}
    present(folder, "What the library costs", measured, options.rounds)
    return 0
