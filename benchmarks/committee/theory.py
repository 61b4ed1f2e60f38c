"""`python -m benchmarks theory`: replica theory and what algorithms find, in one panel each."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from benchmarks.committee import depth, entropic, frozen, minima, theory_figures
from benchmarks.common import environment
from benchmarks.common.options import POSITIVE, Among, ResumeOptions, configuration
from benchmarks.common.plots import save
from benchmarks.common.report import write_report
from benchmarks.common.run_folder import open_folder, stored_results, write_results
from benchmarks.common.terminal import progress_bars, say
from entropix import replica_theory
from entropix.committee import (
    Committee,
    approximate_message_passing,
    belief_propagation,
    entropic_lal,
    focusing_bp,
    least_action_learning,
    local_entropy_curve,
    random_patterns,
    rising_coupling,
    teacher_student,
)

WIDE_LOAD, WIDE_UNITS, PARITY_UNITS = 1.0, (3, 9), (3, 9, 31)
WIDE_COUPLINGS = np.arange(0.5, 10.5, 0.5)
STRENGTHS = (100.0, 50.0, 30.0, 20.0, 12.0, 8.0, 5.0)
DISTANCES = np.array([0.01, 0.03, 0.05, 0.08, 0.12, 0.16, 0.2, 0.25])
ENTROPY_LOAD, ENTROPY_DISTANCES = 0.4, (0.05, 0.1, 0.15)
GAMMAS = np.array([0.7, 1.0, 1.4, 2.0, 2.8, 4.0])
BINARY_LOADS, SPHERICAL_LOADS = (0.4, 0.8, 1.1, 1.3, 1.6), (0.5, 1.0, 2.0)
# From here on approximate message passing wanders about where nearly all weights are known.
AMP_LOADS = BINARY_LOADS[:4]


@dataclass(frozen=True, kw_only=True)
class Theory(ResumeOptions):
    """Draw replica theory beside what algorithms find in networks of finite size."""

    figures: Annotated[tuple[str, ...], Among("figure", lambda: FIGURES)] = (
        "generalization",
        "cross_entropy",
        "parity",
        "wide_minima",
        "frozen",
        "depth",
        "entropic",
    )
    """Which figures."""
    seeds: Annotated[int, POSITIVE] = 3
    """Instances of each point."""
    size: Annotated[int, POSITIVE] = 501
    """Weights of the networks that algorithms are run on, odd; a tree's are rounded."""
    networks: Annotated[tuple[str, ...], Among("network", lambda: entropic.NETWORKS)] = (
        "perceptron",
        "tree",
        "shared",
    )
    """Which networks, of the figure entropic."""


def run(options: Theory) -> int:
    """Computes and draws, a figure at a time; the exit status."""
    folder = open_folder(options, "theory")
    found = (stored_results(folder, options) if options.resume else None) or {
        "configuration": configuration(options),
        "command": environment.command(),
        "environment": environment.describe(),
        "figures": {},
    }
    with progress_bars() as progress:
        task = progress.add_task("figures", total=len(options.figures))
        for name in options.figures:
            if name not in found["figures"]:
                found["figures"][name] = FIGURES[name](options)
                write_results(folder, found)
            draw(folder, name, found)
            report(folder, found)
            progress.advance(task)
    say(f"Written: {folder}")
    return 0


def draw(folder: Path, name: str, found: dict[str, Any]) -> None:
    """One figure, as PNG and SVG."""
    picture: Callable[[dict[str, Any]], Any] = getattr(theory_figures, name)
    save(folder, name, lambda results: picture(results["figures"][name]), found)


def report(folder: Path, found: dict[str, Any]) -> None:
    """The tables of the figures that have one."""
    write_report(
        folder,
        "committee/theory.md.j2",
        "Replica theory and finite networks",
        found=found,
        tables={
            title: table(found["figures"][name])
            for name, (title, table) in TABLES.items()
            if name in found["figures"]
        },
    )


def doubles(solve: Callable[[], Any]) -> dict[str, list[Any]]:
    """A theory's answer as lists, computed in double precision."""
    with jax.enable_x64(True):
        return {key: np.asarray(value).tolist() for key, value in solve()._asdict().items()}


def generalization(options: Theory) -> dict[str, Any]:
    """Errors of students against the load: the best, message passing, and algorithms that train."""
    loads = np.linspace(0.05, 1.9, 38)
    spherical = np.linspace(0.1, 3.2, 32)
    return {
        "loads": {"binary": loads.tolist(), "spherical": spherical.tolist()},
        "binary": doubles(lambda: replica_theory.bayes_optimal(loads, weights="binary")),
        "spherical": doubles(lambda: replica_theory.bayes_optimal(spherical, weights="spherical")),
        "transition": doubles(replica_theory.perfect_generalization),
        "points": {
            "binary": {
                "belief propagation": message_passing(options, belief_propagation, BINARY_LOADS),
                "approximate message passing": message_passing(
                    options, approximate_message_passing, AMP_LOADS
                ),
            },
            "spherical": trained(options),
        },
    }


def message_passing(
    options: Theory, algorithm: Callable[..., Any], loads: tuple[float, ...]
) -> dict[str, Any]:
    """Errors of the vote on binary perceptrons, all instances in one program."""
    model = Committee(options.size)
    errors = []
    for load in loads:
        keys = jax.random.split(jax.random.key(0), options.seeds)
        examples, teachers = jax.vmap(lambda key, at=load: teacher_student(model, at, key))(keys)
        found = jax.vmap(lambda x, y: algorithm(model, x, y))(*examples)
        errors.append(angle(found.mean, teachers).tolist())
    return {"loads": loads, "errors": errors}


def trained(options: Theory) -> dict[str, Any]:
    """Errors of solutions that three algorithms find, of spherical perceptrons."""
    model = Committee(options.size, weights="spherical")
    couplings = rising_coupling(jnp.asarray(WIDE_COUPLINGS))
    algorithms: dict[str, Callable[..., Any]] = {
        "focusing BP": lambda x, y, key: focusing_bp(
            model, x, y, couplings, key, stop_when_solved=False
        ),
        "entropic LAL": lambda x, y, key: entropic_lal(model, x, y, key),
        "LAL": lambda x, y, key: least_action_learning(model, x, y, key),
    }
    points: dict[str, Any] = {
        name: {"loads": SPHERICAL_LOADS, "errors": [], "left": []} for name in algorithms
    }
    for load in SPHERICAL_LOADS:
        instances = [teacher_student(model, load, seed) for seed in range(options.seeds)]
        for name, algorithm in algorithms.items():
            found = [
                algorithm(*examples, jax.random.key(seed))
                for seed, (examples, _) in enumerate(instances)
            ]
            weights = jnp.stack([one.weights for one in found])
            teachers = jnp.stack([teacher for _, teacher in instances])
            points[name]["errors"].append(angle(weights, teachers).tolist())
            points[name]["left"].append([int(one.errors) for one in found])
    return points


def angle(weights: jax.Array, teachers: jax.Array) -> jax.Array:
    """Share of all patterns that two perceptrons answer differently: their angle over pi."""
    axes = (1, 2)
    cosine = jnp.sum(weights * teachers, axes) / jnp.sqrt(
        jnp.sum(weights**2, axes) * jnp.sum(teachers**2, axes)
    )
    return jnp.arccos(jnp.clip(cosine, -1, 1)) / jnp.pi


def cross_entropy(options: Theory) -> dict[str, Any]:
    """Where minima of the cross-entropy lie, against its steepness: theory, and minima found."""
    distance = np.array(ENTROPY_DISTANCES)[:, None]
    theory = doubles(
        lambda: replica_theory.franz_parisi_of_cross_entropy(ENTROPY_LOAD, distance, gamma=GAMMAS)
    )
    return {
        "load": ENTROPY_LOAD,
        "distances": ENTROPY_DISTANCES,
        "gammas": GAMMAS.tolist(),
        "minima": theory,
        "warm": doubles(
            lambda: replica_theory.franz_parisi_of_cross_entropy(
                ENTROPY_LOAD, distance, gamma=GAMMAS, beta=minima.WARM * np.array(theory["beta"])
            )
        ),
        "widest": doubles(
            lambda: replica_theory.wide_minima(ENTROPY_LOAD, distance[:, 0], weights="binary")
        ),
        "typical": doubles(
            lambda: replica_theory.franz_parisi(ENTROPY_LOAD, distance[:, 0], weights="binary")
        ),
        "points": minima.found_at(
            options.size, ENTROPY_LOAD, GAMMAS, theory["beta"][0], ENTROPY_DISTANCES, options.seeds
        ),
    }


def parity(options: Theory) -> dict[str, Any]:
    """The widest regions of parity machines flatten to -alpha log 2 as K grows."""
    del options
    return {
        "load": WIDE_LOAD,
        "distances": DISTANCES.tolist(),
        "units": {
            str(units): doubles(functools.partial(widest, units, "parity"))
            for units in PARITY_UNITS
        },
    }


def widest(units: float, output: Literal["majority", "parity"]) -> replica_theory.WideMinima:
    """The curve of a spherical tree."""
    return replica_theory.wide_minima(
        WIDE_LOAD, DISTANCES, weights="spherical", num_hidden=units, output=output
    )


def wide_minima(options: Theory) -> dict[str, Any]:
    """Widest regions of committees, and the local entropy around what focusing BP finds."""
    return {
        "load": WIDE_LOAD,
        "distances": DISTANCES.tolist(),
        "units": {
            str(units): doubles(functools.partial(widest, units, "majority"))
            for units in (*WIDE_UNITS, np.inf)
        },
        "typical": doubles(
            lambda: replica_theory.franz_parisi(
                WIDE_LOAD, DISTANCES, weights="spherical", num_hidden=np.inf
            )
        ),
        "points": {str(units): around_focused(options, units) for units in WIDE_UNITS},
    }


def around_focused(options: Theory, units: int) -> dict[str, Any]:
    """Local entropies around solutions of focusing BP, converged in all instances that are one."""
    model = Committee(units * (options.size // units), units, weights="spherical")
    couplings = rising_coupling(jnp.asarray(WIDE_COUPLINGS))
    curves = []
    for seed in range(options.seeds):
        examples = random_patterns(model, WIDE_LOAD, seed)
        found = focusing_bp(model, *examples, couplings, seed, stop_when_solved=False)
        if found.solved:
            curve = local_entropy_curve(
                model, found.weights, *examples, jnp.array(STRENGTHS), max_steps=300
            )
            curves.append(curve)
    return {
        "weights": model.num_weights,
        "distance": [np.asarray(curve.distance).tolist() for curve in curves],
        "entropy": [np.asarray(curve.relative_entropy).tolist() for curve in curves],
        "converged": [np.asarray(curve.converged).tolist() for curve in curves],
    }


FIGURES: dict[str, Callable[[Theory], dict[str, Any]]] = {
    "generalization": generalization,
    "cross_entropy": cross_entropy,
    "parity": parity,
    "wide_minima": wide_minima,
    "frozen": lambda options: frozen.frozen(options.seeds),
    "depth": lambda options: depth.depth(options.seeds),
    "entropic": lambda options: entropic.entropic(options.networks, options.size, options.seeds),
}
TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], pd.DataFrame]]] = {
    "cross_entropy": ("Minima of the cross-entropy", minima.table),
    "frozen": ("Solutions of small binary perceptrons", frozen.table),
    "depth": ("One and two hidden layers", depth.table),
    "entropic": ("Attracted replicas", entropic.table),
}
