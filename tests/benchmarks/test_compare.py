"""The command line: what it refuses, and that a killed run ends as one that was left alone."""

import dataclasses
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.__main__ import COMMANDS, main
from benchmarks.common.options import UsageError
from benchmarks.compare import main as compare
from benchmarks.compare import widths

ROOT = Path(__file__).parents[2]
SMALL = ["compare", "--gradients=80", "--seeds=2", "--batch-size=64"]
SMALL += ["--methods", "sgd", "entropy_sgd", "--set", "entropy_sgd.inner_steps=5"]
SMALL += ["--checkpoint-seconds=0"]
# Makes a run short: few evaluations, and a stand-in for the estimators, which compile for long.
CHEAP = """
import jax
from benchmarks.compare import main as compare
from benchmarks.compare import widths
def measure(self, params, stats, seeds):
    sums = sum(leaf.reshape(len(seeds), -1).sum(1) for leaf in jax.tree.leaves(params)).tolist()
    flat = [{"nodes": [-1.0, 1.0], "weights": [0.5, 0.5]} for _ in seeds]
    energy = [[one] * 6 for one in sums]
    return {"local_energy": energy, "top_eigenvalue": sums, "trace": sums, "spectrum": flat}
"""
# Ends the process as kill -9 does, after the third checkpoint of the second method.
KILLED = f"""
{CHEAP}
widths.Widths.measure, compare.CURVE_POINTS = measure, 4
import os, signal, sys
from benchmarks import __main__
from benchmarks.common import checkpoints
save, calls = checkpoints.Checkpoints.save, []
def save_and_die(self, *args):
    save(self, *args)
    calls.append(self)
    if len([one for one in calls if one is not calls[0]]) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
checkpoints.Checkpoints.save = save_and_die
sys.exit(__main__.main())
"""


@pytest.fixture
def cheap(monkeypatch):
    """The same shortening as in the process that is killed."""
    names = {}
    exec(CHEAP, names)
    monkeypatch.setattr(widths.Widths, "measure", names["measure"])
    monkeypatch.setattr(compare, "CURVE_POINTS", 4)


def run(arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmarks", *map(str, arguments)])
    return main()


def without_times(tree):
    if isinstance(tree, dict):
        times = ("seconds", "train_seconds", "compile_seconds", "command", "environment")
        return {name: without_times(leaf) for name, leaf in tree.items() if name not in times}
    return [without_times(leaf) for leaf in tree] if isinstance(tree, list) else tree


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--dataset nonsense", "accepted: digits, mnist"),
        ("--model resnet", "accepted: mlp, mnistfc"),
        ("--methods sgd sdg", "accepted: sgd, adam"),
        ("--methods sgd sgd", "--methods must name each method once"),
        ("--seeds 0", "--seeds .*got 0"),
        ("--gradients 0", "--gradients .*got 0"),
        ("--gradients 59", "too small"),
        ("--epochs 0", "--epochs must be above 0"),
        ("--epochs nan", "--epochs must be above 0"),
        ("--batch-size 5000", "1300 training images"),
        ("--replicas 1", "--replicas .*got 1"),
        ("--replicas 4 --devices 3", "--devices must divide --replicas 4 and be at most"),
        ("--replicas 4 --devices 0", "--devices .*got 0"),
        ("--dropout 1", "--dropout must be"),
        ("--holdout 1.5", "--holdout must be"),
        ("--set sgd.learning_rate", "METHOD.NAME=VALUE"),
        ("--set sgd.rate=1", "accepted: learning_rate, momentum"),
        ("--set sgd.momentum=high", "takes a number"),
        ("--set entropy_sgd.inner_steps=2.5", "whole number"),
        ("--set sgd.momentum=-1", "at least 0"),
        ("--resume", "--resume needs --output"),
    ],
)
def test_impossible_values_end_in_one_line(arguments, message, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run(["compare", *arguments.split()], monkeypatch) == 2
    shown = capsys.readouterr()
    assert re.search(message, shown.err)
    assert shown.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_without_arguments_it_lists_every_command(monkeypatch, capsys):
    for arguments in ([], ["--help"], ["-h"]):
        assert run(arguments, monkeypatch) == 0
        shown = capsys.readouterr().out
        for name, command in COMMANDS.items():
            assert name in shown
            assert command.time.split()[0] in shown
    assert run(["compere"], monkeypatch) == 2
    refusal = capsys.readouterr().err
    assert all(part in refusal for part in ("'compere'", *COMMANDS))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_options_and_a_run(name):
    command = COMMANDS[name]
    module = importlib.import_module(command.module)
    assert dataclasses.is_dataclass(getattr(module, command.options))
    assert callable(module.run)


def test_help_explains_every_option(monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        run(["compare", "--help"], monkeypatch)
    assert end.value.code == 0
    shown = capsys.readouterr().out
    for name in compare.Compare.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in shown


def test_a_foreign_folder_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(UsageError, match="not empty"):
        compare.run(compare.Compare(output=tmp_path))
    with pytest.raises(UsageError, match=r"holds no results\.json"):
        compare.run(compare.Compare(output=tmp_path, resume=True))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


SHORT = ["compare", "--methods", "adam", "--gradients=300", "--seeds=1", "--flatness-images=50"]


@pytest.mark.usefixtures("cheap")
def test_a_run_writes_everything(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    assert run([*SHORT, "--output", folder], monkeypatch) == 0
    names = {"results.json", "report.md", "report.html", "weights"}
    pictures = ("learning_curves", "local_energy", "spectrum")
    names |= {f"{picture}.{kind}" for picture in pictures for kind in ("png", "svg")}
    assert {path.name for path in folder.iterdir()} == names
    found = json.loads((folder / "results.json").read_text())
    assert found["command"].startswith("python -m benchmarks compare --methods adam")
    assert found["environment"]["versions"]["jax"]
    record = found["methods"]["adam"]
    assert record["final"]["train_error"][0] < 0.3


@pytest.mark.slow
def test_what_a_run_measures(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "CURVE_POINTS", 4)
    assert run([*SHORT, "--output", tmp_path / "run"], monkeypatch) == 0
    record = json.loads((tmp_path / "run" / "results.json").read_text())["methods"]["adam"]
    flatness = record["flatness"]
    # Noise of 30 % hurts more than noise of 5 %, and the trace holds the top eigenvalue.
    energies = flatness["local_energy"][0]
    assert energies[-1] > energies[0]
    assert 0 < flatness["top_eigenvalue"][0] < flatness["trace"][0]
    spectrum = flatness["spectrum"][0]
    np.testing.assert_allclose(max(spectrum["nodes"]), flatness["top_eigenvalue"][0], rtol=0.01)
    np.testing.assert_allclose(sum(spectrum["weights"]), 1, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("cheap")
def test_a_killed_run_ends_as_one_left_alone(tmp_path, monkeypatch, capsys):
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    assert run([*SMALL, "--output", alone], monkeypatch) == 0
    assert "Report" in capsys.readouterr().out

    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILLED, *SMALL, "--output", str(killed)]
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True)
    assert ended.returncode == -9, ended.stderr.decode()
    stored = json.loads((killed / "results.json").read_text())
    assert list(stored["methods"]) == ["sgd"]
    assert not (killed / "report.md").exists()
    # And then the disk fails too: the newest checkpoint lost a bit, and the one before it serves.
    steps = sorted((killed / "checkpoints" / "entropy_sgd").glob("*"), key=lambda path: path.name)
    path = max((steps[-1] / "state").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

    with pytest.raises(UsageError, match="seed 0 there, 1 here"):
        compare.run(
            compare.Compare(**{**stored_options(stored), "seed": 1}, output=killed, resume=True)
        )
    assert run([*SMALL, "--output", killed, "--resume"], monkeypatch) == 0
    assert "is damaged" in capsys.readouterr().out
    first, second = (
        json.loads((folder / "results.json").read_text()) for folder in (alone, killed)
    )
    assert without_times(first) == without_times(second)
    assert first["methods"]["entropy_sgd"]["gradients"] == 80
    assert sorted(path.name for path in alone.iterdir()) == sorted(
        path.name for path in killed.iterdir()
    )


def stored_options(stored):
    return {
        name: tuple(option) if isinstance(option, list) else option
        for name, option in stored["configuration"].items()
    }
