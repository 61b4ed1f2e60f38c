"""Reads the collectives of a compiled program off its text."""

import re
from typing import NamedTuple

import numpy as np


class Collective(NamedTuple):
    """One collective of a program.

    Attributes:
      kind: as XLA names it, such as ``all-reduce``.
      computation: the one that it is in.
      groups: the devices that talk to each other.
      shapes: of what it answers with.
    """

    kind: str
    computation: str
    groups: tuple[tuple[int, ...], ...]
    shapes: tuple[tuple[int, ...], ...]


def collectives(text):
    """The collectives of an HLO text."""
    found, computation = [], ""
    for line in text.splitlines():
        if opening := re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line):
            computation = opening[1]
        pattern = r"= (.*?) ((?:all-|reduce-scatter|collective-|ragged-)[\w\-]*)\("
        if (here := re.search(pattern, line)) and not here[2].endswith("-done"):
            shapes = re.findall(r"\w+\[([\d,]*)\]", here[1])
            shapes = tuple(tuple(int(n) for n in s.split(",") if n) for s in shapes)
            found.append(Collective(here[2], computation, device_groups(line), shapes))
    return found


def device_groups(line):
    """The replica groups or source-target pairs of a collective's line."""
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        shape, lengths = ([int(n) for n in iota[at].split(",")] for at in (1, 2))
        order = [int(n) for n in iota[3].split(",")] if iota[3] else range(len(lengths))
        grid = np.arange(np.prod(lengths)).reshape(lengths).transpose(order).reshape(shape)
        return tuple(tuple(row) for row in grid.tolist())
    if mesh := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", line):
        axes = re.findall(r"'(\w+)'=(\d+)", mesh[1])
        inside = [at for at, (name, _) in enumerate(axes) if f"'{name}'" in mesh[2]]
        grid = np.arange(np.prod(lengths := [int(n) for _, n in axes])).reshape(lengths)
        moved = np.moveaxis(grid, inside, range(-len(inside), 0))
        return tuple(
            map(tuple, moved.reshape(-1, np.prod([lengths[at] for at in inside])).tolist())
        )
    listed = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}", line)
    assert listed, line
    return tuple(
        tuple(int(n) for n in group.split(",")) for group in re.findall(r"\{([\d,]+)\}", listed[1])
    )


def inside_conditionals(text):
    """Names of the computations that are branches of a conditional, or bodies of a loop."""
    pattern = r"(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=([^,\s]+))"
    branches = [group for match in re.finditer(pattern, text) for group in match.groups() if group]
    bodies = re.findall(r"body=([^,\s]+)", text)
    return {name.strip(" %") for group in [*branches, *bodies] for name in group.split(",")}


def between(collective, group_size):
    """Whether a collective joins devices of different groups of so many consecutive ones."""
    return any(len({device // group_size for device in group}) > 1 for group in collective.groups)
