"""What the flatness estimators cost beside the passes over the data they cannot do without."""

import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from benchmarks.common.timing import Figure, figure, not_measured, time_rounds
from benchmarks.speed import lanczos
from benchmarks.speed.lanczos import EXAMPLES, NETWORK, PEERS, STEPS, problem
from benchmarks.speed.peak_memory import peak_memory
from entropix.flatness import local_energy

DRAWS = 100
SIGMA = 0.1
LANCZOS = f"Hessian, {STEPS} Lanczos steps, {EXAMPLES} examples"
ENERGY = f"local energy, {DRAWS} draws, {EXAMPLES} examples"
# Ritz values this near to the largest one, relatively, are copies of it.
SAME = 1e-3


def measure(rounds: int) -> list[Figure]:
    """All figures of this section."""
    return [*lanczos_steps(rounds), *energy_draws(rounds)]


def lanczos_steps(rounds: int) -> list[Figure]:
    """Lanczos against bare products, and against each peer that is installed."""
    ours, floor = "lanczos", f"{STEPS} bare products"
    installed = {
        name: build
        for name, (packages, build) in PEERS.items()
        if all(importlib.util.find_spec(package) for package in packages)
    }
    builders = {ours: lanczos.entropix_lanczos, floor: lanczos.bare_products, **installed}
    memory = {name: peak_memory(build) for name, build in builders.items()}
    calls = {name: build() for name, build in builders.items()}
    largest = {name: describe_largest(calls[name]()) for name in (ours, *installed)}
    seconds = time_rounds(calls, rounds=rounds)

    def line(reference: str, target: float | None, note: str) -> Figure:
        return figure(
            seconds, ours, reference, section=LANCZOS, target=target,
            memory_bytes=memory[ours], reference_memory_bytes=memory[reference], note=note,
        )  # fmt: skip

    figures = [line(floor, 1.15, f"largest Ritz value {largest[ours]}")]
    for name, (packages, _) in PEERS.items():
        target = 1.0 if name == "matfree" else None
        if name in installed:
            figures.append(line(name, target, f"its largest Ritz value {largest[name]}"))
        else:
            note = f"needs {' and '.join(packages)}: pip install -e '.[peers]'"
            figures.append(not_measured(ours, name, section=LANCZOS, target=target, note=note))
    return figures


def describe_largest(ritz_values: NDArray[Any]) -> str:
    """The largest Ritz value and, where the process lost orthogonality, how often it came."""
    top = float(np.max(ritz_values))
    copies = int(np.sum(np.abs(ritz_values - top) < SAME * top))
    return f"{top:.6g}" + (f", found {copies} times" if copies > 1 else "")


def error(params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Share of the examples got wrong."""
    wrong = jnp.argmax(NETWORK.logits(params, {}, batch[0]), axis=-1) != batch[1]
    return wrong.astype(jnp.float32).mean()


def energy_estimate() -> Callable[[], Any]:
    """The estimator: each draw perturbs all weights and evaluates the error."""
    params, data = problem()
    return lambda: local_energy(error, params, data, 0, sigma=SIGMA, num_samples=DRAWS)


def bare_passes() -> Callable[[], Any]:
    """The floor: as many evaluations of the error at the weights themselves."""
    params, data = problem()
    evaluate = jax.jit(error)
    return lambda: [evaluate(params, data) for _ in range(DRAWS)]


def energy_draws(rounds: int) -> list[Figure]:
    """Draws of local energy against bare forward passes."""
    ours, floor = "local_energy", f"{DRAWS} bare forward passes"
    builders = {ours: energy_estimate, floor: bare_passes}
    seconds = time_rounds({name: build() for name, build in builders.items()}, rounds=rounds)
    return [
        figure(
            seconds, ours, floor, section=ENERGY, target=1.10,
            memory_bytes=peak_memory(energy_estimate),
            reference_memory_bytes=peak_memory(bare_passes),
            note=f"sigma {SIGMA}, error rate; {DRAWS + 1} passes",
        )
    ]  # fmt: skip
