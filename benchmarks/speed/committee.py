"""What a sweep of belief propagation costs, beside its memory traffic and plain NumPy.

The floor of a sweep is to read and to write every message once: 2 numbers for each pattern and
weight, beside the pattern itself, a byte each. Bandwidth is measured in the same run, by adding one
array of the messages' size to another: 3 numbers. The memory is what the compiled sweep needs
beside messages and patterns.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr

from benchmarks.common.timing import Figure, figure, time_rounds
from entropix.committee import (
    Committee,
    approximate_message_passing,
    belief_propagation,
    random_patterns,
)
from entropix.committee._messages import Node, Problem, no_messages, sweep

PATTERNS, INPUTS = 10_000, 10_001
BATCH = 100
DAMPING = 0.5
NODES: tuple[Node, ...] = tuple(node for node in get_args(Node) if node != "exact")
Candidates = dict[str, Callable[[], Any]]
SUM_NUMBERS, MESSAGE_NUMBERS, PATTERN_BYTES, NUMBER_BYTES = 3, 2, 1, 4
# Many instances: their number, the patterns and inputs of each, sweeps, and the patterns of each
# instance that belief propagation takes at a time, a million messages of all of them.
INSTANCES, MANY_PATTERNS, MANY_INPUTS, MANY_STEPS, MANY_BATCH = 100, 200, 1001, 10, 10


def measure(rounds: int) -> Iterator[list[Figure]]:
    """A large sweep beside its memory traffic and NumPy."""
    yield one_sweep(rounds)


def instances(rounds: int) -> Iterator[list[Figure]]:
    """Many instances in one program."""
    yield many_instances(rounds)


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


def many_instances(rounds: int) -> list[Figure]:
    """What a sweep costs an instance, of many in one program by vmap, against one alone."""
    model = Committee(MANY_INPUTS)
    keys = jax.random.split(jax.random.key(0), INSTANCES)
    load = MANY_PATTERNS / MANY_INPUTS
    examples = jax.vmap(lambda key: random_patterns(model, load, key))(keys)
    first = jax.tree.map(lambda stacked: stacked[0], examples)

    def entropy(algorithm: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        # A tolerance of 0 makes every instance take the same steps.
        options |= {"max_steps": MANY_STEPS, "tolerance": 0.0}
        return lambda patterns, labels: algorithm(model, patterns, labels, **options).entropy

    by_beliefs, by_fields = entropy(belief_propagation), entropy(approximate_message_passing)
    in_batches = entropy(belief_propagation, batch_size=MANY_BATCH)
    beliefs, fields = "belief propagation, one", "approximate message passing, one"
    many = f"{INSTANCES} instances"
    # Each with the one instance that it is set beside.
    programs = {
        f"belief propagation, {many}": (jax.vmap(by_beliefs), beliefs),
        f"belief propagation, {many}, batch_size {MANY_BATCH}": (jax.vmap(in_batches), beliefs),
        f"approximate message passing, {many}": (jax.vmap(by_fields), fields),
    }
    alone = {beliefs: by_beliefs, fields: by_fields}
    compiled = {
        **{name: jax.jit(program).lower(*first).compile() for name, program in alone.items()},
        **{
            name: jax.jit(program).lower(*examples).compile()
            for name, (program, _) in programs.items()
        },
    }
    candidates: Candidates = {
        name: functools.partial(program, *(first if name in alone else examples))
        for name, program in compiled.items()
    }
    seconds = {
        name: [one / MANY_STEPS / (1 if name in alone else INSTANCES) for one in times]
        for name, times in time_rounds(candidates, rounds=rounds).items()
    }
    size = INSTANCES * MANY_PATTERNS * MANY_INPUTS * NUMBER_BYTES
    section = f"one sweep and instance, {MANY_PATTERNS} patterns, {MANY_INPUTS:,} binary weights"
    return [
        figure(
            seconds, name, reference, section=section,
            memory_bytes=temporary_bytes(compiled[name]),
            reference_memory_bytes=temporary_bytes(compiled[reference]),
            note=f"beside {size / 2**20:.0f} MiB of patterns",
        )
        for name, (_, reference) in programs.items()
    ]  # fmt: skip


def temporary_bytes(compiled: jax.stages.Compiled) -> int | None:
    """What a compiled program needs beside its arguments and results, where the backend tells."""
    memory = compiled.memory_analysis()
    return None if memory is None else int(memory.temp_size_in_bytes)
