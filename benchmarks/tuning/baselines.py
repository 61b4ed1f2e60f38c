"""The contenders without entropy: plain optimizers, averages of weights, sharpness-aware ones."""

import jax.numpy as jnp
import optax
from optax import contrib

import entropix
from benchmarks.common.baselines import average_of, averaged, by_weights
from benchmarks.tuning.contenders import (
    MOMENTUM,
    SHARED,
    SHARED_ADAM,
    WARMUP,
    Contender,
    Run,
    Values,
    descent,
    schedule,
    weight_decay,
)
from benchmarks.tuning.ivon import ivon, mean_of
from benchmarks.tuning.space import Choice, Linear, Log, Range

# Adam's learning rate, for what is no matrix, over that of Muon.
MUON_ADAM = 0.05
ASAM_ETA = 0.01


def sgd(values: Values, run: Run) -> optax.GradientTransformation:
    """Nesterov's momentum."""
    return descent(values, run.updates)


def adamw(values: Values, run: Run) -> optax.GradientTransformation:
    """Adam with decoupled weight decay."""
    return descent(values, run.updates, optax.scale_by_adam())


def muon(values: Values, run: Run) -> optax.GradientTransformation:
    """Orthogonalized momentum on matrices, Adam on the rest."""
    decay = weight_decay(values, run.updates)
    return contrib.muon(
        schedule(values, run.updates),
        weight_decay=decay,
        adam_learning_rate=schedule(values, run.updates, MUON_ADAM * values["learning_rate"]),
        adam_weight_decay=decay / MUON_ADAM,
    )


def sgd_ema(values: Values, run: Run) -> optax.GradientTransformation:
    """SGD and the exponential average of its weights."""
    return exponentially_averaged(sgd(values, run), values, run)


def muon_ema(values: Values, run: Run) -> optax.GradientTransformation:
    """Muon and the exponential average of its weights."""
    return exponentially_averaged(muon(values, run), values, run)


def adamw_ema(values: Values, run: Run) -> optax.GradientTransformation:
    """AdamW and the exponential average of its weights."""
    return exponentially_averaged(adamw(values, run), values, run)


def exponentially_averaged(
    tx: optax.GradientTransformation, values: Values, run: Run
) -> optax.GradientTransformation:
    """An optimizer that also averages its weights over a share of the run."""
    newest = 1 / (values["horizon"] * run.updates)
    return averaged(tx, lambda step: jnp.maximum(newest, 1 / (step + 1.0)))


def sgd_swa(values: Values, run: Run) -> optax.GradientTransformation:
    """SGD and the plain average of its last weights."""
    return plainly_averaged(sgd(values, run), values, run)


def adamw_swa(values: Values, run: Run) -> optax.GradientTransformation:
    """AdamW and the plain average of its last weights."""
    return plainly_averaged(adamw(values, run), values, run)


def muon_swa(values: Values, run: Run) -> optax.GradientTransformation:
    """Muon and the plain average of its last weights."""
    return plainly_averaged(muon(values, run), values, run)


def plainly_averaged(
    tx: optax.GradientTransformation, values: Values, run: Run
) -> optax.GradientTransformation:
    """An optimizer that also averages its weights from some step on."""
    start = jnp.round(values["start"] * run.updates)
    return averaged(tx, lambda step: 1 / jnp.maximum(step - start + 1.0, 1.0))


def variational(values: Values, run: Run) -> optax.GradientTransformation:
    """IVON; the decay of the others is the precision of its prior."""
    return ivon(
        schedule(values, run.updates),
        size=values["size"],
        curvature=values["curvature"],
        decay=weight_decay(values, run.updates),
        b1=MOMENTUM,
        curvature_rate=values["curvature_rate"],
        key=run.key,
    )


def schedule_free(values: Values, run: Run) -> optax.GradientTransformation:
    """SGD whose average replaces the schedule."""

    def rate(step: jnp.ndarray) -> jnp.ndarray:
        return values["learning_rate"] * jnp.minimum(1.0, (step + 1) / (WARMUP * run.updates))

    base = optax.chain(
        optax.add_decayed_weights(weight_decay(values, run.updates)),
        optax.scale_by_learning_rate(rate),
    )
    return contrib.schedule_free(base, rate, b1=values["interpolation"])


def lookahead(values: Values, run: Run) -> optax.GradientTransformation:
    """Slow weights that go a part of the way of the fast ones."""
    return entropix.diloco(
        sgd(values, run), optax.sgd(values["slow_rate"]), inner_steps=values["inner_steps"]
    )


def sam(values: Values, run: Run) -> optax.GradientTransformation:
    """Sharpness-aware minimization: two gradients for one step."""
    ascent = optax.chain(entropix.normalize_updates(), optax.sgd(values["rho"]))
    return contrib.sam(descent(values, run.updates // 2), ascent, sync_period=2)


def asam(values: Values, run: Run) -> optax.GradientTransformation:
    """SAM in units of each weight's own size."""
    scale = by_weights(ASAM_ETA)
    ascent = optax.chain(scale, entropix.normalize_updates(), scale, optax.sgd(values["rho"]))
    return contrib.sam(descent(values, run.updates // 2), ascent, sync_period=2)


SHARED_MUON: dict[str, Range] = {**SHARED, "learning_rate": Log(1e-3, 0.3)}
EMA: dict[str, Range] = {"horizon": Log(0.01, 0.5)}
SWA: dict[str, Range] = {"start": Linear(0.25, 0.95)}
FREE: dict[str, Range] = {name: one for name, one in SHARED.items() if name != "cosine"}

BASELINES: dict[str, Contender] = {
    "sgd": Contender("SGD with Nesterov's momentum", sgd, SHARED),
    "adamw": Contender("Adam with decoupled weight decay", adamw, SHARED_ADAM),
    "muon": Contender(
        "Muon: orthogonalized momentum on matrices, Adam on the rest",
        muon,
        SHARED_MUON,
    ),
    "sgd_ema": Contender(
        "SGD, evaluated at the exponential average of its weights",
        sgd_ema,
        {**SHARED, **EMA},
        weights=average_of,
    ),
    "adamw_ema": Contender(
        "AdamW, evaluated at the exponential average of its weights",
        adamw_ema,
        {**SHARED_ADAM, **EMA},
        weights=average_of,
    ),
    "muon_ema": Contender(
        "Muon, evaluated at the exponential average of its weights",
        muon_ema,
        {**SHARED_MUON, **EMA},
        weights=average_of,
    ),
    "sgd_swa": Contender(
        "SGD, evaluated at the plain average of its last weights (SWA)",
        sgd_swa,
        {**SHARED, **SWA},
        weights=average_of,
    ),
    "adamw_swa": Contender(
        "AdamW, evaluated at the plain average of its last weights (SWA)",
        adamw_swa,
        {**SHARED_ADAM, **SWA},
        weights=average_of,
    ),
    "muon_swa": Contender(
        "Muon, evaluated at the plain average of its last weights (SWA)",
        muon_swa,
        {**SHARED_MUON, **SWA},
        weights=average_of,
    ),
    # Its average of gradients weighs a new one by 0.1, where the momentum of the others has 1.
    "ivon": Contender(
        "IVON, variational online Newton, evaluated at the mean",
        variational,
        {
            **SHARED,
            "learning_rate": Log(2e-2, 6.0),
            "size": Log(1e3, 1e6),
            "curvature": Log(0.01, 1.0),
            "curvature_rate": Log(1e-5, 1e-2),
        },
        weights=mean_of,
    ),
    "lookahead": Contender(
        "Lookahead around SGD, evaluated at the slow weights",
        lookahead,
        {**SHARED, "slow_rate": Linear(0.2, 0.9), "inner_steps": Choice((5, 10, 20))},
    ),
    "schedule_free": Contender(
        "Schedule-Free SGD, evaluated at its average",
        schedule_free,
        {**FREE, "learning_rate": Log(2e-2, 6.0), "interpolation": Linear(0.8, 0.98)},
        weights=contrib.schedule_free_eval_params,
    ),
    "sam": Contender(
        "sharpness-aware minimization (SAM), two gradients for one step",
        sam,
        {**SHARED, "rho": Log(0.01, 1.0)},
        cycle=2,
    ),
    "asam": Contender(
        "adaptive SAM, two gradients for one step",
        asam,
        {**SHARED, "rho": Log(0.05, 5.0)},
        cycle=2,
    ),
}
