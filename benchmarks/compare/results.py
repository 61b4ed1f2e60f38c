"""results.json of a comparison, and its statistics over the seeds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.common.run_folder import Results, write_results

BASELINE = "sgd"


@dataclass(frozen=True)
class Yardstick:
    """What methods are judged by.

    Attributes:
      name: in words.
      test: the quantity on what is judged.
      train: the same in training.
      scale: what the numbers are multiplied by.
      unit: behind a number.
      difference: what differences of it are called.
      digits: behind the point.
    """

    name: str
    test: str
    train: str
    scale: float
    unit: str
    difference: str
    digits: int

    @property
    def column(self) -> str:
        """The head of its column."""
        return f"{self.name} {self.unit}"


ERROR = Yardstick("error", "test_error", "train_error", 100, "%", "points of error", 2)
LOSS = Yardstick("loss", "test_loss", "train_loss", 1, "nats", "nats", 3)


def yardstick(found: Results) -> Yardstick:
    """The error on images, the loss on a text."""
    return LOSS if found["data"].get("is_text") else ERROR


def write(folder: Path, found: Results) -> None:
    """Writes results.json, with the statistics over seeds, whole or not at all."""
    write_results(folder, {**found, "statistics": as_json(summarize(found))})


def numbers(found: Results) -> pd.DataFrame:
    """The final numbers, a row for each (method, seed), a column for each quantity."""
    return pd.concat(
        {name: of_method(record) for name, record in found["methods"].items()},
        names=["method", "seed"],
    )


def of_method(record: dict[str, Any]) -> pd.DataFrame:
    """The final numbers of one method, a row for each seed."""
    flatness = record["flatness"]
    return pd.DataFrame(
        {
            **record["final"],
            "local_energy": [energies[-1] for energies in flatness["local_energy"]],
            "top_eigenvalue": flatness["top_eigenvalue"],
            "trace": flatness["trace"],
        }
    )


def summarize(found: Results) -> pd.DataFrame:
    """Rows: methods. Columns: (quantity, statistic).

    Statistics are the mean over seeds and its standard error (nan with one seed), and the same of
    the difference to SGD, seed by seed, where SGD ran.
    """
    if not found["methods"]:
        return pd.DataFrame()
    table = numbers(found)
    parts = {"mean": mean_of(table), "std_error": error_of(table)}
    if BASELINE in found["methods"]:
        baseline = table.loc[BASELINE]
        differences = table - np.tile(baseline.to_numpy(), (len(found["methods"]), 1))
        parts |= {"minus_sgd": mean_of(differences), "minus_sgd_std_error": error_of(differences)}
    return pd.concat(parts, axis=1).swaplevel(axis=1)


def mean_of(table: pd.DataFrame) -> pd.DataFrame:
    """Over the seeds of each method."""
    return table.groupby("method", sort=False).mean()


def error_of(table: pd.DataFrame) -> pd.DataFrame:
    """The standard error of the mean over the seeds of each method."""
    return table.groupby("method", sort=False).sem()


def as_json(summary: pd.DataFrame) -> dict[str, dict[str, dict[str, float | None]]]:
    """Statistics by method and quantity; None where there is none."""
    nested: dict[str, dict[str, dict[str, float | None]]] = {}
    for name, row in summary.iterrows():
        for (quantity, statistic), value in row.items():
            number = None if np.isnan(value) else float(value)
            nested.setdefault(str(name), {}).setdefault(quantity, {})[statistic] = number
    return nested
