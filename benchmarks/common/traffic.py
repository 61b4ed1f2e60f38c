"""The traffic between devices: what a compiled program's text holds, and what arithmetic says."""

import math
import re
from dataclasses import dataclass

from entropix import Compression

_COLLECTIVE = re.compile(
    r"= (?P<shapes>.+?) "
    r"(?P<kind>all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\("
)
_OPENING = re.compile(r"(?:ENTRY )?%?([\w.\-]+) .*\{$")
_SHAPE = re.compile(r"(pred|[a-z]+)(\d*)[a-z\d]*\[([\d,]*)\]")
_CALLS = re.compile(
    r"(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=([^,\s]+)|body=([^,\s]+))"
)


@dataclass(frozen=True)
class Collective:
    """One exchange between devices.

    Attributes:
      payload: bytes of its result on each device.
      conditional: whether it is in a branch of a conditional, or the body of a loop, which in a
        step is one of at most one trip.
      kind: as XLA calls it.
    """

    payload: int
    conditional: bool
    kind: str

    def sent(self, devices: int) -> float:
        """Bytes that each device sends, where all take part in a ring.

        An all-reduce goes around it twice: the sums are formed, and then told to all.
        """
        rounds = {"all-reduce": 2, "reduce-scatter": devices}.get(self.kind, 1)
        return rounds * self.payload * (devices - 1) / devices


def collectives(program: str) -> list[Collective]:
    """All collectives in the text of a compiled program (``compiled.as_text()``)."""
    branches = {
        name.strip(" %")
        for match in _CALLS.finditer(program)
        for group in match.groups()
        if group
        for name in group.split(",")
    }
    found, computation = [], ""
    for line in program.splitlines():
        if opening := _OPENING.match(line):
            computation = opening[1]
        elif collective := _COLLECTIVE.search(line):
            payload = sum(_bytes(*shape) for shape in _SHAPE.findall(collective["shapes"]))
            found.append(Collective(payload, computation in branches, collective["kind"]))
    return found


def _bytes(kind: str, bits: str, lengths: str) -> int:
    """Bytes of one array."""
    width = 1 if kind == "pred" else int(bits) // 8
    return width * math.prod(int(length) for length in lengths.split(",") if length)


def bytes_per_step(program: str, every: int) -> float:
    """Mean payload of a device in one step; what is conditional happens on every K-th."""
    return sum(
        collective.payload / (every if collective.conditional else 1)
        for collective in collectives(program)
    )


def sent_per_step(program: str, every: int, devices: int) -> float:
    """Mean bytes that each device sends in one step; what is conditional only on every H-th."""
    return sum(
        collective.sent(devices) / (every if collective.conditional else 1)
        for collective in collectives(program)
    )


def formula(
    parameters: int, every: int, devices: int, compression: Compression | None = None
) -> float:
    """Mean bytes that each device sends in one step of local SGD, by arithmetic.

    A ring all-reduce of n float32 sends 8 n (M - 1) / M bytes; what is compressed goes around it in
    two parts, each in the small type.
    """
    share = 1.0
    if compression is not None:
        share = 0.5 if compression.dtype == "bfloat16" else (1 + 4 / compression.block_size) / 4
    return 8 * parameters * share * (devices - 1) / devices / every
