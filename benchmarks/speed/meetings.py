"""What meeting costs: replicas that meet against replicas that never do, at the same gradients."""

from collections.abc import Iterator
from typing import Any

import jax
import optax

import entropix
from benchmarks.common.timing import Figure, figure, time_rounds
from benchmarks.speed.training import SGD, Loop, gradient, network
from entropix.replicas import replicate

REPLICAS, STEPS, PERIODS = 4, 60, (10, 30)
ADAMW = optax.adamw(1e-3)
TARGET = 1.05


def measure(rounds: int) -> Iterator[list[Figure]]:
    """Whole steps of each method, for two numbers of steps between meetings."""
    net, params, batches = network("mnistfc", (28, 28, 1))
    batches = jax.tree.map(lambda leaf: leaf[:REPLICAS], batches)
    stacked = replicate(params, REPLICAS)
    gradients = jax.vmap(gradient(net))

    def loop(tx: optax.GradientTransformation) -> Loop:
        return Loop(tx, stacked, lambda p: gradients(p, batches), STEPS)

    apart = {"optax.sgd, momentum 0.9": SGD, "optax.adamw": ADAMW}
    sgd, adamw = apart
    methods: dict[str, tuple[Any, str]] = {}
    for every in PERIODS:
        methods |= {
            f"replicated_sgd, K = {every}": (
                entropix.replicated_sgd(0.01, gamma=0.01, every=every, axis=0), sgd,
            ),
            f"local SGD, H = {every}": (
                entropix.diloco(SGD, optax.sgd(1.0), inner_steps=every, axis=0), sgd,
            ),
            f"diloco of AdamW, H = {every}": (
                entropix.diloco(ADAMW, inner_steps=every, axis=0), adamw,
            ),
        }  # fmt: skip
    candidates = {name: loop(tx) for name, tx in apart.items()}
    candidates |= {name: loop(tx) for name, (tx, _) in methods.items()}
    seconds = time_rounds(candidates, rounds=rounds)
    section = f"{REPLICAS} replicas, mnistfc, batch 128 each, {STEPS} steps, against no meeting"
    yield [
        figure(seconds, name, reference, section=section, target=TARGET)
        for name, (_, reference) in methods.items()
    ]
