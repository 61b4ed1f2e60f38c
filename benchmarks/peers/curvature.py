"""What curvature costs beside the packages that users know, those that are installed."""

import functools
import importlib.util

from benchmarks.common import lanczos
from benchmarks.common.lanczos import PEERS, SMALL
from benchmarks.common.peak_memory import peak_memory
from benchmarks.common.timing import Figure, figure, not_measured, time_rounds

OURS = "lanczos"


def measure(rounds: int) -> list[Figure]:
    """Lanczos here against that of each peer; one that cannot be imported is named."""
    installed = {
        name: build
        for name, (packages, build) in PEERS.items()
        if all(importlib.util.find_spec(package) for package in packages)
    }
    candidates = {OURS: lanczos.entropix_lanczos, **installed} if installed else {}
    builders = {name: functools.partial(build, SMALL) for name, build in candidates.items()}
    memory = {name: peak_memory(build) for name, build in builders.items()}
    calls = {name: build() for name, build in builders.items()}
    largest = {name: lanczos.describe_largest(call()) for name, call in calls.items()}
    seconds = time_rounds(calls, rounds=rounds)
    section = f"Hessian by Lanczos: {SMALL}"
    figures = []
    for name, (packages, _) in PEERS.items():
        if name in installed:
            note = f"largest Ritz value {largest[OURS]}, of the peer {largest[name]}"
            figures.append(
                figure(
                    seconds, OURS, name, section=section, note=note,
                    memory_bytes=memory[OURS], reference_memory_bytes=memory[name],
                )
            )  # fmt: skip
        else:
            note = f"needs {' and '.join(packages)}: pip install -e '.[peers]'"
            figures.append(not_measured(OURS, name, section=section, note=note))
    return figures
