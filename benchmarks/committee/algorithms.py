"""The algorithms that are compared, each with the settings it is run with."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.committee.problems import Problem
from entropix.committee import (
    entropic_lal,
    focusing_bp,
    least_action_learning,
    rising_coupling,
    surrogate_sgd,
)

LEARNING_RATE = 20.0
FAST, SLOW = 1.02, 1.005
COUPLINGS = np.arange(0.5, 10.5, 0.5)
# One object for all runs: the training loop is compiled once for each.
SGD = optax.sgd(LEARNING_RATE)


class Found(NamedTuple):
    """What an algorithm ended with.

    Attributes:
      weights: # shape=(K, n)
      errors: training patterns got wrong.
      passes: over the training patterns, or sweeps.
    """

    weights: jax.Array
    errors: int
    passes: int


def run_focusing_bp(problem: Problem, key: jax.Array, max_epochs: int) -> Found:
    """All couplings are gone through, toward ever denser regions."""
    del max_epochs
    protocol = rising_coupling(jnp.asarray(COUPLINGS))
    found = focusing_bp(problem.model, *problem.train, protocol, key, stop_when_solved=False)
    return Found(found.weights, int(found.errors), int(jnp.sum(found.history.steps)))


def run_lal(problem: Problem, key: jax.Array, max_epochs: int) -> Found:
    """One network."""
    found = least_action_learning(problem.model, *problem.train, key, max_epochs=max_epochs)
    return Found(found.weights, int(found.errors), int(found.epochs))


def run_entropic_lal(problem: Problem, key: jax.Array, max_epochs: int) -> Found:
    """Twenty replicas."""
    found = entropic_lal(problem.model, *problem.train, key, max_epochs=max_epochs)
    return Found(found.weights, int(found.errors), int(found.epochs))


def run_sgd(growth: float) -> Callable[[Problem, jax.Array, int], Found]:
    """Smooth units that sharpen at that rate."""

    def run(problem: Problem, key: jax.Array, max_epochs: int) -> Found:
        found = surrogate_sgd(
            problem.model, *problem.train, SGD, key, growth=growth, max_epochs=max_epochs
        )
        return Found(found.weights, int(found.errors), int(found.epochs))

    return run


ALGORITHMS: dict[str, Callable[[Problem, jax.Array, int], Found]] = {
    "focusing_bp": run_focusing_bp,
    "sgd_slow": run_sgd(SLOW),
    "sgd_fast": run_sgd(FAST),
    "entropic_lal": run_entropic_lal,
    "lal": run_lal,
}
# Focusing belief propagation is for patterns without correlations.
UNCORRELATED_ONLY = ("focusing_bp",)
