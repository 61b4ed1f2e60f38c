"""Student's interval for the mean of a few numbers, such as differences seed by seed."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
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
