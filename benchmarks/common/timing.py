"""Interleaved timing: each round runs every candidate once, so that drift moves them all."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax


@dataclass(frozen=True)
class Figure:
    """One line of the table: what was measured, against what.

    Attributes:
      section: the part of the library the line belongs to.
      name: what was timed.
      reference: what it is divided by.
      seconds: median time of one call of what was timed; None, as all that follows from times,
        where one of the two could not be run.
      reference_seconds: median time of one call of the reference.
      ratio: median over the rounds of the two times' quotient.
      ratio_spread: half the interquartile range of those quotients.
      target: the largest ratio the project accepts; None where the figure only informs.
      memory_bytes: what a call needs at its peak, None where it was not measured.
      reference_memory_bytes: the same of the reference.
      note: what a reader needs to know to read the line rightly.
    """

    section: str
    name: str
    reference: str
    seconds: float | None
    reference_seconds: float | None
    ratio: float | None
    ratio_spread: float | None
    target: float | None = None
    memory_bytes: int | None = None
    reference_memory_bytes: int | None = None
    note: str = ""


def time_rounds(
    candidates: Mapping[str, Callable[[], Any]], *, rounds: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Times each candidate once a round; a call ends when its result is ready."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for round_index in range(warmup + rounds):
        for name, run in candidates.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            elapsed = time.perf_counter() - start
            if round_index >= warmup:
                seconds[name].append(elapsed)
    return seconds


def figure(
    seconds: Mapping[str, list[float]],
    name: str,
    reference: str,
    *,
    section: str,
    target: float | None = None,
    memory_bytes: int | None = None,
    reference_memory_bytes: int | None = None,
    note: str = "",
) -> Figure:
    """The quotient, round by round, of two candidates of `time_rounds`."""
    quotients = [a / b for a, b in zip(seconds[name], seconds[reference], strict=True)]
    low, _, high = statistics.quantiles(quotients, n=4)
    return Figure(
        section=section,
        name=name,
        reference=reference,
        seconds=statistics.median(seconds[name]),
        reference_seconds=statistics.median(seconds[reference]),
        ratio=statistics.median(quotients),
        ratio_spread=(high - low) / 2,
        target=target,
        memory_bytes=memory_bytes,
        reference_memory_bytes=reference_memory_bytes,
        note=note,
    )


def not_measured(
    name: str, reference: str, *, section: str, target: float | None = None, note: str
) -> Figure:
    """The line of something that could not be run; the note says why."""
    return Figure(section, name, reference, None, None, None, None, target=target, note=note)
