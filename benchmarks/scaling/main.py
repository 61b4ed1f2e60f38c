"""The `scaling` experiment: step times over replicas, devices and K, and their table."""

import dataclasses
import json
import os
import statistics
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from rich.console import Console
from rich.progress import track

import entropix
from benchmarks.common import data as image_data
from benchmarks.common import environment
from benchmarks.common.errors import UsageError, check_known
from benchmarks.common.files import write_text
from benchmarks.common.models import MODELS
from benchmarks.common.network import Network
from benchmarks.common.replicated import Feed, initial_state, make_step
from benchmarks.common.timing import time_rounds
from benchmarks.scaling.traffic import bytes_per_step
from entropix import replicas

# Steps in one timing: whole cycles of every K.
STEPS = 10


@dataclass(frozen=True)
class Scaling:
    """Measure the step of replicated SGD against replicas, devices and K, as ratios to one replica.

    Writes scaling.json and scaling.md.
    """

    dataset: str = "digits"
    """Images: digits (built in), or a TFDS set."""
    model: str = "mlp"
    """Network: mlp, mnistfc, smallconv, lenet or allcnn."""
    replicas: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Numbers of replicas y."""
    devices: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of devices D; pairs that do not divide are left out."""
    every: tuple[int, ...] = (1, 10)
    """Steps between couplings, K; divisors of 10."""
    batch_size: int = 128
    """Images per gradient of one replica."""
    backend: str = "jit"
    """What maps the step over devices: jit, shard_map or pmap."""
    rounds: int = 7
    """How often each is timed, in turn; the figures are medians."""
    simulate: int = 8
    """Devices to simulate where there is only a CPU."""
    output: Path | None = None
    """Folder to write; by default runs/scaling-<time>."""


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


def run(config: Scaling) -> int:
    """Measures all pairs; the exit status."""
    check(config)
    simulate(config.simulate)
    layouts = [
        (y, d, k)
        for d in config.devices
        for y in config.replicas
        for k in config.every
        if (y % d == 0 or d % y == 0) and (y > 1 or k == config.every[0])
    ]
    most = max(d for _, d, _ in layouts)
    if most > len(jax.devices()):
        raise UsageError(f"--devices: {most} asked for, {len(jax.devices())} are there")
    programs = {
        layout: Program(config, *layout) for layout in track(layouts, "compiling", transient=True)
    }
    names = {layout: f"{layout}" for layout in layouts}
    alone = (1, 1, config.every[0])
    seconds = time_rounds(
        {names[layout]: program for layout, program in programs.items()}, rounds=config.rounds
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
    folder = config.output or Path("runs") / f"scaling-{time.strftime('%Y%m%d-%H%M%S')}"
    found = {
        "configuration": {**dataclasses.asdict(config), "output": None},
        "environment": environment.describe(),
        "parameters": programs[alone].parameters,
        "workers": workers,
        "cells": [dataclasses.asdict(cell) for cell in cells],
    }
    write_text(folder / "scaling.json", json.dumps(found, indent=2) + "\n")
    write_text(folder / "scaling.md", table(found))
    Console().print(f"Written: {folder / 'scaling.md'}")
    return 0


def check(config: Scaling) -> None:
    """Raises a `UsageError` for impossible values."""
    check_known("model", config.model, MODELS)
    check_known("backend", config.backend, ("jit", "shard_map", "pmap"))
    for name in ("replicas", "devices", "every"):
        values = getattr(config, name)
        if not values or min(values) < 1:
            raise UsageError(f"--{name} takes numbers of at least 1, got {values}")
    if any(STEPS % k for k in config.every):
        raise UsageError(f"--every takes divisors of {STEPS}, got {config.every}")
    if 1 not in config.replicas or 1 not in config.devices:
        raise UsageError("--replicas and --devices must hold 1, which the others are compared with")
    for name in ("batch_size", "simulate"):
        if getattr(config, name) < 1:
            option = name.replace("_", "-")
            raise UsageError(f"--{option} must be at least 1, got {getattr(config, name)}")
    if config.rounds < 2:
        raise UsageError(f"--rounds must be at least 2, got {config.rounds}")


def simulate(devices: int) -> None:
    """Asks for simulated CPU devices, unless the environment or a started backend has decided."""
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    try:
        jax.config.update("jax_num_cpu_devices", devices)
    except RuntimeError:
        return


def workers_at_once() -> int:
    """How many devices can work at once: simulated ones share the machine's cores."""
    simulated = jax.default_backend() == "cpu"
    return (os.cpu_count() or 1) if simulated else len(jax.devices())


class Program:
    """Ten steps of y replicas on D devices, compiled, to be called again and again."""

    def __init__(self, config: Scaling, y: int, d: int, k: int) -> None:
        """Compiles, and reads the traffic off the program."""
        plan = replicas.plan(y, devices=d, backend=config.backend)  # type: ignore[arg-type]
        images = load(config.dataset)
        module = MODELS[config.model].build(images.num_classes, 0.0)
        network = Network(module, images.image_shape)
        coupled = entropix.replicated_sgd(0.01, gamma=0.01, every=k, axis_name=plan.axis_name)
        tx = optax.sgd(0.01, momentum=0.9, nesterov=True) if y == 1 else coupled
        self._state = plan.place(initial_state(network, tx, 0, y))
        self._batch = Feed(images, plan, 0, config.batch_size)(0)
        self._run = plan.run(make_step(network, tx, plan))
        lowered = self._run.lower(self._state, self._batch)  # type: ignore[attr-defined]
        self.traffic = bytes_per_step(lowered.compile().as_text(), k)
        self.parameters = sum(
            jnp.size(leaf) // y for leaf in jax.tree.leaves(plan.collect(self._state.params))
        )

    def __call__(self) -> Any:
        """Ten steps; simulated devices are waited for, since two steps at once starve there."""
        for _ in range(STEPS):
            self._state, _ = self._run(self._state, self._batch)
            if jax.default_backend() == "cpu":
                jax.block_until_ready(self._state)
        return self._state


@cache
def load(name: str) -> image_data.ImageData:
    """An image set, read once."""
    return image_data.load(name)


def table(found: dict[str, Any]) -> str:
    """The Markdown of all cells, one line per (D, y), the values of K side by side."""
    config, env = found["configuration"], found["environment"]
    kinds = ", ".join(sorted(set(env["devices"])))
    ks = list(config["every"])
    header = ["devices D", "replicas y"] + [
        f"{what}, K = {k}" for k in ks for what in ("step ms", "ratio", "efficiency", "bytes")
    ]
    lines = [
        "# Replicated SGD: step time and traffic",
        "",
        f"Network {config['model']} on {config['dataset']}, {found['parameters']:,} parameters, "
        f"batch {config['batch_size']} for each replica, backend {config['backend']}. Devices: "
        f"{len(env['devices'])} x {kinds}, of which {found['workers']} can work at once. "
        f"jax {env['versions']['jax']}. Made by `python -m benchmarks scaling`.",
        "",
        "*Ratio*: time of one step of all replicas over that of one replica on one device, median "
        f"of {config['rounds']} rounds. *Efficiency*: y over the ratio and over the devices that "
        "can work at once. *Bytes*: what each device puts into collectives in a mean step, read "
        "off the compiled program; where D > y, devices share a replica and exchange gradients "
        "on every step.",
        "",
        "| " + " | ".join(header) + " |",
        "|" + "---:|" * len(header),
    ]
    cells = {(c["devices"], c["replicas"], c["every"]): c for c in found["cells"]}
    for d, y in dict.fromkeys((c["devices"], c["replicas"]) for c in found["cells"]):
        row = [str(d), str(y)]
        for k in ks:
            # One replica has nobody to meet: it is measured once.
            cell = cells[d, y, k if (d, y, k) in cells else ks[0]]
            row += [
                f"{cell['seconds'] * 1e3:.2f}", f"{cell['ratio']:.2f}",
                f"{cell['efficiency']:.2f}", f"{cell['traffic']:,.0f}",
            ]  # fmt: skip
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"
