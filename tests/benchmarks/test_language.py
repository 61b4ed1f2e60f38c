"""Models of language and their texts, and the experiment on local SGD with them."""

import functools
import math
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.common import data, evaluation, tfds_source
from benchmarks.common.batches import BatchOrder
from benchmarks.common.evaluation import Evaluator
from benchmarks.common.family import ALL_METHODS
from benchmarks.common.language import LanguageModel
from benchmarks.common.methods import Course
from benchmarks.common.models import MODELS
from benchmarks.common.network import Network
from benchmarks.common.options import UsageError
from benchmarks.common.run_folder import read_results
from benchmarks.common.traffic import formula
from benchmarks.common.training import Trainer
from benchmarks.language import cells, main, nanogpt, report
from benchmarks.language.cells import NONE, Cell, Outer, Setting
from benchmarks.language.main import Language
from entropix import Compression

TINY = LanguageModel("gpt", characters=7, layers=2, width=8, heads=2, block=6)
LSTM = LanguageModel("lstm", characters=7, layers=1, width=8, heads=1, block=6)
TEXT = np.random.default_rng(0).integers(0, 7, (5, 6))


def variables(model):
    """Drawn anew: biases and scales start at 0 and 1, where a forgotten one would not be seen."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), None, train=False))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: 0.5 * rng.normal(size=leaf.shape).astype(np.float32), shapes)


@functools.cache
def apply(model):
    """Compiled once for all tests."""
    return jax.jit(lambda v, x: model.apply(v, x, train=True))


def by_hand(params, x):
    """The transformer in NumPy and float64, one window and one head at a time."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def norm(v, at):
        centered = v - v.mean(-1, keepdims=True)
        scale = np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-6)
        return centered / scale * at["scale"] + at["bias"]

    dense = lambda v, at: v @ at["kernel"] + at.get("bias", 0.0)
    gelu = lambda v: 0.5 * v * (1 + np.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))
    answers = []
    for window in x:
        stream = p["characters"]["embedding"][window] + p["positions"]["embedding"][: len(window)]
        for name in ("block_0", "block_1"):
            at = p[name]
            query, key, value = np.split(
                dense(norm(stream, at["norm_1"]), at["attention_in"]), 3, 1
            )
            heads = []
            for h in (slice(0, 4), slice(4, 8)):
                rows = []
                for place in range(len(window)):
                    score = key[: place + 1, h] @ query[place, h] / 2
                    share = np.exp(score - score.max())
                    rows.append(share / share.sum() @ value[: place + 1, h])
                heads.append(np.stack(rows))
            stream = stream + dense(np.concatenate(heads, 1), at["attention_out"])
            stream = stream + dense(
                gelu(dense(norm(stream, at["norm_2"]), at["hidden"])), at["out"]
            )
        answers.append(dense(norm(stream, p["norm"]), p["head"]))
    return np.stack(answers)


def test_the_transformer_is_the_one_by_hand():
    start = variables(TINY)
    logits = apply(TINY)(start, TEXT)
    np.testing.assert_allclose(logits, by_hand(start["params"], TEXT), rtol=0, atol=2e-4)


@pytest.mark.parametrize("model", [TINY, LSTM], ids=["gpt", "lstm"])
def test_no_place_sees_what_follows(model):
    start = variables(model)
    changed = TEXT.copy()
    changed[:, 3] = (changed[:, 3] + 1) % 7
    moved = np.abs(apply(model)(start, changed) - apply(model)(start, TEXT)).max((0, 2))
    assert (moved[:3] == 0).all()
    assert (moved[3:] > 1e-3).all()


@pytest.mark.parametrize(
    ("name", "count"),
    [
        # Embeddings of 65 characters and 64 places, 12 w^2 + 13 w in each block, the last
        # normalization and the head.
        ("gpt_small", 129 * 128 + 4 * (12 * 128**2 + 13 * 128) + 2 * 128 + 65 * 128),
        ("gpt_tiny", 129 * 64 + 2 * (12 * 64**2 + 13 * 64) + 2 * 64 + 65 * 64),
        ("char_lstm", 65 * 128 + 2 * (8 * 128**2 + 4 * 128) + 128 * 65 + 65),
    ],
)
def test_sizes(name, count):
    module = MODELS[name].build(65, 0.0)
    assert Network(module, (MODELS[name].block,)).num_parameters() == count


def test_windows_follow_each_other_and_none_is_cut():
    x, y = data.windows(np.arange(21), 5)
    np.testing.assert_array_equal(x, np.arange(20).reshape(4, 5))
    np.testing.assert_array_equal(y, x + 1)
    assert data.windows(np.arange(20), 5)[0].shape == (3, 5)
    assert data.windows(np.arange(3), 5)[0].shape == (0, 5)


class Builder:
    """A TFDS builder of texts."""

    name = "lines"

    def __init__(self, **splits):
        self.splits = splits
        self.info = SimpleNamespace(
            full_name="lines/1.0.0", splits=splits, features={"text": None}, supervised_keys=None
        )

    def is_prepared(self):
        return True

    def as_data_source(self, split):
        lines = self.splits[split]
        get = lambda places: [{"text": lines[place]} for place in places]
        return type("Source", (), {"__len__": lambda _: len(lines),
                                   "__getitems__": lambda _, places: get(places)})()  # fmt: skip


def test_a_text_is_numbered_by_the_characters_that_occur(monkeypatch):
    builder = Builder(train=[b"cab\n", b"bad"], test=[b"deed cab"], validation=[b"bead"])
    monkeypatch.setattr(tfds_source, "open_builder", lambda *_: builder)
    text = data.load("lines", block=2)
    alphabet = "\nabcde"
    read = lambda rows: ["".join(alphabet[code] for code in row) for row in rows]
    assert (text.num_classes, text.is_text, text.predictions) == (6, True, 2)
    assert read(text.x_train) == ["ca", "b\n", "ba"]
    assert read(text.y_train) == ["ab", "\nb", "ad"]
    # Judged on the validation text; the test text stays unseen.
    assert (read(text.x_test), read(text.y_test)) == (["be"], ["ea"])
    with pytest.raises(UsageError, match="'lines' are shorter than the 64"):
        data.load("lines", block=64)
    builder.info.features = {"text": None, "label": None}
    with pytest.raises(UsageError, match=r"'lines' is not a text.*tiny_shakespeare"):
        data.load("lines", block=2)
    with pytest.raises(UsageError, match=r"'digits' is not a text.*tiny_shakespeare"):
        data.load("digits", block=2)


def test_wikitext_says_all_that_it_needs(monkeypatch):
    monkeypatch.setattr(tfds_source.importlib.util, "find_spec", lambda _: None)
    needs = "'wikitext2' .*pip install datasets huggingface_hub; .*reaches huggingface.co"
    with pytest.raises(UsageError, match=needs):
        data.load("wikitext2", block=64)


def some_text():
    """A text with a rule: each character tells the next but one."""
    rng = np.random.default_rng(3)
    codes = np.repeat(rng.integers(0, 7, 200), 2)
    x, y = data.windows(codes, 6)
    return data.Dataset("rule", x[:50], y[:50], x[50:], y[50:], 7)


@pytest.mark.slow
def test_loss_and_error_are_per_character():
    text, network = some_text(), Network(TINY, (6,))
    params = variables(TINY)["params"]
    stacked = jax.tree.map(lambda leaf: leaf[None], params)
    on_device = jax.device_put(((text.x_train, text.y_train), (text.x_test, text.y_test)))
    scores = Evaluator(network, *on_device).scores(stacked, {}, whole=True)
    logits = by_hand(params, text.x_test)
    chosen = np.take_along_axis(logits, text.y_test[..., None], -1)[..., 0]
    loss = np.mean(np.log(np.exp(logits).sum(-1)) - chosen)
    np.testing.assert_allclose(scores.test_loss, [loss], rtol=1e-4)
    np.testing.assert_allclose(scores.test_error, [(logits.argmax(-1) != text.y_test).mean()])


def test_a_point_of_a_curve_takes_the_first_characters_of_both_parts(monkeypatch):
    """Images are all judged; a whole text at each point would take half as long as the training."""
    monkeypatch.setattr(evaluation, "CURVE_IMAGES", 12)
    monkeypatch.setattr(Evaluator, "_means", lambda self, _, __, x, y: ([len(x)], [len(y)]))
    for shape, judged in (((6,), 2), ((), 16)):
        train, test = ((jnp.zeros((n, 6)), jnp.zeros((n, *shape), int)) for n in (20, 16))
        network = Network(TINY, (6,))
        glance = Evaluator(network, train, test).glance({}, {})
        assert glance.train_loss == [12 // max(1, sum(shape))]
        assert (glance.test_error, glance.test_loss) == ([judged], [judged])
        assert Evaluator(network, train, test).scores({}, {}, whole=True).test_loss == [16]


@pytest.mark.parametrize(
    ("compression", "sent"),
    [(None, 8 * 1000 * 3 / 4 / 10), (Compression("bfloat16"), 4 * 1000 * 3 / 4 / 10),
     (Compression("int8", block_size=100), 2 * 1.04 * 1000 * 3 / 4 / 10)],
)  # fmt: skip
def test_the_formula_of_the_bytes(compression, sent):
    assert formula(1000, 10, 4, compression) == pytest.approx(sent)
    assert formula(1000, 10, 1, compression) == 0


QUICK = {"sgd", "replicated_sgd"}


@pytest.mark.parametrize(
    "name",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in ALL_METHODS],
)
def test_every_method_of_a_comparison_trains_on_a_text(name):
    """Traced, not run: two seeds, and three replicas where there are any."""
    method, text = ALL_METHODS[name], some_text()
    values = method.hyperparameters("gpt_tiny", {})

    def build(key, axis_name):
        course = Course(300, 1e-3, axis_name if method.replicated else ())
        return method.build(values, course, key)

    trainer = Trainer(
        Network(TINY, (6,)), build, (text.x_train, text.y_train), (0, 7), batch_size=4,
        replicas=3 if method.replicated else 1, weights=method.weights,
        smooth=method.smooth and method.smooth(values),
    )  # fmt: skip
    state = jax.eval_shape(trainer._init, jax.eval_shape(trainer._starts))
    places = jax.eval_shape(lambda: jnp.asarray(trainer._places(0, 1)))
    data = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, trainer._data))
    after = jax.eval_shape(trainer._many_steps, state, places, jnp.int32(1), data)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    params, _ = jax.eval_shape(trainer._weights, state)
    assert params["characters"]["embedding"].shape == (2, 7, 8)


SETTING = Setting(Network(TINY, (6,)), some_text(), batch_size=4, steps=12)


@pytest.mark.slow
@pytest.mark.parametrize("compression", ["", "bfloat16", "int8"])
def test_the_compiled_step_sends_what_the_formula_says(compression):
    model = MODELS["gpt_tiny"].build(65, 0.0)
    x = np.zeros((8, 64), np.int32)
    setting = Setting(Network(model, (64,)), data.Dataset("x", x, x, x, x, 65), 8, 100)
    sent = cells.traffic(setting, 4, 30, compression)
    assert sent["counted"] == pytest.approx(sent["formula"], rel=0.01)


@pytest.mark.slow
def test_without_an_outer_optimizer_it_is_adamw():
    """And H, rates and outer optimizer are arguments of one program."""
    cell = Cell(1, 1, NONE, 0.01, seed=0)
    trained = cells.train(SETTING, cell)
    network, text = SETTING.network, SETTING.data
    course = optax.warmup_cosine_decay_schedule(0.0, 0.01, 1, 12, 0.001)
    tx = optax.adamw(course, b2=0.99, weight_decay=0.1)
    params, _ = network.init(jax.random.key(0))
    state = tx.init(params)
    places = BatchOrder(50, 4, (0,)).indices(0, 12)[:, 0, 0]
    loss = lambda params, x, y: network.training_loss(params, {}, x, y, jax.random.key(0))[0]
    for rows in places:
        grads = jax.jit(jax.grad(loss))(params, text.x_train[rows], text.y_train[rows])
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), trained, params)
    other = cells.train(SETTING, replace(cell, every=5, outer=Outer(0.7, 0.9)))
    assert max(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.abs(a - b).max(), trained, other))) > 0
    assert cells._program.cache_info().currsize == 1


def tried(outer, every, losses):
    return {
        f"{rate}": {"tuning": True, "outer": outer, "every": every, "learning_rate": rate,
                    "loss": loss}
        for rate, loss in losses.items()
    }  # fmt: skip


def test_rates_are_tried_beyond_an_end_that_is_best():
    options = Language(rates=(1.0, 2.0))
    like = Cell(4, 10, Outer(0.7, 0.9), 0.0, seed=0, tuning=True)
    found, rates = {"cells": {}}, []
    loss = lambda rate: abs(math.log2(rate) - 3.2)
    for cell in main.tuning_cells(options, found, like):
        rates.append(cell.learning_rate)
        found["cells"] |= tried("0.7/0.9", 10, {cell.learning_rate: loss(cell.learning_rate)})
    assert rates == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert main.best_rate(found, like.outer, 10) == 8.0


def test_the_tables_and_what_they_say(tmp_path):
    configuration = {
        "model": "gpt_tiny", "workers": [2, 4], "every": [1, 10], "seeds": 2, "steps": 100,
        "batch_size": 4,
    }  # fmt: skip
    what = {"tuning": False, "compression": "", "learning_rate": 0.1}
    final = {
        f"{at}": {**what, "workers": m, "every": h, "outer": outer, "seed": seed,
                  "loss": 2.0 + 0.1 * (outer == "0.3/0.9") + 0.01 * seed + 0.001 * seed * m}
        for at, (outer, m, h, seed) in enumerate(
            (o, m, h, s) for o in ("0.7/0.9", "0.3/0.9") for m in (2, 4) for h in (1, 10)
            for s in (0, 1))
    }  # fmt: skip
    final["baseline"] = {**what, "workers": 1, "every": 1, "outer": "1/0", "seed": 0, "loss": 1.9}
    final["small"] = {**final["7"], "compression": "int8", "loss": 2.3}
    final |= {f"t{name}": {**cell, "workers": 4} for name, cell in
              tried("0.7/0.9", 10, {0.1: 2.5, 0.2: 2.4}).items()}  # fmt: skip
    found = {
        "configuration": configuration, "command": "python -m benchmarks language",
        "environment": {}, "cells": {name: {"compression": "", "seed": 0} | cell
                                     for name, cell in final.items()},
        "data": {"name": "text", "train": 1000, "test": 100},
        "model": {"summary": "GPT", "parameters": 10, "block": 8},
        "traffic": {"M=2 H=10": {"formula": 100.0, "counted": 100.5},
                    "M=2 H=10 int8": {"formula": 0.0, "counted": 0.0}},
    }  # fmt: skip
    table = report.loss_table(found, "0.7/0.9")
    assert list(table["H = 10"]) == ["2.006 ± 0.006", "2.007 ± 0.007"]
    assert list(report.traffic_table(found)["quotient"]) == ["1.0050", "-"]
    tuning = report.tuning_table(found, ["0.7/0.9"])
    assert dict(tuning.iloc[0]) == {"outer": "0.7/0.9", "H": "10", "0.1": "2.500", "0.2": "2.400",
                                    "best": "0.2", "best, effective": "1.4"}  # fmt: skip
    sentences = report.verdict(found, ["0.7/0.9", "0.3/0.9"])
    assert "H = 10, 10 meetings: 0.7/0.9 minus 0.3/0.9, mean over M, -0.1000" in sentences[1]
    assert sentences[1].endswith("0.7/0.9 is better.")
    # Of AdamW there is one seed of two.
    assert report.against_adamw(found, ["0.7/0.9"]) == []
    found["cells"]["baseline 1"] = {**found["cells"]["baseline"], "seed": 1, "loss": 1.93}
    (best,) = report.against_adamw(found, ["0.7/0.9", "0.3/0.9"])
    # 2.000 and 2.012 against 1.900 and 1.930.
    assert "that of 0.7/0.9, M = 2, H = 1, minus AdamW's alone: +0.0910 (95%" in best
    found["cells"] |= {f"o{name}": {"compression": "", "workers": 4} | cell for name, cell in
                       tried("0.3/0.9", 10, {0.1: 2.7, 0.2: 2.5, 0.4: 2.3}).items()}  # fmt: skip
    rates, alike = report.explanation(found, ["0.7/0.9", "0.3/0.9"])
    assert "0.7/0.9 multiplies the workers' way by 7 and 0.3/0.9 by 3, 2.33 times less" in rates
    assert "0.3/0.9 takes 2 times the inner rate of 0.7/0.9 at H = 10: 2.00 times in" in rates
    # At 0.1 and at 0.2, the rates that both have tried.
    assert "is -0.150 nats of held-out text in the mean of 2 pairs, from -0.200 to -0.100" in alike
    assert report.missing(found, ["0.7/0.9", "0.3/0.9"]) == 0
    # Seed 1 alone was made with few bits: one seed says nothing.
    assert report.compression_table(found).iloc[0]["measurably worse"] == "no"
    report.write(tmp_path, found)
    text = (tmp_path / "report.md").read_text()
    assert "every run sees 3,200 characters of the 1,000" in text
    assert "Not whole" not in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": (3,)}, "--workers must divide --batch-size 8, got 3"),
        ({"every": (500,)}, "--every must be at most --steps 400, got 500"),
        ({"model": "mlp"}, "model 'mlp' is unknown; accepted: gpt_small"),
        ({"rates": (0.0,)}, "--rates takes numbers above 0"),
    ],
)
def test_what_is_refused(changes, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        main.run(replace(Language(), output=tmp_path / "out", **changes))


@pytest.mark.slow
def test_adamw_beside_the_losses_of_others(tmp_path, monkeypatch):
    monkeypatch.setattr(nanogpt, "make_setting", lambda options, holdout: SETTING)
    monkeypatch.setattr(nanogpt, "REPORTED", {0.01: 1.5})
    options = nanogpt.NanoGPT(rates=(0.01, 0.02), output=tmp_path / "run")
    assert nanogpt.run(options) == 0
    found = read_results(tmp_path / "run")
    table = nanogpt.beside_others(found)
    expected = cells.losses(SETTING, cells.train(SETTING, Cell(1, 1, NONE, 0.01, seed=0)))["loss"]
    assert list(table["learning rate"]) == ["0.01", "0.02"]
    assert list(table["here minus reported"]) == [f"{expected - 1.5:+.3f}", "-"]
    text = (tmp_path / "run/report.md").read_text()
    assert "12 steps of 4 windows" in text
    # What is there is not trained again.
    monkeypatch.setattr(nanogpt, "train", None)
    assert nanogpt.run(replace(options, resume=True)) == 0


@pytest.mark.skipif("TFDS_DATA_DIR" not in os.environ, reason="needs real data in TFDS_DATA_DIR")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_real_text():
    if not (Path(os.environ["TFDS_DATA_DIR"]) / "tiny_shakespeare").exists():
        pytest.skip("no tiny_shakespeare in TFDS_DATA_DIR")
    text = data.load("tiny_shakespeare", block=64)
    assert text.num_classes == 65
    assert text.x_train.shape == (1003853 // 64, 64)
    assert text.x_test.shape == (55769 // 64, 64)
