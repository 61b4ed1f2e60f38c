"""What the flatness estimators cost beside the passes over the data they cannot do without."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax

from benchmarks.common import lanczos
from benchmarks.common.lanczos import Task
from benchmarks.common.peak_memory import peak_memory
from benchmarks.common.timing import Figure, figure, time_rounds
from entropix.flatness import eigenvalues, hessian, local_energy, spectrum

# Three sizes of network; a batch at which the products are cheap beside the vectors, and one at
# which they are not.
TASKS = (
    Task((256, 128), 256, 80),
    Task((256, 128), 2048, 80),
    Task((1024, 1024), 256, 20),
    Task((1024, 1024), 2048, 20),
    Task((2048, 2048), 256, 20),
    Task((2048, 2048), 2048, 10),
)
SIGMA = 0.1
PAIRS = 5
TOLERANCE = 1e-3


def measure(rounds: int) -> Iterator[list[Figure]]:
    """All figures of this section, a table at a time."""
    for task in TASKS:
        yield measure_task(task, rounds)


def measure_task(task: Task, rounds: int) -> list[Figure]:
    """Moments, a basis, eigenvalues and local energy, each against its bare passes."""
    made = int(eigenpairs(task)().num_products)
    products, passes = f"{task.steps} bare products", f"{task.steps} bare forward passes"
    products_made = f"{made} bare products"
    builders: dict[str, Callable[[], Any]] = {
        "spectrum": functools.partial(moments, task),
        "lanczos": functools.partial(lanczos.entropix_lanczos, task),
        products: functools.partial(lanczos.bare_products, task),
        f"eigenvalues, k = {PAIRS}": functools.partial(eigenpairs, task),
        products_made: functools.partial(lanczos.bare_products, task, made),
        "local_energy": functools.partial(energy_estimate, task),
        passes: functools.partial(bare_passes, task),
    }
    # Each is measured in a process of its own, which takes long: where it matters most.
    memory = {name: peak_memory(build) for name, build in builders.items() if task == TASKS[-1]}
    seconds = time_rounds({name: build() for name, build in builders.items()}, rounds=rounds)
    compared = (
        ("spectrum", products, 1.15, "two probes, without a basis"),
        ("lanczos", products, None, "every vector orthogonal to all others"),
        (f"eigenvalues, k = {PAIRS}", products_made, 1.2, f"to a relative {TOLERANCE}"),
        ("local_energy", passes, 1.05, f"sigma {SIGMA}, error rate"),
    )
    return [
        figure(
            seconds, ours, floor, section=str(task), target=target, note=note,
            memory_bytes=memory.get(ours), reference_memory_bytes=memory.get(floor),
        )
        for ours, floor, target, note in compared
    ]  # fmt: skip


def moments(task: Task) -> Callable[[], Any]:
    """Stochastic Lanczos quadrature, which needs no basis."""
    params, data = task.problem()
    # Two probes are the least there are; the task's steps are divided among them.
    return lambda: spectrum(
        hessian(task.loss, params, data), 2, num_steps=task.steps // 2, num_probes=2,
        reorthogonalize=False,
    )  # fmt: skip


def eigenpairs(task: Task) -> Callable[[], Any]:
    """The largest eigenvalues with their vectors."""
    params, data = task.problem()
    return lambda: eigenvalues(hessian(task.loss, params, data), 2, k=PAIRS, tol=TOLERANCE)


def energy_estimate(task: Task) -> Callable[[], Any]:
    """The estimator: each draw perturbs all weights and evaluates the error."""
    params, data = task.problem()
    # One more pass is at the weights themselves.
    draws = task.steps - 1
    return lambda: local_energy(task.error, params, data, 0, sigma=SIGMA, num_samples=draws)


def bare_passes(task: Task) -> Callable[[], Any]:
    """The floor: as many evaluations of the error at the weights themselves."""
    params, data = task.problem()
    evaluate = jax.jit(task.error)
    return lambda: [evaluate(params, data) for _ in range(task.steps)]
