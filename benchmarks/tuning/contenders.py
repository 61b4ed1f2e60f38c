"""The methods that are tuned against each other, and where their hyper-parameters are looked for.

All have momentum 0.9 where they have one, the same family of schedules, and decoupled weight decay
that is counted the same way: `decay` is by how many powers of e the weights would shrink over the
run at the peak learning rate.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks.tuning.space import Choice, Log, Range
from entropix.losses import Loss, SmoothedLoss

MOMENTUM = 0.9
# Share of a run in which the learning rate rises to its peak.
WARMUP = 0.05
Values = Mapping[str, Any]


class Run(NamedTuple):
    """What an optimizer is told of its run.

    Attributes:
      updates: of the weights of one copy, which may be traced.
      key: for noise.
      axis_name: of the axis that the copies are mapped over; empty for a single one.
    """

    updates: Any
    key: jax.Array
    axis_name: tuple[str, ...] = ()


# Compared by identity, so that what is compiled for one can be looked up.
@dataclass(frozen=True, eq=False)
class Contender:
    """A method of the contest.

    Attributes:
      summary: one line for the report.
      build: the optimizer from (hyper-parameters, run).
      space: its hyper-parameters, the shared ones too.
      entropic: whether it is of the family that this library is for.
      copies: of the network.
      budgets: gradients it is given, in units of the row's budget.
      gradients: that one update of one copy takes.
      cycle: updates that make one step; between them the weights are no place to be judged at.
      alike: whether the copies start from the same weights, where no hyper-parameter says so.
      weights: of a method with one copy, the weights to evaluate from (optimizer state, weights of
        the training loop), where `entropix.eval_params` does not know them.
      smooth: from the hyper-parameters to what turns the training loss into the one to train on.
    """

    summary: str
    build: Callable[[Values, Run], optax.GradientTransformation]
    space: Mapping[str, Range]
    entropic: bool = False
    copies: int = 1
    budgets: int = 1
    gradients: int = 1
    cycle: int = 1
    alike: bool = False
    weights: Callable[[optax.OptState, optax.Params], optax.Params] | None = None
    smooth: Callable[[Values], Callable[[Loss], SmoothedLoss]] | None = None

    def total(self, gradients: int) -> int:
        """Gradients of one run at a budget."""
        return gradients * self.budgets

    def updates(self, gradients: int) -> int:
        """Updates of each copy at a budget, which must be a whole number of them."""
        count, rest = divmod(self.total(gradients), self.copies * self.gradients)
        if rest:
            raise ValueError(
                f"gradients must be a multiple of {self.copies * self.gradients}, got {gradients}"
            )
        return count


SCHEDULE: dict[str, Range] = {"cosine": Choice((0, 1)), "decay": Log(0.03, 30.0)}
SHARED: dict[str, Range] = {"learning_rate": Log(2e-3, 0.6), **SCHEDULE}
# Adam's steps are of the size of its learning rate.
SHARED_ADAM: dict[str, Range] = {"learning_rate": Log(1e-4, 3e-2), **SCHEDULE}


def schedule(values: Values, updates: Any, rate: Any = None) -> optax.Schedule:
    """A rise to the peak, then a half cosine to zero where ``cosine`` is 1, else the peak."""
    peak = values["learning_rate"] if rate is None else rate

    def at(step: Any) -> jax.Array:
        warm = jnp.minimum(1.0, (step + 1) / (WARMUP * updates))
        falling = 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(step / updates, 1.0)))
        return peak * warm * jnp.where(jnp.asarray(values["cosine"], bool), falling, 1.0)

    return at


def weight_decay(values: Values, updates: Any) -> Any:
    """Lambda of decoupled decay, which is multiplied by the learning rate at each update."""
    return values["decay"] / (values["learning_rate"] * updates)


def descent(
    values: Values, updates: Any, direction: optax.GradientTransformation | None = None
) -> optax.GradientTransformation:
    """A direction, Nesterov's momentum by default, decoupled decay, and the schedule."""
    return optax.chain(
        optax.trace(MOMENTUM, nesterov=True) if direction is None else direction,
        optax.add_decayed_weights(weight_decay(values, updates)),
        optax.scale_by_learning_rate(schedule(values, updates)),
    )
