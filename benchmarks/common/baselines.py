"""Baselines of today as methods of the comparison, from Optax where it has them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

import entropix
from benchmarks.common.methods import (
    Course,
    Hyperparameters,
    Method,
    falling,
    sgd,
)

# Share of the training after which stochastic weight averaging starts.
AVERAGED_FROM = 0.75


class AveragedState(NamedTuple):
    """State of `averaged`.

    Attributes:
      step: updates made.
      mean: the average of the weights.
      inner_state: of the optimizer.
    """

    step: jax.Array
    mean: optax.Params
    inner_state: optax.OptState


def averaged(
    tx: optax.GradientTransformation, weight: optax.Schedule
) -> optax.GradientTransformation:
    """An optimizer that also averages its weights: mean <- mean + weight (x - mean) at each step.

    Args:
      tx: the optimizer, whose updates pass unchanged.
      weight: of the newest weights, by the step; 1 forgets all before them.
    """

    def init(params: optax.Params) -> AveragedState:
        return AveragedState(
            jnp.zeros([], jnp.int32), jax.tree.map(jnp.copy, params), tx.init(params)
        )

    def update(
        updates: optax.Updates, state: AveragedState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, AveragedState]:
        updates, inner_state = tx.update(updates, state.inner_state, params)
        share = jnp.asarray(weight(state.step))
        mean = jax.tree.map(
            lambda m, x, u: m + share.astype(m.dtype) * (x + u - m), state.mean, params, updates
        )
        return updates, AveragedState(state.step + 1, mean, inner_state)

    return optax.GradientTransformation(init, update)


def average_of(opt_state: optax.OptState, params: optax.Params) -> optax.Params:
    """The average that `averaged` has taken."""
    del params
    mean: optax.Params = optax.tree.get(opt_state, "AveragedState").mean
    return mean


def sgd_ema(
    values: Hyperparameters, course: Course, key: jax.Array
) -> optax.GradientTransformation:
    """SGD with an exponential average of its weights, a plain one until that is long enough."""
    return averaged(
        sgd(values, course, key),
        lambda step: jnp.maximum(1 - values["decay"], 1 / (step + 1.0)),
    )


def sgd_swa(
    values: Hyperparameters, course: Course, key: jax.Array
) -> optax.GradientTransformation:
    """SGD at a constant learning rate, and the plain average of its last weights."""
    del key
    start = round(AVERAGED_FROM * course.steps)
    return averaged(
        optax.sgd(values["learning_rate"], momentum=values["momentum"], nesterov=True),
        lambda step: 1 / jnp.maximum(step - start + 1.0, 1.0),
    )


def adamw(values: Hyperparameters, course: Course, key: jax.Array) -> optax.GradientTransformation:
    """Adam with decoupled weight decay."""
    del key
    return optax.adamw(falling(values, course.steps), weight_decay=values["weight_decay"])


def muon(values: Hyperparameters, course: Course, key: jax.Array) -> optax.GradientTransformation:
    """Orthogonalized momentum on matrices, Adam on the rest."""
    del key
    adam_rate = optax.cosine_decay_schedule(values["adam_learning_rate"], course.steps)
    return contrib.muon(falling(values, course.steps), adam_learning_rate=adam_rate)


def schedule_free(
    values: Hyperparameters, course: Course, key: jax.Array
) -> optax.GradientTransformation:
    """SGD whose average replaces the schedule."""
    del key
    warmup = max(1, round(values["warmup"] * course.steps))
    return contrib.schedule_free_sgd(
        values["learning_rate"], warmup_steps=warmup, b1=values["momentum"]
    )


def lookahead(
    values: Hyperparameters, course: Course, key: jax.Array
) -> optax.GradientTransformation:
    """Lookahead, which is DiLoCo with one worker and plain steps of the anchor."""
    return entropix.diloco(
        sgd(values, course, key),
        optax.sgd(values["slow_rate"]),
        inner_steps=int(values["inner_steps"]),
    )


def diloco(values: Hyperparameters, course: Course, key: jax.Array) -> optax.GradientTransformation:
    """Workers that train alone and meet every so many steps, by Nesterov's momentum."""
    return entropix.diloco(
        sgd(values, course, key),
        optax.sgd(values["outer_rate"], momentum=values["outer_momentum"], nesterov=True),
        inner_steps=int(values["inner_steps"]),
        axis_name=course.axis_name or None,
    )


def asam(values: Hyperparameters, course: Course, key: jax.Array) -> optax.GradientTransformation:
    """Sharpness-aware minimization in units of each weight's own size."""
    del key
    descent = optax.sgd(
        falling(values, course.steps // 2), momentum=values["momentum"], nesterov=True
    )
    scale = by_weights(values["eta"])
    ascent = optax.chain(scale, entropix.normalize_updates(), scale, optax.sgd(values["rho"]))
    return contrib.sam(descent, ascent, sync_period=2)


def by_weights(eta: float) -> optax.GradientTransformation:
    """Each entry times its weight's absolute value, plus eta."""

    def scale(updates: optax.Updates, params: optax.Params) -> optax.Updates:
        return jax.tree.map(lambda u, x: u * (jnp.abs(x) + eta), updates, params)

    return optax.stateless(scale)


MOMENTUM_SGD = {"learning_rate": 0.1, "momentum": 0.9}

BASELINES: dict[str, Method] = {
    "adamw": Method(
        "Adam with decoupled weight decay", adamw, {"learning_rate": 1e-3, "weight_decay": 1e-2}
    ),
    "muon": Method(
        "Muon: orthogonalized momentum on matrices, Adam on the rest",
        muon,
        {"learning_rate": 0.02, "adam_learning_rate": 1e-3},
    ),
    "schedule_free": Method(
        "Schedule-Free SGD, evaluated at its average",
        schedule_free,
        {"learning_rate": 1.0, "momentum": 0.9, "warmup": 0.05},
        weights=contrib.schedule_free_eval_params,
    ),
    "sgd_ema": Method(
        "SGD, evaluated at the exponential average of its weights",
        sgd_ema,
        {**MOMENTUM_SGD, "decay": 0.99},
        weights=average_of,
    ),
    "sgd_swa": Method(
        "SGD at a constant rate, evaluated at the average of its last quarter",
        sgd_swa,
        {"learning_rate": 0.05, "momentum": 0.9},
        weights=average_of,
    ),
    "lookahead": Method(
        "Lookahead around SGD, evaluated at the slow weights",
        lookahead,
        {**MOMENTUM_SGD, "slow_rate": 0.5, "inner_steps": 5},
        cycle="inner_steps",
    ),
    "asam": Method(
        "adaptive sharpness-aware minimization, two gradients per step",
        asam,
        {**MOMENTUM_SGD, "rho": 0.5, "eta": 0.01},
        cycle=2,
    ),
    "diloco": Method(
        "DiLoCo around SGD, evaluated at the shared weights",
        diloco,
        {**MOMENTUM_SGD, "outer_rate": 0.7, "outer_momentum": 0.9, "inner_steps": 20},
        replicated=True,
        cycle="inner_steps",
        # Each worker keeps the shared weights from where it started.
        alike=True,
    ),
    "diloco_1": Method(
        "DiLoCo with one worker, evaluated at the slow weights",
        diloco,
        {**MOMENTUM_SGD, "outer_rate": 0.7, "outer_momentum": 0.9, "inner_steps": 20},
        cycle="inner_steps",
    ),
}
