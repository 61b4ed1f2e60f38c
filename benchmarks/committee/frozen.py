"""Frozen solutions of small binary perceptrons: all of them, and samples of parallel tempering."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.common.intervals import standard_error
from entropix import replica_theory
from entropix.committee import Committee, parallel_tempering, random_patterns

SIZES, LARGEST_ENUMERATED = (11, 15, 19), 19
LOADS = (0.3, 0.5, 0.7)
BETAS = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
NUM_SWEEPS, NUM_RUNS = 800, 4
HEAD = [
    "N", "load", "patterns", "solvable", "entropy: theory", "enumerated", "sampled",
    "largest difference", "isolated: enumerated", "sampled ", "flips taken",
]  # fmt: skip


def frozen(seeds: int) -> dict[str, Any]:
    """Entropies of the solutions and how many have no solution one flip away, counted twice."""
    with jax.enable_x64(True):
        theory = replica_theory.replica_symmetric(np.array(LOADS), weights="binary")
        entropy = np.asarray(theory.entropy).tolist()
    return {
        "loads": LOADS,
        "theory": entropy,
        "records": [measured(size, load, seeds) for size in SIZES for load in LOADS],
    }


def measured(size: int, load: float, seeds: int) -> dict[str, Any]:
    """Of instances of one size and load that have solutions, as far as that is known."""
    model = Committee(size)
    keys = jax.random.split(jax.random.key(size), seeds)
    patterns, labels = jax.vmap(lambda key: random_patterns(model, load, key))(keys)
    sampled = jax.jit(
        jax.vmap(
            lambda x, y, key: parallel_tempering(
                model, x, y, jnp.asarray(BETAS), key, num_sweeps=NUM_SWEEPS, num_runs=NUM_RUNS
            )
        )
    )(patterns, labels, keys)
    counts = [
        enumerated(np.asarray(x), np.asarray(y)) if size <= LARGEST_ENUMERATED else None
        for x, y in zip(patterns, labels, strict=True)
    ]
    alone = jax.jit(jax.vmap(lambda x, y, w: have_no_neighbor(model, x, y, w)))(
        patterns, labels, sampled.weights[:, :, -1]
    )
    return {
        "size": size,
        "load": load,
        "patterns": labels.shape[1],
        "log_solutions": finite(sampled.log_solutions),
        "std_error": finite(sampled.std_error[:, -1]),
        "accepted": finite(sampled.accepted[:, -1]),
        # Of the last weights of the runs, the shares that are solutions and of these alone.
        "solved": np.mean(np.asarray(alone) >= 0, axis=1).tolist(),
        "isolated": [
            float(np.mean(one[one >= 0])) if np.any(one >= 0) else None for one in np.asarray(alone)
        ],
        "counted": counts,
    }


def enumerated(patterns: NDArray[Any], labels: NDArray[Any]) -> dict[str, Any]:
    """Number of all solutions, and the share of them without another one flip away."""
    size = patterns.shape[1]
    # An axis for each weight, so that a flip is a reversal.
    right = np.ones((2,) * size, bool)
    for x, label in zip(patterns, labels, strict=True):
        field = np.zeros((1,) * size, np.int8)
        for site in range(size):
            along = (2,) + (1,) * (size - 1 - site)
            field = field + (np.array([1, -1], np.int8) * np.int8(label * x[site])).reshape(along)
        right &= field > 0
    near = np.zeros_like(right)
    for site in range(size):
        near |= np.flip(right, site)
    solutions = int(right.sum())
    alone = int((right & ~near).sum())
    return {"solutions": solutions, "isolated": alone / solutions if solutions else None}


def have_no_neighbor(
    model: Committee, patterns: jax.Array, labels: jax.Array, weights: jax.Array
) -> jax.Array:
    """For each network 1 where no flip leaves a solution, 0 where one does, -1 for no solution."""

    def one(w: jax.Array) -> jax.Array:
        flips = w[None] * (1 - 2 * jnp.eye(model.num_inputs, dtype=w.dtype))[:, None]
        near = jax.vmap(lambda changed: model.errors(changed, patterns, labels))(flips)
        alone = jnp.all(near > 0).astype(jnp.int32)
        return jnp.where(model.errors(w, patterns, labels) == 0, alone, -1)

    return jax.vmap(one)(weights)


def finite(numbers: jax.Array) -> list[float | None]:
    """For JSON, which knows no infinities."""
    return [float(x) if np.isfinite(x) else None for x in np.asarray(numbers)]


def isolated(record: dict[str, Any], way: str) -> list[float]:
    """Of each instance with solutions the share of those without another one flip away."""
    if way == "sampled":
        return [share for share in record["isolated"] if share is not None]
    return [one["isolated"] for one in record["counted"] if one and one["solutions"]]


def mean(numbers: list[float]) -> float:
    """Or nan of nothing."""
    return float(np.mean(numbers)) if numbers else float("nan")


def spread(numbers: list[float]) -> float:
    """Standard error of the mean, 0 for a single one."""
    return float(standard_error(np.array(numbers))) if numbers else 0.0


def table(found: dict[str, Any]) -> pd.DataFrame:
    """A row for each size and load."""
    rows = []
    for record in found["records"]:
        size, counts = record["size"], record["counted"]
        entropies = [None if one is None else one / size for one in record["log_solutions"]]
        both = [
            (sampled, math.log(one["solutions"]) / size, bar / size)
            for sampled, one, bar in zip(entropies, counts, record["std_error"], strict=True)
            if one and one["solutions"] and sampled is not None and bar is not None
        ]
        counted, sampled = isolated(record, "counted"), isolated(record, "sampled")
        enumerated_all = all(one is not None for one in counts)
        rows.append(
            (
                str(size),
                f"{record['load']:g}",
                str(record["patterns"]),
                f"{sum(bool(one and one['solutions']) for one in counts)}/{len(counts)}"
                if enumerated_all
                else "-",
                f"{found['theory'][found['loads'].index(record['load'])]:.3f}",
                number([one for _, one, _ in both]),
                number([one for one in entropies if one is not None]),
                f"{max(abs(a - b) for a, b, _ in both):.3f}" if both else "-",
                number(counted),
                number(sampled),
                number(record["accepted"]),
            )
        )
    return pd.DataFrame(rows, columns=HEAD)


def number(numbers: list[float]) -> str:
    """Their mean, a dash for none."""
    return f"{np.mean(numbers):.3f}" if numbers else "-"
