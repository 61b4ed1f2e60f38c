"""The speed table: quotients of rounds, the JSON, and what is refused."""

import itertools
import json

import pytest

from benchmarks.errors import UsageError
from benchmarks.memory import keep_freed_memory
from benchmarks.speed import main, timing


@pytest.fixture
def clock(monkeypatch):
    """A clock that each candidate moves by its own amount."""
    state = {"now": 0.0}
    monkeypatch.setattr(timing.time, "perf_counter", lambda: state["now"])

    def candidate(*seconds):
        durations = itertools.cycle(seconds)

        def run():
            state["now"] += next(durations)

        return run

    return candidate


def test_ratio_is_the_median_of_the_rounds_quotients(clock):
    # The machine is ten times slower in every other round; the quotient is not moved by that.
    candidates = {"slow": clock(2.0, 20.0), "fast": clock(1.0, 10.0)}
    seconds = timing.time_rounds(candidates, rounds=6)
    assert len(seconds["slow"]) == 6
    line = timing.figure(seconds, "slow", "fast", section="s", target=1.5)
    assert line.ratio == pytest.approx(2.0)
    assert line.ratio_spread == pytest.approx(0.0)


def test_warm_up_is_not_counted(clock):
    seconds = timing.time_rounds({"a": clock(100.0, 1.0, 1.0)}, rounds=2)
    assert seconds["a"] == pytest.approx([1.0, 1.0])


def test_run_writes_every_figure(clock, monkeypatch, tmp_path, capsys):
    def measure(rounds):
        seconds = timing.time_rounds({"a": clock(3.0), "b": clock(2.0)}, rounds=rounds)
        return [timing.figure(seconds, "a", "b", section="toy", target=1.0)]

    monkeypatch.setattr(main, "SECTIONS", {"toy": measure})
    output = tmp_path / "folder" / "speed.json"
    assert main.run(main.Speed(sections=("toy",), rounds=3, output=output)) == 0
    found = json.loads(output.read_text())
    assert found["figures"][0]["ratio"] == pytest.approx(1.5)
    assert found["environment"]["versions"]["jax"]
    assert "1.500" in capsys.readouterr().out


def test_impossible_values_are_refused():
    with pytest.raises(UsageError, match="--rounds must be at least 2, got 1"):
        main.run(main.Speed(rounds=1))
    with pytest.raises(UsageError, match=r"--sections must be of training.*, got 'nothing'"):
        main.run(main.Speed(sections=("nothing",)))


def test_memory_is_kept_where_glibc_is():
    assert isinstance(keep_freed_memory(), bool)
