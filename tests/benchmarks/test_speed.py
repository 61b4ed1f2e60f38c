"""The speed table: quotients of rounds, the JSON, and what is refused."""

import functools
import importlib.util
import itertools
import json

import jax
import numpy as np
import pytest

from benchmarks.common import figures, lanczos, timing
from benchmarks.common.memory import keep_freed_memory
from benchmarks.common.options import UsageError
from benchmarks.common.peak_memory import peak_memory
from benchmarks.peers import curvature, largest, steps, workers
from benchmarks.speed import flatness, main, meetings


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
        yield [timing.figure(seconds, "a", "b", section="toy", target=1.0)]

    monkeypatch.setattr(main, "SECTIONS", {"toy": measure})
    output = tmp_path / "folder"
    assert main.run(main.Speed(sections=("toy",), rounds=3, output=output)) == 0
    found = json.loads((output / "results.json").read_text())
    assert found["figures"][0]["ratio"] == pytest.approx(1.5)
    assert found["environment"]["versions"]["jax"]
    shown = capsys.readouterr().out
    assert "1.500" in shown
    assert "1.00, missed" in shown
    assert "| 1.500 ± 0.000 |" in (output / "report.md").read_text()


def test_a_table_is_shown_before_the_next_one_is_measured(clock, monkeypatch, tmp_path, capsys):
    shown = []

    def measure(rounds):
        seconds = timing.time_rounds({"a": clock(3.0), "b": clock(2.0)}, rounds=rounds)
        for name in ("first", "second"):
            yield [timing.figure(seconds, "a", "b", section=f"{name} table")]
            shown.append(capsys.readouterr().out)

    monkeypatch.setattr(main, "SECTIONS", {"toy": measure})
    main.run(main.Speed(sections=("toy",), rounds=3, output=tmp_path / "folder"))
    assert ["first table" in text for text in shown] == [True, False]
    assert ["second table" in text for text in shown] == [False, True]
    assert len(json.loads((tmp_path / "folder" / "results.json").read_text())["figures"]) == 2


def test_impossible_values_are_refused():
    with pytest.raises(UsageError, match=r"--rounds .*got 1"):
        main.run(main.Speed(rounds=1))
    with pytest.raises(UsageError, match=r"section 'nothing' is unknown; accepted: training"):
        main.run(main.Speed(sections=("nothing",)))


def test_memory_is_kept_where_glibc_is():
    assert isinstance(keep_freed_memory(), bool)


def test_a_peer_that_is_not_installed_is_named(clock, monkeypatch, capsys):
    def fake(seconds):
        run = clock(seconds)
        return lambda task: lambda: run() or np.array([1.0, 2.0])

    monkeypatch.setattr(curvature, "peak_memory", lambda build: 3 * 2**20)
    monkeypatch.setattr(lanczos, "entropix_lanczos", fake(3.0))
    peers = {"present": (("json",), fake(6.0)), "absent": (("no_such_package",), fake(1.0))}
    monkeypatch.setattr(curvature, "PEERS", peers)
    present, absent = curvature.measure(rounds=2)
    assert (present.ratio, absent.ratio) == (pytest.approx(0.5), None)
    assert (present.memory_bytes, present.reference_memory_bytes) == (3 * 2**20, 3 * 2**20)
    figures.show([present, absent])
    shown = capsys.readouterr().out
    assert "not measured" in shown
    assert "lanczos / absent: needs no_such_package" in shown


def test_copies_of_the_largest_ritz_value_are_counted():
    assert lanczos.describe_largest(np.array([1.0, 2.0])) == "2"
    assert lanczos.describe_largest(np.array([1.0, 1.9999, 2.0])) == "2, found 2 times"


@pytest.mark.slow
# Of the peers' own making.
@pytest.mark.filterwarnings("ignore")
def test_candidates_find_the_same_largest_ritz_value():
    task = lanczos.Task((256, 128), 64, 16)
    found = [lanczos.entropix_lanczos(task)()[-1]]
    for packages, build in lanczos.PEERS.values():
        if all(curvature.importlib.util.find_spec(package) for package in packages):
            found.append(build(task)()[-1])
    np.testing.assert_allclose(found, found[0], rtol=1e-2)
    vector = lanczos.bare_products(task)()
    assert sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(vector)) == pytest.approx(1)


def test_peak_memory_is_that_of_the_call():
    size = 64 * 2**20
    measured = peak_memory(functools.partial(functools.partial, np.ones, size, np.uint8))
    assert measured is None or 0.9 * size < measured < 1.5 * size


@pytest.mark.slow
def test_every_estimator_is_measured_against_its_floor():
    lines = flatness.measure_task(lanczos.Task((8,), 32, 4), rounds=2)
    assert {line.name for line in lines} == {
        "spectrum", "lanczos", "eigenvalues, k = 5", "local_energy",
    }  # fmt: skip
    assert all(line.ratio > 0 for line in lines)
    assert int(lines[2].reference.split()[0]) > 5


@pytest.mark.slow
# Of torch's own making.
@pytest.mark.filterwarnings("ignore")
def test_workers_of_torch_go_where_ours_go(monkeypatch):
    task = lanczos.Task((32,), 256, 80)
    monkeypatch.setattr(workers, "SMALL", task)
    ours = workers.Ours()
    at_start = ours.loss()
    assert at_start == pytest.approx(float(task.loss(*task.problem())))
    for _ in range(3):
        ours()
    assert ours.loss() < at_start / 2
    if importlib.util.find_spec("torch") is None:
        (line,) = workers.measure(2)
        assert "needs torch" in line.note
        return
    peer = workers.Torch()
    for _ in range(3):
        peer()
    assert peer.loss() == pytest.approx(ours.loss(), rel=1e-2)


@pytest.mark.slow
def test_meetings_are_measured_against_none(monkeypatch):
    monkeypatch.setattr(meetings, "STEPS", 1)
    monkeypatch.setattr(meetings, "REPLICAS", 2)
    monkeypatch.setattr(meetings, "PERIODS", (10,))
    (lines,) = meetings.measure(2)
    assert [line.reference for line in lines] == [
        "optax.sgd, momentum 0.9", "optax.sgd, momentum 0.9", "optax.adamw",
    ]  # fmt: skip
    assert all(line.ratio > 0 for line in lines)


def test_largest_eigenvalue_names_the_packages_that_are_missing(monkeypatch):
    peers = {"absent": (("no_such_package",), None)}
    monkeypatch.setattr(largest, "PEERS", peers)
    (line,) = largest.measure(rounds=2)
    assert line.ratio is None
    assert "no_such_package" in line.note


@pytest.mark.slow
def test_every_optimizer_of_the_table_trains(monkeypatch):
    task = lanczos.Task((256, 128), 256, 80)
    monkeypatch.setattr(steps, "SMALL", task)
    lines = steps.measure(2)
    assert {line.name for line in lines} == set(steps.optimizers()) - {steps.REFERENCE}
    at_start = float(task.loss(*task.problem()))
    for line in lines:
        assert float(line.note.split()[1]) < 0.9 * at_start, line.note
