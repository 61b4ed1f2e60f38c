"""`python -m benchmarks loads`: up to which loads each algorithm solves random patterns."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd

from benchmarks.committee import load_figure
from benchmarks.committee.algorithms import FAST, LEARNING_RATE, SLOW
from benchmarks.common import environment
from benchmarks.common.options import POSITIVE, Among, ResumeOptions, configuration
from benchmarks.common.plots import save
from benchmarks.common.report import MARKDOWN, write_report
from benchmarks.common.run_folder import open_folder, stored_results, write_results
from benchmarks.common.terminal import progress_bars, say, show_table
from entropix import replica_theory
from entropix.committee import (
    Committee,
    Examples,
    FocusingBP,
    Learned,
    entropic_lal,
    focusing_bp,
    least_action_learning,
    random_patterns,
    replicated_lal,
    rising_coupling,
    surrogate_sgd,
)

BINARY_COUPLINGS, SPHERICAL_COUPLINGS = np.arange(0.05, 3.0, 0.05), np.arange(0.5, 12.5, 0.5)
SGD = optax.sgd(LEARNING_RATE)
HEAD = ["network", "weights", "algorithm", "load", "solved", "errors", "passes"]
SUMMARY = ["network", "theory", "algorithm"]


class Network(NamedTuple):
    """What is to learn.

    Attributes:
      make: from about that many weights.
      capacity: the theory's, patterns per weight; an upper bound for committees.
      loads: to try, rising; an algorithm that solves no instance of one is not tried on more.
    """

    make: Callable[[int], Committee]
    capacity: Callable[[], replica_theory.Capacity]
    loads: tuple[float, ...]


NETWORKS = {
    "binary perceptron": Network(
        Committee,
        lambda: replica_theory.capacity(weights="binary"),
        (0.4, 0.5, 0.6, 0.65, 0.7, 0.72, 0.74, 0.76, 0.78),
    ),
    "binary tree, K = 3": Network(
        lambda size: Committee(3 * (size // 3 | 1), 3),
        lambda: replica_theory.capacity(weights="binary", num_hidden=3),
        (0.4, 0.5, 0.6, 0.65, 0.7, 0.74, 0.78, 0.82),
    ),
    "spherical tree, K = 3": Network(
        lambda size: Committee(3 * (size // 3 | 1), 3, weights="spherical"),
        lambda: replica_theory.capacity(weights="spherical", num_hidden=3),
        (1.0, 1.5, 1.75, 2.0, 2.25, 2.5, 2.75, 3.0, 3.25),
    ),
}

Solve = Callable[[Committee, Examples, jax.Array, int], FocusingBP | Learned]


def by_focusing_bp(
    model: Committee, examples: Examples, key: jax.Array, max_epochs: int
) -> FocusingBP:
    """Infinitely many replicas and a rising coupling, until solved."""
    del max_epochs
    couplings = BINARY_COUPLINGS if model.weights == "binary" else SPHERICAL_COUPLINGS
    return focusing_bp(model, *examples, rising_coupling(jnp.asarray(couplings)), key)


def by_sgd(growth: float) -> Solve:
    """Smooth units that sharpen at that rate."""

    def solve(model: Committee, examples: Examples, key: jax.Array, max_epochs: int) -> Learned:
        return surrogate_sgd(model, *examples, SGD, key, growth=growth, max_epochs=max_epochs)

    return solve


def by_rule(rule: Callable[..., Learned]) -> Solve:
    """With its defaults."""

    def solve(model: Committee, examples: Examples, key: jax.Array, max_epochs: int) -> Learned:
        return rule(model, *examples, key, max_epochs=max_epochs)

    return solve


ALGORITHMS: dict[str, tuple[tuple[str, ...], Solve]] = {
    "focusing_bp": (("binary", "spherical"), by_focusing_bp),
    "sgd_slow": (("spherical",), by_sgd(SLOW)),
    "sgd_fast": (("spherical",), by_sgd(FAST)),
    "entropic_lal": (("spherical",), by_rule(entropic_lal)),
    "replicated_lal": (("binary",), by_rule(replicated_lal)),
    "lal": (("binary", "spherical"), by_rule(least_action_learning)),
}


@dataclass(frozen=True, kw_only=True)
class Loads(ResumeOptions):
    """Solve random patterns of rising load, for each algorithm and size of the network."""

    sizes: Annotated[tuple[int, ...], POSITIVE] = (201, 501, 1001)
    """Weights of each network, odd; a tree's are rounded to three odd units."""
    networks: Annotated[tuple[str, ...], Among("network", lambda: NETWORKS)] = tuple(NETWORKS)
    """Which networks."""
    algorithms: Annotated[tuple[str, ...], Among("algorithm", lambda: ALGORITHMS)] = tuple(
        ALGORITHMS
    )
    """Which algorithms, where they are for the weights of a network."""
    seeds: Annotated[int, POSITIVE] = 5
    """Instances of each."""
    max_epochs: Annotated[int, POSITIVE] = 500
    """Passes over the patterns after which an algorithm gives up."""


def run(options: Loads) -> int:
    """Solves all instances, written load by load; the exit status."""
    folder = open_folder(options, "loads")
    found = (stored_results(folder, options) if options.resume else None) or {
        "configuration": configuration(options),
        "command": environment.command(),
        "environment": environment.describe(),
        "records": [],
    }
    ladders = [
        (name, size, algorithm)
        for size in options.sizes
        for algorithm in options.algorithms
        for name in options.networks
        if NETWORKS[name].make(size).weights in ALGORITHMS[algorithm][0]
    ]
    with progress_bars() as progress:
        task = progress.add_task("solving", total=len(ladders))
        for name, size, algorithm in ladders:
            climb(options, found, name, size, algorithm, lambda: write_results(folder, found))
            # A run that is stopped leaves a report of what it has done.
            report(folder, found)
            progress.advance(task)
    show_table(summarized(found), "Largest load of which most instances are solved")
    say(f"Written: {folder / MARKDOWN}")
    return 0


def report(folder: Path, found: dict[str, Any]) -> None:
    """Writes results, tables and picture."""
    found["capacities"] = capacities(found)
    write_results(folder, found)
    save(folder, "loads", load_figure.draw, found | {"reached": reached(found)})
    write_report(
        folder,
        "committee/loads.md.j2",
        "Loads that are solved",
        found=found,
        summary=summarized(found),
        table=tabulated(found),
    )


def climb(
    options: Loads,
    found: dict[str, Any],
    name: str,
    size: int,
    algorithm: str,
    store: Callable[[], None],
) -> None:
    """Rising loads until one of which no instance is solved; those stored are not tried again."""
    known = {
        record["load"]: record
        for record in found["records"]
        if (record["network"], record["size"], record["algorithm"]) == (name, size, algorithm)
    }
    for load in NETWORKS[name].loads:
        record = known.get(load)
        if record is None:
            model = NETWORKS[name].make(size)
            begin = time.perf_counter()
            runs = solve(model, algorithm, load, options.seeds, options.max_epochs)
            record = {
                "network": name, "size": size, "weights": model.num_weights,
                "algorithm": algorithm, "load": load, "runs": runs,
                "seconds_with_compilation": time.perf_counter() - begin,
            }  # fmt: skip
            found["records"].append(record)
            store()
        if all(run["errors"] for run in record["runs"]):
            return


def solve(
    model: Committee, algorithm: str, load: float, seeds: int, max_epochs: int
) -> list[dict[str, int]]:
    """What each instance ends with, all in one program; those that have ended wait for the others.

    One after another, a rule that learns pattern by pattern would take as many steps again for each
    instance, and a step of so few weights is all overhead.
    """

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        answer = ALGORITHMS[algorithm][1](model, random_patterns(model, load, key), key, max_epochs)
        if isinstance(answer, FocusingBP):
            # Stages that were not needed have -1.
            return answer.errors, jnp.sum(jnp.maximum(answer.history.steps, 0))
        return answer.errors, answer.epochs

    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    errors, passes = (numbers.tolist() for numbers in jax.vmap(one)(keys))
    return [{"errors": left, "passes": taken} for left, taken in zip(errors, passes, strict=True)]


def tabulated(found: dict[str, Any]) -> pd.DataFrame:
    """A row for each network, size, algorithm and load."""
    rows = [
        (
            record["network"],
            f"{record['weights']:,}",
            record["algorithm"],
            f"{record['load']:g}",
            f"{sum(run['errors'] == 0 for run in record['runs'])}/{len(record['runs'])}",
            ", ".join(str(run["errors"]) for run in record["runs"]),
            f"{np.median([run['passes'] for run in record['runs']]):.0f}",
        )
        for record in found["records"]
    ]
    return pd.DataFrame(rows, columns=HEAD)


def capacities(found: dict[str, Any]) -> dict[str, float]:
    """The theory's, of each network that was run."""
    known = found.get("capacities", {})
    with jax.enable_x64(True):
        return {
            name: known.get(name) or float(NETWORKS[name].capacity().load)
            for name in dict.fromkeys(record["network"] for record in found["records"])
        }


def reached(found: dict[str, Any]) -> list[dict[str, Any]]:
    """For each network, algorithm and size the largest load up to which most instances are solved.

    'load' is None where that is none; 'open' says that no larger one was tried.
    """
    ladders: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for record in found["records"]:
        steps = ladders.setdefault((record["network"], record["algorithm"], record["size"]), [])
        steps.append(record)
    answer = []
    for (network, algorithm, size), ladder in ladders.items():
        load = largest_load(ladder)
        answer.append(
            {
                "network": network,
                "algorithm": algorithm,
                "size": size,
                "load": load,
                "open": load == max(record["load"] for record in ladder),
            }
        )
    return answer


def summarized(found: dict[str, Any]) -> pd.DataFrame:
    """The same as a table, a row for each network and algorithm."""
    sizes = sorted({record["size"] for record in found["records"]})
    cells = {
        (one["network"], one["algorithm"], one["size"]): "-"
        if one["load"] is None
        else f"{'at least ' * one['open']}{one['load']:g}"
        for one in reached(found)
    }
    rows = [
        (
            name,
            f"{found['capacities'][name]:.3f}",
            algorithm,
            *(cells.get((name, algorithm, size), "not run") for size in sizes),
        )
        for name, algorithm in dict.fromkeys((name, algorithm) for name, algorithm, _ in cells)
    ]
    return pd.DataFrame(rows, columns=[*SUMMARY, *(f"N = {size:,}" for size in sizes)])


def largest_load(ladder: list[dict[str, Any]]) -> float | None:
    """Up to which the median instance has no errors at each load; None where at none."""
    largest = None
    for record in sorted(ladder, key=lambda record: record["load"]):
        if np.median([run["errors"] for run in record["runs"]]) > 0:
            break
        largest = record["load"]
    return largest
