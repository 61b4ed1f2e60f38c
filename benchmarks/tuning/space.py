"""Where a hyper-parameter is looked for, and points of such spaces by quasi-random numbers."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)


@dataclass(frozen=True)
class Linear:
    """Numbers between two bounds, uniform."""

    low: float
    high: float

    def drawn(self) -> BaseDistribution:
        """What the sampler draws from."""
        return FloatDistribution(self.low, self.high)

    def stored(self) -> BaseDistribution:
        """How the value is kept beside the trial."""
        return self.drawn()

    def value(self, drawn: float) -> float:
        """The hyper-parameter that a draw stands for."""
        return float(drawn)


@dataclass(frozen=True)
class Log(Linear):
    """Numbers between two bounds, uniform in their logarithm."""

    def drawn(self) -> BaseDistribution:
        """What the sampler draws from."""
        return FloatDistribution(self.low, self.high, log=True)


@dataclass(frozen=True)
class Choice:
    """One of a few values, equally often."""

    values: tuple[float, ...]

    def drawn(self) -> BaseDistribution:
        """What the sampler draws from: a place, which quasi-random numbers can spread evenly."""
        return IntDistribution(0, len(self.values) - 1)

    def stored(self) -> BaseDistribution:
        """How the value is kept beside the trial."""
        return CategoricalDistribution(self.values)

    def value(self, drawn: int) -> float:
        """The hyper-parameter that a draw stands for."""
        return self.values[drawn]


Range = Linear | Choice
Space = Mapping[str, Range]


def points(space: Space, count: int, seed: int) -> list[dict[str, float]]:
    """``count`` points of a space: Sobol's, scrambled by the seed, after a random first one."""
    with warnings.catch_warnings():
        # The sampler calls itself experimental.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.QMCSampler(
            scramble=True,
            seed=seed,
            warn_asynchronous_seeding=False,
            warn_independent_sampling=False,
        )
    study = optuna.create_study(sampler=sampler)
    drawn = {name: one.drawn() for name, one in space.items()}
    found: list[dict[str, Any]] = []
    for _ in range(count):
        trial = study.ask(drawn)
        found.append({name: space[name].value(trial.params[name]) for name in space})
        # The sampler learns the space from trials that have ended.
        study.tell(trial, 0.0)
    return found
