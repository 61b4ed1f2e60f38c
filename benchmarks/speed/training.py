"""What the entropic optimizers cost beside plain SGD, on CPU or whatever jax finds.

The floor of an update is its memory traffic. SGD with momentum must read gradient, weights and
momentum and write the last two: 5 numbers per parameter. Entropy-SGD's inner step must read
gradient, weights, anchor, momentum and lag, and write weights, momentum and lag: 8 numbers.
Bandwidth is measured in the same run, by a sum of two trees of the weights' size.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

import entropix
from benchmarks.common.models import MODELS
from benchmarks.common.network import Network
from benchmarks.common.timing import Figure, figure, time_rounds

BATCH = 128
CYCLE = 20
REPLICAS = 8
SGD_NUMBERS, ENTROPY_NUMBERS, SUM_NUMBERS = 5, 8, 3

SGD = optax.sgd(0.01, momentum=0.9, nesterov=True)
ENTROPY_SGD = entropix.entropy_sgd(inner_learning_rate=0.01, inner_steps=CYCLE)
REPLICATED_SGD = entropix.replicated_sgd(0.01, gamma=0.01, every=10, axis=0)


def measure(rounds: int) -> Iterator[list[Figure]]:
    """All figures of this section, a table at a time."""
    yield whole_steps(rounds)
    yield updates_alone(rounds)
    yield noise(rounds)
    yield replicas("mnistfc", (28, 28, 1), rounds, target=1.0)
    yield replicas("smallconv", (28, 28, 1), rounds, target=None)


def network(model: str, shape: tuple[int, int, int]) -> tuple[Network, Any, Any]:
    """A model of ten classes, fresh weights, and one batch of random images per replica."""
    net = Network(MODELS[model].build(10, 0.0), shape)
    params, _ = jax.jit(net.init)(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (REPLICAS, BATCH, *shape))
    labels = jax.random.randint(jax.random.key(2), (REPLICAS, BATCH), 0, 10)
    return net, params, (images, labels)


def gradient(net: Network) -> Callable[[Any, Any], Any]:
    """The gradient of the training loss at (params, batch)."""

    def loss(params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        images, labels = batch
        return net.training_loss(params, {}, images, labels, jax.random.key(0))[0]

    return jax.grad(loss)


class Loop:
    """A training loop of some steps per call, its state donated from call to call."""

    def __init__(
        self,
        tx: optax.GradientTransformation,
        params: Any,
        grads_at: Callable[[Any], Any],
        steps: int,
    ) -> None:
        """Compiles nothing yet; ``grads_at(params)`` is part of the step."""

        def step(params: Any, state: Any) -> tuple[Any, Any]:
            updates, state = tx.update(grads_at(params), state, params)
            return optax.apply_updates(params, updates), state

        self._step = jax.jit(step, donate_argnums=(0, 1))
        params = jax.tree.map(jnp.copy, params)
        self._carry = params, jax.jit(tx.init)(params)
        self._steps = steps

    def __call__(self) -> Any:
        for _ in range(self._steps):
            self._carry = self._step(*self._carry)
        return self._carry


def whole_steps(rounds: int) -> list[Figure]:
    """Gradient and update of mnistfc, a whole cycle of Entropy-SGD at a time."""
    net, params, batches = network("mnistfc", (28, 28, 1))
    batch = jax.tree.map(lambda leaf: leaf[0], batches)
    grads_at = gradient(net)

    def loop(tx: optax.GradientTransformation) -> Loop:
        return Loop(tx, params, lambda p: grads_at(p, batch), CYCLE)

    silent = entropix.entropy_sgd(inner_learning_rate=0.01, inner_steps=CYCLE, noise=0.0)
    sam = optax.contrib.sam(SGD, optax.sgd(0.05))
    candidates = {
        "optax.sgd, momentum 0.9": loop(SGD),
        "entropy_sgd": loop(ENTROPY_SGD),
        "entropy_sgd, noise 0": loop(silent),
        "entropy_adam": loop(entropix.entropy_adam(0.01, inner_learning_rate=0.01)),
        "optax.adam": loop(optax.adam(1e-3)),
        "optax.contrib.sam": loop(sam),
    }
    reference, *others = candidates
    seconds = time_rounds(candidates, rounds=rounds)
    targets = {"entropy_sgd": 1.10}
    return [
        figure(
            seconds, name, reference,
            section="whole step, mnistfc, batch 128", target=targets.get(name),
            note=f"{CYCLE} gradients, outer step included" if name.startswith("entropy") else "",
        )
        for name in others
    ]  # fmt: skip


def updates_alone(rounds: int) -> list[Figure]:
    """The update without a gradient, against its memory traffic; where the outer step is paid."""
    _, params, _ = network("mnistfc", (28, 28, 1))
    grads = optax.tree.random_like(jax.random.key(0), params)
    endless = entropix.entropy_sgd(inner_learning_rate=0.01, inner_steps=1_000_000)

    add = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b), donate_argnums=0)
    total = [jax.tree.map(jnp.copy, params)]

    def sums() -> Any:
        for _ in range(CYCLE):
            total[0] = add(total[0], params)
        return total[0]

    def loop(tx: optax.GradientTransformation) -> Loop:
        return Loop(tx, params, lambda _: grads, CYCLE)

    candidates: dict[str, Callable[[], Any]] = {
        "sum of two trees": sums,
        "optax.sgd update": loop(SGD),
        "entropy_sgd update": loop(ENTROPY_SGD),
        "entropy_sgd update, no outer step in it": loop(endless),
    }
    seconds = time_rounds(candidates, rounds=rounds)
    section = "update alone, 1.86 million parameters"
    floors = {
        "traffic floor of SGD": [
            t * SGD_NUMBERS / SUM_NUMBERS for t in seconds["sum of two trees"]
        ],
        "traffic floor of Entropy-SGD": [
            t * ENTROPY_NUMBERS / SUM_NUMBERS for t in seconds["sum of two trees"]
        ],
    }
    seconds |= floors
    return [
        figure(seconds, "optax.sgd update", "traffic floor of SGD", section=section),
        figure(seconds, "entropy_sgd update", "traffic floor of Entropy-SGD", section=section),
        figure(
            seconds, "entropy_sgd update", "entropy_sgd update, no outer step in it",
            section=section, note=f"what one outer step in {CYCLE} adds to the average update",
        ),
    ]  # fmt: skip


def noise(rounds: int) -> list[Figure]:
    """Normal numbers for 1.86 million parameters from the hash, and from jax.random."""
    _, params, _ = network("mnistfc", (28, 28, 1))
    hashed = jax.jit(entropix.langevin_noise(1.0).update)
    state = entropix.langevin_noise(1.0).init(params)

    def sampled(impl: str) -> Callable[[], Any]:
        draw = jax.jit(lambda key: optax.tree.random_like(key, params))
        key = jax.random.key(0, impl=impl)
        return lambda: draw(key)

    candidates = {
        "langevin_noise": lambda: hashed(params, state),
        "jax.random.normal, threefry": sampled("threefry2x32"),
        "jax.random.normal, rbg": sampled("rbg"),
    }
    seconds = time_rounds(candidates, rounds=rounds)
    return [
        figure(seconds, "langevin_noise", name, section="noise, 1.86 million numbers")
        for name in candidates
        if name != "langevin_noise"
    ]


def replicas(
    model: str, shape: tuple[int, int, int], rounds: int, *, target: float | None
) -> list[Figure]:
    """A step of 8 coupled replicas, vmapped or mapped, against 8 single steps one after another."""
    net, params, batches = network(model, shape)
    grads_at = gradient(net)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * REPLICAS), params)

    def single(replica: int) -> Loop:
        batch = jax.tree.map(lambda leaf: leaf[replica], batches)
        return Loop(SGD, params, lambda p: grads_at(p, batch), 1)

    singles = [single(replica) for replica in range(REPLICAS)]

    def mapped(p: Any) -> Any:
        return jax.lax.map(lambda pair: grads_at(*pair), (p, batches))

    one_by_one = f"{REPLICAS} single steps of optax.sgd"
    candidates: dict[str, Callable[[], Any]] = {
        one_by_one: lambda: [run() for run in singles],
        "replicated_sgd, vmap": Loop(
            REPLICATED_SGD, stacked, lambda p: jax.vmap(grads_at)(p, batches), 1
        ),
        "replicated_sgd, lax.map": Loop(REPLICATED_SGD, stacked, mapped, 1),
    }
    seconds = time_rounds(candidates, rounds=max(rounds, 10))
    section = f"{REPLICAS} replicas, {model}, batch 128"
    return [
        figure(
            seconds, name, one_by_one, section=section, target=target if "vmap" in name else None
        )
        for name in candidates
        if name != one_by_one
    ]
