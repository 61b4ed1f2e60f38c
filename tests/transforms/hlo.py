"""What travels between devices in a compiled program, read from its text."""

import math
import re
from typing import NamedTuple

_WIDTH = {"pred": 1, "s8": 1, "u8": 1, "u16": 2, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "f64": 8}
_KINDS = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"


class Collective(NamedTuple):
    kind: str
    payload: int  # bytes of its result on one device
    branch: bool  # inside a branch of a conditional or the body of a loop
    computation: str


def collectives(text):
    """All collectives of ``compiled.as_text()``."""
    pattern = r"(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=([^,\s]+))"
    branches = [group for match in re.finditer(pattern, text) for group in match.groups() if group]
    branches += re.findall(r"body=([^,\s]+)", text)
    inside = {name.strip(" %") for group in branches for name in group.split(",")}
    found, computation = [], None
    for line in text.splitlines():
        if opening := re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line):
            computation = opening[1]
        if hit := re.search(rf"= (.+?) ({_KINDS})(?:-start)?\(", line):
            arrays = re.findall(r"([a-z]+\d*)\[([\d,]*)\]", hit[1])
            payload = sum(
                _WIDTH[kind] * math.prod(int(n) for n in shape.split(",") if n)
                for kind, shape in arrays
            )
            found.append(Collective(hit[2], payload, computation in inside, computation))
    return found
