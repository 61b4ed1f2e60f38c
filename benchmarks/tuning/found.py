"""`python -m benchmarks found`: writes docs/what_we_found.md from the recorded tables."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.common.report import ROOMS, templates
from benchmarks.common.run_folder import RESULTS, Results, read_results, write_text
from benchmarks.common.terminal import say
from benchmarks.tuning import budgets as other_budgets
from benchmarks.tuning import defaults, devices
from benchmarks.tuning import gammas as coupling_test
from benchmarks.tuning.entropic import CONTENDERS
from benchmarks.tuning.measures import QUANTITIES
from benchmarks.tuning.report import written
from benchmarks.tuning.rows import ROWS
from benchmarks.tuning.search import rank
from benchmarks.tuning.statistics import (
    AFTERTHOUGHTS,
    SEEN_BEFORE,
    best_of,
    correlations,
    differences,
    table_of,
    verdict,
    word,
)
from benchmarks.tuning.table import TRIALS

PAGE = ROOMS.parent / "docs" / "what_we_found.md"
TEMPLATE = "tuning/what_we_found.md.j2"
# Below it the pull of Entropy-SGD is weaker than what any recorded winner has; the papers' is 1e-4.
SMALL_GAMMA = 1e-2
MUON = ("muon", "muon_ema", "muon_swa")
# What a reader looks for first.
NAMED = ("entropy_sgd", "partial_entropy_sgd", "replicated_sgd", "replicated_sgd_y", "parle")


@dataclass(frozen=True, kw_only=True)
class Found:
    """Write the page that says what the recorded tables found, and where nothing was run."""


def run(options: Found) -> int:
    """Writes the page; the exit status."""
    del options
    write_text(PAGE, text())
    say(f"Wrote {PAGE}")
    return 0


def recorded() -> list[Results]:
    """The recorded tables, in the order of the rows."""
    files = {name: ROOMS / "results" / f"tuned-{name}" / RESULTS for name in ROWS}
    return [json.loads(file.read_text()) for file in files.values() if file.exists()]


def missing() -> dict[str, str]:
    """The rows without results, and why."""
    there = {found["name"] for found in recorded()}
    return {
        name: row.not_run or "there was no time" for name, row in ROWS.items() if name not in there
    }


def text() -> str:
    """The page."""
    all_found = recorded()
    template = templates().get_template(TEMPLATE)
    words = [word(verdict(found)[2]) for found in all_found]
    return (
        template.render(
            count=len(all_found),
            outcomes={name: words.count(name) for name in ("wins", "ties", "loses")},
            verdicts=verdict_table(all_found),
            methods=method_table(all_found),
            against_sgd=method_table(all_found, "sgd"),
            errors=error_table(all_found),
            correlations=correlation_table(all_found),
            afterthought=afterthought_table(all_found),
            later=", ".join(f"`{name}`" for name in AFTERTHOUGHTS),
            before=", ".join(ROWS[name].title for name in SEEN_BEFORE),
            defaults=of_room("defaults", defaults.table),
            defaults_counts=of_room("defaults", defaults.counts),
            settings=defaults.SETTINGS,
            gamma_test=of_room("gammas", coupling_test.table),
            gamma_factors=of_room(
                "gammas",
                lambda found: [
                    f"{coupling_test.factor(found, one):.1f}"
                    for one in ("entropy_sgd", "replicated_sgd")
                ],
            ),
            budgets=budget_table(),
            curves=of_rows("budgets", other_budgets.table, other_budgets.against),
            devices=of_rows("devices", devices.table),
            winners=winner_table(all_found),
            gammas=gamma_table(all_found),
            missing=pd.DataFrame(
                [(ROWS[name].title, f"`{name}`", why) for name, why in missing().items()],
                columns=["row", "name", "not run, because"],
            ),
            plan=all_found[0]["plan"] if all_found else None,
            sentences=sentences(all_found),
            against=[against_sgd(all_found, name) for name in NAMED] if all_found else [],
            trials=sum(found["plan"]["trials"] * len(found["tuned"]) for found in all_found),
        ).strip()
        + "\n"
    )


def budget_table() -> pd.DataFrame:
    """Test errors of the rows that were tuned again at other budgets: methods across."""
    rows = []
    for name, row in ROWS.items():
        folders = sorted(
            (ROOMS / "results").glob(f"tuned-{name}-*"),
            key=lambda one: int(one.name.split("-")[-1]),
        )
        for folder in folders:
            found = read_results(folder)
            assert found is not None, folder
            groups = table_of(found)["error"].groupby("method")
            mean, error = groups.mean(), groups.sem()
            change = differences(found, "sgd")["entropy_sgd"]
            rows.append(
                {"row": row.title, "gradients": f"{found['row']['gradients']:,}"}
                | {
                    f"{method} %": f"{100 * mean[method]:.2f} ± {100 * error[method]:.2f}"
                    for method in found["methods"]
                }
                | {"entropy_sgd - sgd (95 %)": f"{written(change)}, {word(change)}"}
            )
    return pd.DataFrame(rows)


def of_room(name: str, show: Callable[[Results], Any]) -> Any:
    """What another command has recorded, shown; None where it has not."""
    found = read_results(ROOMS / "results" / name)
    return None if found is None else show(found)


def of_rows(command: str, *tables: Callable[[Results], Any]) -> list[dict[str, Any]]:
    """What a command has recorded of each row: the row, the results, and some tables of them."""
    rooms = {name: read_results(ROOMS / "results" / f"{command}-{name}") for name in ROWS}
    return [
        {"name": name, "found": found, "tables": [one(found) for one in tables]}
        for name, found in rooms.items()
        if found is not None
    ]


def verdict_table(all_found: list[Results]) -> pd.DataFrame:
    """One line for each row: the best entropic method against the best baseline."""
    rows = []
    for found in all_found:
        entropic, baseline, change = verdict(found)
        mean = table_of(found)["error"].groupby("method").mean()
        judged = {name: found["tuned"][name]["error"] for name in (entropic, baseline)}
        chance = np.sqrt(judged[baseline] * (1 - judged[baseline]) / found["data"]["train"])
        rows.append(
            {
                "row": found["row"]["title"],
                "best entropic": entropic,
                "best baseline": baseline,
                "validation errors %": " and ".join(f"{100 * x:.1f}" for x in judged.values()),
                "their standard error": f"{100 * chance:.1f}",
                "test errors %": f"{100 * mean[entropic]:.2f} and {100 * mean[baseline]:.2f}",
                "difference (95 %)": written(change),
                "entropic": word(change),
            }
        )
    return pd.DataFrame(rows)


def method_table(all_found: list[Results], rival: str | None = None) -> pd.DataFrame:
    """How often each method beats a rival, the best baseline of each row, ties or loses."""
    found = [differences(one, rival) for one in all_found]
    rows = []
    for name in CONTENDERS:
        changes = [one[name] for one in found if name in one]
        if not changes:
            continue
        words = [word(change) for change in changes]
        rows.append(
            {
                "method": name,
                "entropic": "yes" if CONTENDERS[name].entropic else "no",
                "gradients": f"x {CONTENDERS[name].budgets}",
                "wins": str(words.count("wins")),
                "ties": str(words.count("ties")),
                "loses": str(words.count("loses")),
                "mean difference": f"{100 * np.mean([one.mean for one in changes]):+z.2f}",
            }
        )
    return pd.DataFrame(sorted(rows, key=lambda row: float(row["mean difference"])))


def error_table(all_found: list[Results]) -> pd.DataFrame:
    """Test errors: methods down, rows across."""
    columns = {}
    for found in all_found:
        groups = table_of(found)["error"].groupby("method")
        mean, error = groups.mean(), groups.sem()
        columns[found["row"]["title"]] = [
            f"{100 * mean[name]:.2f} ± {100 * error[name]:.2f}" if name in mean else "not run"
            for name in CONTENDERS
        ]
    return pd.DataFrame({"method": list(CONTENDERS), **columns})


def afterthought_table(all_found: list[Results]) -> pd.DataFrame:
    """Local entropy around Muon against Muon, whose averages count as Muon too."""
    rows = []
    for found in all_found:
        if "entropy_muon" not in found["tuned"]:
            continue
        rival = best_of(found, [one for one in MUON if one in found["tuned"]])
        change = differences(found, rival)["entropy_muon"]
        mean = table_of(found)["error"].groupby("method").mean()
        rows.append(
            {
                "row": found["row"]["title"],
                "entropy_muon %": f"{100 * mean['entropy_muon']:.2f}",
                "best of Muon": rival,
                "its error %": f"{100 * mean[rival]:.2f}",
                "difference (95 %)": written(change),
                "entropy_muon": word(change),
            }
        )
    return pd.DataFrame(rows)


def correlation_table(all_found: list[Results]) -> pd.DataFrame:
    """Rank correlations with the test error: the mean over the rows, and the range."""
    frames = [correlations(found) for found in all_found]
    rows = []
    for quantity, (title, _, _) in QUANTITIES.items():
        if quantity == "error" or not frames:
            continue
        across = np.array([frame.loc[quantity, "across"] for frame in frames])
        within = np.array([frame.loc[quantity, "within"] for frame in frames])
        rows.append(
            {
                "measure": title.removesuffix(" %"),
                "across methods": ranged(across),
                "within methods": ranged(within),
            }
        )
    return pd.DataFrame(rows)


def ranged(numbers: Any) -> str:
    """A mean, with the smallest and the largest."""
    numbers = numbers[np.isfinite(numbers)]
    if not len(numbers):
        return "-"
    return f"{numbers.mean():+z.2f} ({numbers.min():+z.2f} to {numbers.max():+z.2f})"


def winner_table(all_found: list[Results]) -> pd.DataFrame:
    """The settings of Entropy-SGD that won, row by row."""
    rows = []
    for found in all_found:
        values = found["tuned"]["entropy_sgd"]["values"]
        rows.append(
            {"row": found["row"]["title"]}
            | {name: f"{values[name]:.3g}" for name in CONTENDERS["entropy_sgd"].space}
        )
    return pd.DataFrame(rows)


def gamma_table(all_found: list[Results]) -> pd.DataFrame:
    """The lowest error of Entropy-SGD on the first folds, below and above a gamma."""
    rows = []
    for found in all_found:
        trials = json.loads((ROOMS / "results" / f"tuned-{found['name']}" / TRIALS).read_text())
        small: list[float] = []
        large: list[float] = []
        for trial in trials["entropy_sgd"]:
            side = small if trial["values"]["gamma"] < SMALL_GAMMA else large
            side.append(rank(trial, found["plan"]["early_folds"])[0])
        rows.append(
            {
                "row": found["row"]["title"],
                f"gamma below {SMALL_GAMMA:g}": lowest(small),
                f"gamma above {SMALL_GAMMA:g}": lowest(large),
            }
        )
    return pd.DataFrame(rows)


def lowest(errors: list[float]) -> str:
    """The lowest of some errors, and of how many."""
    return f"{100 * min(errors):.2f} ({len(errors)} points)" if errors else "-"


def against_sgd(all_found: list[Results], name: str) -> str:
    """How a method did against SGD in words."""
    changes = [differences(found, "sgd")[name] for found in all_found]
    words = [word(change) for change in changes]
    mean = 100 * np.mean([change.mean for change in changes])
    budget = CONTENDERS[name].budgets
    gradients = f", at {budget} times the gradients," if budget > 1 else ""
    return (
        f"`{name}`{gradients} against SGD: wins {words.count('wins')}, ties "
        f"{words.count('ties')}, loses {words.count('loses')}; {mean:+z.2f} points on average."
    )


def sentences(all_found: list[Results]) -> list[str]:
    """The verdict of each row in words, wins first."""
    order = {"wins": 0, "ties": 1, "loses": 2}
    said = []
    for found in all_found:
        entropic, baseline, change = verdict(found)
        said.append((word(change), found["row"]["title"], entropic, baseline, written(change)))
    said.sort(key=lambda one: order[one[0]])
    verbs = {"wins": "beats", "ties": "ties with", "loses": "loses to"}
    return [
        f"**{title}**: `{entropic}` {verbs[outcome]} `{baseline}`, {change} points of error."
        for outcome, title, entropic, baseline, change in said
    ]
