"""`python -m benchmarks loads`: up to which load focusing belief propagation solves patterns."""

import time
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax.numpy as jnp
import numpy as np
import pandas as pd
from rich.progress import track

from benchmarks.common import environment
from benchmarks.common.options import ABOVE_ZERO, POSITIVE, FolderOptions
from benchmarks.common.report import MARKDOWN, write_report
from benchmarks.common.run_folder import open_folder, write_results
from benchmarks.common.terminal import say, show_table
from entropix.committee import Committee, focusing_bp, random_patterns, rising_coupling

Node = Literal["gaussian", "relaxed"]
COUPLINGS = np.arange(0.05, 3.0, 0.05)
HEAD = ["network", "weights", "load", "solved", "errors left", "sweeps", "seconds"]


@dataclass(frozen=True, kw_only=True)
class Loads(FolderOptions):
    """Solve random patterns of rising load with binary weights by focusing belief propagation."""

    sizes: Annotated[tuple[int, ...], POSITIVE] = (1001,)
    """Weights of each network, odd; a tree's are rounded to three odd units."""
    loads: Annotated[tuple[float, ...], ABOVE_ZERO] = (0.5, 0.6, 0.7, 0.74)
    """Patterns per weight. The perceptron's capacity is 0.833."""
    seeds: Annotated[int, POSITIVE] = 5
    """Instances of each."""
    node: Node = "gaussian"
    """How sums over inputs are treated: gaussian, or relaxed, which is cheaper and less stable."""


def networks(size: int) -> dict[str, Committee]:
    """Of about that many weights."""
    return {"perceptron": Committee(size), "tree, K = 3": Committee(3 * (size // 3 | 1), 3)}


def solve(model: Committee, load: float, seed: int, node: Node) -> dict[str, Any]:
    """One instance, with infinitely many replicas and a rising coupling."""
    begin = time.perf_counter()
    examples = random_patterns(model, load, seed, dtype=jnp.int8)
    found = focusing_bp(model, *examples, rising_coupling(COUPLINGS), seed, node=node)
    return {
        "errors": int(found.errors),
        "sweeps": int(found.history.steps[: int(found.stages)].sum()),
        "seconds": time.perf_counter() - begin,
    }


def row(record: dict[str, Any]) -> tuple[str, ...]:
    """Of the table; sweeps and seconds are medians."""
    runs = record["runs"]
    left = [run["errors"] for run in runs if run["errors"]]
    return (
        record["network"],
        f"{record['weights']:,}",
        f"{record['load']:g}",
        f"{len(runs) - len(left)}/{len(runs)}",
        ", ".join(map(str, left)),
        f"{np.median([run['sweeps'] for run in runs]):.0f}",
        f"{np.median([run['seconds'] for run in runs]):.0f}",
    )


def run(options: Loads) -> int:
    """Solves all instances; the exit status."""
    folder = open_folder(options, "loads")
    cells = [
        (name, model, load)
        for size in options.sizes
        for name, model in networks(size).items()
        for load in options.loads
    ]
    records = []
    for name, model, load in track(cells, "solving", transient=True):
        runs = [solve(model, load, seed, options.node) for seed in range(options.seeds)]
        records.append({"network": name, "weights": model.num_weights, "load": load, "runs": runs})
    found = {
        "seeds": options.seeds,
        "node": options.node,
        "command": environment.command(),
        "environment": environment.describe(),
        "records": records,
    }
    write_results(folder, found)
    table = pd.DataFrame(map(row, records), columns=HEAD)
    write_report(
        folder,
        "committee/loads.md.j2",
        "Loads that focusing belief propagation solves",
        found=found,
        table=table,
        couplings=COUPLINGS,
    )
    show_table(table, "Loads")
    say(f"Written: {folder / MARKDOWN}")
    return 0
