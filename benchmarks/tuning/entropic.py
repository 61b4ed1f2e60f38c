"""The contenders of this library: entropic, replicated and smoothed ones."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import entropix
from benchmarks.common.family import kernels
from benchmarks.tuning.baselines import BASELINES, SHARED_MUON, muon, sgd
from benchmarks.tuning.contenders import (
    MOMENTUM,
    SHARED,
    SHARED_ADAM,
    Contender,
    Run,
    Values,
    descent,
    schedule,
    weight_decay,
)
from benchmarks.tuning.space import Choice, Linear, Log, Range
from entropix import losses, scoping
from entropix.losses import Loss, SmoothedLoss

REPLICAS = 3
WORKERS = 4
CENTER_RATE = 0.9


def local_entropy_descent(
    outer: optax.GradientTransformation,
    inner: optax.GradientTransformation,
    values: Values,
    run: Run,
    rate: optax.Schedule,
    **average: Any,
) -> optax.GradientTransformation:
    """The two loops; the inner optimizer goes on over all of them."""
    steps = values["inner_steps"]
    return entropix.entropy_descent(
        outer,
        inner,
        inner_steps=steps,
        gamma=values["gamma"],
        # sqrt(eta') epsilon, as in the papers' text.
        noise_std=lambda outer_step: values["noise"] * jnp.sqrt(rate(outer_step * steps)),
        reset_inner=False,
        key=run.key,
        **average,
    )


def exponential_average(values: Values) -> dict[str, Any]:
    """The running average of the inner loop, without the weight of its start."""
    return {"ema_decay": values["ema_decay"], "debias": True}


def entropy_sgd(values: Values, run: Run) -> optax.GradientTransformation:
    """Entropy-SGD whose inner learning rate follows the schedule; the anchor takes whole steps."""
    rate = schedule(values, run.updates)
    return local_entropy_descent(
        optax.sgd(1.0), sgd(values, run), values, run, rate, **exponential_average(values)
    )


def heat_sgd(values: Values, run: Run) -> optax.GradientTransformation:
    """Entropy-SGD with the plain average of the whole loop."""
    rate = schedule(values, run.updates)
    return local_entropy_descent(
        optax.sgd(1.0), sgd(values, run), values, run, rate, ema_decay=entropix.plain_average
    )


def partial_entropy_sgd(values: Values, run: Run) -> optax.GradientTransformation:
    """Entropy-SGD on the kernels, and SGD on the rest."""

    def labels(params: optax.Params) -> optax.Params:
        return jax.tree.map(lambda chosen: "kernel" if chosen else "rest", kernels(params))

    return optax.partition({"kernel": entropy_sgd(values, run), "rest": sgd(values, run)}, labels)


def entropy_adamw(values: Values, run: Run) -> optax.GradientTransformation:
    """AdamW in the inner loop; the anchor takes whole steps."""
    rate = schedule(values, run.updates)
    inner = descent(values, run.updates, optax.scale_by_adam())
    return local_entropy_descent(
        optax.sgd(1.0), inner, values, run, rate, **exponential_average(values)
    )


def entropy_muon(values: Values, run: Run) -> optax.GradientTransformation:
    """Muon in the inner loop; the anchor takes whole steps."""
    rate = schedule(values, run.updates)
    return local_entropy_descent(
        optax.sgd(1.0), muon(values, run), values, run, rate, **exponential_average(values)
    )


def entropy_adam(values: Values, run: Run) -> optax.GradientTransformation:
    """SGD in the inner loop, and Adam on the steps of the anchor."""
    inner_rate = schedule(values, run.updates, values["inner_rate"])
    inner = optax.chain(
        optax.trace(MOMENTUM, nesterov=True), optax.scale_by_learning_rate(inner_rate)
    )
    outer_steps = run.updates // values["inner_steps"]
    outer = descent(values, outer_steps, optax.scale_by_adam(0.5, 0.999))
    return local_entropy_descent(
        outer, inner, values, run, inner_rate, **exponential_average(values)
    )


def parle(values: Values, run: Run) -> optax.GradientTransformation:
    """Replicas of Entropy-SGD that meet at every outer step."""
    rate, steps = schedule(values, run.updates), values["inner_steps"]
    return entropix.parle(
        1.0,
        gamma=values["gamma"],
        rho=values["rho"],
        inner_learning_rate=lambda outer_step: rate(outer_step * steps),
        inner_steps=steps,
        noise=values["noise"],
        inner_momentum=MOMENTUM,
        weight_decay=in_momentum(values, run),
        key=run.key,
        axis_name=run.axis_name,
    )


def in_momentum(values: Values, run: Run) -> Any:
    """Lambda that decays as fast where it goes through the momentum."""
    return (1 - MOMENTUM) * weight_decay(values, run.updates)


def grown(values: Values, run: Run, momentum: float | None) -> optax.Schedule:
    """A coupling that grows, by a factor, to a share of the largest stable one."""
    largest = scoping.largest_stable_gamma(
        values["learning_rate"], every=values["every"], momentum=momentum
    )
    last = values["share"] * largest
    return lambda step: last * values["growth"] ** (step / run.updates - 1)


def replicated_sgd(values: Values, run: Run) -> optax.GradientTransformation:
    """SGD on coupled replicas."""
    return optax.chain(
        entropix.couple_replicas(
            grown(values, run, MOMENTUM), every=values["every"], axis_name=run.axis_name
        ),
        sgd(values, run),
    )


def elastic_sgd(values: Values, run: Run) -> optax.GradientTransformation:
    """EAMSGD: replicas around a moving center, the pull outside the momentum."""
    return entropix.elastic_sgd(
        schedule(values, run.updates),
        gamma=grown(values, run, None),
        center_rate=CENTER_RATE,
        every=values["every"],
        momentum=MOMENTUM,
        weight_decay=in_momentum(values, run),
        axis_name=run.axis_name,
    )


def diloco(values: Values, run: Run) -> optax.GradientTransformation:
    """Workers that meet every so many steps, by Nesterov's momentum."""
    return entropix.diloco(
        sgd(values, run),
        optax.sgd(values["outer_rate"], momentum=values["outer_momentum"], nesterov=True),
        inner_steps=values["inner_steps"],
        axis_name=run.axis_name or None,
    )


def local_entropy(values: Values) -> Callable[[Loss], SmoothedLoss]:
    """The local entropy of the weights and one displaced copy."""
    return lambda loss: losses.local_entropy_loss(loss, radius=values["radius"], samples=1)


def gaussian(values: Values) -> Callable[[Loss], SmoothedLoss]:
    """The loss at one Gaussian displacement."""
    return lambda loss: losses.gaussian_smoothed_loss(
        loss, std=values["std"], samples=1, antithetic=False
    )


AROUND: dict[str, Range] = {
    "gamma": Log(1e-4, 10.0),
    "inner_steps": Choice((20, 50, 100)),
    "noise": Log(1e-5, 3e-2),
}
LOOP: dict[str, Range] = {**AROUND, "ema_decay": Choice((0.75, 0.9, 0.97))}
COUPLED: dict[str, Range] = {
    **SHARED,
    "share": Log(1e-3, 0.5),
    "growth": Log(1.0, 1e3),
    "every": Choice((1, 5, 20)),
    "alike": Choice((0, 1)),
}
MEETING: dict[str, Range] = {
    **SHARED,
    "outer_rate": Linear(0.3, 1.0),
    "outer_momentum": Linear(0.0, 0.9),
    "inner_steps": Choice((10, 30, 50)),
}

ENTROPIC: dict[str, Contender] = {
    "entropy_sgd": Contender(
        "Entropy-SGD, evaluated at the anchor", entropy_sgd, {**SHARED, **LOOP}, entropic=True
    ),
    "heat_sgd": Contender(
        "Entropy-SGD with the plain average of each loop (HEAT)",
        heat_sgd,
        {**SHARED, **AROUND},
        entropic=True,
    ),
    "partial_entropy_sgd": Contender(
        "Entropy-SGD on the kernels, SGD on the rest",
        partial_entropy_sgd,
        {**SHARED, **LOOP},
        entropic=True,
    ),
    "entropy_adamw": Contender(
        "local entropy with AdamW in the inner loop",
        entropy_adamw,
        {**SHARED_ADAM, **LOOP},
        entropic=True,
    ),
    "entropy_muon": Contender(
        "local entropy with Muon in the inner loop",
        entropy_muon,
        {**SHARED_MUON, **LOOP},
        entropic=True,
    ),
    "entropy_adam": Contender(
        "Entropy-Adam: SGD in the inner loop, Adam for the anchor",
        entropy_adam,
        {**SHARED_ADAM, "inner_rate": Log(2e-3, 0.6), **LOOP},
        entropic=True,
    ),
    "replicated_sgd": Contender(
        f"replicated SGD, {REPLICAS} replicas that share the gradients",
        replicated_sgd,
        COUPLED,
        entropic=True,
        copies=REPLICAS,
    ),
    "replicated_sgd_y": Contender(
        f"replicated SGD, {REPLICAS} replicas with the gradients of SGD each",
        replicated_sgd,
        COUPLED,
        entropic=True,
        copies=REPLICAS,
        budgets=REPLICAS,
    ),
    "elastic_sgd": Contender(
        f"elastic-averaging SGD with momentum, {REPLICAS} replicas that share the gradients",
        elastic_sgd,
        COUPLED,
        entropic=True,
        copies=REPLICAS,
    ),
    "parle": Contender(
        f"Parle, {REPLICAS} replicas of Entropy-SGD that share the gradients",
        parle,
        {**SHARED, **AROUND, "rho": Log(0.03, 1.5), "alike": Choice((0, 1))},
        entropic=True,
        copies=REPLICAS,
    ),
    # Local SGD with momentum: this library has it, but there is no entropy in it.
    "diloco_1": Contender("DiLoCo with one worker, evaluated at the slow weights", diloco, MEETING),
    "diloco": Contender(
        f"DiLoCo, {WORKERS} workers that share the gradients",
        diloco,
        MEETING,
        copies=WORKERS,
        alike=True,
    ),
    "local_entropy": Contender(
        "SGD on the local entropy of the weights and one displaced copy (PLEA), two gradients "
        "for one step",
        sgd,
        {**SHARED, "radius": Log(1e-3, 0.1)},
        entropic=True,
        gradients=2,
        smooth=local_entropy,
    ),
    "gaussian_smoothing": Contender(
        "SGD on the loss convolved with a Gaussian, one draw for one gradient",
        sgd,
        {**SHARED, "std": Log(1e-3, 0.1)},
        entropic=True,
        smooth=gaussian,
    ),
}

CONTENDERS: dict[str, Contender] = {**BASELINES, **ENTROPIC}
