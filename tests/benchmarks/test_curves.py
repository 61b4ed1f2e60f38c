"""Errors along the runs, at other budgets and on several devices: counted, paired, reproducible."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import entropix
from benchmarks.common.models import Dense
from benchmarks.common.network import Network
from benchmarks.common.options import UsageError
from benchmarks.common.traffic import sent_per_step
from benchmarks.tuning import budgets, curves, devices, parallel, rows, training
from benchmarks.tuning.contenders import Run
from benchmarks.tuning.entropic import CONTENDERS
from benchmarks.tuning.parallel import PARALLEL
from benchmarks.tuning.rows import Row
from benchmarks.tuning.space import points
from benchmarks.tuning.training import Trainings, Trial
from entropix import replicas

GRADIENTS = 240
ROW = Row("tiny", "digits", GRADIENTS, images=200, batch_size=16)
NETWORK = Network(Dense((8,), 10, 0.0), (8, 8, 1))


def values_of(name):
    """A point of a space, the loops short enough for a short run."""
    contender = PARALLEL.get(name) or CONTENDERS[name]
    short = {"inner_steps": 10, "gamma": 0.1, "noise": 1e-3, "every": 5}
    [values] = points(contender.space, 1, seed=3)
    return {key: short.get(key, value) for key, value in values.items()}


def test_a_run_is_judged_after_whole_cycles_and_at_its_end():
    marks = lambda name, inner, count: curves.marks_of(
        name, CONTENDERS[name], {"inner_steps": inner} if inner else {}, 600, count
    )
    assert marks("sgd", None, 4) == [150, 300, 450, 600]
    # Three steps of two gradients do not fit; a gradient is an update.
    assert marks("sam", None, 8) == [76, 150, 224, 300, 376, 450, 524, 600]
    assert marks("entropy_sgd", 100, 4) == [200, 300, 400, 600]
    assert marks("parle", 50, 8) == [50, 100, 150, 200]
    assert marks("diloco", 30, 5) == [30, 60, 90, 120, 150]
    for name, inner in (("parle", 30), ("diloco", 100)):
        with pytest.raises(UsageError, match=rf"600 gradients .* {name}: {inner} updates"):
            marks(name, inner, 4)


def test_bytes_are_those_of_a_ring_at_every_meeting():
    of = lambda name, values: parallel.sent(
        (PARALLEL.get(name) or CONTENDERS[name]), values, 1000, 600
    )
    assert of("sgd", {}) == 0
    assert of("entropy_sgd", {"inner_steps": 20}) == 0
    assert of("parallel_sgd_4", {}) == pytest.approx(600 * 8 * 1000 * 3 / 4)
    assert of("parallel_adamw_3", {}) == pytest.approx(600 * 8 * 1000 * 2 / 3)
    assert of("diloco", {"inner_steps": 30}) == pytest.approx(20 * 8 * 1000 * 3 / 4)
    assert of("parle", {"inner_steps": 50}) == pytest.approx(12 * 8 * 1000 * 2 / 3)
    assert of("replicated_sgd", {"every": 5}) == pytest.approx(120 * 8 * 1000 * 2 / 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*devices.METHODS, "parallel_adamw_3"])
def test_a_compiled_step_sends_what_is_said(name):
    """The optimizer with a copy on each device, read off its program."""
    contender, values = PARALLEL.get(name) or CONTENDERS[name], values_of(name)
    count = contender.copies
    plan = replicas.plan(count, devices=count)
    tx = contender.build(values, Run(600, jax.random.key(0), plan.axis_name))
    shape = {"w": jax.ShapeDtypeStruct((count, 64, 32), jnp.float32)}

    def start():
        params = {"w": jnp.zeros((count, 64, 32))}
        return params, replicas.stack_states(tx.init, params)

    def step(state, grads):
        params, opt_state = state
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    state = jax.eval_shape(start)
    placed = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        state,
        plan.shardings(state),
    )
    gradients = {"w": jax.ShapeDtypeStruct(shape["w"].shape, jnp.float32)}
    text = jax.jit(plan.run(step)).lower(placed, gradients).compile().as_text()
    every = parallel.steps_between_meetings(values)
    # A few numbers beside the weights are nothing.
    assert sent_per_step(text, every, count) * 600 == pytest.approx(
        parallel.sent(contender, values, 64 * 32, 600), rel=0.01
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["parallel_sgd_3", "parallel_adamw_4"])
def test_a_data_parallel_step_is_one_of_the_mean_gradient(name):
    contender, values = PARALLEL[name], values_of(name)
    alone = {"parallel_sgd_3": "sgd", "parallel_adamw_4": "adamw"}[name]
    grads = jnp.asarray(np.random.default_rng(0).normal(size=(2, contender.copies, 5)), jnp.float32)
    both = [
        contender.build(values, Run(10, jax.random.key(0), ("d",))),
        CONTENDERS[alone].build(values, Run(10, jax.random.key(0))),
    ]
    w = jnp.arange(5.0)
    states = [tx.init(w) for tx in both]
    # The second step sees what momentum the first has left.
    for grad in grads:
        spread, states[0] = jax.vmap(
            both[0].update, in_axes=(0, None, None), out_axes=(0, None), axis_name="d"
        )(grad, states[0], w)
        one, states[1] = both[1].update(grad.mean(0), states[1], w)
        np.testing.assert_allclose(spread, np.broadcast_to(one, spread.shape), rtol=1e-5, atol=1e-8)


@pytest.mark.slow
def test_a_curve_ends_where_the_run_without_it_ends_and_passes_where_it_was():
    name, data = "entropy_sgd", rows.prepare(ROW)
    contender, values = CONTENDERS[name], values_of(name)
    course = curves.Course(ROW, NETWORK, data, (5, 6), 2 * GRADIENTS, 3)
    found = course.follow(name, contender, values, [GRADIENTS])[str(GRADIENTS)]
    assert found["gradients"] == found["updates"] == [80, 160, 240]
    images = jax.device_put((data.x_train, data.y_train))
    folds = rows.whole((5, 6), 200)
    trainings = Trainings(NETWORK, contender, images, folds, batch_size=16, gradients=GRADIENTS)
    [trained] = trainings.train([Trial(values, 0), Trial(values, 1)], GRADIENTS)
    assert found["error"][-1] == course._errors(trained.params, trained.batch_stats)
    # Step by step, as far as the first mark.
    starts = training.starts_of(NETWORK, 1, jnp.asarray([5], jnp.uint32))
    start = jax.tree.map(lambda leaf: leaf[0, 0], starts)
    tx, here = contender.build(values, Run(GRADIENTS, start.noise_key)), start.params
    state = tx.init(here)

    @jax.jit
    def step(here, state, at):
        loss = lambda here: NETWORK.training_loss(
            here, {}, images[0][at], images[1][at], jax.random.key(0)
        )[0]
        updates, state = tx.update(jax.grad(loss)(here), state, here)
        return optax.apply_updates(here, updates), state

    for at in training.places_of(folds[0], 1, 16, 80)[:, 0]:
        here, state = step(here, state, at)
    judged = jax.tree.map(lambda leaf: leaf[None], entropix.eval_params(state, here))
    [error] = course._errors(judged, {})
    assert found["error"][0][0] == pytest.approx(error, abs=2 / len(data.x_test))
    assert found["error"][0][0] != found["error"][-1][0]


def curve(errors, gradients=(300, 600), devices=1):
    """A made-up record of one run of three seeds."""
    return {
        "updates": [one // devices for one in gradients],
        "gradients": list(gradients),
        "error": [[0.5, 0.5, 0.5], errors],
        "devices": devices, "every": None if devices == 1 else 5, "bytes": [1e6, 2.5e6],
        "values": {},
    }  # fmt: skip


def test_budgets_are_compared_at_their_ends_seed_by_seed():
    runs = {"sgd": [0.20, 0.22, 0.24], "muon": [0.19, 0.21, 0.23], "parle": [0.2, 0.22, 0.241]}
    found = {
        "configuration": {"gradients": [600], "seeds": 3},
        "row": {"batch_size": 32},
        "train": 1000,
        "methods": {name: {"budgets": {"600": curve(one)}} for name, one in runs.items()},
    }
    shown = budgets.table(found)
    assert list(shown) == ["method", "600 gradients (19.2 epochs)"]
    assert shown.iloc[0, 1] == "22.00 ± 1.15"
    said = budgets.against(found)
    assert said["method"].tolist() == ["muon", "parle"]
    assert said["600"].tolist()[0].startswith("-1.00 (-1.00 to -1.00), wins")
    assert said["600"].tolist()[1].endswith("ties")
    axes = budgets.picture(found).axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    np.testing.assert_allclose(lines["muon"].get_xdata(), [300, 600])
    np.testing.assert_allclose(lines["muon"].get_ydata(), [50, 21])


def test_replicas_are_held_against_as_many_data_parallel_devices():
    found = {
        "configuration": {"methods": ["parle"], "seeds": 3},
        "methods": {
            "sgd": curve([0.2, 0.2, 0.2]),
            "parle": curve([0.20, 0.21, 0.22], devices=3),
            "parallel_sgd_3": curve([0.25, 0.26, 0.27], devices=3),
            "parallel_adamw_3": curve([0.10, 0.11, 0.12], devices=3),
        },
    }
    shown = devices.table(found).set_index("method")
    assert shown.loc["parle", "minus data-parallel SGD"].endswith("wins")
    assert shown.loc["parle", "minus data-parallel AdamW"].startswith("+10.00")
    assert shown.loc["parle", "parallel steps"] == "200"
    assert shown.loc["parle", "MB sent by each"] == "2.5"
    assert shown.loc["sgd", "minus data-parallel SGD"] == ""
    left, right = devices.picture(found).axes
    assert [one.get_label() for one in left.lines] == ["parle", "parallel_sgd", "parallel_adamw"]
    np.testing.assert_allclose(left.lines[0].get_xdata(), [1, 2.5])
    np.testing.assert_allclose(right.lines[1].get_xdata(), [100, 200])


def test_only_what_is_recorded_is_trained_again(tmp_path):
    for options in (
        budgets.Budgets(row="cifar10", output=tmp_path),
        devices.Devices(row="cifar10", output=tmp_path),
    ):
        module = budgets if isinstance(options, budgets.Budgets) else devices
        with pytest.raises(UsageError, match="--row cifar10 has no recorded table"):
            module.run(options)
    with pytest.raises(UsageError, match="must name sgd, got 'muon'"):
        budgets.run(budgets.Budgets(row="digits", methods=("muon",), output=tmp_path))
    with pytest.raises(UsageError, match="70 gradients are no whole number of cycles of diloco"):
        budgets.run(
            budgets.Budgets(
                row="digits", methods=("sgd", "diloco"), gradients=(70,), output=tmp_path
            )
        )


def tiny_record(row, methods):
    """The record of a table that was tuned with two trials."""
    return {
        "row": {"title": "tiny", "gradients": 60, "batch_size": 16},
        "plan": {"trials": 2, "kept": 1, "folds": 2, "early_folds": 1, "seed": 0},
        "tuned": {name: {"values": values_of(name)} for name in methods},
    }


@pytest.fixture
def tiny(monkeypatch):
    """Commands on a row that is over in a moment."""
    row = Row("tiny", "digits", 60, images=200, batch_size=16)
    monkeypatch.setitem(rows.ROWS, "digits", row)
    for module in (budgets, devices):
        monkeypatch.setattr(module, "recorded_winners", tiny_record)
        monkeypatch.setattr(module, "network_of", lambda row, data: NETWORK)


@pytest.mark.slow
def test_both_commands_write_and_go_on(tmp_path, tiny):
    one = budgets.Budgets(
        row="digits", methods=("sgd", "sam"), gradients=(60, 120), points=3, seeds=2,
        output=tmp_path / "budgets",
    )  # fmt: skip
    two = devices.Devices(
        row="digits", methods=("replicated_sgd",), points=2, seeds=2, output=tmp_path / "devices"
    )
    for module, options in ((budgets, one), (devices, two)):
        assert module.run(options) == 0
        file = options.output / "results.json"
        found = json.loads(file.read_text())
        kept = dict(found["methods"])
        last = list(kept)[-1]
        del found["methods"][last]
        file.write_text(json.dumps(found))
        assert module.run(type(options)(**{**vars(options), "resume": True})) == 0
        assert json.loads(file.read_text())["methods"] == kept
        assert (options.output / "report.html").exists()
    found = json.loads((one.output / "results.json").read_text())
    assert found["methods"]["sam"]["budgets"]["120"]["gradients"] == [40, 80, 120]
    found = json.loads((two.output / "results.json").read_text())
    assert list(found["methods"]) == ["sgd", "replicated_sgd", "parallel_sgd_3", "parallel_adamw_3"]
    assert [len(record["trials"]) for record in found["tuned"].values()] == [2, 2]
    record = found["methods"]["parallel_sgd_3"]
    assert (record["updates"], record["gradients"]) == ([10, 20], [30, 60])
    weights = NETWORK.num_parameters()
    assert record["bytes"] == pytest.approx([10 * 8 * weights * 2 / 3, 20 * 8 * weights * 2 / 3])
    assert found["methods"]["replicated_sgd"]["bytes"] == pytest.approx(
        [one / 5 for one in record["bytes"]]
    )
