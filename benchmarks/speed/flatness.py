"""What the flatness estimators cost beside the passes over the data they cannot do without."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.common import lanczos
from benchmarks.common.lanczos import EXAMPLES, NETWORK, STEPS, problem
from benchmarks.common.peak_memory import peak_memory
from benchmarks.common.timing import Figure, figure, time_rounds
from entropix.flatness import local_energy

DRAWS = 100
SIGMA = 0.1
LANCZOS = f"Hessian, {STEPS} Lanczos steps, {EXAMPLES} examples"
ENERGY = f"local energy, {DRAWS} draws, {EXAMPLES} examples"


def measure(rounds: int) -> list[Figure]:
    """All figures of this section."""
    return [*lanczos_steps(rounds), *energy_draws(rounds)]


def lanczos_steps(rounds: int) -> list[Figure]:
    """Lanczos against bare products; `python -m benchmarks peers` has it against other packages."""
    ours, floor = "lanczos", f"{STEPS} bare products"
    builders = {ours: lanczos.entropix_lanczos, floor: lanczos.bare_products}
    memory = {name: peak_memory(build) for name, build in builders.items()}
    calls = {name: build() for name, build in builders.items()}
    largest = lanczos.describe_largest(calls[ours]())
    return [
        figure(
            time_rounds(calls, rounds=rounds), ours, floor, section=LANCZOS, target=1.15,
            memory_bytes=memory[ours], reference_memory_bytes=memory[floor],
            note=f"largest Ritz value {largest}",
        )
    ]  # fmt: skip


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
