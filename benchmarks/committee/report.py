"""report.md and report.html of the committee experiments, and their table."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.committee import figures
from benchmarks.common.document import (
    Block,
    Code,
    Heading,
    Paragraph,
    Picture,
    TableBlock,
    to_html,
    to_markdown,
)
from benchmarks.common.files import write_text

HEAD = (
    "algorithm", "solved", "passes", "distance", "local entropy", "local energy %",
    "noisy error %", "test error %",
)  # fmt: skip


def write(folder: Path, found: dict[str, Any]) -> None:
    """Writes the pictures, report.md and report.html."""
    blocks = compose(found, figures.draw(folder, found))
    write_text(folder / "report.md", to_markdown(blocks))
    write_text(folder / "report.html", to_html(blocks, "Committee machines"))


def title(name: str, experiment: dict[str, Any]) -> str:
    """Of the table of an experiment."""
    return (
        f"{name}: {experiment['title']}; {experiment['patterns']:,} patterns, "
        f"{experiment['weights']:,} weights"
    )


def rows(experiment: dict[str, Any], measures: dict[str, Any]) -> list[tuple[str, ...]]:
    """A row for each algorithm, means over the instances."""
    at = figures.reference_point(measures)
    return [
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


def mean(numbers: list[float], form: str) -> str:
    """The mean in that format over the instances that have a number, a dash where none has."""
    known = [number for number in numbers if math.isfinite(number)]
    return format(statistics.fmean(known), form) if known else "-"


def correlation_lines(found: dict[str, Any]) -> list[str]:
    """How width and test error go together, a line for each measure of width."""
    correlations = found["correlations"]
    return [
        f"correlation of {quantity.replace('_', ' ')} with test error: "
        f"{correlations[quantity]:+.2f}, {correlations['runs']} runs"
        for quantity in ("local_entropy", "local_energy")
        if correlations
    ]


def compose(found: dict[str, Any], pictures: dict[str, Path]) -> Sequence[Block]:
    """The report, block by block."""
    configuration, measures = found["configuration"], found["measures"]
    blocks: list[Block] = [
        Heading("Widths of the solutions of committee machines", level=1),
        Paragraph(
            f"K = {configuration['num_hidden']}, means over {configuration['seeds']} instances. "
            "'solved' counts those without training errors; 'passes' are over the patterns, or "
            "sweeps of messages. 'local entropy' is the log share of solutions per weight at "
            f"'distance' 1 - S² (field strength {measures['reference_strength']:g}), by belief "
            "propagation, over the solved instances for which it converged. 'local energy' is the "
            "rise of the training error when weights are multiplied by "
            f"1 + {measures['sigma'][-1]:g} z; 'noisy error' the training error with "
            f"{measures['rates'][-1]:.0%} of the inputs flipped."
        ),
        Code(found["command"]),
    ]
    for name, experiment in found["experiments"].items():
        blocks += [
            Heading(title(name, experiment)),
            TableBlock(HEAD, rows(experiment, measures)),
        ]
    blocks += [
        Heading("Local entropy"),
        Picture(
            pictures["local_entropy"],
            "Log share of solutions per weight against the distance, over the solved instances; "
            "points at which belief propagation converged for all of them; bands of one standard "
            "error.",
        ),
        Heading("Hessian"),
        Picture(
            pictures["hessian"],
            "Share of the eigenvalues beyond a size, of the smooth network with steepness "
            f"{measures['beta']:g} at the solutions found.",
        ),
        Heading("Noise on the inputs"),
        Picture(pictures["noise"], "Training error; inputs that vary more are flipped more."),
    ]
    if "correlation" in pictures:
        blocks += [
            Heading("Width and generalization"),
            *map(Paragraph, correlation_lines(found)),
            Picture(pictures["correlation"], "Each run on the images as a point."),
        ]
    return blocks
