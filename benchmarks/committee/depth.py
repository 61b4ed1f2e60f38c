"""One and two hidden layers, measured with one ruler: noise relative to each weight."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd

import entropix
from benchmarks.committee.problems import both_classes
from benchmarks.common.data import digits
from benchmarks.common.intervals import with_error
from entropix import flatness
from entropix.committee import cross_entropy

# Hidden units of networks with nearly as many weights.
NETWORKS = {"one hidden layer": (16,), "two hidden layers": (13, 13)}
PAIR, PER_CLASS, BATCH = (3, 8), 100, 20
# All are judged when they come to this loss: what has a lower one has larger weights.
LOSS, MAX_STEPS = 0.05, 20_000
SIGMAS = (0.05, 0.1, 0.2, 0.3, 0.4)
SAMPLES, NUM_STEPS, NUM_BURN_IN = 100, 192, 96
RATE = 0.05
# The anchor moves once in a loop: a long one oversteps the loss.
OPTIMIZERS: dict[str, optax.GradientTransformation] = {
    "SGD": optax.sgd(RATE, 0.9),
    "Entropy-SGD": entropix.entropy_sgd(
        inner_learning_rate=RATE, inner_steps=10, gamma=0.1, ema_decay=0.8, debias=True
    ),
}
Layers = list[tuple[jax.Array, jax.Array]]


def depth(seeds: int) -> dict[str, Any]:
    """Local energies and entropies of both networks, trained by both optimizers."""
    found: dict[str, Any] = {"sigmas": SIGMAS, "loss": LOSS, "networks": {}}
    images = digits()
    x_test, y_test = images.x_test, images.y_test
    available = min(int((y_test == one).sum()) for one in PAIR)
    test = both_classes(x_test, y_test, PAIR, available, jax.random.key(0))
    for network, hidden in NETWORKS.items():
        for optimizer, tx in OPTIMIZERS.items():
            records = []
            for seed in range(seeds):
                key = jax.random.key(seed)
                train = both_classes(images.x_train, images.y_train, PAIR, PER_CLASS, key)
                layers, steps = train_to_loss(tuple(train), key, hidden=hidden, tx=tx)
                records.append({"steps": int(steps), **measured(layers, train, test, key)})
            found["networks"].setdefault(network, {})[optimizer] = records
    return found


def start(widths: tuple[int, ...], key: jax.Array) -> Layers:
    """Normal weights that keep the size of what goes through, and no bias."""
    keys = jax.random.split(key, len(widths) - 1)
    return [
        (jax.random.normal(one, (before, after)) / before**0.5, jnp.zeros(after))
        for one, before, after in zip(keys, widths[:-1], widths[1:], strict=True)
    ]


def output(layers: Layers, patterns: jax.Array) -> jax.Array:
    """Of a network of tanh units. # shape=(M,)."""
    x = patterns
    for weights, bias in layers[:-1]:
        x = jnp.tanh(x @ weights + bias[None])
    weights, bias = layers[-1]
    return (x @ weights + bias[None])[:, 0]


def loss(layers: Layers, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Cross-entropy."""
    patterns, labels = batch
    return jnp.mean(cross_entropy(labels * output(layers, patterns), 0.5))


def error(layers: Layers, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Share of the patterns got wrong."""
    patterns, labels = batch
    return jnp.mean((labels * output(layers, patterns) <= 0).astype(patterns.dtype))


@functools.partial(jax.jit, static_argnames=("hidden", "tx"))
def train_to_loss(
    train: tuple[jax.Array, jax.Array],
    key: jax.Array,
    *,
    hidden: tuple[int, ...],
    tx: optax.GradientTransformation,
) -> tuple[Layers, jax.Array]:
    """Mini-batches until the weights that the optimizer is judged by are at ``LOSS``."""
    patterns, labels = train
    start_key, batch_key = jax.random.split(key)
    layers = start((patterns.shape[1], *hidden, 1), start_key)

    def judged(layers: Layers, state: Any) -> Layers:
        answer: Layers = entropix.eval_params(state, layers)
        return answer

    def goes_on(carry: tuple[Layers, Any, jax.Array]) -> jax.Array:
        layers, state, step = carry
        return (loss(judged(layers, state), train) > LOSS) & (step < MAX_STEPS)

    def learn(carry: tuple[Layers, Any, jax.Array]) -> tuple[Layers, Any, jax.Array]:
        layers, state, step = carry
        drawn = jax.random.randint(
            jax.random.fold_in(batch_key, step), (BATCH,), 0, labels.shape[0]
        )
        gradient = jax.grad(loss)(layers, (patterns[drawn], labels[drawn]))
        updates, state = tx.update(gradient, state, layers)
        return optax.apply_updates(layers, updates), state, step + 1

    begin = layers, tx.init(layers), jnp.zeros([], jnp.int32)
    layers, state, steps = jax.lax.while_loop(goes_on, learn, begin)
    return judged(layers, state), steps


def measured(layers: Layers, train: Any, test: Any, key: jax.Array) -> dict[str, Any]:
    """Rise of the error and volume of the posterior, both at weights times 1 + sigma z."""
    count = train.labels.shape[0]
    energy = flatness.local_energy(
        error, layers, tuple(train), key, sigma=jnp.array(SIGMAS), num_samples=SAMPLES
    )

    def rescaled(factors: Layers, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        # A bias of 0 stays: it is no direction of this ruler.
        return loss(jax.tree.map(lambda w, v: w * (1 + v), layers, factors), batch)

    entropy = flatness.local_entropy(
        rescaled, jax.tree.map(jnp.zeros_like, layers), tuple(train), key,
        gamma=1 / jnp.array(SIGMAS) ** 2, beta=float(count), num_steps=NUM_STEPS,
        num_burn_in=NUM_BURN_IN,
    )  # fmt: skip
    weights = sum(leaf.size for leaf in jax.tree.leaves(layers))
    return {
        "weights": weights,
        "train_loss": float(loss(layers, tuple(train))),
        "test_error": float(error(layers, tuple(test))),
        "local_energy": np.asarray(energy.mean).tolist(),
        # Less that of a point: what the loss is at the weights themselves is no width.
        "local_entropy": (np.asarray(entropy.value - entropy.log_volume) / weights).tolist(),
        "std_error": (np.asarray(entropy.std_error) / weights).tolist(),
        "diagnosis": entropy.diagnosis(),
    }


def table(found: dict[str, Any]) -> pd.DataFrame:
    """A row for each network and optimizer, means over the seeds and their standard errors."""
    rows = []
    for network, optimizers in found["networks"].items():
        for optimizer, records in optimizers.items():
            cells = [
                (100 * np.array([record["test_error"] for record in records]), 2),
                (100 * np.array([record["local_energy"][-1] for record in records]), 2),
                (np.array([record["local_entropy"][-1] for record in records]), 4),
            ]
            rows.append(
                (
                    network,
                    optimizer,
                    f"{records[0]['weights']:,}",
                    f"{np.median([record['steps'] for record in records]):.0f}",
                    *(with_error(numbers, digits) for numbers, digits in cells),
                    str(sum(bool(record["diagnosis"]) for record in records)),
                )
            )
    sigma = found["sigmas"][-1]
    return pd.DataFrame(
        rows,
        columns=[
            "network", "optimizer", "weights", "steps", "test error %",
            f"local energy % at {sigma:g}", f"local entropy at {sigma:g}", "diagnosed",
        ],
    )  # fmt: skip
