"""The rest of the entropic family as methods of the comparison, run when they are named."""

from collections.abc import Callable

import jax
import optax

import entropix
from benchmarks.common.baselines import BASELINES
from benchmarks.common.methods import (
    ENTROPY_SGD,
    METHODS,
    REPLICATED,
    Course,
    Hyperparameters,
    Method,
    entropy_loop,
    entropy_sgd,
    falling,
    grown_gamma,
    outer_steps,
    preset,
    sgd,
)
from entropix import losses, scoping
from entropix.losses import Loss, SmoothedLoss

# Displaced copies of the weights in one update of the smoothed losses: y = 4 in the paper.
SAMPLES = 4


def elastic_sgd(
    values: Hyperparameters, course: Course, key: jax.Array
) -> optax.GradientTransformation:
    """EAMSGD: the pull is outside the momentum."""
    del key
    return entropix.elastic_sgd(
        falling(values, course.steps),
        # The pull is outside of the momentum.
        gamma=grown_gamma(values, course, None),
        center_rate=values["center_rate"],
        every=int(values["every"]),
        momentum=values["momentum"],
        axis_name=course.axis_name,
    )


def parle(values: Hyperparameters, course: Course, key: jax.Array) -> optax.GradientTransformation:
    """Replicas of Entropy-SGD that meet at every outer step."""
    return entropix.parle(
        falling(values, outer_steps(values, course)),
        gamma=scoping.exponential(values["gamma"], values["gamma_growth"]),
        rho=values["rho"],
        inner_learning_rate=values["inner_learning_rate"],
        inner_steps=int(values["inner_steps"]),
        inner_momentum=values["inner_momentum"],
        noise=values["noise"],
        ema_decay=values["ema_decay"],
        debias=bool(values["debias"]),
        momentum=values["momentum"] or None,
        key=key,
        axis_name=course.axis_name,
    )


def heat_sgd(
    values: Hyperparameters, course: Course, key: jax.Array
) -> optax.GradientTransformation:
    """Entropy-SGD with a plain average of the iterates."""
    return entropix.heat_sgd(
        falling(values, outer_steps(values, course)),
        gamma=scoping.exponential(values["gamma"], values["gamma_growth"]),
        inner_learning_rate=values["inner_learning_rate"],
        inner_steps=int(values["inner_steps"]),
        inner_momentum=values["inner_momentum"],
        noise=values["noise"],
        key=key,
    )


def hopf_lax_sgd(
    values: Hyperparameters, course: Course, key: jax.Array
) -> optax.GradientTransformation:
    """Steps to the last iterate of a noiseless inner loop."""
    del key
    return entropix.hopf_lax_sgd(
        falling(values, outer_steps(values, course)),
        gamma=scoping.exponential(values["gamma"], values["gamma_growth"]),
        inner_learning_rate=values["inner_learning_rate"],
        inner_steps=int(values["inner_steps"]),
        inner_momentum=values["inner_momentum"],
    )


def replicated_adam(
    values: Hyperparameters, course: Course, key: jax.Array
) -> optax.GradientTransformation:
    """Adam on the gradients of coupled replicas."""
    del key
    return optax.chain(coupling(values, course), optax.adam(falling(values, course.steps)))


def replicated_sam(
    values: Hyperparameters, course: Course, key: jax.Array
) -> optax.GradientTransformation:
    """SAM on each replica, with a coupled descent."""
    del key
    descent = optax.chain(
        coupling(values, course),
        optax.sgd(falling(values, course.steps // 2), momentum=values["momentum"], nesterov=True),
    )
    ascent = optax.chain(entropix.normalize_updates(), optax.sgd(values["rho"]))
    return optax.contrib.sam(descent, ascent, sync_period=2)


def entropy_sgd_of_kernels(
    values: Hyperparameters, course: Course, key: jax.Array
) -> optax.GradientTransformation:
    """Entropy-SGD on the kernels, and SGD on biases and normalization."""
    rest = optax.sgd(
        optax.cosine_decay_schedule(values["inner_learning_rate"], course.steps),
        momentum=values["inner_momentum"],
        nesterov=True,
    )

    def labels(params: optax.Params) -> optax.Params:
        return jax.tree.map(lambda chosen: "kernel" if chosen else "rest", kernels(params))

    return optax.partition({"kernel": entropy_sgd(values, course, key), "rest": rest}, labels)


def replicated_sgd_by_kernels(
    values: Hyperparameters, course: Course, key: jax.Array
) -> optax.GradientTransformation:
    """SGD on replicas of which the kernels alone are coupled."""
    return optax.chain(optax.masked(coupling(values, course), kernels), sgd(values, course, key))


def kernels(params: optax.Params) -> optax.Params:
    """Which leaves are the matrices of dense layers and the filters of convolutions."""
    return jax.tree.map_with_path(lambda path, _: path[-1].key == "kernel", params)


def coupling(values: Hyperparameters, course: Course) -> optax.GradientTransformation:
    """The pull between replicas, in front of any optimizer."""
    return entropix.couple_replicas(
        grown_gamma(values, course, values.get("momentum")),
        every=int(values["every"]),
        axis_name=course.axis_name,
    )


def local_average(values: Hyperparameters) -> Callable[[Loss], SmoothedLoss]:
    """The mean loss over a cube around all weights."""
    return lambda loss: losses.local_average_loss(loss, radius=values["radius"], samples=SAMPLES)


def local_entropy(values: Hyperparameters) -> Callable[[Loss], SmoothedLoss]:
    """The local entropy over a cube around all weights."""
    return lambda loss: losses.local_entropy_loss(loss, radius=values["radius"], samples=SAMPLES)


def gaussian_smoothed(values: Hyperparameters) -> Callable[[Loss], SmoothedLoss]:
    """The loss convolved with a Gaussian."""
    return lambda loss: losses.gaussian_smoothed_loss(loss, std=values["std"], samples=SAMPLES)


RELAXATION = {
    "learning_rate": 1.0,
    "inner_learning_rate": 0.1,
    "inner_steps": 20,
    "inner_momentum": 0.9,
    "gamma": 1e-4,
    "gamma_growth": 1e-3,
}
SMOOTHED_SGD = {"learning_rate": 0.1, "momentum": 0.9}

FAMILY: dict[str, Method] = {
    "elastic_sgd": Method(
        "elastic-averaging SGD with momentum, evaluated at the mean of the replicas",
        elastic_sgd,
        {**REPLICATED, "stable_share": 0.25, "center_rate": 0.9},
        replicated=True,
    ),
    "parle": Method(
        "Parle, evaluated at the mean of the replicas' anchors",
        parle,
        {
            **preset(entropix.parle, "learning_rate", "momentum", "rho"),
            **entropy_loop(entropix.parle),
        },
        replicated=True,
        cycle="inner_steps",
    ),
    "heat_sgd": Method(
        "HEAT of Deep Relaxation, evaluated at the anchor",
        heat_sgd,
        {**RELAXATION, "noise": 0.0},
        cycle="inner_steps",
    ),
    "hopf_lax_sgd": Method(
        "the proximal step of Deep Relaxation, evaluated at the anchor",
        hopf_lax_sgd,
        RELAXATION,
        cycle="inner_steps",
    ),
    "replicated_adam": Method(
        "Adam on coupled replicas, evaluated at the center",
        replicated_adam,
        {"learning_rate": 3e-3, "every": 1, "gamma_factor": 1e4, "stable_share": 0.05},
        replicated=True,
    ),
    "replicated_sam": Method(
        "sharpness-aware minimization on coupled replicas, evaluated at the center",
        replicated_sam,
        {**REPLICATED, "every": 2, "stable_share": 0.1, "rho": 0.05},
        replicated=True,
        cycle=2,
    ),
    "partial_entropy_sgd": Method(
        "Entropy-SGD on the kernels and SGD on the rest, evaluated at the kernels' anchor",
        entropy_sgd_of_kernels,
        ENTROPY_SGD,
        cycle="inner_steps",
    ),
    "partial_replicated_sgd": Method(
        "SGD on replicas coupled by their kernels alone, evaluated at the center",
        replicated_sgd_by_kernels,
        REPLICATED,
        replicated=True,
    ),
    "local_average": Method(
        f"SGD on the loss averaged over a cube (PLA), {SAMPLES + 1} gradients per step",
        sgd,
        {**SMOOTHED_SGD, "radius": 0.01},
        gradients=SAMPLES + 1,
        smooth=local_average,
    ),
    "local_entropy": Method(
        f"SGD on the local entropy over a cube (PLEA), {SAMPLES + 1} gradients per step",
        sgd,
        {**SMOOTHED_SGD, "radius": 0.01},
        gradients=SAMPLES + 1,
        smooth=local_entropy,
    ),
    "gaussian_smoothing": Method(
        f"SGD on the loss convolved with a Gaussian, {SAMPLES} gradients per step",
        sgd,
        {**SMOOTHED_SGD, "std": 0.01},
        gradients=SAMPLES,
        smooth=gaussian_smoothed,
    ),
}

ALL_METHODS: dict[str, Method] = {**METHODS, **BASELINES, **FAMILY}
