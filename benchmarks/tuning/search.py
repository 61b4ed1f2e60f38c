"""Tuning one method: as many trials for each, the best on more folds, all kept in SQLite."""

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
from sqlalchemy.pool import NullPool

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
    """How each method is tuned: successive halving whose resource are the folds.

    Every trial has the whole budget. Shorter trials would be cheaper, but what is best after a
    part of a run is not what is best at its end: where labels are wrong it is what learns fast and
    later learns the wrong labels too.

    Attributes:
      trials: points of the space that are tried.
      kept: of them that are judged on all folds.
      early_folds: folds that all are judged on.
      folds: parts of the training set.
      seed: of points and folds.
    """

    trials: int = 20
    kept: int = 4
    early_folds: int = 2
    folds: int = 5
    seed: int = 0

    def cost(self, contender: Contender, gradients: int) -> int:
        """Gradients that tuning a method takes."""
        late = self.kept * (self.folds - self.early_folds)
        return (self.trials * self.early_folds + late) * contender.total(gradients)


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
      For each trial its hyper-parameters ``values``, ``error`` and ``loss`` on the folds that it
      was judged on, the ``gradients`` of each training, and the ``seconds`` of all.
    """
    images = jax.device_put((data.x_train, data.y_train))
    trainings = Trainings(
        network, contender, images, folds,
        batch_size=row.batch_size, gradients=row.gradients, together=together,
    )  # fmt: skip
    total = contender.total(row.gradients)
    found: list[dict[str, Any]] = [
        {"values": values, "gradients": total, "error": [], "loss": [], "seconds": 0.0}
        for values in points(contender.space, plan.trials, plan.seed)
    ]

    def judge(chosen: Sequence[int], on: range) -> None:
        """Trains the chosen trials on some folds and notes how they did."""
        pairs = [(at, fold) for fold in on for at in chosen]
        done, begin = 0, time.perf_counter()
        for trained in trainings.train(
            [Trial(found[at]["values"], fold) for at, fold in pairs], row.gradients
        ):
            held = np.stack([folds[trial.fold].held for trial in trained.trials])
            logits = np.asarray(
                answers(network, trained.params, trained.batch_stats, images[0][held])
            )
            seconds = time.perf_counter() - begin
            here = pairs[done : done + len(trained.trials)]
            for (at, _), one, places in zip(here, logits, held, strict=True):
                error, loss = error_and_loss(one, data.y_train[places])
                found[at]["error"].append(error)
                found[at]["loss"].append(loss)
                found[at]["seconds"] += seconds / len(here)
            done, begin = done + len(here), time.perf_counter()
            show(len(here) * total)

    judge(range(plan.trials), range(plan.early_folds))
    best = sorted(range(plan.trials), key=lambda at: rank(found[at]))
    judge(sorted(best[: plan.kept]), range(plan.early_folds, plan.folds))
    return found


def rank(trial: dict[str, Any], folds: int | None = None) -> tuple[float, float]:
    """By the mean error on the first folds (None: all that there are), then by the mean loss."""
    losses = [math.inf if loss is None else loss for loss in trial["loss"][:folds]]
    return float(np.mean(trial["error"][:folds])), float(np.mean(losses))


def winner(trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The best of those that were judged on all folds."""
    most = max(len(one["error"]) for one in trials)
    return min((one for one in trials if len(one["error"]) == most), key=rank)


class Store:
    """The trials of a row in a SQLite file that Optuna reads: a study for each method."""

    def __init__(self, folder: Path) -> None:
        """Opens or makes the file."""
        folder.mkdir(parents=True, exist_ok=True)
        # Without a pool a connection is closed after its use, not when it is collected.
        self._storage = optuna.storages.RDBStorage(
            f"sqlite:///{folder / STORE}", engine_kwargs={"poolclass": NullPool}
        )

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
        most = max(len(trial["error"]) for trial in trials)
        for trial in trials:
            whole = len(trial["error"]) == most
            study.add_trial(
                optuna.trial.create_trial(
                    state=TrialState.COMPLETE if whole else TrialState.PRUNED,
                    value=rank(trial)[0] if whole else None,
                    params=trial["values"],
                    distributions={name: one.stored() for name, one in contender.space.items()},
                    intermediate_values=dict(enumerate(trial["error"], start=1)),
                    user_attrs={"record": as_json(trial)},
                )
            )


def as_json(trial: dict[str, Any]) -> dict[str, Any]:
    """A trial as JSON keeps it: a loss that is infinite is None."""
    return {**trial, "loss": [loss if math.isfinite(loss) else None for loss in trial["loss"]]}
