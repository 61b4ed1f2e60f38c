"""Winners of `tune` trained once more, their test errors all along the run."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator
from numpy.typing import NDArray

from benchmarks.common.data import Dataset
from benchmarks.common.intervals import Interval, interval
from benchmarks.common.network import Network
from benchmarks.common.options import UsageError
from benchmarks.common.plots import band, line_style
from benchmarks.common.report import ROOMS
from benchmarks.common.run_folder import Results, read_results
from benchmarks.tuning.contenders import Contender
from benchmarks.tuning.rows import Row, whole
from benchmarks.tuning.scores import answers_in_blocks, error_and_loss
from benchmarks.tuning.training import Trainings, Trial


def recorded_winners(row: str, methods: Sequence[str]) -> Results:
    """The recorded table of a row, which must have some methods.

    Raises:
      UsageError: there is no table, or a method is not in it.
    """
    tuned = read_results(ROOMS / "results" / f"tuned-{row}")
    if tuned is None:
        raise UsageError(f"--row {row} has no recorded table; first: tune --row {row}, table")
    if missing := [name for name in methods if name not in tuned["tuned"]]:
        raise UsageError(f"--methods: not in the recorded table of {row}: {', '.join(missing)}")
    return tuned


def marks_of(
    name: str, contender: Contender, values: Mapping[str, Any], gradients: int, points: int
) -> list[int]:
    """Numbers of updates to judge after, evenly over the run, the last at its end.

    All are whole cycles: between them an anchor is that of the last loop, and SAM at its ascent.

    Raises:
      UsageError: the run is not a whole number of cycles.
    """
    cycle = contender.cycle * int(values.get("inner_steps", 1))
    counted = contender.copies * contender.gradients
    updates, rest = divmod(contender.total(gradients), counted)
    if rest or updates % cycle:
        raise UsageError(f"{gradients} gradients are no whole number of cycles of {name}: {cycle} "
                         f"updates of {counted} gradients each")  # fmt: skip
    cycles = updates // cycle
    ends = {max(1, round(cycles * at / points)) for at in range(1, points + 1)}
    return [cycle * one for one in sorted(ends)]


class Course:
    """Trains winners of one method at any budget up to the longest; compiles once."""

    def __init__(
        self,
        row: Row,
        network: Network,
        data: Dataset,
        seeds: Sequence[int],
        longest: int,
        points: int,
    ) -> None:
        """Puts the images on the device."""
        self._row, self._network, self._data = row, network, data
        self._seeds, self._longest, self._points = seeds, longest, points
        self._images = jax.device_put((data.x_train, data.y_train))

    def follow(
        self, name: str, contender: Contender, values: Mapping[str, Any], budgets: Sequence[int]
    ) -> dict[str, Any]:
        """Test errors along the runs of each budget.

        Returns:
          By budget: the ``updates`` and ``gradients`` that had been made, and at each of them the
          test ``error`` of every seed.
        """
        trainings = Trainings(
            self._network, contender, self._images, whole(self._seeds, len(self._data.x_train)),
            batch_size=self._row.batch_size, gradients=self._longest,
        )  # fmt: skip
        trials = [Trial(values, at) for at in range(len(self._seeds))]
        found = {}
        for gradients in budgets:
            marks = marks_of(name, contender, values, gradients, self._points)
            # As many for every budget and method, so that no length is compiled anew.
            padded = [*marks, *[marks[-1]] * (self._points - len(marks))]
            errors: list[list[float]] = [[] for _ in marks]
            for chunk in trainings.follow(trials, gradients, padded):
                for at, trained in enumerate(chunk[: len(marks)]):
                    errors[at] += self._errors(trained.params, trained.batch_stats)
            each = contender.copies * contender.gradients
            found[str(gradients)] = {
                "updates": marks,
                "gradients": [each * one for one in marks],
                "error": errors,
            }
        return found

    def _errors(self, params: Any, stats: Any) -> list[float]:
        """Test errors of stacked weights."""
        logits = answers_in_blocks(self._network, params, stats, self._data.x_test)
        return [error_and_loss(one, self._data.y_test)[0] for one in logits]


def last_errors(curve: Mapping[str, Any]) -> NDArray[np.float64]:
    """The errors at the end of a run, by seed."""
    return np.asarray(curve["error"][-1])


def difference(curve: Mapping[str, Any], rival: Mapping[str, Any]) -> Interval:
    """The error at the end minus that of a rival, seed by seed."""
    return interval(last_errors(curve) - last_errors(rival))


def draw(axes: Axes, x: Sequence[float], curve: Mapping[str, Any], name: str, at: int) -> None:
    """One line of errors in percent, mean and one standard error."""
    style = line_style(at) | {"lw": 1.4}
    band(axes, np.asarray(x), 100 * np.asarray(curve["error"]), name, style)


def logarithmic(axes: Axes) -> None:
    """Errors on a logarithmic scale, with plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
    axes.yaxis.set_minor_formatter("{x:g}")
