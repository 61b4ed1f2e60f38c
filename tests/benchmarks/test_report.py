"""Statistics, tables and documents of a comparison."""

import base64
import copy
import re

import numpy as np
import pandas as pd
import pytest

from benchmarks.common import plots, run_folder, terminal
from benchmarks.common.report import is_numeric, markdown_table, to_html
from benchmarks.compare import plots as pictures
from benchmarks.compare import report, results
from benchmarks.compare.verdict import verdict


def record(shift, seeds=3):
    spread = [shift + 0.01 * seed for seed in range(seeds)]
    curve = [
        {"gradients": 60 * at, "seconds": at}
        | dict.fromkeys(("test_error", "test_loss", "train_loss"), spread)
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
        "configuration": {"seeds": 3, "model": "mlp"},
        "command": "python -m benchmarks compare --methods sgd adam",
        "environment": {"python": "3.11"},
        "data": {
            "name": "digits 1.0", "train": 1300, "test": 497, "judged_on": "test images",
            "batch_size": 32,
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


def test_mean_and_standard_error(found):
    errors = results.summarize(found).loc["sgd", "test_error"]
    assert errors["mean"] == pytest.approx(0.11)
    assert errors["std_error"] == pytest.approx(0.01 / np.sqrt(3))


def test_differences_are_paired(found):
    found["methods"]["adam"]["final"]["test_error"] = [0.2, 0.22, 0.21]
    summary = results.summarize(found)["test_error"]
    assert summary["minus_sgd"]["adam"] == pytest.approx(0.1)
    assert summary["minus_sgd_std_error"]["adam"] == pytest.approx(
        np.std([0.1, 0.11, 0.09], ddof=1) / 3**0.5
    )
    assert summary["minus_sgd"]["sgd"] == 0
    del found["methods"]["sgd"]
    assert "minus_sgd" not in results.summarize(found)["test_error"]


def test_the_verdict_says_what_is_best_and_whether_that_is_noise(found):
    best, against, width = verdict(found)
    assert best == "Lowest error: sgd, 11.00 %."
    # The differences are the same in each seed.
    assert "Against adam: -10.00 points of error (95% from -10.00 to -10.00: more than" in against
    assert "Its minimum is wider." in width
    final = found["methods"]["adam"]["final"]
    found["methods"]["adam"]["final"] = {**final, "test_error": [0.05, 0.2, 0.05]}
    found["methods"]["adam"]["gradients"] *= 2
    best, against, _ = verdict(found)
    assert best == "Lowest error: adam, 10.00 %. It took 2 times the gradients of sgd."
    differences = np.array([-5.0, 9.0, -7.0])
    half = 4.302653 * differences.std(ddof=1) / 3**0.5
    low, high = differences.mean() - half, differences.mean() + half
    assert f"-1.00 points of error (95% from {low:+.2f} to {high:+.2f}: not more" in against


def test_the_verdict_says_that_the_best_was_chosen_among_many(found):
    assert "does not allow for the choice" not in verdict(found)[1]
    found["methods"]["third"] = record(0.3)
    assert "best of 3" in verdict(found)[1]
    assert "does not allow for the choice" in verdict(found)[1]


def test_a_text_is_judged_by_its_loss(found):
    found["data"] |= {"is_text": True, "predictions": 64}
    found["methods"]["adam"]["final"]["test_error"] = [0.0, 0.0, 0.0]
    final = found["methods"]["sgd"]["final"]
    found["methods"]["sgd"]["final"] = {**final, "test_loss": [1.0, 1.1, 1.2]}
    best, against, width = verdict(found)
    assert best == "Lowest loss: adam, 0.210 nats."
    assert "Against sgd: -0.890 nats (95%" in against
    assert "local energy +0.100 nats (" in width
    table = report.result_table(found)
    assert list(table["loss nats"]) == ["1.100 ± 0.058", "0.210 ± 0.006"]
    assert table["minus SGD"][1].startswith("-0.890 ± ")
    assert not any("error" in column for column in table)


def test_one_method_or_one_seed_has_no_interval(found):
    alone = copy.deepcopy(found)
    alone["methods"] = {name: record(0.1 * at, seeds=1) for at, name in enumerate(("a", "b"))}
    assert "one seed cannot tell" in verdict(alone)[1]
    del alone["methods"]["b"]
    assert verdict(alone) == ["Lowest error: a, 0.00 %."]


def test_results_survive_the_disk(found, tmp_path):
    results.write(tmp_path, found)
    read = run_folder.read_results(tmp_path)
    statistics = read.pop("statistics")
    assert read == found
    assert statistics["adam"]["trace"]["minus_sgd"] == pytest.approx(0.1)
    assert statistics["sgd"]["trace"]["std_error"] == pytest.approx(0.01 / np.sqrt(3))
    assert run_folder.read_results(tmp_path / "none") is None


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_report_of_a_text_speaks_of_texts(found, tmp_path):
    found["data"] |= {"is_text": True, "predictions": 64, "judged_on": "validation text"}
    report.write(tmp_path, found)
    text = (tmp_path / "report.md").read_text()
    first_screen = text.split("## Results")[0]
    assert "| loss nats |" in first_screen
    assert not re.search("error|image|points", first_screen)
    assert "nothing was tried on a text" in text
    assert "1 probe vector per seed" in text


def test_a_curve_of_one_point_is_seen(found):
    for one in found["methods"].values():
        del one["curve"][1:]
    for axes in pictures.learning_curves(found).axes:
        assert [line.get_marker() for line in axes.lines] == ["o", "o"]
        # The bars of one standard error.
        assert len(axes.containers) == 2


def test_one_seed_and_no_baseline(found, tmp_path):
    alone = copy.deepcopy(found)
    alone["configuration"]["seeds"] = 1
    alone["methods"] = {"adam": record(0.2, seeds=1)}
    report.write(tmp_path, alone)
    table = report.result_table(alone)
    assert list(table["error %"]) == ["20.00"]
    assert list(table["minus SGD"]) == [""]


def test_tables_fit_a_terminal_of_80_columns(found, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    found["methods"]["replicated_sgd_y"] = record(0.3)
    report.show(found, tmp_path)
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert "replicated_sgd_y" in shown
    assert "+20.00 ± 0.00" in shown


def test_share_beyond():
    nodes, weights = plots.tail(np.array([3.0, -1.0, 1.0]), np.array([0.2, 0.5, 0.3]))
    shares = plots.share_beyond(np.array([0.5, 1.0, 2.0, 4.0]), nodes, weights)
    np.testing.assert_allclose(shares, [0.5, 0.5, 0.2, 0])


def test_a_page_is_safe_and_scrolls_its_tables(tmp_path):
    (tmp_path / "p.png").write_bytes(b"png")
    table = markdown_table(pd.DataFrame({"m": ["a", "b"], "|n|": ["1", "-2.5e-03"]}))
    assert table == "| m | \\|n\\| |\n| :--- | ---: |\n| a | 1 |\n| b | -2.5e-03 |"
    text = f"# T\n\na & <b>\n\n{table}\n\n![caption](p.png)\n\n```json\n{{}}\n```\n"
    page = to_html(text, "a & b", tmp_path)
    assert "<title>a &amp; b</title>" in page
    assert "<p>a &amp; &lt;b&gt;</p>" in page
    assert '<div class="wide" tabindex="0"><table>' in page
    assert '<th style="text-align:right">|n|</th>' in page
    assert '<img src="data:image/png;base64,cG5n" alt="caption">' in page
    assert "<details><summary>for machines</summary>" in page


@pytest.mark.parametrize(
    ("cells", "numeric"),
    [
        (["1.2 ± 0.3", "", "-"], True),
        (["-2.5e-03", "1,234", "nan"], True),
        (["4/5", "1, 2, 3", "60.1 %", "+1.00 ± 0.20 points"], True),
        (["6 (residual 1e-03)"], False),
        (["learning_rate 0.1"], False),
    ],
)
def test_numbers_are_told_from_prose(cells, numeric):
    assert is_numeric(cells) == numeric


@pytest.mark.parametrize("width", [34, 40, 60, 80, 200])
def test_a_terminal_of_any_width_cuts_no_number(width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    numbers = [
        f"{sign}{digit}.{digit}e-{digit}{digit} ± 1.5e-07" for sign in "+-" for digit in "12"
    ]
    columns = {f"a heading of words {at}": [one, "1"] for at, one in enumerate(numbers)}
    table = pd.DataFrame({"name": ["entropy_sgd", "sgd"], **columns, "how": ["prose " * 9, ""]})
    terminal.show_table(table, "A title")
    shown = capsys.readouterr().out
    assert "…" not in shown
    for number in numbers:
        assert number in shown
    assert shown.count("prose") == 9


def test_a_narrow_page_breaks_numbers_before_their_errors_only(tmp_path):
    table = pd.DataFrame({"method": ["sgd"], "error %": ["2.62 ± 0.20"]})
    page = to_html(markdown_table(table), "title", tmp_path)
    assert "2.62 ±\N{NO-BREAK SPACE}0.20</td>" in page
