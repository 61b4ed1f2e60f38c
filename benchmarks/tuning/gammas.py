"""`python -m benchmarks gammas`: what `find_gamma` answers, beside what tuning had chosen."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd

import entropix
from benchmarks.common import environment
from benchmarks.common.network import Network
from benchmarks.common.options import (
    POSITIVE,
    Among,
    DataOptions,
    FolderOptions,
    UsageError,
    configuration,
)
from benchmarks.common.report import ROOMS
from benchmarks.common.run_folder import Results, open_folder, read_results, write_results
from benchmarks.common.terminal import say, show_table
from benchmarks.tuning.contenders import MOMENTUM
from benchmarks.tuning.entropic import REPLICAS
from benchmarks.tuning.rows import ROWS, network_of, prepare, whole
from benchmarks.tuning.search import Plan
from benchmarks.tuning.statistics import SEEN_BEFORE
from benchmarks.tuning.training import places_of, starts_of
from entropix import scoping

# Mini-batches for the replicas' test.
APART = 100


@dataclass(frozen=True, kw_only=True)
class Gammas(DataOptions, FolderOptions):
    """Hold `entropix.scoping.find_gamma` against the gammas that tuning chose on recorded rows.

    At the learning rates and loops that won there, after some steps of SGD. No number of the
    tuning goes into the test but these.
    """

    rows: Annotated[tuple[str, ...], Among("row", lambda: ROWS)] = SEEN_BEFORE
    """Rows with a recorded table."""
    after: Annotated[tuple[int, ...], POSITIVE] = (100,)
    """Steps of SGD before the test."""
    seeds: Annotated[int, POSITIVE] = 2
    """Networks to test."""


def run(options: Gammas) -> int:
    """Tests and writes; the exit status."""
    folder = open_folder(options, "gammas")
    found: Results = {
        "configuration": configuration(options),
        "command": environment.command(),
        "environment": environment.describe(),
        "rows": {},
    }
    for name in options.rows:
        row = ROWS[name]
        tuned = read_results(ROOMS / "results" / f"tuned-{name}")
        if tuned is None:
            raise UsageError(f"--rows {name} has no recorded table")
        data = prepare(row, options.data_dir, options.cache_dir, Plan.seed)
        network, images = network_of(row, data), jax.device_put((data.x_train, data.y_train))
        winners = {one: tuned["tuned"][one]["values"] for one in ("entropy_sgd", "replicated_sgd")}
        steps = max(options.after) + APART
        places = [
            jnp.asarray(places_of(fold, REPLICAS, row.batch_size, steps))
            for fold in whole(range(options.seeds), len(data.x_train))
        ]
        starts = starts_of(network, 1, jnp.arange(options.seeds, dtype=jnp.uint32))
        record: dict[str, Any] = {"row": row.title}
        for method, values in winners.items():
            answers = {
                str(after): [
                    float(
                        found_gamma(
                            network, method, values,
                            jax.tree.map(lambda leaf, at=at: leaf[at, 0], starts.params),
                            places[at], images, after=after,
                        )
                    )
                    for at in range(options.seeds)
                ]
                for after in options.after
            }  # fmt: skip
            record[method] = {"tuned": chosen(method, values), "found": answers}
        found["rows"][name] = record
        write_results(folder, found)
    show_table(table(found), "gamma, found and tuned")
    say(f"Results: {folder}")
    return 0


def chosen(method: str, values: Mapping[str, Any]) -> list[float]:
    """The gamma that tuning had chosen; of replicas the first and the last."""
    if method == "entropy_sgd":
        return [values["gamma"]]
    largest = scoping.largest_stable_gamma(
        values["learning_rate"], every=values["every"], momentum=MOMENTUM
    )
    last = float(values["share"] * largest)
    return [last / values["growth"], last]


def found_gamma(
    network: Network,
    method: str,
    values: Mapping[str, Any],
    params: Any,
    places: jax.Array,
    images: tuple[jax.Array, jax.Array],
    *,
    after: int,
) -> jax.Array:
    """The gamma that the range test finds after some steps of SGD."""
    replicated = method == "replicated_sgd"
    sgd = partial(optax.sgd, values["learning_rate"], momentum=MOMENTUM, nesterov=True)

    def grad_fn(params: Any, at: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            batch = images[0][at], images[1][at]
            return network.training_loss(params, {}, *batch, jax.random.key(0))[0]

        return jax.grad(loss)(params)

    def make(gamma: jax.Array) -> optax.GradientTransformation:
        if replicated:
            couple = entropix.couple_replicas(gamma, every=values["every"], axis=0)
            return optax.chain(couple, sgd())
        return entropix.entropy_descent(
            optax.sgd(1.0), sgd(),
            inner_steps=values["inner_steps"],
            gamma=gamma,
            ema_decay=values["ema_decay"],
            debias=True,
            noise_std=values["noise"] * values["learning_rate"] ** 0.5,
        )  # fmt: skip

    @jax.jit
    def answer(params: Any, places: jax.Array) -> jax.Array:
        tx = sgd()

        def step(carry: Any, at: jax.Array) -> Any:
            params, state = carry
            updates, state = tx.update(grad_fn(params, at), state)
            return (optax.apply_updates(params, updates), state), None

        (here, _), _ = jax.lax.scan(step, (params, tx.init(params)), places[:after, 0])
        if not replicated:
            batches = places[after : after + values["inner_steps"], 0]
            return scoping.find_gamma(make, grad_fn, here, batches).gamma
        copies = jax.tree.map(lambda x: jnp.broadcast_to(x, (REPLICAS, *x.shape)), here)
        batches = places[after : after + APART]
        return scoping.find_gamma(make, grad_fn, copies, batches, axis=0).gamma

    return answer(params, places)


def table(found: Results) -> pd.DataFrame:
    """One line for each row and method: what was tuned, what is found, and their quotient."""
    rows = []
    for record in found["rows"].values():
        for method in ("entropy_sgd", "replicated_sgd"):
            tuned = record[method]["tuned"]
            middle = {after: np.median(one) for after, one in record[method]["found"].items()}
            rows.append(
                {
                    "row": record["row"],
                    "method": method,
                    "tuned": " to ".join(f"{one:.2g}" for one in tuned),
                }
                | {f"found after {after} steps": f"{one:.2g}" for after, one in middle.items()}
                | {
                    f"over the tuned, after {after}": f"{one / tuned[-1]:.2g}"
                    for after, one in middle.items()
                }
            )
    return pd.DataFrame(rows)


def factor(found: Results, method: str) -> float:
    """How far from the tuned gamma, or from the range of its schedule, the farthest answer is."""
    worst = 1.0
    for record in found["rows"].values():
        tuned = record[method]["tuned"]
        for answers in record[method]["found"].values():
            one = float(np.median(answers))
            worst = max(worst, min(tuned) / one, one / max(tuned))
    return worst
