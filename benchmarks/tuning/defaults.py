"""`python -m benchmarks defaults`: settings that `entropy_sgd` might have, only the rate chosen."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd

import entropix
from benchmarks.common import environment
from benchmarks.common.data import Dataset
from benchmarks.common.intervals import Interval, interval
from benchmarks.common.network import Network
from benchmarks.common.options import Among, DataOptions, ResumeOptions, Within, configuration
from benchmarks.common.run_folder import Results, open_folder, stored_results, write_results
from benchmarks.common.terminal import progress_bars, say, show_table
from benchmarks.tuning.contenders import MOMENTUM, Contender, Run, Values
from benchmarks.tuning.report import written
from benchmarks.tuning.rows import ROWS, Fold, Row, folds, network_of, prepare, whole
from benchmarks.tuning.scores import answers, answers_in_blocks, error_and_loss
from benchmarks.tuning.search import Plan, rank
from benchmarks.tuning.statistics import SEEN_BEFORE, word
from benchmarks.tuning.table import FIRST_SEED
from benchmarks.tuning.training import Trainings, Trial

# Factors of two, of the plain optimizer and of the inner loop alike.
RATES = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
# Those of the MNIST experiments of the paper.
PAPER = {"inner_steps": 20, "gamma": 1e-4, "ema_decay": 0.75, "debias": False, "reset_inner": True}
# What had won, rounded, on the rows that were tuned before these were looked at.
PROPOSED = {"inner_steps": 50, "gamma": 0.1, "ema_decay": 0.95, "debias": True, "reset_inner": True}
SETTINGS: dict[str, Mapping[str, Any]] = {
    "paper": PAPER,
    "proposed": PROPOSED,
    "kept": {**PROPOSED, "reset_inner": False},
}
HELD_OUT = tuple(name for name, row in ROWS.items() if not row.not_run and name not in SEEN_BEFORE)


@dataclass(frozen=True, kw_only=True)
class Defaults(DataOptions, ResumeOptions):
    """Compare settings of `entropix.entropy_sgd` with only the learning rate chosen.

    Its learning rate and that of SGD come from one short grid by cross-validation on the training
    images, constant and with a half cosine. The chosen ones are trained on fresh seeds, and the
    test images read once.
    """

    rows: Annotated[tuple[str, ...], Among("row", lambda: ROWS)] = HELD_OUT
    """What to train on: by default rows that no setting was taken from."""
    seeds: Annotated[int, Within(5)] = 10
    """Fresh trainings."""


def falling(rate: Any, steps: Any) -> optax.Schedule:
    """A half cosine to zero over a number of steps that may be traced."""
    return lambda step: rate * 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(step / steps, 1.0)))


def plain(*, cosine: bool) -> Callable[[Values, Run], optax.GradientTransformation]:
    """SGD with Nesterov's momentum."""

    def build(values: Values, run: Run) -> optax.GradientTransformation:
        rate = values["learning_rate"]
        return optax.sgd(
            falling(rate, run.updates) if cosine else rate, momentum=MOMENTUM, nesterov=True
        )

    return build


def entropic(
    settings: Mapping[str, Any], *, cosine: bool
) -> Callable[[Values, Run], optax.GradientTransformation]:
    """Entropy-SGD as the library has it, but for the settings."""

    def build(values: Values, run: Run) -> optax.GradientTransformation:
        rate = values["learning_rate"]
        if cosine:
            rate = falling(rate, run.updates / settings["inner_steps"])
        return entropix.entropy_sgd(inner_learning_rate=rate, key=run.key, **settings)

    return build


# What a method's name ends with.
SCHEDULES = {"": "constant", "_cosine": "cosine"}
CANDIDATES: dict[str, Contender] = {}
for _suffix in SCHEDULES:
    _cosine = bool(_suffix)
    CANDIDATES[f"sgd{_suffix}"] = Contender("SGD", plain(cosine=_cosine), {})
    for _name, _settings in SETTINGS.items():
        CANDIDATES[_name + _suffix] = Contender(
            f"Entropy-SGD, {_name}", entropic(_settings, cosine=_cosine), {}, entropic=True
        )


def run(options: Defaults) -> int:
    """Chooses the rates, trains, judges and writes; the exit status."""
    folder = open_folder(options, "defaults")
    found = stored_results(folder, options) or {
        "configuration": configuration(options),
        "command": environment.command(),
        "environment": environment.describe(),
        "rates": list(RATES),
        "settings": {name: dict(one) for name, one in SETTINGS.items()},
        "rows": {},
    }
    with progress_bars("{task.fields[note]}") as bars:
        task = bars.add_task("rows", total=len(options.rows) * len(CANDIDATES), note="")
        for name in options.rows:
            row, plan = ROWS[name], Plan()
            data = prepare(row, options.data_dir, options.cache_dir, plan.seed)
            network = network_of(row, data)
            record = found["rows"].setdefault(name, {"row": asdict(row), "methods": {}})
            for method, contender in CANDIDATES.items():
                bars.update(task, note=f"{name} {method}")
                if method not in record["methods"]:
                    record["methods"][method] = judge(
                        row,
                        plan,
                        contender,
                        network,
                        data,
                        range(FIRST_SEED, FIRST_SEED + options.seeds),
                    )
                    write_results(folder, found)
                bars.advance(task)
    show_table(table(found), "entropy_sgd, only the learning rate chosen")
    say(f"Results: {folder}")
    return 0


def judge(
    row: Row, plan: Plan, contender: Contender, network: Network, data: Dataset, seeds: range
) -> dict[str, Any]:
    """The rate by cross-validation, then test errors seed by seed."""
    images = jax.device_put((data.x_train, data.y_train))
    parts = folds(plan.folds, len(data.x_train), plan.seed)
    trials: list[dict[str, Any]] = [
        {"values": {"learning_rate": rate}, "error": [], "loss": []} for rate in RATES
    ]

    def trainings(on: list[Fold]) -> Trainings:
        return Trainings(
            network, contender, images, on, batch_size=row.batch_size, gradients=row.gradients
        )

    pairs = [Trial(one["values"], fold) for one in trials for fold in range(plan.folds)]
    done = 0
    for trained in trainings(parts).train(pairs, row.gradients):
        held = np.stack([parts[trial.fold].held for trial in trained.trials])
        logits = np.asarray(answers(network, trained.params, trained.batch_stats, images[0][held]))
        for one, places in zip(logits, held, strict=True):
            error, loss = error_and_loss(one, data.y_train[places])
            trials[done // plan.folds]["error"].append(error)
            trials[done // plan.folds]["loss"].append(loss)
            done += 1
    best = min(trials, key=rank)
    errors: list[float] = []
    for start in range(0, len(seeds), plan.folds):
        block = seeds[start : start + plan.folds]
        every = [Trial(best["values"], at) for at in range(len(block))]
        for trained in trainings(whole(block, len(data.x_train))).train(every, row.gradients):
            logits = answers_in_blocks(network, trained.params, trained.batch_stats, data.x_test)
            errors += [error_and_loss(one, data.y_test)[0] for one in logits]
    return {
        "learning_rate": best["values"]["learning_rate"],
        "validation": [rank(one)[0] for one in trials],
        "error": errors,
    }


def schedules(record: dict[str, Any]) -> list[str]:
    """The schedules of which a row has all methods."""
    names = ("sgd", *SETTINGS)
    return [one for one in SCHEDULES if all(name + one in record["methods"] for name in names)]


def differences(found: Results, name: str, suffix: str) -> dict[str, Interval]:
    """The test error of each setting minus that of the paper's and of SGD, seed by seed."""
    methods = found["rows"][name]["methods"]
    errors = {one: np.asarray(record["error"]) for one, record in methods.items()}
    return {
        f"{one} - {rival}": interval(errors[one + suffix] - errors[rival + suffix])
        for one, rival in (
            ("paper", "sgd"), ("proposed", "sgd"), ("kept", "sgd"),
            ("proposed", "paper"), ("kept", "paper"),
        )
    }  # fmt: skip


def table(found: Results) -> pd.DataFrame:
    """One line for each row and schedule."""
    rows = []
    for name, record in found["rows"].items():
        for suffix in schedules(record):
            methods = record["methods"]
            change = differences(found, name, suffix)
            rows.append(
                {"row": record["row"]["title"], "learning rate": SCHEDULES[suffix]}
                | {
                    f"{one} %": f"{100 * np.mean(methods[one + suffix]['error']):.2f}"
                    for one in ("sgd", *SETTINGS)
                }
                | {pair: f"{written(one)}, {word(one)}" for pair, one in change.items()}
            )
    return pd.DataFrame(rows)


def counts(found: Results) -> list[str]:
    """How the settings fared against the paper's and against SGD, in words."""
    pairs = [
        differences(found, name, suffix)
        for name, record in found["rows"].items()
        for suffix in schedules(record)
    ]
    said = []
    for pair in pairs[0]:
        words = [word(one[pair]) for one in pairs]
        mean = 100 * np.mean([one[pair].mean for one in pairs])
        one, rival = pair.split(" - ")
        said.append(
            f"`{one}` against `{rival}`: wins {words.count('wins')}, ties {words.count('ties')}, "
            f"loses {words.count('loses')}; {mean:+z.2f} points on average."
        )
    return said
