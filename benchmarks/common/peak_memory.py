"""Peak memory of a call, as the operating system sees it."""

import gc
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax

from benchmarks.common.memory import return_freed_memory

_STATUS, _RESET_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_memory(build: Callable[[], Callable[[], Any]]) -> int | None:
    """Bytes that a call needs at its peak beyond what was there before it; None off Linux.

    The call runs in a process of its own, once to compile and once to be measured, so that every
    library is measured alike, whatever it compiles and whoever manages its memory.

    Args:
      build: a function of a module, which the other process imports; it answers the call.
    """
    if not _STATUS.exists():
        return None
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(_measure, build).result()


def _measure(build: Callable[[], Callable[[], Any]]) -> int:
    """The growth of the resident memory's peak in the second call."""
    call = build()
    jax.block_until_ready(call())
    gc.collect()
    return_freed_memory()
    _RESET_PEAK.write_text("5")
    before = _resident("VmRSS")
    jax.block_until_ready(call())
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    """A field of the process's status, in bytes."""
    lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return int(lines[name].removesuffix("kB")) * 1024
