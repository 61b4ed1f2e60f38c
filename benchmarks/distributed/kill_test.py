"""`python -m benchmarks kill_test`: SIGKILL at random moments changes no bit.

Runs of `python -m benchmarks distributed` are killed and resumed until they reach their end, and
the fingerprint of all their parameters is compared with that of a run left alone. The runs are
forked from one process that has imported everything, and share compiled programs, so that a start
takes a second or two.
"""

import json
import os
import random
import signal
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import jax

from benchmarks.common import environment
from benchmarks.common.options import NOT_NEGATIVE, POSITIVE, check_options
from benchmarks.common.run_folder import RESULTS
from benchmarks.common.terminal import say
from benchmarks.distributed.main import CHECKPOINTS, Distributed
from benchmarks.distributed.main import run as train

# Most of the time goes into checkpoints, so that most kills strike while one is being written.
SHORT = Distributed(steps=60, checkpoint_every=2, batch_size=16, replicas=4, every=3)
DEVICES = 4


@dataclass(frozen=True, kw_only=True)
class KillTest:
    """Kill runs with SIGKILL at random moments; every one must end as the one left alone."""

    kills: Annotated[int, POSITIVE] = 20
    """How many kills in all."""
    seed: Annotated[int, NOT_NEGATIVE] = 0
    """Of the moments."""


def start(folder: Path, *, resume: bool) -> int:
    """Forks a run; the process id."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        with (folder.parent / f"{folder.name}.log").open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        status = train(replace(SHORT, output=folder, resume=resume))
    finally:
        # The parent's exit handlers are not the child's to run.
        os._exit(status)


def finished(process: int, patience: float) -> bool:
    """Whether a run ends within ``patience`` seconds; kills it otherwise."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if os.waitpid(process, os.WNOHANG) != (0, 0):
            return True
        time.sleep(0.005)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return False


def half_written(folder: Path) -> bool:
    """Whether a checkpoint is there that Orbax had not finished."""
    steps = (folder / CHECKPOINTS).glob("*")
    return any(not (step / "commit_success.txt").exists() for step in steps)


def digest(folder: Path) -> str:
    """The fingerprint that a finished run wrote."""
    found: str = json.loads((folder / RESULTS).read_text())["digest"]
    return found


def run(options: KillTest) -> int:
    """Kills and resumes; the exit status is 0 if all ended the same."""
    check_options(options)
    environment.simulate(DEVICES)
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        jax.config.update("jax_compilation_cache_dir", str(root / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        for name in ("alone", "again"):
            begin = time.monotonic()
            finished(start(root / name, resume=False), patience=600.0)
            seconds = time.monotonic() - begin
        expected = digest(root / "alone")
        assert digest(root / "again") == expected, "two runs left alone differ"
        killed = in_checkpoints = ends = 0
        while killed < options.kills:
            folder = root / f"killed-{ends}"
            before = killed
            while not finished(start(folder, resume=True), moments.uniform(0, seconds)):
                killed += 1
                in_checkpoints += half_written(folder)
            if digest(folder) != expected:
                say(f"The run killed {killed - before} times ended differently.")
                return 1
            ends += 1
    say(
        f"{killed} kills in {ends} runs, {in_checkpoints} with a checkpoint half written: "
        "every run ended as the one left alone."
    )
    return 0
