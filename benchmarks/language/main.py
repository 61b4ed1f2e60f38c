"""`python -m benchmarks language`: how much is lost where workers meet less often, or say less."""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from benchmarks.common import environment
from benchmarks.common.data import load_for
from benchmarks.common.models import MODELS
from benchmarks.common.network import Network
from benchmarks.common.options import (
    ABOVE_ZERO,
    FREE,
    NOT_NEGATIVE,
    POSITIVE,
    Among,
    ImageOptions,
    ResumeOptions,
    UsageError,
    configuration,
)
from benchmarks.common.run_folder import Results, open_folder, stored_results, write_results
from benchmarks.common.terminal import progress_bars, say
from benchmarks.language import report
from benchmarks.language.cells import NONE, Cell, Outer, Setting, losses, traffic, train

# The papers' outer optimizer, and MaxText's.
OUTERS = (Outer(0.7, 0.9), Outer(0.3, 0.9))
# Cells in which compressed exchanges are compared with full ones, and inner rates are tried.
COMPRESSED_AT, TUNED_AT = (4, 30), 4
COMPRESSIONS = ("bfloat16", "int8")
# A range this wide for all: where workers meet at each step the loss has several valleys.
RATES = tuple(2**at * 1e-3 for at in range(-3, 4))
# Rates tried beyond the given ones.
FURTHER = 4


@dataclass(frozen=True, kw_only=True)
class Language(ImageOptions, ResumeOptions):
    """Train a language model by local SGD: loss and bytes by workers M and steps between meetings.

    The mini-batch of a step is divided among the workers, so that every run sees as many tokens.
    The inner learning rate is tried for each outer optimizer and H, on held-out training text.
    """

    dataset: str = "tiny_shakespeare"
    """A text: tiny_shakespeare, wikitext2, or any TFDS set of texts."""
    model: Annotated[str, Among("model", lambda: language_models())] = "gpt_tiny"
    """Network: gpt_tiny, gpt_small or char_lstm."""
    workers: Annotated[tuple[int, ...], POSITIVE] = (1, 2, 4, 8)
    """M, divisors of the batch."""
    every: Annotated[tuple[int, ...], POSITIVE] = (1, 10, 30, 100)
    """H, steps between meetings."""
    rates: Annotated[tuple[float, ...], ABOVE_ZERO] = RATES
    """Learning rates of the inner AdamW to try; further by factors of 2 while an end is best."""
    steps: Annotated[int, POSITIVE] = 400
    """Of each worker."""
    batch_size: Annotated[int, POSITIVE] = 8
    """Windows of text per step, of all workers together."""
    seeds: Annotated[int, POSITIVE] = 3
    """Training runs of each cell."""
    seed: Annotated[int, NOT_NEGATIVE] = 0
    """The first seed."""
    minutes: Annotated[float | None, FREE, ABOVE_ZERO] = None
    """Stop after so many minutes, with a report of what is there; go on by --resume."""


def language_models() -> list[str]:
    """Names of the models that read texts."""
    return [name for name, model in MODELS.items() if model.block is not None]


def run(options: Language) -> int:
    """Tunes, trains and counts; the exit status."""
    folder = open_folder(options, f"language-{options.dataset}-{options.model}")
    check(options)
    environment.simulate(max(options.workers))
    found = stored_results(folder, options)
    judged, tuned = make_setting(options, 0.0), make_setting(options, 0.1)
    if found is None:
        found = {
            "configuration": configuration(options),
            "command": environment.command(),
            "environment": environment.describe(),
            "data": {
                "name": judged.data.name,
                "train": judged.data.x_train.size,
                "test": judged.data.x_test.size,
                "characters": judged.data.num_classes,
            },
            "model": {
                "summary": MODELS[options.model].summary,
                "parameters": judged.network.num_parameters(),
                "block": MODELS[options.model].block,
            },
            "traffic": {},
            "cells": {},
        }
    write_results(folder, found)
    say(f"Writing to {folder}; after an interruption add --resume --output {folder}")
    end = time.monotonic() + 60 * (options.minutes or 1e9)
    count_bytes(judged, options, found)
    train_all(folder, options, found, judged, tuned, end)
    report.write(folder, found)
    say(f"Written: {folder / 'report.md'}")
    return 0


def check(options: Language) -> None:
    """Raises a `UsageError` for values that do not go together."""
    if bad := [m for m in options.workers if options.batch_size % m]:
        raise UsageError(f"--workers must divide --batch-size {options.batch_size}, got {bad[0]}")
    if bad := [h for h in options.every if h > options.steps]:
        raise UsageError(f"--every must be at most --steps {options.steps}, got {bad[0]}")


def make_setting(options: Language, holdout: float) -> Setting:
    """Text and model; part of the training text stands for the validation text where held out."""
    model = MODELS[options.model]
    data = load_for(options, batch_size=options.batch_size, holdout=holdout, block=model.block)
    network = Network(model.build(data.num_classes, 0.0), data.example_shape)
    return Setting(network, data, options.batch_size, options.steps)


def count_bytes(setting: Setting, options: Language, found: Results) -> None:
    """What each layout sends."""
    for workers in options.workers:
        for every in options.every:
            for compression in ("", *COMPRESSIONS):
                if compression and (workers, every) != COMPRESSED_AT:
                    continue
                key = f"M={workers} H={every} {compression}".strip()
                if key not in found["traffic"]:
                    found["traffic"][key] = traffic(setting, workers, every, compression)


def train_all(
    folder: Path, options: Language, found: Results, judged: Setting, tuned: Setting, end: float
) -> None:
    """Trains what is missing, until the time is over."""
    with progress_bars("{task.fields[cell]}") as bars:
        task = bars.add_task("trainings", total=None, cell="")
        for cell in all_cells(options, found):
            if cell.name not in found["cells"]:
                if time.monotonic() > end:
                    return
                bars.update(task, advance=1, cell=cell.name)
                begin = time.monotonic()
                setting = tuned if cell.tuning else judged
                found["cells"][cell.name] = {
                    **cell.as_json(),
                    **losses(setting, train(setting, cell)),
                    "seconds": time.monotonic() - begin,
                }
                write_results(folder, found)


def all_cells(options: Language, found: Results) -> Iterator[Cell]:
    """First the rates, then everything at the best rates, seed after seed."""
    for outer, every in settings(options):
        workers = 1 if outer is NONE else tuned_workers(options)
        like = Cell(workers, every, outer, 0.0, options.seed, tuning=True)
        yield from tuning_cells(options, found, like)
    for seed in range(options.seed, options.seed + options.seeds):
        for outer, every in settings(options):
            rate = best_rate(found, outer, every)
            for workers in (1,) if outer is NONE else options.workers:
                yield Cell(workers, every, outer, rate, seed)
                if outer is OUTERS[0] and (workers, every) == COMPRESSED_AT:
                    for compression in COMPRESSIONS:
                        yield Cell(workers, every, outer, rate, seed, compression)


def settings(options: Language) -> Iterator[tuple[Outer, int]]:
    """The inner optimizer alone, and each outer optimizer at each H."""
    yield NONE, 1
    yield from itertools.product(OUTERS, options.every)


def tuning_cells(options: Language, found: Results, like: Cell) -> Iterator[Cell]:
    """A cell at each rate, and further while the best rate is the smallest or the largest."""
    rates = sorted(options.rates)
    yield from (replace(like, learning_rate=rate) for rate in rates)
    for _ in range(FURTHER):
        best = best_rate(found, like.outer, like.every)
        if best not in (rates[0], rates[-1]):
            return
        new = best / 2 if best == rates[0] else best * 2
        rates = sorted([*rates, new])
        yield replace(like, learning_rate=new)


def tuned_workers(options: Language) -> int:
    """The number of workers with which rates are tried."""
    return TUNED_AT if TUNED_AT in options.workers else options.workers[-1]


def best_rate(found: dict[str, Any], outer: Outer, every: int) -> float:
    """The inner learning rate of the lowest loss on the held-out text."""
    tried = [
        cell
        for cell in found["cells"].values()
        if cell["tuning"] and cell["outer"] == outer.name and cell["every"] == every
    ]
    rate: float = min(tried, key=lambda cell: cell["loss"])["learning_rate"]
    return rate
