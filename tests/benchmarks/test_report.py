"""Statistics, tables and documents of a comparison."""

import base64
import copy
import re

import numpy as np
import pytest

from benchmarks.common import plots, results
from benchmarks.common.document import (
    Code,
    Heading,
    Paragraph,
    Picture,
    TableBlock,
    to_html,
    to_markdown,
)
from benchmarks.compare import report, terminal


def record(shift, seeds=3):
    spread = [shift + 0.01 * seed for seed in range(seeds)]
    curve = [
        {"gradients": 60 * at, "seconds": at, "test_error": spread, "train_loss": spread}
        for at in (1, 2, 3)
    ]
    names = ("train_error", "train_loss", "test_error", "test_loss")
    return {
        "summary": "a <method>",
        "hyperparameters": {"learning_rate": 0.1},
        "gradients": 180,
        "train_seconds": 1.5,
        "curve": curve,
        "final": dict.fromkeys(names, spread),
        "flatness": {
            "local_energy": [[0.0, one] for one in spread],
            "top_eigenvalue": spread,
            "trace": spread,
            "spectrum": [{"nodes": [-0.1, 0.0, 2.0], "weights": [0.1, 0.8, 0.1]}] * seeds,
        },
    }


@pytest.fixture
def found():
    """Results of two methods, the second 0.1 above the first in everything."""
    return {
        "configuration": {"seeds": 3, "model": "mlp", "batch_size": 32},
        "command": "python -m benchmarks compare --methods sgd adam",
        "environment": {"python": "3.11"},
        "data": {
            "name": "digits 1.0", "train": 1300, "test": 497, "judged_on": "test images"
        },
        "model": {"summary": "small", "parameters": 100, "dropout": 0.0},
        "budget": {"gradients": 180, "replicas": 3},
        "widths": {
            "images": 50, "curve_images": 1000, "sigma": [0.1, 0.2], "energy_samples": 2,
            "lanczos_steps": 3, "probes": 1, "trace_products": 6,
            "top_tolerance": 0.01,
        },
        "methods": {"sgd": record(0.1), "adam": record(0.2)},
    }  # fmt: skip


def test_mean_and_standard_error():
    assert results.estimate([1.0, 2.0, 3.0]) == (2.0, pytest.approx(1 / np.sqrt(3)))
    assert results.estimate([1.0]) == (1.0, None)


def test_differences_are_paired(found):
    found["methods"]["adam"]["final"]["test_error"] = [0.2, 0.22, 0.21]
    summary = results.summarize(found)["adam"]["test_error"]
    assert summary["minus_sgd"] == pytest.approx(0.1)
    assert summary["minus_sgd_std_error"] == pytest.approx(
        np.std([0.1, 0.11, 0.09], ddof=1) / 3**0.5
    )
    assert results.summarize(found)["sgd"]["test_error"]["minus_sgd"] == 0
    del found["methods"]["sgd"]
    assert "minus_sgd" not in results.summarize(found)["adam"]["test_error"]


def test_results_survive_the_disk(found, tmp_path):
    results.write(tmp_path, found)
    read = results.read(tmp_path)
    assert read.pop("statistics") == results.summarize(found)
    assert read == found
    assert results.read(tmp_path / "none") is None


def test_report_is_whole_and_self_contained(found, tmp_path):
    report.write(tmp_path, found)
    page = (tmp_path / "report.html").read_text()
    text = (tmp_path / "report.md").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "a &lt;method&gt;" in page
    for name in ("learning_curves", "local_energy", "spectrum"):
        png = (tmp_path / f"{name}.png").read_bytes()
        assert base64.b64encode(png).decode() in page
        assert f"]({name}.png)" in text
        assert (tmp_path / f"{name}.svg").read_bytes().startswith(b"<?xml")
    assert "11.00 ± 0.58" in text
    assert "+10.00 ± 0.00" in text
    assert found["command"] in text


def test_one_seed_and_no_baseline(found, tmp_path):
    alone = copy.deepcopy(found)
    alone["configuration"]["seeds"] = 1
    alone["methods"] = {"adam": record(0.2, seeds=1)}
    report.write(tmp_path, alone)
    rows = report.table_rows(alone)
    assert rows[0]["error %"] == "20.00"
    assert rows[0]["minus SGD"] == ""


def test_tables_fit_a_terminal_of_80_columns(found, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    found["methods"]["replicated_sgd_y"] = record(0.3)
    terminal.show_tables(found, tmp_path)
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert "replicated_sgd_y" in shown
    assert "+20.00 ± 0.00" in shown


def test_share_beyond():
    nodes, weights = plots.tail(np.array([3.0, -1.0, 1.0]), np.array([0.2, 0.5, 0.3]))
    shares = plots.share_beyond(np.array([0.5, 1.0, 2.0, 4.0]), nodes, weights)
    np.testing.assert_allclose(shares, [0.5, 0.5, 0.2, 0])


def test_blocks_in_both_forms(tmp_path):
    picture = tmp_path / "p.png"
    picture.write_bytes(b"png")
    blocks = [
        Heading("T", level=1),
        Paragraph("a & b"),
        Code("x < y"),
        TableBlock(("m", "|n|"), [("1", "2")]),
        Picture(picture, "caption"),
    ]
    assert to_markdown(blocks) == (
        "# T\n\na & b\n\n```\nx < y\n```\n\n| m | \\|n\\| |\n| :--- | ---: |\n| 1 | 2 |\n\n"
        "![caption](p.png)\n\ncaption\n"
    )
    page = to_html(blocks, "title")
    assert "<h1>T</h1>" in page
    assert "<p>a &amp; b</p>" in page
    assert "<pre>x &lt; y</pre>" in page
    assert '<img src="data:image/png;base64,cG5n" alt="caption">' in page
