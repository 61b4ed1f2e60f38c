"""What a training step costs beside those of the optimizers that users know.

All train the same network of 235,146 parameters on the same mini-batches. A call is a number of
gradients, whatever the method makes of them, so that SAM, which takes two for a step, has made
half as many steps.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import entropix
from benchmarks.common.lanczos import SMALL
from benchmarks.common.timing import Figure, figure, time_rounds

BATCH = 128
GRADIENTS = 20
REFERENCE = "optax.sgd, momentum 0.9"
SECTION = f"{GRADIENTS} gradients of batch {BATCH} and their updates"
RATE = 0.01


def optimizers() -> dict[str, optax.GradientTransformation]:
    """Every candidate, the reference first."""
    sgd = optax.sgd(RATE, momentum=0.9, nesterov=True)
    return {
        REFERENCE: sgd,
        "optax.adamw": optax.adamw(1e-3),
        "optax.contrib.sam": optax.contrib.sam(sgd, optax.sgd(0.05)),
        "optax.contrib.schedule_free_sgd": optax.contrib.schedule_free_sgd(RATE),
        "diloco as Lookahead": entropix.diloco(sgd, optax.sgd(0.5), inner_steps=GRADIENTS),
        "entropy_sgd": entropix.entropy_sgd(inner_learning_rate=RATE, inner_steps=GRADIENTS),
        "entropy_adam": entropix.entropy_adam(
            RATE, inner_learning_rate=RATE, inner_steps=GRADIENTS
        ),
        "diloco of adamw, one worker": entropix.diloco(optax.adamw(1e-3), inner_steps=GRADIENTS),
    }


class Training:
    """Some steps for each call, over the same mini-batches for everybody."""

    def __init__(self, tx: optax.GradientTransformation) -> None:
        """Compiles nothing yet."""
        params, (images, labels) = SMALL.problem()
        self._batches = [
            (images[start : start + BATCH], labels[start : start + BATCH])
            for start in range(0, SMALL.examples - BATCH + 1, BATCH)
        ]
        self.gradients = 0

        def step(params: Any, state: Any, batch: Any) -> tuple[Any, Any]:
            updates, state = tx.update(jax.grad(SMALL.loss)(params, batch), state, params)
            return optax.apply_updates(params, updates), state

        self._step = jax.jit(step, donate_argnums=(0, 1))
        self._carry = params, jax.jit(tx.init)(jax.tree.map(jnp.copy, params))

    def __call__(self) -> Any:
        for _ in range(GRADIENTS):
            batch = self._batches[self.gradients % len(self._batches)]
            self._carry = self._step(*self._carry, batch)
            self.gradients += 1
        return self._carry

    def loss(self) -> float:
        """Training loss now, at the weights to evaluate."""
        params, state = self._carry
        if optax.tree.get(state, "ScheduleFreeState") is not None:
            params = optax.contrib.schedule_free_eval_params(state, params)
        _, data = SMALL.problem()
        return float(SMALL.loss(entropix.eval_params(state, params), data))


def measure(rounds: int) -> list[Figure]:
    """Each against SGD with momentum."""
    runs = {name: Training(tx) for name, tx in optimizers().items()}
    seconds = time_rounds(runs, rounds=rounds)
    return [
        figure(
            seconds, name, REFERENCE, section=SECTION,
            note=f"loss {run.loss():.3g} after {run.gradients} gradients, "
            f"the reference {runs[REFERENCE].loss():.3g}",
        )
        for name, run in runs.items()
        if name != REFERENCE
    ]  # fmt: skip
