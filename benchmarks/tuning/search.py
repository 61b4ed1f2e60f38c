"""Tuning one method: as many trials for each, halved once, every trial kept in a SQLite store."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optuna
from optuna.trial import TrialState

from benchmarks.common.data import Dataset
from benchmarks.common.network import Network
from benchmarks.tuning.contenders import Contender
from benchmarks.tuning.rows import Fold, Row
from benchmarks.tuning.scores import answers, error_and_loss
from benchmarks.tuning.space import points
from benchmarks.tuning.training import Trainings, Trial

STORE = "trials.sqlite"
optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class Plan:
    """How each method is tuned.

    Attributes:
      trials: points of the space that are tried.
      kept: of them that are trained at the whole budget.
      early_share: of the budget that all are trained at first.
      early_folds: folds that they are judged on then.
      folds: parts of the training set; a trial at the whole budget is judged on each.
      seed: of points and folds.
    """

    trials: int = 25
    kept: int = 5
    early_share: float = 0.25
    early_folds: int = 2
    folds: int = 5
    seed: int = 0

    def cost(self, contender: Contender, gradients: int) -> int:
        """Gradients that tuning a method takes."""
        early = contender.total(round(self.early_share * gradients))
        whole = contender.total(gradients)
        return self.trials * self.early_folds * early + self.kept * self.folds * whole


def tune(
    row: Row,
    plan: Plan,
    contender: Contender,
    network: Network,
    data: Dataset,
    folds: Sequence[Fold],
    *,
    together: bool = False,
    show: Callable[[int], None],
) -> list[dict[str, Any]]:
    """All trials of one method, in the order of their points.

    Args:
      row: what is trained on, and its budget.
      plan: how.
      contender: the method.
      network: the model.
      data: the images of the row.
      folds: of the training set.
      together: as of `Trainings`.
      show: called with the gradients of each chunk that was trained.

    Returns:
      For each trial its hyper-parameters ``values``; ``early`` and, of those that were kept,
      ``whole``: error and loss on the folds; and the ``seconds`` that it took.
    """
    images = jax.device_put((data.x_train, data.y_train))
    trainings = Trainings(
        network, contender, images, folds,
        batch_size=row.batch_size, gradients=row.gradients, together=together,
    )  # fmt: skip
    found: list[dict[str, Any]] = [
        {"values": values, "seconds": 0.0}
        for values in points(contender.space, plan.trials, plan.seed)
    ]

    def judge(chosen: Sequence[int], stage: str, count: int, gradients: int) -> None:
        """Trains the chosen trials on the first folds and notes how they did."""
        for at in chosen:
            found[at][stage] = {"gradients": contender.total(gradients), "error": [], "loss": []}
        pairs = [(at, fold) for fold in range(count) for at in chosen]
        trials = [Trial(found[at]["values"], fold) for at, fold in pairs]
        done, begin = 0, time.perf_counter()
        for trained in trainings.train(trials, gradients):
            held = np.stack([folds[trial.fold].held for trial in trained.trials])
            logits = np.asarray(
                answers(network, trained.params, trained.batch_stats, images[0][held])
            )
            seconds = time.perf_counter() - begin
            here = pairs[done : done + len(trained.trials)]
            for (at, _), one, places in zip(here, logits, held, strict=True):
                error, loss = error_and_loss(one, data.y_train[places])
                found[at][stage]["error"].append(error)
                found[at][stage]["loss"].append(loss)
                found[at]["seconds"] += seconds / len(here)
            done, begin = done + len(here), time.perf_counter()
            show(len(here) * contender.total(gradients))

    early = round(plan.early_share * row.gradients)
    judge(range(plan.trials), "early", plan.early_folds, early)
    best = sorted(range(plan.trials), key=lambda at: rank(found[at], "early"))
    judge(sorted(best[: plan.kept]), "whole", plan.folds, row.gradients)
    return found


def rank(trial: dict[str, Any], stage: str) -> tuple[float, float]:
    """By the mean error, then by the mean loss."""
    losses = [math.inf if loss is None else loss for loss in trial[stage]["loss"]]
    return float(np.mean(trial[stage]["error"])), float(np.mean(losses))


def winner(trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The best of those that were trained at the whole budget."""
    return min((one for one in trials if "whole" in one), key=lambda one: rank(one, "whole"))


class Store:
    """The trials of a row in a SQLite file that Optuna reads: a study for each method."""

    def __init__(self, folder: Path) -> None:
        """Opens or makes the file."""
        folder.mkdir(parents=True, exist_ok=True)
        self._storage = optuna.storages.RDBStorage(f"sqlite:///{folder / STORE}")

    def load(self, name: str, count: int) -> list[dict[str, Any]] | None:
        """The trials of a method; None where not all of them are there."""
        studies = optuna.get_all_study_names(self._storage)
        if name not in studies:
            return None
        trials = optuna.load_study(study_name=name, storage=self._storage).trials
        if len(trials) < count:
            optuna.delete_study(study_name=name, storage=self._storage)
            return None
        return [trial.user_attrs["record"] for trial in trials]

    def save(self, name: str, contender: Contender, trials: Sequence[dict[str, Any]]) -> None:
        """Keeps all trials of a method."""
        study = optuna.create_study(study_name=name, storage=self._storage, direction="minimize")
        for trial in trials:
            whole = "whole" in trial
            study.add_trial(
                optuna.trial.create_trial(
                    state=TrialState.COMPLETE if whole else TrialState.PRUNED,
                    value=rank(trial, "whole")[0] if whole else None,
                    params=trial["values"],
                    distributions={name: one.stored() for name, one in contender.space.items()},
                    intermediate_values={trial["early"]["gradients"]: rank(trial, "early")[0]},
                    user_attrs={"record": as_json(trial)},
                )
            )


def as_json(trial: dict[str, Any]) -> dict[str, Any]:
    """A trial as JSON keeps it: a loss that is infinite is None."""
    return {
        name: {
            **part,
            "loss": [loss if math.isfinite(loss) else None for loss in part["loss"]],
        }
        if name in ("early", "whole")
        else part
        for name, part in trial.items()
    }
