"""`python -m benchmarks nanogpt`: AdamW alone at a setting whose losses others have reported."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import pandas as pd

from benchmarks.common import environment
from benchmarks.common.options import (
    ABOVE_ZERO,
    FREE,
    NOT_NEGATIVE,
    ResumeOptions,
    configuration,
)
from benchmarks.common.report import write_report
from benchmarks.common.run_folder import Results, open_folder, stored_results, write_results
from benchmarks.common.terminal import progress_bars, say, show_table
from benchmarks.language.cells import NONE, Cell, losses, train
from benchmarks.language.main import Language, make_setting

# Nats per character of validation text by learning rate: of nanoGPT's README, which estimates them
# on 20 random mini-batches, and of another implementation of the same size and budget.
README = {1e-3: 1.88}
REPORTED = {1e-3: 1.91, 2e-3: 1.82, 4e-3: 1.76}
SETTING = Language(model="gpt_small", steps=2000, batch_size=12)


@dataclass(frozen=True, kw_only=True)
class NanoGPT(ResumeOptions):
    """Train nanoGPT's model for a CPU on tiny Shakespeare by AdamW, beside losses of others.

    Four blocks of width 128 on windows of 64 characters, 12 for each of 2,000 steps; the rate warms
    up and falls to a tenth by half a cosine.
    """

    data_dir: Annotated[Path | None, FREE] = None
    """Where TFDS keeps its sets; by default $TFDS_DATA_DIR, else TFDS's own."""
    rates: Annotated[tuple[float, ...], ABOVE_ZERO] = tuple(REPORTED)
    """Learning rates at their peak."""
    seed: Annotated[int, NOT_NEGATIVE] = 0
    """Of weights and mini-batches."""


def run(options: NanoGPT) -> int:
    """Trains at each rate; the exit status."""
    folder = open_folder(options, "nanogpt")
    setting = make_setting(replace(SETTING, data_dir=options.data_dir), 0.0)
    found = stored_results(folder, options)
    if found is None:
        found = {
            "configuration": configuration(options),
            "command": environment.command(),
            "environment": environment.describe(),
            "data": {
                "name": setting.data.name,
                "train": setting.data.x_train.size,
                "test": setting.data.x_test.size,
            },
            "parameters": setting.network.num_parameters(),
            "steps": setting.steps,
            "batch_size": setting.batch_size,
            "cells": {},
        }
    with progress_bars("{task.fields[cell]}") as bars:
        task = bars.add_task("trainings", total=len(options.rates), cell="")
        for rate in options.rates:
            cell = Cell(1, 1, NONE, rate, options.seed)
            if cell.name not in found["cells"]:
                bars.update(task, cell=cell.name)
                begin = time.monotonic()
                found["cells"][cell.name] = {
                    **cell.as_json(),
                    **losses(setting, train(setting, cell)),
                    "seconds": time.monotonic() - begin,
                }
                write_results(folder, found)
            bars.advance(task)
    show_table(beside_others(found), "nats per character of validation text")
    write(folder, found)
    say(f"Written: {folder / 'report.md'}")
    return 0


def write(folder: Path, found: Results) -> None:
    """Writes report.md and report.html."""
    write_report(
        folder,
        "language/nanogpt.md.j2",
        f"AdamW on {found['data']['name']} with {SETTING.model}",
        found=found,
        table=beside_others(found),
        missing=len(found["configuration"]["rates"]) - len(found["cells"]),
    )


def beside_others(found: Results) -> pd.DataFrame:
    """One row for each rate: the loss here and those of others."""
    rows = []
    for cell in found["cells"].values():
        rate, loss = cell["learning_rate"], cell["loss"]
        reported: Any = REPORTED.get(rate)
        rows.append(
            {
                "learning rate": f"{rate:g}",
                "here": f"{loss:.3f}",
                "training text": f"{cell['train_loss']:.3f}",
                "reported": "-" if reported is None else f"{reported:.2f}",
                "here minus reported": "-" if reported is None else f"{loss - reported:+.3f}",
                "nanoGPT's README": f"{README[rate]:.2f}" if rate in README else "-",
            }
        )
    return pd.DataFrame(rows)
