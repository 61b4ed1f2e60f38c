"""How many gradients each method gets, and where on the way it is evaluated."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.common.methods import Hyperparameters, Method
from benchmarks.common.options import UsageError


@dataclass(frozen=True)
class Budget:
    """Gradients per seed, the same for every method of budget 1.

    Attributes:
      gradients: T, a whole number of cycles of every method.
      interval: gradients between two points of the learning curves (of a method of budget 1).
      replicas: y, copies of the network in the replicated methods.
    """

    gradients: int
    interval: int
    replicas: int

    def factor(self, method: Method) -> int:
        """Budgets that a method is given."""
        return self.replicas if method.budgets == "y" else int(method.budgets)

    def copies(self, method: Method) -> int:
        """Copies of the network that a method trains."""
        return self.replicas if method.replicated else 1

    def gradients_per_step(self, method: Method) -> int:
        """Gradients of one update."""
        return self.copies(method) * method.gradients

    def total(self, method: Method) -> int:
        """Gradients of one seed of a method."""
        return self.gradients * self.factor(method)

    def steps(self, method: Method) -> int:
        """Updates of a method."""
        return self.total(method) // self.gradients_per_step(method)

    def stops(self, method: Method) -> list[int]:
        """Updates after which a method is evaluated, the last one last."""
        every = self.interval * self.factor(method) // self.gradients_per_step(method)
        return [*range(every, self.steps(method), every), self.steps(method)]


def plan_budget(
    asked: int, replicas: int, points: int, methods: Sequence[tuple[Method, Hyperparameters]]
) -> Budget:
    """The largest budget of at most ``asked`` gradients that is whole cycles for every method.

    Raises:
      UsageError: there is not one whole cycle in it.
    """
    cycle = math.lcm(
        *(
            method.cycle_steps(values) * method.gradients * (replicas if method.replicated else 1)
            for method, values in methods
        )
    )
    if asked < cycle:
        raise UsageError(
            f"a budget of {asked} gradients is too small: these methods end together on a whole "
            f"step only after multiples of {cycle}"
        )
    gradients = asked // cycle * cycle
    interval = max(1, round(gradients / points / cycle)) * cycle
    return Budget(gradients, interval, replicas)
