"""Options: bounds declared with each, and the folder of a run."""

import importlib
from dataclasses import dataclass, replace
from typing import Annotated, get_args, get_type_hints

import pytest

from benchmarks.__main__ import COMMANDS
from benchmarks.common.options import (
    ABOVE_ZERO,
    FREE,
    POSITIVE,
    SHARE,
    Among,
    ResumeOptions,
    UsageError,
    Within,
    check_options,
    configuration,
)
from benchmarks.common.run_folder import open_folder, stored_results, write_results, write_whole


@dataclass(frozen=True, kw_only=True)
class Toy(ResumeOptions):
    count: Annotated[int, POSITIVE] = 1
    rate: Annotated[float | None, ABOVE_ZERO] = None
    share: Annotated[float, SHARE] = 0.0
    sizes: Annotated[tuple[int, ...], Within(2)] = (2,)
    names: Annotated[tuple[str, ...], Among("name", lambda: ("a", "b"))] = ("a",)
    speed: Annotated[float, FREE, ABOVE_ZERO] = 1.0


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"count": 0}, ("--count", "at least 1", "got 0")),
        ({"rate": 0.0}, ("--rate", "above 0", "got 0.0")),
        ({"rate": float("nan")}, ("--rate", "got nan")),
        ({"rate": float("inf")}, ("--rate", "got inf")),
        ({"share": 1.0}, ("--share", "at least 0", "below 1", "got 1.0")),
        ({"sizes": (2, 1)}, ("--sizes", "at least 2", "got (2, 1)")),
        ({"sizes": ()}, ("--sizes", "got ()")),
        ({"names": ("c",)}, ("name 'c'", "accepted: a, b")),
        ({"names": ("a", "a")}, ("--names", "once", "got 'a a'")),
        ({"speed": -1.0}, ("--speed", "got -1.0")),
    ],
)
def test_what_is_out_of_bounds_is_named(changes, parts):
    with pytest.raises(UsageError) as caught:
        check_options(replace(Toy(), **changes))
    for part in parts:
        assert part in str(caught.value)


def test_what_is_in_bounds_passes():
    check_options(Toy())
    check_options(Toy(rate=1e-9, share=0.999, sizes=(2, 3), names=("b", "a")))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_number_of_every_command_has_bounds(name):
    """But what `jax.distributed` checks, or what must fit the images."""
    command = COMMANDS[name]
    options = getattr(importlib.import_module(command.module), command.options)
    elsewhere = {"processes", "process_id", "num_hidden", "num_inputs", "pair"}
    for option, hint in get_type_hints(options, include_extras=True).items():
        text = str(get_args(hint)[0] if hasattr(hint, "__metadata__") else hint)
        if ("int" in text or "float" in text) and option not in elsewhere:
            assert any(isinstance(mark, Within) for mark in get_args(hint)[1:]), option


def test_a_configuration_holds_what_the_result_depends_on(tmp_path):
    assert configuration(Toy(output=tmp_path, resume=True)) == {
        "count": 1, "rate": None, "share": 0.0, "sizes": [2], "names": ["a"],
    }  # fmt: skip


def test_the_folder_is_free_or_gone_on_with(tmp_path):
    assert open_folder(Toy(), "toy").parts[:1] == ("runs",)
    assert open_folder(Toy(), "toy").name.startswith("toy-")
    with pytest.raises(UsageError, match="--resume needs --output"):
        open_folder(Toy(resume=True), "toy")
    with pytest.raises(UsageError, match="--count"):
        open_folder(Toy(count=-1), "toy")
    folder = tmp_path / "run"
    options = Toy(output=folder, sizes=(2, 3))
    assert open_folder(options, "toy") == folder
    assert stored_results(folder, options) is None
    write_results(folder, {"configuration": configuration(options), "found": 1})
    with pytest.raises(UsageError, match="is not empty; give --resume"):
        open_folder(options, "toy")
    again = replace(options, resume=True, speed=2.0)
    assert open_folder(again, "toy") == folder
    # What a killed process left.
    (folder / ".results.json.abc.part").write_text("half")
    assert stored_results(folder, again)["found"] == 1
    assert [path.name for path in folder.iterdir()] == ["results.json"]
    with pytest.raises(UsageError, match=r"another configuration: sizes \[2, 3\] there, \[4\] her"):
        stored_results(folder, replace(again, sizes=(4,)))


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(UsageError, match=r"holds no results\.json"):
        stored_results(tmp_path, Toy(output=tmp_path, resume=True))


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "kept"
    path.write_text("old")

    def half(file):
        file.write(b"ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, half)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
