"""The layer-by-layer experiment: which layers are smoothed, what is compared, and resuming."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from benchmarks.common import data
from benchmarks.common.options import UsageError
from benchmarks.common.run_folder import RESULTS
from benchmarks.partial import main
from benchmarks.partial.cells import Cell, all_cells, weights_of
from benchmarks.partial.main import Partial, run

SMALL = Partial(
    depths=(2,), radii=(0.3,), width=8, epochs=1.0, seeds=2, samples=2, temperature_points=2
)


def test_cells_are_the_plain_loss_and_layers_alone_in_pairs_and_together():
    cells = list(all_cells((2, 3), (0.1, 0.2)))
    assert [cell.layers for cell in cells if cell.radius in (0, 0.1)] == [
        (), (1,), (2,), (1, 2),
        (), (1,), (2,), (3,), (1, 2), (1, 3), (2, 3), (1, 2, 3),
    ]  # fmt: skip
    assert len({cell.name for cell in cells}) == len(cells) == 22
    assert [Cell(3, layers, 0.1).label for layers in ((), (2,), (1, 3), (1, 2, 3))] == [
        "plain loss", "layer 2", "layer 1 and 3", "all layers",
    ]  # fmt: skip


def test_the_mask_takes_the_weights_of_its_layers_alone():
    images = data.load("digits")
    network = main.make_setting(SMALL, images).network(3)
    params, _ = jax.eval_shape(network.init, jax.random.key(0))
    mask = weights_of((1, 3))
    chosen = [path for path, _ in jax.tree.leaves_with_path(params) if mask(path)]
    assert [(path[0].key, path[1].key) for path in chosen] == [
        ("Dense_0", "kernel"),
        ("Dense_2", "kernel"),
    ]


@pytest.mark.slow
def test_a_small_run_its_files_and_resuming(tmp_path, monkeypatch):
    check_run_and_resuming(tmp_path / "run", monkeypatch)


def test_files_and_resuming_with_made_up_numbers(tmp_path, monkeypatch):
    """All of a run but its trainings, which compile for long."""

    def train_cell(setting, cell, evaluator):
        numbers = [0.1 + 0.01 * sum(cell.layers) + 0.02 * seed for seed in setting.seeds]
        return {
            "depth": cell.depth, "layers": list(cell.layers), "radius": cell.radius,
            "label": cell.label, "test_error": numbers, "train_loss": numbers,
        }  # fmt: skip

    def temperatures(setting, depth, points):
        layers = {f"layer {at}": float(at) for at in range(1, depth + 1)}
        return [
            {"step": 5 * at, "temperature": layers, "temperature_std_error": layers}
            for at in range(1, points + 1)
        ]

    monkeypatch.setattr(main, "train_cell", train_cell)
    monkeypatch.setattr(main, "temperatures", temperatures)
    check_run_and_resuming(tmp_path / "run", monkeypatch)


def check_run_and_resuming(folder, monkeypatch):
    assert run(replace(SMALL, output=folder)) == 0
    found = json.loads((folder / RESULTS).read_text())
    assert len(found["cells"]) == 4
    errors = {cell["label"]: cell["test_error"] for cell in found["cells"].values()}
    losses = {cell["label"]: cell["train_loss"] for cell in found["cells"].values()}
    assert all(len(error) == 2 for error in errors.values())
    # The same seeds start from the same weights and see the same batches: only the loss differs.
    assert len({tuple(loss) for loss in losses.values()}) == 4
    assert max(abs(a - b) for loss in losses.values() for a, b in zip(loss, losses["plain loss"],
               strict=True)) < 0.5  # fmt: skip
    points = found["temperatures"]["2"]
    assert [point["step"] for point in points] == [5, 10]
    assert all(point["temperature"]["layer 1"] > 0 for point in points)
    for name in ("report.md", "radius_sweep.png", "layer_temperature.svg"):
        assert (folder / name).stat().st_size > 500
    table = (folder / "report.md").read_text()
    assert "![radius sweep](radius_sweep.png)" in table
    plain = 100 * np.mean(errors["plain loss"])
    assert f"| 2 layers | plain loss |  | {plain:.2f} ± " in table

    del found["cells"]["2 layers, layer 1, radius 0.3"]
    (folder / RESULTS).write_text(json.dumps(found))
    trained = []
    original = main.train_cell
    monkeypatch.setattr(
        main, "train_cell", lambda *args: trained.append(args[1].label) or original(*args)
    )
    run(replace(SMALL, output=folder, resume=True))
    assert trained == ["layer 1"]
    again = json.loads((folder / RESULTS).read_text())
    assert again["cells"]["2 layers, layer 1, radius 0.3"]["test_error"] == errors["layer 1"]
    with pytest.raises(UsageError, match="is not empty; give --resume"):
        run(replace(SMALL, output=folder))
    with pytest.raises(UsageError, match="a run of another configuration"):
        run(replace(SMALL, output=folder, resume=True, width=16))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": (1,)}, r"--depths takes numbers of at least 2, got \(1,\)"),
        ({"radii": (0.0,)}, r"--radii takes numbers above 0, got \(0.0,\)"),
        ({"seeds": 0}, "--seeds .*got 0"),
        ({"learning_rate": 0.0}, "--learning-rate .*got 0.0"),
        ({"momentum": 1.0}, "--momentum .*got 1.0"),
        ({"loss": "hinge"}, "loss 'hinge' is unknown; accepted: local_entropy, local_average"),
        ({"resume": True}, "--resume needs --output"),
    ],
)
def test_what_is_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        run(replace(SMALL, **changes))
