"""results.json: everything a run found, written after each method, and its statistics."""

import json
import math
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common.files import write_text

Results = dict[str, Any]
BASELINE = "sgd"


class Estimate(NamedTuple):
    """A mean over seeds.

    Attributes:
      mean: the mean.
      std_error: its standard error; None with one seed.
    """

    mean: float
    std_error: float | None


def begin(**header: Any) -> Results:
    """Results without methods yet."""
    return {**header, "methods": {}}


def write(folder: Path, found: Results) -> None:
    """Writes results.json, with the statistics over seeds, whole or not at all."""
    text = json.dumps({**found, "statistics": summarize(found)}, indent=1)
    write_text(folder / "results.json", text + "\n")


def read(folder: Path) -> Results | None:
    """The results in a folder; None where there are none."""
    path = folder / "results.json"
    if not path.exists():
        return None
    found: Results = json.loads(path.read_text())
    return found


def estimate(numbers: list[float]) -> Estimate:
    """Mean over seeds and its standard error."""
    mean = statistics.fmean(numbers)
    if len(numbers) == 1:
        return Estimate(mean, None)
    return Estimate(mean, statistics.stdev(numbers) / math.sqrt(len(numbers)))


def quantities(record: dict[str, Any]) -> dict[str, list[float]]:
    """The final numbers of one method, seed by seed."""
    flatness = record["flatness"]
    return {
        **record["final"],
        "local_energy": [energies[-1] for energies in flatness["local_energy"]],
        "top_eigenvalue": flatness["top_eigenvalue"],
        "trace": flatness["trace"],
    }


def summarize(found: Results) -> dict[str, dict[str, dict[str, float | None]]]:
    """For each method and quantity: mean, standard error, and the paired difference to SGD."""
    table = {name: quantities(record) for name, record in found["methods"].items()}
    baseline = table.get(BASELINE)
    return {
        name: {
            quantity: one_summary(numbers, baseline[quantity] if baseline else None)
            for quantity, numbers in numbers_of.items()
        }
        for name, numbers_of in table.items()
    }


def one_summary(numbers: list[float], baseline: list[float] | None) -> dict[str, float | None]:
    """Mean and standard error, and those of the difference to the baseline, seed by seed."""
    mean, std_error = estimate(numbers)
    summary: dict[str, float | None] = {"mean": mean, "std_error": std_error}
    if baseline is not None:
        difference = estimate([a - b for a, b in zip(numbers, baseline, strict=True)])
        summary |= {"minus_sgd": difference.mean, "minus_sgd_std_error": difference.std_error}
    return summary
