"""The flatness command: what it refuses, what it measures, and on whose weights."""

import json
import re
import sys

import jax
import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.common.evaluation import Evaluator
from benchmarks.common.options import UsageError
from benchmarks.compare import main as compare
from benchmarks.compare import widths
from benchmarks.flatness import edge, papers
from benchmarks.flatness.measure import ESTIMATORS
from benchmarks.flatness.subject import from_run

QUICK = "--images=40 --draws=2 --steps=6 --probes=2 --eigenvalues=1 --points=3"


def run(arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "flatness", *map(str, arguments)])
    return main()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--dataset nonsense", "accepted: digits, mnist"),
        ("--model resnet", "accepted: mlp, mnistfc"),
        ("--method sdg", "accepted: sgd, adam"),
        ("--epochs 0", "--epochs must be above 0"),
        ("--set adam.learning_rate=1", "accepted: sgd"),
        ("--images 0", "--images .*got 0"),
        ("--draws 1", "--draws must be at least 2"),
        ("--probes 1", "--probes must be at least 2"),
        ("--eigenvalues 0", "--eigenvalues must be at least 1"),
        ("--run nowhere", "nowhere holds no results.json"),
    ],
)
def test_impossible_values_end_in_one_line(arguments, message, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run(arguments.split(), monkeypatch) == 2
    shown = capsys.readouterr()
    assert re.search(message, shown.err)
    assert shown.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_folder_is_refused(tmp_path, monkeypatch):
    (tmp_path / "mine.txt").write_text("x")
    assert run(["--output", tmp_path], monkeypatch) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_a_fresh_network_is_trained_and_measured(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    assert run(["--epochs=20", *QUICK.split(), "--output", folder], monkeypatch) == 0
    names = {"results.json", "report.md", "report.html", "weights"}
    pictures = ("local_energy", "spectrum", "gradient_noise", "slices")
    names |= {f"{picture}.{kind}" for picture in pictures for kind in ("png", "svg")}
    assert {path.name for path in folder.iterdir()} == names
    found = json.loads((folder / "results.json").read_text())
    assert found["command"].startswith("python -m benchmarks flatness --epochs=20")
    assert found["environment"]["versions"]["jax"]
    assert found["configuration"]["seed"] == 0
    assert found["scores"]["test_error"] < 0.1
    measured = found["measured"]
    assert list(measured) == list(ESTIMATORS)
    energy = measured["local_energy"]["loss"]["mean"]
    assert energy[-1] > energy[0]
    largest = measured["eigenvalues"]["largest"]
    assert largest["values"][0] <= measured["trace"]["mean"] + 4 * measured["trace"]["std_error"]
    # The gradient noise was taken of the same 40 images, and cannot have a higher rank.
    assert 0 < measured["gradient_noise"]["rank"] <= 40
    # The slices cross at the minimum.
    lines, plane = measured["slices"]["lines"], np.array(measured["slices"]["plane"])
    for values in lines.values():
        assert values[1] == pytest.approx(plane[1, 1], rel=1e-5)
    np.testing.assert_allclose(plane[:, 1], lines["random"], rtol=1e-5)
    assert "largest eigenvalue" in capsys.readouterr().out
    assert "rank of the gradient noise" in (folder / "report.md").read_text()


@pytest.mark.slow
def test_weights_of_a_comparison_are_those_it_judged(tmp_path, monkeypatch):
    def measure(self, params, stats, seeds):
        once = [1.0 for _ in seeds]
        spectrum = [{"nodes": [-1.0, 1.0], "weights": [0.5, 0.5]} for _ in seeds]
        return {
            "local_energy": [[1.0] * 6 for _ in seeds],
            "top_eigenvalue": once, "trace": once, "spectrum": spectrum,
        }  # fmt: skip

    monkeypatch.setattr(widths.Widths, "measure", measure)
    folder = tmp_path / "run"
    config = compare.Compare(
        methods=("replicated_sgd",), gradients=300, seeds=2, seed=3, output=folder
    )
    assert compare.run(config) == 0
    final = json.loads((folder / "results.json").read_text())["methods"]["replicated_sgd"]["final"]
    for index, seed in enumerate((3, 4)):
        subject = from_run(folder, "replicated_sgd", seed, None, None)
        sets = [
            (subject.images.x_train, subject.images.y_train),
            (subject.images.x_test, subject.images.y_test),
        ]
        evaluator = Evaluator(subject.network, *jax.device_put(sets))
        stacked = jax.tree.map(lambda leaf: leaf[None], (subject.params, subject.stats))
        scores = evaluator.scores(*stacked, whole=True)
        assert scores.test_error[0] == final["test_error"][index] == subject.scores.test_error[0]
        assert scores.train_loss[0] == pytest.approx(final["train_loss"][index], rel=1e-5)
    with pytest.raises(UsageError, match="--seed must be from 3 to 4"):
        from_run(folder, "replicated_sgd", 5, None, None)
    with pytest.raises(UsageError, match="accepted: replicated_sgd"):
        from_run(folder, "sgd", 3, None, None)
    (folder / "weights" / "replicated_sgd.npz").unlink()
    with pytest.raises(UsageError, match="no weights"):
        from_run(folder, "replicated_sgd", 3, None, None)


def as_rows(table):
    return [tuple(row) for row in table.to_numpy()]


def test_facts_of_the_papers_from_known_spectra():
    eigenvalues = [4.0, 1.0, 0.0]
    found = {
        "model": {"parameters": 50_890},
        "scores": {"test_error": 0.03},
        "measured": {
            "spectrum": {
                "nodes": [[-1.0, -0.25, 0.5, 2.0], [-1.0, -0.5, 0.25, 2.0]],
                "fraction_below": {"0.01": {"mean": 0.45, "std_error": 0.01}},
            },
            "eigenvalues": {
                "largest": {"values": [6.0], "residuals": [1e-3], "converged": True},
                "smallest": {"values": [-2.0], "residuals": [0.5], "converged": False},
            },
            "gradient_noise": {
                "eigenvalues": eigenvalues, "parameters": 10, "rank": 2, "trace": 5.0,
                "participation_ratio": 25 / 17, "relative_threshold": 0.1,
            },
        },
    }  # fmt: skip
    assert as_rows(papers.fact_table("small_mnistfc", found)) == [
        ("parameters", "50,890", "50,890", "1.00"),
        ("test error, %", "2.5", "3.00", "1.20"),
        ("eigenvalues with |λ| < 0.01, %", "90", "45.0 ± 1.0", "0.50"),
        ("spacing of the nodes at 0", "", "7.5e-01", ""),
        ("largest eigenvalue", "", "6 (residual 1e-03)", ""),
        ("smallest eigenvalue", "", "-2 (residual 5e-01, not converged)", ""),
        ("largest over smallest, absolute", "", "3", ""),
    ]
    tiny = {row[0]: row[2] for row in as_rows(papers.fact_table("tiny_lenet", found))}
    padded = 1e3 * np.array(eigenvalues + [0.0] * 7)
    assert tiny["eigenvalues of D, mean, 1e-3"] == f"{padded.mean():.2f}"
    assert tiny["eigenvalues of D, deviation, 1e-3"] == f"{padded.std():.1f}"
    assert tiny["rank of D, % of the parameters"] == "20.00 (2)"


def test_papers_refuses_what_it_cannot_do(tmp_path):
    with pytest.raises(UsageError, match="accepted: small_mnistfc, small_lenet, tiny_lenet"):
        papers.run(papers.Papers(networks=("lenet",)))
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(UsageError, match="not empty"):
        papers.run(papers.Papers(output=tmp_path))


def edge_results():
    """Of two methods, one of which goes to the edge."""
    rising = [2.0 + 8.0 * min(1.0, at / 40) for at in range(80)]
    one = {"step": list(range(80)), "loss": [1.0] * 80, "alignment": [0.5] * 80}
    return {
        "configuration": {"images": 200, "learning_rate": 0.2, "replicas": 3},
        "command": "python -m benchmarks edge",
        "environment": {},
        "limit": 10.0,
        "methods": {
            "gradient_descent": one | {"name": "gradient descent", "sharpness": rising},
            "sgd": one | {"name": "SGD", "sharpness": [3.0] * 80},
        },
    }


def test_table_and_picture_of_the_edge():
    found = edge_results()
    assert as_rows(edge.table(found)) == [
        ("gradient descent", "2.00", "10.00", "10.00", "0.50", "1.0000"),
        ("SGD", "3.00", "3.00", "3.00", "0.50", "1.0000"),
    ]
    left, _ = edge.draw(found).axes
    lines = [line.get_ydata() for line in left.lines]
    assert [line[-1] for line in lines] == [10.0, 3.0, 10.0]


def test_edge_refuses_what_it_cannot_do(tmp_path):
    for options, message in (
        ({"gradients": 499}, "--gradients must be at least 500, got 499"),
        ({"learning_rate": 0.0}, "--learning-rate must be above 0"),
        ({"images": 1301}, "--images must be"),
        ({"replicas": 1}, "--replicas must be at least 2, got 1"),
    ):
        with pytest.raises(UsageError, match=message):
            edge.run(edge.Edge(output=tmp_path / "run", **options))


@pytest.mark.slow
def test_edge_follows_all_methods(tmp_path):
    options = edge.Edge(gradients=500, images=60, every=250, output=tmp_path / "run")
    assert edge.run(options) == 0
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert found["limit"] == 10
    assert list(found["methods"]) == ["gradient_descent", "sgd", "entropy_sgd", "replicated_sgd"]
    for one in found["methods"].values():
        assert one["step"] == [0, 250]
        # All start from the same weights, and learn.
        np.testing.assert_allclose(one["sharpness"][0], 2.3, rtol=0.2)
        assert one["loss"][1] < 0.5 * one["loss"][0]
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"results.json", "report.md", "report.html", "edge.png", "edge.svg"}
