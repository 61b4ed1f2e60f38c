"""What the language experiment found: tables of loss and bytes, and what follows from them."""

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.common.intervals import CONFIDENCE, interval, with_error
from benchmarks.common.report import write_report
from benchmarks.common.run_folder import Results

BASELINE = "1/0"


def write(folder: Path, found: Results) -> None:
    """Writes report.md and report.html."""
    outers = list(dict.fromkeys(cell["outer"] for cell in found["cells"].values()))
    outers = [outer for outer in outers if outer != BASELINE]
    write_report(
        folder,
        "language/report.md.j2",
        f"Local SGD on {found['data']['name']} with {found['configuration']['model']}",
        found=found,
        baseline=written(seeds_of(found, workers=1, every=1, outer=BASELINE)),
        losses={outer: loss_table(found, outer) for outer in outers},
        traffic=traffic_table(found),
        tuning=tuning_table(found, [BASELINE, *outers]),
        compression=compression_table(found),
        verdict=[
            *verdict(found, outers),
            *explanation(found, outers),
            *against_adamw(found, outers),
        ],
        tokens=tokens(found),
        missing=missing(found, outers),
    )


def tokens(found: Results) -> int:
    """That one run sees."""
    config = found["configuration"]
    return int(config["steps"] * config["batch_size"] * found["model"]["block"])


def missing(found: Results, outers: Sequence[str]) -> int:
    """Trainings of the table that a run that was stopped has not made."""
    config = found["configuration"]
    asked = len(config["workers"]) * len(config["every"]) * config["seeds"]
    there = [cell for cell in found["cells"].values() if not cell["tuning"]]
    plain = [cell for cell in there if not cell["compression"] and cell["outer"] != BASELINE]
    return 2 * asked - len([cell for cell in plain if cell["outer"] in outers])


def seeds_of(found: Results, compression: str = "", **what: Any) -> dict[int, float]:
    """The final losses of one cell, by seed."""
    return {
        cell["seed"]: cell["loss"]
        for cell in found["cells"].values()
        if not cell["tuning"]
        and cell["compression"] == compression
        and all(cell[name] == value for name, value in what.items())
    }


def written(losses: dict[int, float]) -> str:
    """Mean and standard error over the seeds, as text."""
    return with_error(np.array([*losses.values()]), 3)


def loss_table(found: Results, outer: str) -> pd.DataFrame:
    """One row for each M, one column for each H."""
    config = found["configuration"]
    return pd.DataFrame(
        {"M": [str(m) for m in config["workers"]]}
        | {
            f"H = {h}": [
                written(seeds_of(found, workers=m, every=h, outer=outer)) for m in config["workers"]
            ]
            for h in config["every"]
        }
    )


def traffic_table(found: Results) -> pd.DataFrame:
    """Bytes per step, by the formula and in the program."""
    rows = []
    for name, sent in found["traffic"].items():
        workers, every, *compression = name.split()
        rows.append(
            {
                "M": workers[2:],
                "H": every[2:],
                "sent": compression[0] if compression else "float32",
                "bytes per step, formula": f"{sent['formula']:,.0f}",
                "in the compiled program": f"{sent['counted']:,.0f}",
                "quotient": f"{sent['counted'] / sent['formula']:.4f}" if sent["formula"] else "-",
            }
        )
    return pd.DataFrame(rows)


def tried(found: Results, outer: str) -> dict[int, dict[float, float]]:
    """By H, the losses on held-out text at each rate that was tried."""
    losses: dict[int, dict[float, float]] = {}
    for cell in found["cells"].values():
        if cell["tuning"] and cell["outer"] == outer:
            losses.setdefault(cell["every"], {})[cell["learning_rate"]] = cell["loss"]
    return losses


def tuning_table(found: Results, outers: Iterable[str]) -> pd.DataFrame:
    """Losses on held-out text; one row for each outer optimizer and H, one column for each rate."""
    rows = []
    for outer in outers:
        for every, losses in tried(found, outer).items():
            best = best_of(losses)
            row = {"outer": "none" if outer == BASELINE else outer, "H": str(every)}
            row |= {f"{rate:g}": f"{loss:.3f}" for rate, loss in losses.items()}
            row |= {"best": f"{best:g}", "best, effective": f"{best * gain(outer):g}"}
            rows.append(row)
    table = pd.DataFrame(rows).fillna("-")
    rates = sorted(set(table) - {"outer", "H", "best", "best, effective"}, key=float)
    return table[["outer", "H", *rates, "best", "best, effective"]]


def best_of(losses: dict[float, float]) -> float:
    """The rate of the lowest loss."""
    return min(losses, key=lambda rate: losses[rate])


def gain(outer: str) -> float:
    """By how much an outer optimizer multiplies the way of the workers in the long run."""
    rate, momentum = map(float, outer.split("/"))
    return rate / (1 - momentum)


def compression_table(found: Results) -> pd.DataFrame:
    """Losses of compressed exchanges, and their paired differences to full ones."""
    cells = [cell for cell in found["cells"].values() if cell["compression"]]
    rows = []
    for sent in dict.fromkeys(cell["compression"] for cell in cells):
        cell = next(cell for cell in cells if cell["compression"] == sent)
        what = {name: cell[name] for name in ("workers", "every", "outer")}
        plain, small = seeds_of(found, **what), seeds_of(found, compression=sent, **what)
        change = paired(small, plain)
        rows.append(
            {
                "sent": sent,
                "loss": written(small),
                "minus float32": written_change(change),
                "measurably worse": "yes" if interval(change).low > 0 else "no",
            }
        )
    return pd.DataFrame(rows)


def paired(mine: dict[int, float], theirs: dict[int, float]) -> np.ndarray[Any, Any]:
    """Differences seed by seed, of the seeds that both have."""
    return np.array([mine[seed] - theirs[seed] for seed in mine if seed in theirs])


def written_change(change: np.ndarray[Any, Any]) -> str:
    """A mean difference with its interval, as text."""
    mean, low, high = interval(change)
    return f"{mean:+.4f} ({CONFIDENCE:.0%} from {low:+.4f} to {high:+.4f})"


def verdict(found: Results, outers: Sequence[str]) -> list[str]:
    """Which outer optimizer is better at each H, over all M and seeds."""
    if len(outers) < 2:
        return []
    config, sentences = found["configuration"], []
    for every in config["every"]:
        changes = [
            paired(
                seeds_of(found, workers=m, every=every, outer=outers[0]),
                seeds_of(found, workers=m, every=every, outer=outers[1]),
            )
            for m in config["workers"]
        ]
        by_seed = [change for change in changes if len(change) == config["seeds"]]
        if not by_seed:
            continue
        # The M of one seed share their mini-batches' start: the seeds alone are independent.
        change = np.mean(by_seed, axis=0)
        _, low, high = interval(change)
        judged = (
            "no measurable difference"
            if low < 0 < high
            else (f"{outers[0] if high <= 0 else outers[1]} is better")
        )
        sentences.append(
            f"H = {every}, {config['steps'] // every} meetings: {outers[0]} minus {outers[1]}, "
            f"mean over M, {written_change(change)} nats: {judged}."
        )
    return sentences


def against_adamw(found: Results, outers: Sequence[str]) -> list[str]:
    """The best cell of the table beside AdamW alone, whose rate is tuned alike."""
    alone = seeds_of(found, workers=1, every=1, outer=BASELINE)
    config, whole = found["configuration"], {}
    for outer, m, h in itertools.product(outers, config["workers"], config["every"]):
        losses = seeds_of(found, workers=m, every=h, outer=outer)
        if len(losses) == config["seeds"]:
            whole[f"{outer}, M = {m}, H = {h}"] = losses
    if not whole or len(alone) < config["seeds"]:
        return []
    best = min(whole, key=lambda name: np.mean([*whole[name].values()]))
    return [
        f"The lowest loss of the tables, that of {best}, minus AdamW's alone: "
        f"{written_change(paired(whole[best], alone))} nats."
    ]


def explanation(found: Results, outers: Sequence[str]) -> list[str]:
    """What the outer optimizers ask of the inner rate, and what is left of them at one rate."""
    if len(outers) < 2:
        return []
    one, other = (tried(found, outer) for outer in outers[:2])
    both = [every for every in one if every in other]
    if not both:
        return []
    quotients = [best_of(other[every]) / best_of(one[every]) for every in both]
    alike = [
        one[every][rate] - other[every][rate]
        for every in both
        for rate in one[every]
        if rate in other[every]
    ]
    gains = [gain(outer) for outer in outers[:2]]
    return [
        f"Why: in the long run {outers[0]} multiplies the workers' way by {gains[0]:.3g} and "
        f"{outers[1]} by {gains[1]:.3g}, {gains[0] / gains[1]:.2f} times less. Tuned alike, "
        f"{outers[1]} takes {', '.join(f'{each:g}' for each in quotients)} times the inner rate of "
        f"{outers[0]} at H = {', '.join(map(str, both))}: "
        f"{np.exp(np.mean(np.log(quotients))):.2f} times in the geometric mean, of rates a factor "
        f"of 2 apart.",
        f"At one and the same inner rate, as in a comparison that is not tuned, {outers[0]} minus "
        f"{outers[1]} is {np.mean(alike):+.3f} nats of held-out text in the mean of {len(alike)} "
        f"pairs, from {min(alike):+.3f} to {max(alike):+.3f}.",
    ]
