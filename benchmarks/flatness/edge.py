"""`python -m benchmarks edge`: sharpness while small networks train, and the edge of stability."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from rich.progress import Progress

import entropix
from benchmarks.common import environment
from benchmarks.common.data import digits
from benchmarks.common.options import ABOVE_ZERO, POSITIVE, FolderOptions, Within, configuration
from benchmarks.common.plots import COLORS, LINES, save
from benchmarks.common.report import PAGE, write_report
from benchmarks.common.run_folder import Results, open_folder, write_results
from benchmarks.common.terminal import progress_bars, say, show_table
from entropix import flatness

SIZES = (64, 32, 32, 10)
# Steps of one compiled call, between which the progress bar moves.
AT_ONCE = 500
# The last measurements, that the table averages.
LAST = 20


@dataclass(frozen=True, kw_only=True)
class Edge(FolderOptions):
    """Follow the sharpness while a small network learns digits, by four methods.

    Gradient descent on full batches, SGD, Entropy-SGD at its anchor, and replicated SGD at its
    center, all without momentum and at one learning rate; the sharpness is that of the loss on all
    images. Writes results.json, report.md, report.html and a plot into a folder of its own.
    """

    learning_rate: Annotated[float, ABOVE_ZERO] = 0.2
    """Of all methods; that of the inner loop of Entropy-SGD."""
    gradients: Annotated[int, Within(AT_ONCE)] = 4000
    """Gradients of each network, cut to a multiple of 500."""
    images: Annotated[int, Within(2, 1300)] = 200
    """Training images."""
    batch_size: Annotated[int, POSITIVE] = 20
    """Images of a gradient of all methods but gradient descent."""
    every: Annotated[int, POSITIVE] = 50
    """Steps from one measurement to the next."""
    replicas: Annotated[int, Within(2)] = 3
    """Networks of replicated SGD."""
    inner_steps: Annotated[int, POSITIVE] = 20
    """Steps of Entropy-SGD's inner loop."""
    gamma: Annotated[float, ABOVE_ZERO] = 0.1
    """Coupling of the replicas."""
    noise: Annotated[float, Within(0)] = 1e-2
    """Noise of Entropy-SGD's inner loop."""
    seed: Annotated[int, Within(0, 2**31)] = 0
    """Of initialization, batches and noise."""


class Method(NamedTuple):
    """One way to train.

    Attributes:
      name: for the picture.
      optimizer: of the gradients.
      batch_size: images of a gradient; None for all.
      replicas: networks stacked on a first axis, or 0 for one that is not stacked.
    """

    name: str
    optimizer: optax.GradientTransformation
    batch_size: int | None = None
    replicas: int = 0


def methods(options: Edge) -> dict[str, Method]:
    """The four of them."""
    rate, batch = options.learning_rate, options.batch_size
    entropy = entropix.entropy_sgd(
        inner_learning_rate=rate, inner_steps=options.inner_steps, inner_momentum=None,
        noise=options.noise, key=options.seed,
    )  # fmt: skip
    replicated = entropix.replicated_sgd(rate, gamma=options.gamma, momentum=None, axis=0)
    return {
        "gradient_descent": Method("gradient descent", optax.sgd(rate)),
        "sgd": Method("SGD", optax.sgd(rate), batch),
        "entropy_sgd": Method("Entropy-SGD, anchor", entropy, batch),
        "replicated_sgd": Method("replicated SGD, center", replicated, batch, options.replicas),
    }


def loss(params: list[jax.Array], batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Half the squared distance to the one-hot labels of a network of tanh, without biases."""
    hidden, labels = batch
    for weights in params[:-1]:
        hidden = jnp.tanh(hidden @ weights)
    return jnp.mean(jnp.sum((hidden @ params[-1] - labels) ** 2, axis=1)) / 2


def images(count: int) -> tuple[jax.Array, jax.Array]:
    """The first digits, centered and scaled, and their labels as unit vectors."""
    found = digits()
    x = found.x_train[:count].reshape(count, -1).astype(np.float32)
    x = (x - x.mean()) / x.std() / 8
    return jnp.asarray(x), jax.nn.one_hot(found.y_train[:count], SIZES[-1])


def start(seed: int, replicas: int) -> list[jax.Array]:
    """Normal weights, the same for all replicas: these part by their batches alone."""
    keys = jax.random.split(jax.random.key(seed), len(SIZES) - 1)
    weights = [
        jax.random.normal(key, (rows, columns)) / rows**0.5
        for key, rows, columns in zip(keys, SIZES[:-1], SIZES[1:], strict=True)
    ]
    if not replicas:
        return weights
    return [jnp.broadcast_to(leaf, (replicas, *leaf.shape)) for leaf in weights]


def follow(method: Method, options: Edge, advance: Callable[[int], None]) -> dict[str, list[float]]:
    """Trains by a method; what its tracker measured, by name."""
    data = images(options.images)
    tracker = flatness.tracker(loss, every=options.every, learning_rate=options.learning_rate)
    axis = 0 if method.replicas else None
    measured_at = functools.partial(entropix.eval_params, axis=axis)

    def gradient(params: Any, key: jax.Array) -> Any:
        batch = data
        if method.batch_size is not None:
            chosen = jax.random.randint(key, (method.batch_size,), 0, options.images)
            batch = jax.tree.map(lambda leaf: leaf[chosen], data)
        return jax.grad(loss)(params, batch)

    def step(carry: Any, key: jax.Array) -> tuple[Any, flatness.TrackerRecord]:
        params, state, tracked = carry
        if method.replicas:
            grads = jax.vmap(gradient)(params, jax.random.split(key, method.replicas))
        else:
            grads = gradient(params, key)
        before = measured_at(state, params)
        updates, state = method.optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        moved = jax.tree.map(jnp.subtract, measured_at(state, params), before)
        tracked, record = tracker.update(tracked, before, moved, data)
        return (params, state, tracked), record

    run = jax.jit(lambda carry, keys: jax.lax.scan(step, carry, keys))
    params = start(options.seed, method.replicas)
    state = method.optimizer.init(params)
    carry = params, state, tracker.init(measured_at(state, params))
    records = []
    for number in range(options.gradients // AT_ONCE):
        keys = jax.random.split(jax.random.key(options.seed + 1 + number), AT_ONCE)
        carry, record = run(carry, keys)
        records.append(jax.tree.map(np.asarray, record))
        advance(AT_ONCE)
    joined = jax.tree.map(lambda *parts: np.concatenate(parts), *records)
    new = joined.is_new
    kept = ("step", "loss", "sharpness", "alignment", "gradient_norm")
    return {name: getattr(joined, name)[new].astype(float).tolist() for name in kept}


def run(options: Edge) -> int:
    """Trains, measures, draws and writes; the exit status."""
    folder = open_folder(options, "edge")
    found: Results = {
        "configuration": configuration(options),
        "command": environment.command(),
        "environment": environment.describe(),
        "limit": 2 / options.learning_rate,
        "methods": {},
    }
    with progress_bars() as bars:
        for name, method in methods(options).items():
            found["methods"][name] = {
                "name": method.name,
                **follow(method, options, bar(bars, method.name, options.gradients)),
            }
    write_results(folder, found)
    save(folder, "edge", draw, found)
    write_report(
        folder, "flatness/edge.md.j2", "The edge of stability", found=found, table=table(found)
    )
    show_table(table(found), f"Sharpness; 2 / learning rate is {found['limit']:g}")
    say(f"Report: {folder / PAGE}")
    return 0


def bar(bars: Progress, name: str, total: int) -> Callable[[int], None]:
    """A progress bar, as a function of the steps made since."""
    task = bars.add_task(name, total=total)
    return lambda steps: bars.update(task, advance=steps)


def table(found: Results) -> pd.DataFrame:
    """Where each method starts and ends."""

    def last(values: list[float]) -> float:
        return float(np.mean(values[-LAST:]))

    rows = [
        (
            one["name"],
            f"{one['sharpness'][0]:.2f}",
            f"{max(one['sharpness']):.2f}",
            f"{last(one['sharpness']):.2f}",
            f"{last(one['alignment']):.2f}",
            f"{last(one['loss']):.4f}",
        )
        for one in found["methods"].values()
    ]
    columns = ["method", "first sharpness", "largest", "at the end", "alignment", "loss"]
    return pd.DataFrame(rows, columns=columns)


def draw(found: Results) -> Figure:
    """Sharpness and loss of all methods against the gradients of one network."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for one, color, line in zip(found["methods"].values(), COLORS, LINES, strict=False):
        style = {"color": color, "ls": line, "lw": 1.6}
        left.plot(one["step"], one["sharpness"], label=one["name"], **style)
        right.plot(one["step"], one["loss"], **style)
    left.axhline(found["limit"], color="0.4", lw=1, ls=(0, (1, 2)))
    left.annotate(
        "2 / learning rate", (0, found["limit"]), xycoords=("axes fraction", "data"),
        xytext=(4, 3), textcoords="offset points", color="0.35", fontsize=9,
    )  # fmt: skip
    left.set(
        title="Largest eigenvalue of the Hessian", xlabel="gradients of one network", ylim=(0, None)
    )
    right.set(title="Loss on all images", xlabel="gradients of one network", yscale="log")
    # A decade at most: numbers say more than powers of ten.
    right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    right.yaxis.set_major_formatter("{x:g}")
    right.yaxis.set_minor_formatter(NullFormatter())
    left.legend(loc="lower right", fontsize=8)
    return figure
