"""Data-parallel training, and what methods with several devices send between them."""

from collections.abc import Mapping
from typing import Any

import jax
import optax

from benchmarks.common.traffic import formula
from benchmarks.tuning.baselines import adamw, sgd
from benchmarks.tuning.contenders import SHARED, SHARED_ADAM, Contender, Run, Values
from benchmarks.tuning.entropic import CONTENDERS, REPLICAS, WORKERS


def mean_gradient(axis_name: tuple[str, ...]) -> optax.GradientTransformation:
    """The mean of the gradients of all devices: that of one batch as large as all of theirs."""
    return optax.stateless(lambda updates, _: jax.lax.pmean(updates, axis_name))


def parallel_sgd(values: Values, run: Run) -> optax.GradientTransformation:
    """SGD on the mean gradient."""
    return optax.chain(mean_gradient(run.axis_name), sgd(values, run))


def parallel_adamw(values: Values, run: Run) -> optax.GradientTransformation:
    """AdamW on the mean gradient."""
    return optax.chain(mean_gradient(run.axis_name), adamw(values, run))


def data_parallel(devices: int) -> dict[str, Contender]:
    """The baselines on so many devices, each with a mini-batch of its own at every step."""
    return {
        f"parallel_sgd_{devices}": Contender(
            f"data-parallel SGD, {devices} devices",
            parallel_sgd, SHARED, copies=devices, alike=True,
        ),
        f"parallel_adamw_{devices}": Contender(
            f"data-parallel AdamW, {devices} devices",
            parallel_adamw, SHARED_ADAM, copies=devices, alike=True,
        ),
    }  # fmt: skip


PARALLEL = {
    name: one for count in (REPLICAS, WORKERS) for name, one in data_parallel(count).items()
}


def rivals(name: str) -> list[str]:
    """The data-parallel baselines on as many devices as a method has copies."""
    return list(data_parallel(CONTENDERS[name].copies))


def steps_between_meetings(values: Mapping[str, Any]) -> int:
    """Updates from one exchange to the next; every update where nothing else is said."""
    return int(values.get("every", values.get("inner_steps", 1)))


def sent(contender: Contender, values: Mapping[str, Any], parameters: int, updates: int) -> float:
    """Bytes that each device has sent after some updates, a copy on each device.

    Each meeting is one all-reduce of float32 around a ring.
    """
    every = steps_between_meetings(values) if contender.copies > 1 else 1
    return updates * formula(parameters, every, contender.copies)
