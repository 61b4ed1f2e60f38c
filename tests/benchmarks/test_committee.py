"""The committee experiments end to end, with cheap measures; the measures; what is refused."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.committee import figures, loads, measures
from benchmarks.committee.main import CommitteeMachines, correlations, run
from benchmarks.committee.problems import PROBLEMS, Problem, Sizes
from benchmarks.common.data import digits
from benchmarks.common.options import UsageError
from benchmarks.speed import committee as speed
from entropix.committee import Committee, least_action_learning, random_patterns
from entropix.committee import _messages as messages

SIZES = Sizes(num_hidden=3, num_inputs=27, alpha=0.5, pair=(3, 4), per_class=20)
SMALL = ["committee", "--num-hidden=3", "--num-inputs=27", "--alpha=0.5", "--per-class=20"]
SMALL += ["--dataset=digits", "--seeds=3", "--max-epochs=100", "--algorithms", "lal"]


@pytest.fixture
def cheap(monkeypatch):
    """Numbers that depend on the weights, without the estimators, which compile for long."""

    def measure(self, problem, weights, key):
        size = float(jnp.mean(jnp.abs(weights)))
        points = len(measures.STRENGTHS)
        return {
            "distance": np.linspace(0.01, 0.2, points).tolist(),
            "relative_entropy": [-size] * points,
            "converged": [True] * (points - 1) + [False],
            "local_energy": [size] * len(measures.SIGMAS),
            "noise_error": [0.1] * len(measures.RATES),
            "spectrum": {"nodes": [-1.0, 0.5, 1.0], "weights": [0.2, 0.3, 0.5]},
            "test_error": None if problem.test is None else size / 10,
        }

    monkeypatch.setattr(measures.Measures, "__call__", measure)


@pytest.mark.slow
def test_writes_results_and_pictures(cheap, monkeypatch, tmp_path, capsys):
    folder = tmp_path / "run"
    monkeypatch.setattr(sys, "argv", ["benchmarks", *SMALL, f"--output={folder}"])
    assert main() == 0
    found = json.loads((folder / "results.json").read_text())
    assert set(found["experiments"]) == {"random", "images", "shuffled"}
    for name, experiment in found["experiments"].items():
        assert set(experiment["algorithms"]) == {"lal"}
        for records in experiment["algorithms"].values():
            assert len(records) == 3
            assert all((record["test_error"] is None) == (name != "images") for record in records)
    assert found["experiments"]["random"]["patterns"] == 14
    assert found["experiments"]["images"]["patterns"] == 40
    assert found["correlations"]["local_entropy"] == pytest.approx(-1.0)
    assert found["correlations"]["local_energy"] == pytest.approx(1.0)
    for picture in ("local_entropy", "hessian", "noise", "correlation"):
        assert (folder / f"{picture}.png").stat().st_size > 5000
        assert (folder / f"{picture}.svg").exists()
    shown = capsys.readouterr().out
    for line in (shown, (folder / "report.md").read_text(), (folder / "report.html").read_text()):
        said = " ".join(line.split())
        assert "correlation of local entropy with test error: -1.00 over 3 runs" in said
        assert "-1.00 within an algorithm" in said
    assert "| lal |" in (folder / "report.md").read_text()


@pytest.mark.slow
def test_shuffled_images_keep_each_pixels_values():
    images = digits()
    plain = PROBLEMS["images"][0](SIZES, images, jax.random.key(0))
    shuffled = PROBLEMS["shuffled"][0](SIZES, images, jax.random.key(0))
    assert plain.test is not None
    assert shuffled.test is None
    np.testing.assert_array_equal(
        jnp.sort(shuffled.train.patterns, 0), jnp.sort(plain.train.patterns, 0)
    )
    assert not jnp.array_equal(shuffled.train.patterns, plain.train.patterns)
    np.testing.assert_array_equal(shuffled.train.labels, plain.train.labels)


@pytest.mark.slow
def test_measures_of_a_real_solution(monkeypatch):
    monkeypatch.setattr(measures, "STRENGTHS", (100.0, 30.0))
    monkeypatch.setattr(measures, "LANCZOS_STEPS", 10)
    model = Committee(45, 3, weights="spherical")
    examples = random_patterns(model, 0.5, 0)
    solution = least_action_learning(model, *examples, 1).weights
    test = random_patterns(model, 2.0, 5)
    problem = Problem(model, examples, test)
    found = measures.Measures(model)(problem, solution, jax.random.key(0))
    assert found["test_error"] == pytest.approx(int(model.errors(solution, *test)) / 90)
    assert found["noise_error"][0] == 0
    assert found["noise_error"][-1] > 0.05
    assert np.all(np.diff(found["local_energy"]) > 0)
    assert found["converged"] == [True, True]
    assert 0 > found["relative_entropy"][0] > found["relative_entropy"][1] > -1
    assert sum(found["spectrum"]["weights"]) == pytest.approx(1.0, abs=1e-4)
    assert json.loads(json.dumps(found)) == found


def test_runs_without_a_local_entropy_are_left_out_of_the_correlations():
    settings = measures.settings()
    at = settings["strengths"].index(settings["reference_strength"])

    def record(entropy, converged, error, errors=0):
        curve = [0.0] * len(settings["strengths"])
        curve[at] = entropy
        flags = [converged] * len(curve)
        return {
            "relative_entropy": curve, "converged": flags, "errors": errors,
            "local_energy": [error], "test_error": error,
        }  # fmt: skip

    records = [record(-0.1 * n, True, 0.1 * n) for n in range(4)] + [record(5.0, False, 0.9)]
    records += [record(5.0, True, 0.9, errors=1)]
    found = {
        "experiments": {"images": {"algorithms": {"lal": records}}}, "measures": settings,
    }  # fmt: skip
    assert np.isnan([figures.reference_entropy(one, settings) for one in records[-2:]]).all()
    assert correlations(found)["local_entropy"] == pytest.approx(-1.0)


def test_correlations_between_algorithms_are_told_from_those_within():
    """Three algorithms on a falling line, the runs of each on a rising one."""
    settings = measures.settings()
    at = settings["strengths"].index(settings["reference_strength"])
    size = len(settings["strengths"])

    def record(entropy, error):
        curve = [0.0] * size
        curve[at] = entropy
        return {
            "relative_entropy": curve, "converged": [True] * size, "errors": 0,
            "local_energy": [error], "test_error": error,
        }  # fmt: skip

    algorithms = {
        str(which): [record(-which + 0.01 * run, which + 0.01 * run) for run in range(3)]
        for which in range(3)
    }
    found = {"experiments": {"images": {"algorithms": algorithms}}, "measures": settings}
    answer = correlations(found)
    assert answer["runs"] == 9
    assert answer["local_entropy"] < -0.99
    assert answer["local_entropy_between"] == pytest.approx(-1.0)
    assert answer["local_entropy_within"] == pytest.approx(1.0)


@pytest.mark.parametrize("node", speed.NODES)
def test_the_plain_sweep_computes_what_the_library_does(node, monkeypatch):
    for name, number in (("PATTERNS", 30), ("INPUTS", 51), ("BATCH", 7)):
        monkeypatch.setattr(speed, name, number)
    model = Committee(51)
    problem = messages.Problem(*random_patterns(model, 30 / 51, 0, dtype=jnp.int8))
    total = jax.random.normal(jax.random.key(1), model.shape)
    library, plain = speed.Sweeps(node, problem, total), speed.PlainSweeps(problem, total)
    for _ in range(3):
        np.testing.assert_allclose(library(), plain(node), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_many_instances_are_timed_in_one_program_and_alone(monkeypatch):
    for name, number in (
        ("INSTANCES", 3), ("MANY_PATTERNS", 10), ("MANY_INPUTS", 31), ("MANY_BATCH", 4),
    ):  # fmt: skip
        monkeypatch.setattr(speed, name, number)
    lines = speed.many_instances(2)
    assert [line.name.split(", ", 1)[1] for line in lines] == [
        "3 instances", "3 instances, batch_size 4", "3 instances",
    ]  # fmt: skip
    for line in lines:
        assert line.reference == line.name.split(", ")[0] + ", one"
        assert line.ratio > 0
        # No program holds less than the messages, or the fields, of every instance.
        assert line.memory_bytes > line.reference_memory_bytes > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(experiments=("maps",)), "experiment 'maps' is unknown; accepted: random, images"),
        (dict(algorithms=("sa",)), "algorithm 'sa' is unknown"),
        (dict(algorithms=("lal", "lal")), "--algorithms must name each algorithm once"),
        (dict(seeds=0), "--seeds .*got 0"),
        (dict(alpha=-1.0), "--alpha .*got -1"),
        (dict(num_hidden=4), "num_hidden must be odd for a majority.*got 4"),
        (dict(num_inputs=100), "num_hidden must divide num_inputs in a tree, got 9 and 100"),
        (dict(dataset="digits", pair=(3, 3)), "--pair must be of two different classes"),
        (dict(dataset="digits"), "--per-class must be at most .* got 250"),
    ],
)
def test_impossible_values_are_refused_before_any_work(options, message):
    with pytest.raises(UsageError, match=message):
        run(CommitteeMachines(**options))


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is not empty"):
        run(CommitteeMachines(output=tmp_path))


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_numbers(tmp_path, monkeypatch):
    options = dict(
        experiments=("random",), algorithms=("sgd_fast", "lal"), seeds=2, num_hidden=3,
        num_inputs=45, alpha=0.3,
    )  # fmt: skip
    run(CommitteeMachines(output=tmp_path / "whole", **options))
    measured = []

    class Interrupted(measures.Measures):
        def __call__(self, *arguments):
            measured.append(arguments)
            if len(measured) == 4:
                raise KeyboardInterrupt
            return super().__call__(*arguments)

    monkeypatch.setattr("benchmarks.committee.main.Measures", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(CommitteeMachines(output=tmp_path / "parts", **options))
    run(CommitteeMachines(output=tmp_path / "parts", resume=True, **options))
    assert len(measured) == 5, "what is stored is measured again"

    def numbers(name):
        found = json.loads((tmp_path / name / "results.json").read_text())["experiments"]
        for records in found["random"]["algorithms"].values():
            assert len(records) == 2
            for record in records:
                del record["seconds_with_compilation"]
        return found

    assert numbers("parts") == numbers("whole")


def test_a_load_is_reached_where_the_median_instance_of_all_smaller_ones_is_solved():
    def record(load, *errors):
        return {"load": load, "runs": [{"errors": one} for one in errors]}

    ladder = [
        record(0.7, 0, 5, 9),
        record(0.5, 0, 0, 0),
        record(0.6, 0, 0, 3),
        record(0.8, 0, 0, 0),
    ]
    assert loads.largest_load(ladder) == 0.6
    assert loads.largest_load(ladder[:1]) is None


def test_loads_are_climbed_until_none_is_solved_and_gone_on_with(monkeypatch):
    """Stored records are not made again; the ladder ends above the first hopeless load."""
    tried = []

    def solve(model, algorithm, load, seeds, max_epochs):
        tried.append(load)
        return [{"errors": int(load > 0.45), "passes": 1}] * seeds

    monkeypatch.setattr(loads, "solve", solve)
    found, writes = {"records": []}, []
    options = loads.Loads(sizes=(45,), seeds=2)
    arguments = options, found, "binary perceptron", 45, "lal", lambda: writes.append(1)
    loads.climb(*arguments)
    assert tried == [0.4, 0.5]
    assert [len(record["runs"]) for record in found["records"]] == [2, 2]
    assert len(writes) == 2
    loads.climb(*arguments)
    assert len(tried) == 2
    (one,) = loads.reached(found)
    assert (one["load"], one["open"]) == (0.4, False)
    found["capacities"] = {"binary perceptron": 0.833}
    assert loads.summarized(found)["N = 45"].tolist() == ["0.4"]
    del found["records"][1:]
    assert loads.summarized(found)["N = 45"].tolist() == ["at least 0.4"]


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["focusing_bp", "lal"])
def test_instances_in_one_program_end_as_they_do_alone(algorithm):
    """Each stops at a pass of its own."""
    weights, solve = loads.ALGORITHMS[algorithm]
    model = Committee(45, 3, weights=weights[0])
    together = loads.solve(model, algorithm, 0.45, 4, 40)
    for seed, found in enumerate(together):
        key = jax.random.key(seed)
        alone = solve(model, random_patterns(model, 0.45, seed), key, 40)
        if algorithm == "focusing_bp":
            passes = alone.history.steps[: int(alone.stages)].sum()
        else:
            passes = alone.epochs
        assert found == {"errors": int(alone.errors), "passes": int(passes)}
    assert len({found["passes"] for found in together}) > 1


@pytest.mark.slow
def test_the_report_of_the_loads_has_its_picture(tmp_path):
    """Also where an algorithm solved nothing, or was not run at a size."""

    def record(algorithm, size, load, *errors):
        runs = [{"errors": one, "passes": 3} for one in errors]
        return {
            "network": "binary perceptron", "size": size, "weights": size,
            "algorithm": algorithm, "load": load, "runs": runs,
        }  # fmt: skip

    found = {
        "configuration": {"seeds": 2, "max_epochs": 5}, "command": "c", "environment": {},
        "records": [
            record("lal", 45, 0.4, 0, 0), record("lal", 45, 0.5, 1, 1),
            record("lal", 91, 0.4, 2, 2), record("focusing_bp", 45, 0.4, 0, 0),
        ],
    }  # fmt: skip
    loads.report(tmp_path, found)
    text = (tmp_path / "report.md").read_text()
    assert "| binary perceptron | 0.833 | lal | 0.4 | - |" in text
    assert "| binary perceptron | 0.833 | focusing_bp | at least 0.4 | not run |" in text
    assert (tmp_path / "loads.png").stat().st_size > 5000
