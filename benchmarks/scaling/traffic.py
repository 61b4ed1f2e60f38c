"""The traffic between devices that a compiled program holds, read from its text."""

import math
import re
from dataclasses import dataclass

_COLLECTIVE = re.compile(
    r"= (?P<shapes>.+?) (?:all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)"
    r"(?:-start)?\("
)
_OPENING = re.compile(r"(?:ENTRY )?%?([\w.\-]+) .*\{$")
_SHAPE = re.compile(r"(pred|[a-z]+)(\d*)[a-z\d]*\[([\d,]*)\]")
_CALLS = re.compile(r"(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=([^,\s]+))")


@dataclass(frozen=True)
class Collective:
    """One exchange between devices.

    Attributes:
      payload: bytes that each device puts in.
      conditional: whether it is in a branch of a conditional.
    """

    payload: int
    conditional: bool


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
            found.append(Collective(payload, computation in branches))
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
