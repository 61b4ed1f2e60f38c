"""The answer of a comparison in a few sentences: what was best, and is that more than noise."""

import pandas as pd

from benchmarks.common.intervals import CONFIDENCE, interval
from benchmarks.common.run_folder import Results
from benchmarks.compare.results import BASELINE, numbers, yardstick


def verdict(found: Results) -> list[str]:
    """Which method was best, by how much, whether that is more than noise, and is it wider.

    Differences are taken seed by seed, with an interval of Student's distribution.
    """
    table, judge = numbers(found), yardstick(found)
    errors = table[judge.test].groupby("method").mean().sort_values(kind="stable")
    best, others = errors.index[0], errors.index[1:]
    lowest = f"{judge.scale * errors.iloc[0]:.{judge.digits}f} {judge.unit}"
    first = f"Lowest {judge.name}: {best}, {lowest}."
    if others.empty:
        return [first]
    rival = BASELINE if BASELINE in others else others[0]
    gradients = found["methods"][best]["gradients"], found["methods"][rival]["gradients"]
    if gradients[0] != gradients[1]:
        first += f" It took {gradients[0] / gradients[1]:g} times the gradients of {rival}."
    change = {name: table.loc[best, name] - table.loc[rival, name] for name in table}
    difference = compared(judge.scale * change[judge.test], judge.difference, judge.digits)
    against = f"Against {rival}: {difference}."
    if len(others) > 1:
        against += f" As the best of {len(errors)} by this very {judge.name} it looks a little"
        against += " better than it is: the interval does not allow for the choice."
    unit = judge.difference.split()[0]
    return [
        first,
        against,
        f"Width against {rival}: local energy "
        f"{compared(judge.scale * change['local_energy'], unit, judge.digits)}; "
        f"top eigenvalue of the Hessian "
        f"{compared(change['top_eigenvalue'], '')}. {wider(change)}",
    ]


def compared(change: pd.Series, unit: str, digits: int = 2) -> str:
    """A paired difference with its interval, and whether it is more than noise."""
    mean = f"{change.mean():+z.{digits}f} {unit}".strip()
    if len(change) == 1:
        return f"{mean} (one seed cannot tell this from noise)"
    found = interval(change)
    judged = "more than noise" if found.sign else "not more than noise"
    ends = f"from {found.low:+z.{digits}f} to {found.high:+z.{digits}f}"
    return f"{mean} ({CONFIDENCE:.0%} {ends}: {judged})"


def wider(change: dict[str, pd.Series]) -> str:
    """What both measures of width say together."""
    if len(change["local_energy"]) == 1:
        return "With one seed nothing is known."
    signs = {interval(change[name]).sign for name in ("local_energy", "top_eigenvalue")}
    if signs == {-1} or signs == {-1, 0}:
        return "Its minimum is wider."
    if signs == {1} or signs == {1, 0}:
        return "Its minimum is sharper."
    if signs == {0}:
        return "Neither is wider beyond noise."
    return "The two measures disagree."
