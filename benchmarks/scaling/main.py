"""`python -m benchmarks scaling`: what replicas and devices cost, in time and in traffic."""

import dataclasses
import os
import statistics
from dataclasses import dataclass
from functools import cache, partial
from typing import Annotated, Any, get_args

import jax
import optax
import pandas as pd
from rich.progress import track

import entropix
from benchmarks.common import environment
from benchmarks.common.batches import Feed
from benchmarks.common.data import Dataset, load_for
from benchmarks.common.models import MODELS
from benchmarks.common.network import Network
from benchmarks.common.options import (
    POSITIVE,
    Among,
    FolderOptions,
    ImageOptions,
    UsageError,
    Within,
    configuration,
)
from benchmarks.common.report import MARKDOWN, write_report
from benchmarks.common.run_folder import Results, open_folder, write_results
from benchmarks.common.terminal import say
from benchmarks.common.timing import time_rounds
from benchmarks.common.traffic import bytes_per_step
from benchmarks.common.training import initial_state, make_step, replica_keys
from entropix import replicas
from entropix.replicas._plan import Backend

# Steps in one timing: whole cycles of every K.
STEPS = 10


@dataclass(frozen=True, kw_only=True)
class Scaling(ImageOptions, FolderOptions):
    """Measure the step of replicated SGD against replicas, devices and K, as ratios to one replica.

    Writes results.json, report.md and report.html into a folder of its own.
    """

    model: Annotated[str, Among("model", lambda: MODELS)] = "mlp"
    """Network: mlp, mnistfc, smallconv, lenet or allcnn; for a text gpt_small, gpt_tiny or
    char_lstm."""
    replicas: Annotated[tuple[int, ...], POSITIVE] = (1, 2, 4, 8, 16)
    """Numbers of replicas y."""
    devices: Annotated[tuple[int, ...], POSITIVE] = (1, 2, 4, 8)
    """Numbers of devices D; pairs that do not divide are left out."""
    every: Annotated[tuple[int, ...], POSITIVE] = (1, 10)
    """Steps between couplings, K; divisors of 10."""
    batch_size: Annotated[int, POSITIVE] = 128
    """Images per gradient of one replica."""
    backend: Annotated[str, Among("backend", lambda: get_args(Backend))] = "jit"
    """What maps the step over devices: jit, shard_map or pmap."""
    rounds: Annotated[int, Within(2)] = 7
    """How often each is timed, in turn; the figures are medians."""
    simulate: Annotated[int, POSITIVE] = 8
    """Devices to simulate where there is only a CPU."""


@dataclass(frozen=True)
class Cell:
    """One line of the table.

    Attributes:
      replicas: y.
      devices: D.
      every: K.
      seconds: median time of one step.
      ratio: median quotient of that and the step of one replica on one device.
      efficiency: y over ratio and devices (cores, where those are fewer): 1 is perfect.
      traffic: bytes that each device puts into collectives, mean of a step.
    """

    replicas: int
    devices: int
    every: int
    seconds: float
    ratio: float
    efficiency: float
    traffic: float


def run(options: Scaling) -> int:
    """Measures all pairs; the exit status."""
    folder = open_folder(options, "scaling")
    check(options)
    environment.simulate(options.simulate)
    layouts = [
        (y, d, k)
        for d in options.devices
        for y in options.replicas
        for k in options.every
        if (y % d == 0 or d % y == 0) and (y > 1 or k == options.every[0])
    ]
    most = max(d for _, d, _ in layouts)
    if most > len(jax.devices()):
        raise UsageError(f"--devices: {most} asked for, {len(jax.devices())} are there")
    programs = {
        layout: Program(options, *layout) for layout in track(layouts, "compiling", transient=True)
    }
    names = {layout: f"{layout}" for layout in layouts}
    alone = (1, 1, options.every[0])
    seconds = time_rounds(
        {names[layout]: program for layout, program in programs.items()}, rounds=options.rounds
    )
    workers = workers_at_once()
    cells = []
    for y, d, k in layouts:
        mine, reference = seconds[names[y, d, k]], seconds[names[alone]]
        ratio = statistics.median(a / b for a, b in zip(mine, reference, strict=True))
        cells.append(
            Cell(
                y, d, k, statistics.median(mine) / STEPS, ratio, y / ratio / min(d, workers),
                programs[y, d, k].traffic,
            )
        )  # fmt: skip
    found: Results = {
        "configuration": configuration(options),
        "command": environment.command(),
        "environment": environment.describe(),
        "parameters": programs[alone].parameters,
        "workers": workers,
        "cells": [dataclasses.asdict(cell) for cell in cells],
    }
    write_results(folder, found)
    write_report(
        folder,
        "scaling/report.md.j2",
        "Replicated SGD: step time and traffic",
        found=found,
        table=table(found),
        kinds=", ".join(sorted(set(found["environment"]["devices"]))),
    )
    say(f"Written: {folder / MARKDOWN}")
    return 0


def check(options: Scaling) -> None:
    """Raises a `UsageError` for values that do not go together."""
    if any(STEPS % k for k in options.every):
        raise UsageError(f"--every takes divisors of {STEPS}, got {options.every}")
    if 1 not in options.replicas or 1 not in options.devices:
        raise UsageError("--replicas and --devices must hold 1, which the others are compared with")


def workers_at_once() -> int:
    """How many devices can work at once: simulated ones share the machine's cores."""
    simulated = jax.default_backend() == "cpu"
    return (os.cpu_count() or 1) if simulated else len(jax.devices())


class Program:
    """Ten steps of y replicas on D devices, compiled, to be called again and again."""

    def __init__(self, options: Scaling, y: int, d: int, k: int) -> None:
        """Compiles, and reads the traffic off the program."""
        plan = replicas.plan(y, devices=d, backend=options.backend)  # type: ignore[arg-type]
        images = load(options)
        module = MODELS[options.model].build(images.num_classes, 0.0)
        network = Network(module, images.example_shape)
        coupled = entropix.replicated_sgd(0.01, gamma=0.01, every=k, axis_name=plan.axis_name)
        tx = optax.sgd(0.01, momentum=0.9, nesterov=True) if y == 1 else coupled
        init = partial(initial_state, network, lambda _: tx)
        self._state = plan.place(replicas.stack_states(init, replica_keys(0, y)))
        self._batch = Feed(images, plan, 0, options.batch_size)(0)
        self._run = plan.run(make_step(network, tx))
        lowered = self._run.lower(self._state, self._batch)  # type: ignore[attr-defined]
        self.traffic = bytes_per_step(lowered.compile().as_text(), k)
        self.parameters = network.num_parameters()

    def __call__(self) -> Any:
        """Ten steps; simulated devices are waited for, since two steps at once starve there."""
        for _ in range(STEPS):
            self._state, _ = self._run(self._state, self._batch)
            if jax.default_backend() == "cpu":
                jax.block_until_ready(self._state)
        return self._state


@cache
def load(options: Scaling) -> Dataset:
    """The image set, read once."""
    return load_for(options, batch_size=options.batch_size, block=MODELS[options.model].block)


def table(found: Results) -> pd.DataFrame:
    """One row per (D, y), the values of K side by side."""
    ks = found["configuration"]["every"]
    cells = {(c["devices"], c["replicas"], c["every"]): c for c in found["cells"]}
    rows = []
    for d, y in dict.fromkeys((c["devices"], c["replicas"]) for c in found["cells"]):
        row = {"devices D": str(d), "replicas y": str(y)}
        for k in ks:
            # One replica has nobody to meet: it is measured once.
            cell = cells[d, y, k if (d, y, k) in cells else ks[0]]
            row |= {
                f"step ms, K = {k}": f"{cell['seconds'] * 1e3:.2f}",
                f"ratio, K = {k}": f"{cell['ratio']:.2f}",
                f"efficiency, K = {k}": f"{cell['efficiency']:.2f}",
                f"bytes, K = {k}": f"{cell['traffic']:,.0f}",
            }
        rows.append(row)
    return pd.DataFrame(rows)
