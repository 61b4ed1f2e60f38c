"""What curvature costs beside the packages that users know, those that are installed."""

import functools
import importlib.util
from collections.abc import Mapping
from typing import TypeVar

from benchmarks.common import lanczos
from benchmarks.common.lanczos import PEERS, SMALL
from benchmarks.common.peak_memory import peak_memory
from benchmarks.common.timing import Figure, figure, not_measured, time_rounds

OURS = "lanczos"
Build = TypeVar("Build")


def measure(rounds: int) -> list[Figure]:
    """Lanczos here against that of each peer; one that cannot be imported is named."""
    present = installed(PEERS)
    candidates = {OURS: lanczos.entropix_lanczos, **present} if present else {}
    builders = {name: functools.partial(build, SMALL) for name, build in candidates.items()}
    memory = {name: peak_memory(build) for name, build in builders.items()}
    calls = {name: build() for name, build in builders.items()}
    largest = {name: lanczos.describe_largest(call()) for name, call in calls.items()}
    seconds = time_rounds(calls, rounds=rounds)
    section = f"Hessian by Lanczos: {SMALL}"
    figures = []
    for name, (packages, _) in PEERS.items():
        if name in present:
            note = f"largest Ritz value {largest[OURS]}, of the peer {largest[name]}"
            figures.append(
                figure(
                    seconds, OURS, name, section=section, note=note,
                    memory_bytes=memory[OURS], reference_memory_bytes=memory[name],
                )
            )  # fmt: skip
        else:
            figures.append(missing(OURS, name, packages, section))
    return figures


def installed(peers: Mapping[str, tuple[tuple[str, ...], Build]]) -> dict[str, Build]:
    """The peers whose packages can be imported."""
    return {
        name: build
        for name, (packages, build) in peers.items()
        if all(importlib.util.find_spec(package) for package in packages)
    }


def missing(ours: str, name: str, packages: tuple[str, ...], section: str) -> Figure:
    """The line of a peer whose packages cannot be."""
    note = f"needs {' and '.join(packages)}: pip install -e '.[peers]'"
    return not_measured(ours, name, section=section, note=note)
