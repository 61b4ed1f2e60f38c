"""Up to which load focusing belief propagation solves random patterns with binary weights.

``python -m benchmarks.committee.loads`` writes loads.json and loads.md.
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import tyro
from rich.progress import track

from benchmarks.common import environment
from benchmarks.common.document import Code, Heading, Paragraph, TableBlock, to_markdown
from benchmarks.common.files import write_text
from entropix.committee import Committee, focusing_bp, random_patterns, scoping

Node = Literal["gaussian", "relaxed"]
COUPLINGS = np.arange(0.05, 3.0, 0.05)
HEAD = ("network", "weights", "load", "solved", "errors left", "sweeps", "seconds")


@dataclass(frozen=True)
class Loads:
    """Solve random patterns of rising load by focusing belief propagation."""

    sizes: tuple[int, ...] = (1001,)
    """Weights of each network, odd; a tree's are rounded to three odd units."""
    loads: tuple[float, ...] = (0.5, 0.6, 0.7, 0.74)
    """Patterns per weight. The perceptron's capacity is 0.833."""
    seeds: int = 5
    """Instances of each."""
    node: Node = "gaussian"
    """How sums over inputs are treated: gaussian, or relaxed, which is cheaper and less stable."""
    output: Path = Path("runs/loads")
    """Folder to write."""


def networks(size: int) -> dict[str, Committee]:
    """Of about that many weights."""
    return {"perceptron": Committee(size), "tree, K = 3": Committee(3 * (size // 3 | 1), 3)}


def solve(model: Committee, load: float, seed: int, node: Node) -> dict[str, Any]:
    """One instance, with infinitely many replicas and a rising coupling."""
    begin = time.perf_counter()
    examples = random_patterns(model, load, seed, dtype=jnp.int8)
    found = focusing_bp(model, *examples, scoping(COUPLINGS), seed, node=node)
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


def main(config: Loads) -> int:
    """Solves all instances; the exit status."""
    cells = [
        (name, model, load)
        for size in config.sizes
        for name, model in networks(size).items()
        for load in config.loads
    ]
    records = []
    for name, model, load in track(cells, "solving", transient=True):
        runs = [solve(model, load, seed, config.node) for seed in range(config.seeds)]
        records.append({"network": name, "weights": model.num_weights, "load": load, "runs": runs})
    command = environment.command("benchmarks.committee.loads")
    found = {
        "seeds": config.seeds,
        "node": config.node,
        "command": command,
        "environment": environment.describe(),
        "records": records,
    }
    text = to_markdown(
        [
            Heading("Loads that focusing belief propagation solves", level=1),
            Paragraph(
                f"Random patterns, binary weights, {config.node} nodes, y infinite, the coupling "
                f"from {COUPLINGS[0]:g} to {COUPLINGS[-1]:.2f} in {len(COUPLINGS)} stages of "
                "at most 20 sweeps each. 'errors left' are those of the instances that were "
                "not solved; sweeps and seconds are medians, the first of each network with its "
                "compilation."
            ),
            Code(command),
            TableBlock(HEAD, [row(record) for record in records]),
        ]
    )
    write_text(config.output / "loads.json", json.dumps(found, indent=1) + "\n")
    write_text(config.output / "loads.md", text)
    print(text)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Loads)))
