"""Every method is tuned alike: as many trials, as many gradients, no look at a test image."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import entropix
from benchmarks.common.batches import BatchOrder
from benchmarks.common.data import load
from benchmarks.common.intervals import interval
from benchmarks.common.models import Dense
from benchmarks.common.network import Network
from benchmarks.tuning import defaults, gammas, rows, search, statistics, training
from benchmarks.tuning import found as page
from benchmarks.tuning.contenders import Run
from benchmarks.tuning.entropic import CONTENDERS
from benchmarks.tuning.rows import Row
from benchmarks.tuning.scores import calibration_error, error_and_loss
from benchmarks.tuning.search import Plan, Store
from benchmarks.tuning.space import Choice, Linear, Log, points
from benchmarks.tuning.training import Trainings, Trial

BATCH, GRADIENTS = 16, 60
# The four whose optimizers take the most different ways; the rest is slow to compile.
QUICK = ("sgd", "sam", "entropy_sgd", "replicated_sgd")


def values_of(name, count=2):
    """Points of a space, the inner loops short enough for a short run."""
    short = {"inner_steps": 5, "gamma": 0.1, "noise": 1e-3}
    return [
        {key: short.get(key, value) for key, value in one.items()}
        for one in points(CONTENDERS[name].space, count, seed=3)
    ]


@functools.cache
def setting():
    digits = load("digits")
    images = jax.device_put((digits.x_train[:200], digits.y_train[:200]))
    return Network(Dense((8,), 10, 0.0), (8, 8, 1)), images


FOLDS = rows.folds(2, 200)


def one_at_a_time(name, values, fold):
    """The same training by a plain loop of steps, every hyper-parameter a Python number."""
    contender, (network, (images, labels)) = CONTENDERS[name], setting()
    copies, updates = contender.copies, contender.updates(GRADIENTS)
    order = BatchOrder(len(fold.seen), BATCH, (fold.seed,), copies)
    places = fold.seen[order.indices(0, updates)[:, 0]]
    starts = training.starts_of(network, copies, jnp.arange(2, dtype=jnp.uint32))
    params = [
        jax.tree.map(lambda leaf, at=at: leaf[fold.seed, at], starts.params) for at in range(copies)
    ]
    if values.get("alike", contender.alike):
        params = [params[0]] * copies

    def gradient(params, at):
        loss = lambda params: network.training_loss(
            params, {}, images[at], labels[at], jax.random.key(0)
        )[0]
        return jax.grad(loss)(params)

    if copies == 1:
        tx = contender.build(values, Run(updates, starts.noise_key[fold.seed, 0]))
        state, here = tx.init(params[0]), params[0]

        @jax.jit
        def step(here, state, at):
            changes, state = tx.update(gradient(here, at), state, here)
            return optax.apply_updates(here, changes), state

        for at in places[:, 0]:
            here, state = step(here, state, at)
        return (contender.weights or entropix.eval_params)(state, here)
    # Stacked replicas, the coupling along an axis of the leaves instead of a mapped one.
    here = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    rate = training_rate(values, updates)
    last = values["share"] * entropix.scoping.largest_stable_gamma(
        values["learning_rate"], every=values["every"], momentum=0.9
    )
    tx = optax.chain(
        entropix.couple_replicas(
            lambda step: last * values["growth"] ** (step / updates - 1),
            every=values["every"],
            axis=0,
        ),
        optax.trace(0.9, nesterov=True),
        optax.add_decayed_weights(values["decay"] / (values["learning_rate"] * updates)),
        optax.scale_by_learning_rate(rate),
    )
    state, update = tx.init(here), jax.jit(tx.update)
    gradients = jax.jit(jax.vmap(gradient))
    for step in range(updates):
        changes, state = update(gradients(here, places[step]), state, here)
        here = optax.apply_updates(here, changes)
    return jax.tree.map(lambda leaf: leaf.mean(0), here)


def training_rate(values, updates):
    """The schedule, written down once more."""

    def rate(step):
        warm = jnp.minimum(1, (step + 1) / (0.05 * updates))
        shape = 0.5 * (1 + jnp.cos(jnp.pi * step / updates)) if values["cosine"] else 1.0
        return values["learning_rate"] * warm * shape

    return rate


def train(name, trials, together=False, gradients=GRADIENTS):
    network, images = setting()
    trainings = Trainings(
        network, CONTENDERS[name], images, FOLDS,
        batch_size=BATCH, gradients=GRADIENTS, together=together,
    )  # fmt: skip
    chunks = [trained.params for trained in trainings.train(trials, gradients)]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *chunks)


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_trials_of_one_program_equal_training_one_at_a_time(name):
    trials = [Trial(values, at) for values in values_of(name) for at in range(2)]
    found = train(name, trials)
    for at in (0, 3):
        alone = one_at_a_time(name, trials[at].values, FOLDS[trials[at].fold])
        jax.tree.map(
            lambda a, b, at=at: np.testing.assert_allclose(a[at], b, rtol=1e-4, atol=1e-5),
            found,
            alone,
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_trials_side_by_side_equal_those_one_after_the_other(name):
    trials = [Trial(values, at) for values in values_of(name) for at in range(2)]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        train(name, trials),
        train(name, trials, together=True),
    )


def losses_at_once(contender, values):
    """At how many weights one update of one copy takes the loss."""
    if contender.smooth is None:
        return 1
    # The sine of one weight stands for the loss; its copies are one axis.
    smoothed = contender.smooth(values)(lambda params, batch: jnp.sin(params["x"]).sum())
    traced = jax.make_jaxpr(smoothed)({"x": jnp.ones(1)}, None, jax.random.key(0))
    [sine] = [one for one in traced.jaxpr.eqns if one.primitive.name == "sin"]
    return sine.outvars[0].aval.shape[0]


def test_every_method_counts_its_gradients():
    for name, contender in CONTENDERS.items():
        [values] = points(contender.space, 1, seed=0)
        assert contender.gradients == losses_at_once(contender, values), name
        taken = contender.updates(4800) * contender.copies * contender.gradients
        assert taken == contender.total(4800), name
        assert taken == 4800 * (3 if name == "replicated_sgd_y" else 1), name
    with pytest.raises(ValueError, match=r"gradients .*3.*100"):
        CONTENDERS["replicated_sgd"].updates(100)


@pytest.mark.parametrize("name", ["sam", "asam"])
def test_two_gradients_of_sam_are_one_step(name):
    [values] = points(CONTENDERS[name].space, 1, seed=0)
    tx = CONTENDERS[name].build(values, Run(8, jax.random.key(0)))
    params = {"w": jnp.ones(3)}
    state, counts = tx.init(params), []
    for _ in range(4):
        updates, state = tx.update({"w": jnp.ones(3)}, state, params)
        params = optax.apply_updates(params, updates)
        counts.append(int(optax.tree.get(state.opt_state, "count")))
    assert counts == [0, 1, 1, 2]


def test_budgets_end_on_a_whole_cycle_for_every_method():
    """An anchor is only evaluated where a loop has ended."""
    for name, contender in CONTENDERS.items():
        cycles = contender.space.get("inner_steps", Choice((1,)))
        for row in rows.ROWS.values():
            updates = contender.updates(row.gradients)
            assert all(updates % cycle == 0 for cycle in cycles.values), (name, row.title)


def test_all_methods_share_the_same_search():
    for name, contender in CONTENDERS.items():
        space = contender.space
        assert {"learning_rate", "decay"} <= set(space), name
        assert ("cosine" in space) == (name != "schedule_free"), name
        rate = space["learning_rate"]
        assert rate.high / rate.low == pytest.approx(300, rel=1e-6), name
        assert space["decay"] == Log(0.03, 30.0), name
        assert Plan().cost(contender, 4800) == Plan().cost(CONTENDERS["sgd"], 4800) * (
            contender.budgets
        )


def test_points_fill_the_space_evenly_and_follow_the_seed():
    space = {"a": Log(1e-3, 1.0), "b": Linear(0.0, 1.0), "c": Choice((1, 5, 20))}
    first, again, other = (points(space, 25, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert first[:10] == points(space, 10, 0)
    logs = np.log10([one["a"] for one in first]) / 3 + 1
    # A first random point, then Sobol's: each eighth of the range holds three of 24.
    assert np.histogram(logs, 8, (0, 1))[0].min() >= 2
    assert {one["c"] for one in first} == {1, 5, 20}
    assert all(isinstance(one["c"], int) for one in first)


def test_wrong_labels_are_the_stated_share_of_the_training_labels_alone():
    clean = load("digits")
    noisy = rows.prepare(dataclasses.replace(rows.ROWS["digits"], label_noise=0.4))
    plain = rows.prepare(rows.ROWS["digits"])
    assert (noisy.y_train != plain.y_train).sum() == round(0.4 * len(plain.y_train))
    np.testing.assert_array_equal(noisy.x_train, plain.x_train)
    np.testing.assert_array_equal(noisy.y_test, clean.y_test)
    np.testing.assert_array_equal(noisy.x_test, clean.x_test)
    # Each other class as often: no class is favored.
    labels = np.zeros(90_000, np.int32)
    counts = np.bincount(rows.wrong_labels(labels, 1.0, 10, seed=0), minlength=10)
    assert counts[0] == 0
    assert stats.chisquare(counts[1:]).pvalue > 1e-3


def test_folds_part_the_training_set():
    parts = rows.folds(5, 1300)
    held = np.concatenate([part.held for part in parts])
    assert sorted(held) == list(range(1300))
    for part in parts:
        assert not set(part.seen) & set(part.held)
        assert len(part.seen) + len(part.held) == 1300
    assert [fold.seed for fold in rows.whole((7, 8), 10)] == [7, 8]


def test_batches_are_of_images_that_the_fold_may_see():
    fold = rows.folds(5, 100)[2]
    places = training.places_of(fold, copies=3, batch_size=8, updates=30)
    assert places.shape == (30, 3, 8)
    assert set(places.ravel()) <= set(fold.seen)


PLAN = Plan(trials=3, kept=2, folds=2, early_folds=1)


def tiny():
    """A row that is over in a moment, of the shapes that the tests above have compiled."""
    return Row("tiny", "digits", GRADIENTS, images=200, batch_size=BATCH)


@pytest.mark.slow
def test_tuning_keeps_every_trial_and_never_reads_a_test_image():
    class NoTest(type(load("digits"))):
        def __getattribute__(self, name):
            assert name not in ("x_test", "y_test"), "tuning looked at the test images"
            return object.__getattribute__(self, name)

    plain = rows.prepare(tiny())
    fields = {field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)}
    shown, sgd = [], CONTENDERS["sgd"]
    trials = search.tune(
        tiny(), PLAN, sgd, setting()[0], NoTest(**fields), FOLDS, show=shown.append
    )  # fmt: skip
    assert sum(shown) == PLAN.cost(sgd, GRADIENTS)
    assert len(trials) == PLAN.trials
    assert {trial["gradients"] for trial in trials} == {GRADIENTS}
    assert len(search.winner(trials)["error"]) == PLAN.folds
    early = sorted(trials, key=lambda trial: search.rank(trial, PLAN.early_folds))
    assert [len(trial["error"]) for trial in early] == [PLAN.folds] * PLAN.kept + [1]


def test_a_store_gives_back_what_was_saved_and_forgets_what_is_not_whole(tmp_path):
    values = points(CONTENDERS["sgd"].space, 1, 0)[0]
    trial = {"values": values, "gradients": 10, "seconds": 1.5, "error": [0.5], "loss": [np.inf]}
    whole = {**trial, "error": [0.25, 0.5], "loss": [1.0, 2.0]}
    Store(tmp_path).save("sgd", CONTENDERS["sgd"], [trial, whole])
    store = Store(tmp_path)
    assert store.load("adamw", 2) is None
    kept = store.load("sgd", 2)
    assert kept == [{**trial, "loss": [None]}, whole]
    assert search.winner(kept) == whole
    # A kill between two trials leaves too few: the method is tuned again.
    assert store.load("sgd", 3) is None
    assert store.load("sgd", 2) is None


@pytest.mark.slow
def test_a_killed_and_resumed_sweep_equals_one_left_alone(tmp_path, monkeypatch):
    import subprocess
    import sys

    command = [
        sys.executable, "-c", KILLED, "tune", "--row", "digits", "--methods", "sgd", "adamw",
        "--trials", "2", "--kept", "1", "--folds", "2",
    ]  # fmt: skip
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([*command, "--output", str(whole)], check=True)
    died = subprocess.run(
        [*command, "--output", str(killed)], env={**environment(), "KILL": "1"}, check=False
    )
    assert died.returncode == -9
    subprocess.run([*command, "--resume", "--output", str(killed)], check=True)

    def content(folder):
        results = json.loads((folder / "results.json").read_text())["methods"]
        trials = {name: Store(folder).load(name, 2) for name in ("sgd", "adamw")}
        for one in [*results.values(), *trials["sgd"], *trials["adamw"]]:
            one.pop("seconds")
        return results, trials

    assert content(whole) == content(killed)


def environment():
    import os
    from pathlib import Path

    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


# Ends the process as kill -9 does, in the middle of the trials that the second method saves.
KILLED = """
import os, signal, sys
from benchmarks import __main__
from benchmarks.tuning import rows, search
import dataclasses
rows.ROWS["digits"] = dataclasses.replace(rows.ROWS["digits"], images=100)
if os.environ.get("KILL"):
    create, made = search.optuna.trial.create_trial, []
    def create_and_die(**named):
        made.append(1)
        if len(made) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return create(**named)
    search.optuna.trial.create_trial = create_and_die
sys.exit(__main__.main())
"""


def test_error_loss_and_calibration_of_known_answers():
    logits = np.log(np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]]))
    labels = np.array([0, 1, 1, 0])
    error, loss = error_and_loss(logits, labels)
    assert error == 0.25
    assert loss == pytest.approx(-np.mean(np.log([0.9, 0.2, 0.7, 0.6])))
    # Each answer is alone in its bin: the mean of |right - confidence|.
    assert calibration_error(logits, labels) == pytest.approx((0.1 + 0.8 + 0.3 + 0.4) / 4)
    assert error_and_loss(np.full((3, 2), np.nan), np.zeros(3, int)) == (1.0, np.inf)


def test_intervals_are_student_s():
    sample = np.random.default_rng(0).normal(size=7)
    answer = interval(sample)
    low, high = stats.t.interval(0.95, 6, sample.mean(), stats.sem(sample))
    np.testing.assert_allclose(answer, (sample.mean(), low, high))
    paired = stats.ttest_1samp(sample, 0).confidence_interval(0.95)
    np.testing.assert_allclose(answer[1:], paired)
    words = [statistics.word(interval(np.array(x))) for x in SAMPLES]
    assert words == ["loses", "wins", "ties"]


SAMPLES = ([1.0, 1.1, 0.9], [-1.0, -1.1, -0.9], [-1.0, 1.1, 0.1])


def made_up(seed=0):
    """A record as `table` writes it: entropy_sgd is a point better, heat_sgd has a lucky test."""
    generator = np.random.default_rng(seed)
    noise = generator.normal(scale=1e-3, size=10)
    tested = {"sgd": 0.11, "adamw": 0.10, "entropy_sgd": 0.10, "heat_sgd": 0.05, "diloco": 0.01}
    validated = {"sgd": 0.1, "adamw": 0.2, "entropy_sgd": 0.1, "heat_sgd": 0.2, "diloco": 0.0}
    seeds = {
        name: [
            {"error": mean + e, "loss": 2 * (mean + e), "trace": -mean, "top_eigenvalue": 1.0}
            | dict.fromkeys(
                ("calibration", "noisy_error", "train_error", "local_energy", "sam_sharpness"), e
            )
            for e in noise
        ]
        for name, mean in tested.items()
    }
    return {
        "name": "digits",
        "row": dataclasses.asdict(rows.ROWS["digits"]),
        "seeds": list(range(10)),
        "tuned": {
            name: {"error": error, "loss": 1.0, "values": {}, "seconds": 1.0}
            for name, error in validated.items()
        },
        "methods": {
            name: {"gradients": 2400, "updates": 2400, "seconds": 1.0, "seeds": records}
            for name, records in seeds.items()
        },
    }


def test_the_rivals_are_chosen_without_the_test_images():
    found = made_up()
    assert statistics.best_baseline(found) == "sgd"
    assert statistics.best_entropic(found) == "entropy_sgd"
    entropic, baseline, change = statistics.verdict(found)
    assert (entropic, baseline, statistics.word(change)) == ("entropy_sgd", "sgd", "wins")
    assert change.mean == pytest.approx(-0.01)


def test_a_verdict_leaves_out_what_was_tuned_after_its_row_had_been_judged():
    found = made_up()
    for kind in ("tuned", "methods"):
        found[kind]["ivon"] = found[kind]["sgd"]
    found["tuned"]["ivon"] = {**found["tuned"]["sgd"], "error": 0.0}
    assert statistics.best_baseline(found) == "sgd"
    assert statistics.best_baseline(found | {"name": "mnist_1000"}) == "ivon"
    assert statistics.comparable(found)
    alone = found | {"methods": {"ivon": found["methods"]["ivon"]}}
    assert not statistics.comparable(alone)


def test_correlations_tell_methods_apart_from_seeds():
    found = statistics.correlations(made_up())
    assert found.loc["loss", "across"] == pytest.approx(1)
    assert found.loc["loss", "within"] == pytest.approx(1)
    # The same for all seeds of a method.
    assert found.loc["trace", "across"] < -0.9
    assert np.isnan(found.loc["trace", "within"])
    assert np.isnan(found.loc["top_eigenvalue", "across"])


def test_the_page_says_what_the_results_say():
    assert page.PAGE.read_text() == page.text()


def test_the_page_names_every_row():
    """With a result, or with the reason why there is none."""
    text = page.PAGE.read_text()
    recorded = {found["name"] for found in page.recorded()}
    assert recorded.isdisjoint(page.missing())
    for name, row in rows.ROWS.items():
        assert row.title in text, name
        assert (f"`{name}`" in text) == (name not in recorded), name


def made_up_settings():
    """A record as `defaults` writes it: where the rate is constant, kept is a point better."""
    noise = np.random.default_rng(0).normal(scale=1e-3, size=10)
    errors = {"sgd": 0.12, "paper": 0.11, "proposed": 0.11, "kept": 0.10}
    methods = {
        name + suffix: {"learning_rate": 0.1, "validation": [0.1], "error": list(error + shift)}
        for at, (name, error) in enumerate(errors.items())
        for suffix, shift in (("", np.roll(noise, at)), ("_cosine", np.roll(noise, at)))
    }
    methods["kept_cosine"]["error"] = list(0.11 + np.roll(noise, 5))
    return {"rows": {"digits": {"row": {"title": "digits"}, "methods": methods}}}


def test_settings_are_compared_seed_by_seed():
    found = made_up_settings()
    constant = defaults.differences(found, "digits", "")
    assert constant["kept - paper"].mean == pytest.approx(-0.01, abs=2e-3)
    assert [statistics.word(one) for one in constant.values()][2:] == ["wins", "ties", "wins"]
    assert defaults.counts(found)[-1].startswith("`kept` against `paper`: wins 1, ties 1, loses 0")
    shown = defaults.table(found)
    assert shown["learning rate"].tolist() == ["constant", "cosine"]
    assert float(shown["kept %"][0]) == pytest.approx(10, abs=0.1)
    assert shown["kept - paper"][0].endswith("wins")


@pytest.mark.slow
def test_a_setting_is_judged_at_the_rate_of_lowest_validation_error(monkeypatch):
    monkeypatch.setattr(defaults, "RATES", (1e-4, 0.05))
    row, (network, _) = tiny(), setting()
    data = rows.prepare(row)
    plan = dataclasses.replace(PLAN, folds=2)
    judged = {
        name: defaults.judge(row, plan, defaults.CANDIDATES[name], network, data, range(5, 7))
        for name in ("sgd", "proposed", "kept")
    }
    for record in judged.values():
        assert record["learning_rate"] == 0.05
        assert record["validation"][1] < record["validation"][0]
        assert len(record["error"]) == 2
    assert judged["proposed"]["error"] != judged["sgd"]["error"]


def test_a_gamma_is_held_against_the_last_one_of_the_schedule():
    values = {"share": 0.5, "learning_rate": 0.1, "every": 1, "growth": 10.0}
    largest = entropix.scoping.largest_stable_gamma(0.1, momentum=0.9)
    assert gammas.chosen("replicated_sgd", values) == pytest.approx([0.05 * largest, 0.5 * largest])
    record = {"tuned": [0.1], "found": {"100": [0.2, 0.3, 0.9]}}
    shown = gammas.table(
        {"rows": {"digits": {"row": "digits", "entropy_sgd": record, "replicated_sgd": record}}}
    )
    assert shown["found after 100 steps"].tolist() == ["0.3", "0.3"]
    assert shown["over the tuned, after 100"].tolist() == ["3", "3"]
    one = lambda tuned, found: {"rows": {"digits": {"m": {"tuned": tuned, "found": {"1": found}}}}}
    assert gammas.factor(one([0.1], [0.2, 0.3, 0.9]), "m") == pytest.approx(3)
    assert gammas.factor(one([0.1], [0.02]), "m") == pytest.approx(5)
    assert gammas.factor(one([0.1, 1.0], [0.5]), "m") == 1
    assert gammas.factor(one([0.1, 1.0], [2.0]), "m") == pytest.approx(2)
