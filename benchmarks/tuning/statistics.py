"""Statistics of a table: paired differences with intervals, rank correlations, the verdict."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from benchmarks.common.intervals import Interval, interval
from benchmarks.common.run_folder import Results
from benchmarks.tuning.entropic import CONTENDERS
from benchmarks.tuning.measures import QUANTITIES

# Tuned after the test errors of the others had been seen on the rows that were there by then: no
# verdict on these may choose them. On other rows they are methods like all.
AFTERTHOUGHTS = ("adamw_ema", "muon_ema", "adamw_swa", "muon_swa", "ivon", "entropy_muon")
SEEN_BEFORE = ("fashion_1000", "digits_noise40", "digits", "fashion_5000_noise40")


def table_of(found: Results) -> pd.DataFrame:
    """All numbers of all fresh trainings, a row for each (method, seed)."""
    return pd.concat(
        {name: pd.DataFrame(record["seeds"]) for name, record in found["methods"].items()},
        names=["method", "seed"],
    )


def best_baseline(found: Results) -> str:
    """The baseline of lowest cross-validated error, of those with one copy and one budget."""
    return best(found, entropic=False)


def best_entropic(found: Results) -> str:
    """The entropic method of lowest cross-validated error, of those at one budget."""
    return best(found, entropic=True)


def best(found: Results, *, entropic: bool) -> str:
    """By what `tune` found on the training images; no test image has a say."""
    return best_of(found, choice(found, entropic=entropic))


def choice(found: Results, *, entropic: bool) -> list[str]:
    """The methods that the verdict of a row may choose from."""
    return [
        name
        for name in found["methods"]
        if (one := CONTENDERS[name]).entropic == entropic
        and one.budgets == 1
        and (entropic or one.copies == 1)
        and not (found["name"] in SEEN_BEFORE and name in AFTERTHOUGHTS)
    ]


def comparable(found: Results) -> bool:
    """Whether there is an entropic method and a baseline to judge by."""
    return all(choice(found, entropic=one) for one in (True, False))


def best_of(found: Results, names: Sequence[str]) -> str:
    """The method of lowest cross-validated error among some."""
    return min(
        names, key=lambda name: (found["tuned"][name]["error"], found["tuned"][name]["loss"])
    )


def differences(found: Results, rival: str | None = None) -> dict[str, Interval]:
    """The test error of each method minus that of a rival, the best baseline, seed by seed."""
    numbers = table_of(found)["error"]
    rival = rival or best_baseline(found)
    return {
        name: interval(numbers[name].to_numpy() - numbers[rival].to_numpy())
        for name in found["methods"]
        if name != rival
    }


def verdict(found: Results) -> tuple[str, str, Interval]:
    """The best entropic method, the best baseline, and the difference of their test errors.

    Both were chosen by cross-validation: this is one comparison, and needs no correction for many.
    """
    entropic = best_entropic(found)
    return entropic, best_baseline(found), differences(found)[entropic]


def word(found: Interval) -> str:
    """Wins, ties or loses."""
    return {-1: "wins", 0: "ties", 1: "loses"}[found.sign]


def correlations(found: Results) -> pd.DataFrame:
    """Spearman's rank correlation of each measure with the test error.

    ``across``: of the means of the methods; ``within``: of the seeds of one method, averaged over
    the methods, with Student's interval. A measure that goes with the error across methods alone
    tells methods apart, and does not predict which training of one method ends better.
    """
    numbers = table_of(found)
    means = numbers.groupby("method", sort=False).mean()
    rows = {}
    for quantity in QUANTITIES:
        if quantity == "error":
            continue
        both = numbers[["error", quantity]].replace([np.inf, -np.inf], np.nan).dropna()
        within = [
            rank_correlation(part["error"], part[quantity])
            for _, part in both.groupby("method", sort=False)
            if len(part) > 2
        ]
        within = [one for one in within if np.isfinite(one)]
        inside = interval(within) if len(within) > 1 else Interval(np.nan, np.nan, np.nan)
        rows[quantity] = {
            "across": rank_correlation(means["error"], means[quantity]),
            "within": inside.mean,
            "within_low": inside.low,
            "within_high": inside.high,
        }
    return pd.DataFrame(rows).T


def rank_correlation(a: pd.Series, b: pd.Series) -> float:
    """Spearman's, nan where one of the two is the same everywhere."""
    if a.nunique() < 2 or b.nunique() < 2:
        return float("nan")
    return float(stats.spearmanr(a, b).statistic)
