"""What a sweep of belief propagation costs, beside its memory traffic and plain NumPy.

The floor of a sweep is to read and to write every message once: 2 numbers for each pattern and
weight, beside the pattern itself, a byte each. Bandwidth is measured in the same run, by adding one
array of the messages' size to another: 3 numbers. The memory is what the compiled sweep needs
beside messages and patterns.
"""

import functools
from collections.abc import Callable
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr

from benchmarks.common.timing import Figure, figure, time_rounds
from entropix.committee import Committee, belief_propagation, random_patterns
from entropix.committee._messages import Node, Problem, no_messages, sweep

PATTERNS, INPUTS = 10_000, 10_001
BATCH = 100
DAMPING = 0.5
NODES: tuple[Node, ...] = tuple(node for node in get_args(Node) if node != "exact")
Candidates = dict[str, Callable[[], Any]]
SUM_NUMBERS, MESSAGE_NUMBERS, PATTERN_BYTES, NUMBER_BYTES = 3, 2, 1, 4
SEEDS, SEED_INPUTS, SEED_LOAD, SEED_STEPS = 64, 101, 0.4, 20


def measure(rounds: int) -> list[Figure]:
    """All figures of this section."""
    return [*one_sweep(rounds), *many_seeds(rounds)]


class Sweeps:
    """Sweeps of one kind, each from where the last one ended, its messages donated."""

    def __init__(self, node: Node, problem: Problem, total: jax.Array) -> None:
        """Compiles the sweep."""
        model = Committee(INPUTS)

        def once(problem: Problem, total: jax.Array, messages: Any) -> tuple[Any, Any]:
            damping = jnp.asarray(DAMPING, total.dtype)
            return sweep(model, node, problem, total, messages, damping, BATCH)

        self._arguments = problem, total
        self._messages = no_messages(model, PATTERNS, total.dtype)
        self._sweep = (
            jax.jit(once, donate_argnums=2).lower(problem, total, self._messages).compile()
        )

    @property
    def memory_bytes(self) -> int | None:
        """Temporary memory of one sweep."""
        return temporary_bytes(self._sweep)

    def __call__(self) -> jax.Array:
        self._messages, sums = self._sweep(*self._arguments, self._messages)
        return sums


def one_sweep(rounds: int) -> list[Figure]:
    """A sweep of a perceptron with as many patterns as inputs."""
    model = Committee(INPUTS)
    problem = Problem(*random_patterns(model, PATTERNS / INPUTS, 0, dtype=jnp.int8))
    total = jax.random.normal(jax.random.key(1), model.shape) / 10
    sweeps = {node: Sweeps(node, problem, total) for node in NODES}
    plain = PlainSweeps(problem, total)

    add = jax.jit(jnp.add, donate_argnums=0)
    ones = jnp.ones((PATTERNS, INPUTS), jnp.float32)
    added = [jnp.zeros_like(ones)]

    def sums() -> jax.Array:
        added[0] = add(added[0], ones)
        return added[0]

    candidates: Candidates = {"sum of two arrays": sums}
    for node, run in sweeps.items():
        candidates[f"NumPy, {node} node"] = functools.partial(plain, node)
        candidates[f"sweep, {node} node"] = run
    seconds = time_rounds(candidates, rounds=rounds)
    traffic = MESSAGE_NUMBERS + PATTERN_BYTES / NUMBER_BYTES
    floor = "traffic floor of the messages"
    seconds[floor] = [t * traffic / SUM_NUMBERS for t in seconds["sum of two arrays"]]
    section = f"one sweep of belief propagation, {PATTERNS:,} patterns, {INPUTS:,} binary weights"
    return [
        figure(
            seconds, f"sweep, {node} node", reference,
            section=section, memory_bytes=sweeps[node].memory_bytes,
            note=f"beside {NUMBER_BYTES * ones.size / 2**20:.0f} MiB of messages",
        )
        for node in NODES
        for reference in (floor, f"NumPy, {node} node")
    ]  # fmt: skip


class PlainSweeps:
    """The same sweep in NumPy and SciPy, as many patterns at a time."""

    def __init__(self, problem: Problem, total: jax.Array) -> None:
        """Copies what it reads, so that nothing is shared with JAX."""
        self._gauged = np.asarray(problem.patterns * problem.labels[:, None])
        self._total = np.array(total)
        self._messages = np.zeros(problem.patterns.shape, np.float32)

    def __call__(self, node: str) -> NDArray[np.float32]:
        sums = np.zeros_like(self._total)
        for begin in range(0, PATTERNS, BATCH):
            old = self._messages[begin : begin + BATCH]
            inputs = self._gauged[begin : begin + BATCH].astype(np.float32)
            mean = np.tanh(self._total - old)
            field = np.sum(inputs * mean, axis=1, keepdims=True)
            variance = np.sum(1 - mean**2, axis=1, keepdims=True)
            if node == "relaxed":
                t = field / np.sqrt(variance)
                slope = np.exp(-(t**2) / 2 - log_ndtr(t)) / np.sqrt(2 * np.pi * variance)
                new = inputs * slope + mean * slope * (slope + field / variance)
            else:
                rest, spread = field - inputs * mean, np.sqrt(variance - (1 - mean**2))
                above, below = (log_ndtr((rest + sign) / spread) for sign in (1, -1))
                new = inputs * (above - below) / 2
            old += (1 - np.float32(DAMPING)) * (new - old)
            sums += old.sum(axis=0)
        return sums


def many_seeds(rounds: int) -> list[Figure]:
    """Instances of one size solved at once by vmap, against one after another."""
    model = Committee(SEED_INPUTS)
    keys = jax.random.split(jax.random.key(0), SEEDS)
    examples = jax.vmap(lambda key: random_patterns(model, SEED_LOAD, key))(keys)

    def solve(patterns: jax.Array, labels: jax.Array) -> jax.Array:
        # A tolerance of 0 makes every instance take the same steps.
        return belief_propagation(
            model, patterns, labels, node="relaxed", max_steps=SEED_STEPS, tolerance=0.0
        ).entropy

    alone, together = jax.jit(solve), jax.jit(jax.vmap(solve))
    pairs = list(zip(*examples, strict=True))
    reference, name = f"{SEEDS} instances one by one", f"{SEEDS} instances, vmap"
    candidates: Candidates = {
        reference: lambda: [alone(*pair) for pair in pairs],
        name: lambda: together(*examples),
    }
    seconds = time_rounds(candidates, rounds=rounds)
    section = f"{SEED_STEPS} sweeps, {len(pairs[0][1])} patterns, {SEED_INPUTS} binary weights"
    memory = temporary_bytes(together.lower(*examples).compile())
    return [figure(seconds, name, reference, section=section, memory_bytes=memory)]


def temporary_bytes(compiled: jax.stages.Compiled) -> int | None:
    """What a compiled program needs beside its arguments and results, where the backend tells."""
    memory = compiled.memory_analysis()
    return None if memory is None else int(memory.temp_size_in_bytes)
