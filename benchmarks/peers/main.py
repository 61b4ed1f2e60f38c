"""`python -m benchmarks peers`: the same work by this library and by others, in turn."""

from dataclasses import dataclass
from typing import Annotated

from benchmarks.common.figures import present
from benchmarks.common.options import Among, FolderOptions, Within
from benchmarks.common.run_folder import open_folder
from benchmarks.peers import curvature, largest, steps, workers

SECTIONS = {
    "steps": steps.measure,
    "workers": workers.measure,
    "curvature": curvature.measure,
    "largest": largest.measure,
}


@dataclass(frozen=True, kw_only=True)
class Peers(FolderOptions):
    """Measure the same work by this library and by others, each figure a ratio of one run."""

    sections: Annotated[tuple[str, ...], Among("section", lambda: SECTIONS)] = tuple(SECTIONS)
    """Training steps, workers of local SGD, Lanczos, the largest eigenvalue."""
    rounds: Annotated[int, Within(2)] = 9
    """How often each candidate is run; the ratio is the median over the rounds."""


def run(options: Peers) -> int:
    """Measures, prints the tables, writes them; the exit status."""
    folder = open_folder(options, "peers")
    # One table each, measured when it is asked for.
    measured = {name: map(SECTIONS[name], [options.rounds]) for name in options.sections}
    present(folder, "This library and its peers", measured, options.rounds)
    return 0
