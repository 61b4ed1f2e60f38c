"""The house of the benchmarks: few rooms, few floors, few arrows, none upward."""

import ast
import re
from pathlib import Path

import pytest

from benchmarks.__main__ import COMMANDS

HOUSE = Path(__file__).parents[2] / "benchmarks"
# Rooms that no experiment is: the entrance, and what all share.
ENTRANCE, COMMON = "__main__", "common"


def rooms():
    """The children of `benchmarks/` that can be imported."""
    found = {path.stem for path in HOUSE.glob("*.py")} - {"__init__"}
    return found | {path.parent.name for path in HOUSE.glob("*/__init__.py")}


def room_of(module):
    """The room of a module of the benchmarks, None for any other."""
    house, _, rest = module.partition(".")
    return rest.partition(".")[0] if house == "benchmarks" and rest else None


def imported(path):
    """All modules that a file imports, at whatever place in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from (f"{node.module}.{name.name}" for name in node.names)


@pytest.fixture(scope="module")
def arrows():
    """From each room to the others that it imports; the entrance opens each command's."""
    found = {room: set() for room in rooms()}
    for path in HOUSE.rglob("*.py"):
        room = path.relative_to(HOUSE).parts[0].removesuffix(".py")
        if room != "__init__":
            found[room] |= {room_of(module) for module in imported(path)} - {None, room}
    found[ENTRANCE] |= {room_of(command.module) for command in COMMANDS.values()}
    return found


def height(room, arrows, path=()):
    """The floor of a room, 1 at the ground; fails where imports go in a circle."""
    assert room not in path, f"imports go in a circle: {path}"
    return 1 + max((height(other, arrows, (*path, room)) for other in arrows[room]), default=0)


def test_few_rooms_floors_and_arrows(arrows):
    assert len(arrows) <= 12
    assert sum(map(len, arrows.values())) <= 30
    assert max(height(room, arrows) for room in arrows) <= 5


def test_experiments_import_what_is_common_and_nothing_of_each_other(arrows):
    for room, others in arrows.items():
        if room != ENTRANCE:
            assert others <= ({COMMON} if room != COMMON else set()), room


def test_every_experiment_is_a_command(arrows):
    assert {room_of(command.module) for command in COMMANDS.values()} == set(arrows) - {
        ENTRANCE,
        COMMON,
    }


def test_no_file_is_too_long():
    assert {
        path.name for path in HOUSE.rglob("*.py") if len(path.read_text().splitlines()) > 400
    } == set()


def test_results_hold_numbers_and_text_and_their_links_lead_somewhere():
    results = HOUSE / "results"
    files = [path for path in results.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".md"}
    for path in files:
        if path.suffix == ".md":
            for link in re.findall(r"\]\(([^)]+)\)", path.read_text()):
                assert (path.parent / link).exists(), f"{path}: {link}"
