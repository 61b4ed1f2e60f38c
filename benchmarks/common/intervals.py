"""The mean of a few numbers, such as differences seed by seed: its error, Student's interval."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """Student's interval for a mean.

    Attributes:
      mean: of the sample.
      low: lower end.
      high: upper end.
    """

    mean: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """-1 or 1 where the interval excludes zero, else 0."""
        return int(np.sign(self.low)) if self.low * self.high > 0 else 0


def interval(sample: ArrayLike) -> Interval:
    """The interval for the mean of a sample; that of a single number is without ends."""
    numbers = np.asarray(sample, float)
    mean = float(numbers.mean())
    if len(numbers) < 2:
        return Interval(mean, -np.inf, np.inf)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(numbers) - 1) * stats.sem(numbers))
    return Interval(mean, mean - half, mean + half)


def standard_error(numbers: NDArray[Any]) -> NDArray[Any]:
    """Of the mean over seeds (the last axis), 0 with one seed."""
    count = numbers.shape[-1]
    if count == 1:
        return np.zeros(numbers.shape[:-1])
    return np.asarray(numbers.std(-1, ddof=1) / np.sqrt(count))


def with_error(numbers: NDArray[Any], digits: int) -> str:
    """Mean and standard error as text; of a single number that alone, a dash of nothing."""
    if len(numbers) < 2:
        return f"{numbers[0]:.{digits}f}" if len(numbers) else "-"
    return f"{numbers.mean():.{digits}f} ± {standard_error(numbers):.{digits}f}"
