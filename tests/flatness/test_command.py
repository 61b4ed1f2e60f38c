"""`python -m entropix.flatness` on a model in a file: numbers, checkpoints, masks, resuming."""

import json

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
import pytest

from entropix.flatness import __main__ as command
from entropix.flatness._survey import ESTIMATORS

MODEL = """
import jax.numpy as jnp

def loss(params, batch):
    scale = jnp.mean(batch["scale"])
    return scale * (3 * params["a"]["w"] @ params["a"]["w"] + params["b"]["w"] @ params["b"]["w"])

def start():
    return {"a": {"w": jnp.ones(2)}, "b": {"w": jnp.ones(3)}}

def problem():
    return loss, start(), {"scale": jnp.ones(4)}

def data():
    return {"scale": jnp.full(4, 0.5)}
"""
# Hessian: 6 twice, 2 three times.
TRACE = 18


@pytest.fixture
def run(tmp_path, monkeypatch):
    (tmp_path / "a_quadratic_model.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)

    def run(*arguments, estimators=("trace",)):
        code = command.main(
            ["a_quadratic_model:problem", "--no-pictures", "--estimators", *estimators, *arguments]
            if not arguments or ":" not in arguments[0]
            else [*arguments, "--no-pictures", "--estimators", *estimators]
        )
        if code:
            return code
        rows = json.loads((tmp_path / "flatness" / "results.json").read_text())["rows"]
        return {row["quantity"]: row["value"] for found in rows.values() for row in found}

    return run


def test_numbers_table_and_pictures(run, capsys, tmp_path):
    found = run(estimators=("about", "trace"))
    assert found["trace of the Hessian"] == pytest.approx(TRACE, rel=1e-4)
    assert found["loss"] == 9
    assert found["parameters"] == 5
    shown = capsys.readouterr().out
    assert "trace of the Hessian" in shown
    assert "standard error" in shown
    options = ["a_quadratic_model:problem", "--estimators", "slice"]
    assert command.main(options) == 0
    assert list((tmp_path / "flatness").glob("*.png"))


def test_mask_chooses_parameters_by_their_path(run):
    found = run("--mask", "^b/", estimators=("about", "trace"))
    assert found["trace of the Hessian"] == pytest.approx(6, rel=1e-4)
    assert found["loss"] == 9
    assert found["parameters"] == 3


def test_finished_estimators_are_not_run_again_unless_the_question_changed(run, monkeypatch):
    first = run()
    calls = []

    def counted(problem):
        calls.append(problem)
        return ESTIMATORS["about"](problem)

    monkeypatch.setitem(command.ESTIMATORS, "trace", counted)
    assert run() == first
    assert not calls
    run("--seed", "1")
    assert len(calls) == 1
    assert run("--mask", "a") != first
    assert len(calls) == 2


def test_a_damaged_result_is_measured_anew(run, tmp_path):
    first = run()
    (tmp_path / "flatness" / "trace.json").write_text('{"fingerprint": "')
    assert run() == first


def test_parameters_of_a_checkpoint(run, tmp_path):
    params = {"a": {"w": jnp.zeros(2)}, "b": {"w": 2 * jnp.ones(3)}}
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "checkpoint", {"params": params, "step": jnp.zeros(2)})
    at = ("--checkpoint", "checkpoint", "--item", "params")
    assert run(*at, estimators=("about",))["loss"] == 12
    loss = "a_quadratic_model:loss"
    found = run(loss, *at, "--data", "a_quadratic_model:data", estimators=("about",))
    assert found["loss"] == 6
    np.savez(tmp_path / "batch.npz", scale=np.full(4, 0.25, np.float32))
    assert run(loss, *at, "--data", "batch.npz", estimators=("about",))["loss"] == 3
    assert run("--checkpoint", "checkpoint", "--item", "weights") == 2
    assert run("--checkpoint", "checkpoint") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing_of_this_name:f",), "nothing_of_this_name"),
        (("a_quadratic_model:f",), "'f'"),
        (("a_quadratic_model:start",), "a_quadratic_model:start"),
        (("--mask", "kernel"), "a/w, b/w, got 'kernel'"),
        (("--checkpoint", "nowhere"), "nowhere"),
        (("--data", "batch.npz"), "--data needs --checkpoint"),
    ],
)
def test_mistakes_are_told_without_a_traceback(run, capsys, arguments, message):
    assert run(*arguments) == 2
    assert message in " ".join(capsys.readouterr().out.split())
    assert run(estimators=("hessian",)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("mask", [(), ("--mask", "^b/")])
def test_layer_by_layer(run, mask):
    found = run("--per-layer", *mask, estimators=("about",))
    expected = {"a (2)": (12, 6), "b (3)": (6, 2)}
    for layer in expected if not mask else ["b (3)"]:
        names = f"trace of layer {layer}", f"largest eigenvalue of layer {layer}"
        assert [found[name] for name in names] == pytest.approx(expected[layer], rel=1e-4)
    assert ("trace of layer a (2)" in found) == (not mask)


@pytest.mark.slow
def test_every_estimator_answers(run, tmp_path):
    found = run(estimators=tuple(ESTIMATORS))
    rows = json.loads((tmp_path / "flatness" / "results.json").read_text())["rows"]
    errors = {row["quantity"]: row["error"] for answers in rows.values() for row in answers}
    assert found["largest eigenvalue 1"] == pytest.approx(6, rel=1e-4)
    assert found["smallest eigenvalue 1"] == pytest.approx(2, rel=1e-4)
    # sigma^2 / 2 times the sum of H_ii w_i^2, with w = 1; a hundred draws of sigma times the slope.
    slope = np.sqrt(2 * 6**2 + 3 * 2**2)
    for sigma in (0.03, 0.1, 0.3):
        name = f"local energy at sigma = {sigma}"
        assert errors[name] == pytest.approx(sigma * slope / 10, rel=0.3)
        assert found[name] == pytest.approx(9 * sigma**2, abs=2 * errors[name])
    exact = -9 - (2 * np.log1p(6 / 10) + 3 * np.log1p(2 / 10)) / 2
    exact += (2 * 36 / 16 + 3 * 4 / 12) / 2
    assert found["local entropy at gamma = 10"] == pytest.approx(exact, abs=0.2)
    assert len(found) > 20
