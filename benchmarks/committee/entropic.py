"""How wide solutions of least action learning are, with attracted replicas and without.

Local entropies by approximate message passing, which needs the memory of the patterns alone, and up
to `MESSAGES` of them also by belief propagation, whose messages are as many as patterns times
weights.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from benchmarks.committee.minima import known
from entropix.committee import (
    Committee,
    Learned,
    approximate_message_passing,
    entropic_lal,
    least_action_learning,
    local_entropy_curve,
    random_patterns,
)

LOAD, DISTANCE = 1.0, 0.1
# From the reference outwards, on both sides of the distance.
STRENGTHS = (20.0, 12.0, 9.0, 7.0, 5.5, 4.5)
MAX_EPOCHS, MAX_SWEEPS, DAMPING = 600, 300, 0.5
MESSAGES = 2_000_000
WAYS = ("approximate message passing", "belief propagation")
NETWORKS: dict[str, Callable[[int], Committee]] = {
    "perceptron": lambda size: Committee(size, weights="spherical"),
    # Of nine units; the shared inputs are of three.
    "tree": lambda size: Committee(9 * (size // 9), 9, weights="spherical"),
    "shared": lambda size: Committee(size // 3, 3, "full", weights="spherical"),
}
ALGORITHMS: dict[str, Callable[..., Learned]] = {
    "LAL": least_action_learning,
    "entropic LAL": entropic_lal,
}
HEAD = [
    "network", "weights", "algorithm", "solved", "passes",
    f"local entropy at {DISTANCE:g}", "by belief propagation",
]  # fmt: skip


def entropic(networks: tuple[str, ...], size: int, seeds: int) -> dict[str, Any]:
    """Both rules with their defaults on the same instances of each network."""
    found = {}
    for network in networks:
        model = NETWORKS[network](size)
        found[network] = {
            "weights": model.num_weights,
            "algorithms": {name: around(model, name, seeds) for name in ALGORITHMS},
        }
    return {"load": LOAD, "networks": found}


def around(model: Committee, algorithm: str, seeds: int) -> dict[str, Any]:
    """Curves around what the rule ends with, in one program, an instance at a time.

    An instance of ten thousand weights fills the memory by itself.
    """
    by_messages = LOAD * model.num_weights**2 <= MESSAGES

    def one(key: jax.Array) -> tuple[Any, ...]:
        examples = random_patterns(model, LOAD, key)
        found = ALGORITHMS[algorithm](model, *examples, key, max_epochs=MAX_EPOCHS)
        curves = [by_fields(model, found.weights, examples)]
        if by_messages:
            curve = local_entropy_curve(
                model, found.weights, *examples, jnp.array(STRENGTHS), max_steps=MAX_SWEEPS
            )
            curves.append((curve.distance, curve.relative_entropy, curve.converged))
        return found.errors, found.epochs, curves

    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    errors, epochs, curves = jax.lax.map(one, keys)
    return {
        "errors": errors.tolist(),
        "passes": epochs.tolist(),
        "curves": {
            way: {
                "distance": np.asarray(distance).tolist(),
                "entropy": [
                    [known(number) for number in row]
                    for row in np.where(converged, entropy, np.nan)
                ],
            }
            for way, (distance, entropy, converged) in zip(WAYS, curves, strict=False)
        },
    }


def by_fields(
    model: Committee, weights: jax.Array, examples: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Distances and local entropies, less that of all weights there, and what converged."""
    size = model.num_weights

    def point(strength: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        found = approximate_message_passing(
            model, *examples, field=strength * weights, damping=DAMPING, max_steps=MAX_SWEEPS
        )
        overlap = jnp.sum(weights * found.mean) / size
        distance = 1 - overlap**2
        return distance, found.entropy / size - jnp.log(distance) / 2, found.converged

    return jax.lax.map(point, jnp.array(STRENGTHS))


def table(found: dict[str, Any]) -> pd.DataFrame:
    """A row for each network and rule."""
    rows = []
    for network, one in found["networks"].items():
        for algorithm, records in one["algorithms"].items():
            rows.append(
                (
                    network,
                    f"{one['weights']:,}",
                    algorithm,
                    f"{sum(left == 0 for left in records['errors'])}/{len(records['errors'])}",
                    f"{np.median(records['passes']):.0f}",
                    *(said(records, way) for way in WAYS),
                )
            )
    return pd.DataFrame(rows, columns=HEAD)


def said(records: dict[str, Any], way: str) -> str:
    """Mean local entropy at the distance over the solved instances, and of how many it is one."""
    numbers = [one for one in at_distance(records, way) if np.isfinite(one)]
    if not numbers:
        return "-"
    return f"{np.mean(numbers):.3f}" + f" (of {len(numbers)})" * (
        len(numbers) < len(records["errors"])
    )


def at_distance(records: dict[str, Any], way: str) -> list[float]:
    """Of each instance, between the points that converged; nan where there are none around it."""
    curve = records["curves"].get(way)
    if curve is None:
        return []
    answer = []
    for left, *lines in zip(records["errors"], curve["distance"], curve["entropy"], strict=True):
        distance, entropy = (np.array(line, float) for line in lines)
        shown = np.isfinite(entropy)
        inside = shown.any() and distance[shown].min() <= DISTANCE <= distance[shown].max()
        usable = left == 0 and inside
        answer.append(
            float(np.interp(DISTANCE, distance[shown], entropy[shown])) if usable else float("nan")
        )
    return answer
