"""What is set beside replica theory: searches and counts against all weights of small machines."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.committee import depth, entropic, frozen, minima, theory
from entropix.committee import Committee, cross_entropy, random_patterns

SMALL = Committee(11)
GAMMA = 1.0


def all_weights(n):
    return np.array(list(itertools.product((1.0, -1.0), repeat=n)), np.float32)


def losses_of_all(patterns, labels):
    """Mean cross-entropy of all weights."""
    fields = all_weights(11) @ (np.asarray(patterns) * np.asarray(labels)[:, None]).T
    return np.asarray(cross_entropy(fields / 11**0.5, GAMMA)).mean(1)


def instances(count, num_patterns=8):
    keys = jax.random.split(jax.random.key(3), count)
    examples = jax.vmap(lambda key: random_patterns(SMALL, num_patterns / 11, key))(keys)
    return *examples, keys


@pytest.mark.slow
def test_annealing_ends_at_the_least_loss_of_all_weights():
    patterns, labels, keys = instances(8)
    found = jax.vmap(
        lambda x, y, key: minima.anneal(
            SMALL, x, y, jnp.asarray(GAMMA), jnp.asarray(60.0), key, num_sweeps=400
        )
    )(patterns, labels, keys)
    least = [losses_of_all(x, y).min() for x, y in zip(patterns, labels, strict=True)]
    np.testing.assert_allclose(found.loss, least, atol=1e-6)
    errors = jax.vmap(SMALL.errors)(found.weights, patterns, labels)
    np.testing.assert_allclose(found.error_rate, errors / 8, atol=1e-6)


@pytest.mark.slow
def test_without_cooling_it_samples_the_distribution_of_the_temperature():
    """Of 2,000 runs on one instance: the mean loss, and each weight's mean."""
    patterns, labels = (one[0] for one in instances(1)[:2])
    beta = 1.5
    keys = jax.random.split(jax.random.key(0), 2000)
    found = jax.vmap(
        lambda key: minima.anneal(
            SMALL, patterns, labels, jnp.asarray(GAMMA), jnp.asarray(beta), key,
            num_sweeps=40, cools=False,
        )
    )(keys)  # fmt: skip
    losses = losses_of_all(patterns, labels)
    chance = np.exp(-beta * 8 * losses)
    chance /= chance.sum()
    mean_loss = float(chance @ losses)
    error = float(chance @ losses**2 - mean_loss**2) ** 0.5 / 2000**0.5
    assert float(jnp.mean(found.loss)) == pytest.approx(mean_loss, abs=4 * error)
    mean = chance @ all_weights(11)
    np.testing.assert_allclose(jnp.mean(found.weights[:, 0], axis=0), mean, atol=4.5 / 2000**0.5)


@pytest.mark.slow
def test_gradient_descent_keeps_its_best_weights():
    """Among the best hundredth of all, and what it says of them is so."""
    patterns, labels, keys = instances(8)
    found = jax.vmap(
        lambda x, y, key: minima.descend(SMALL, x, y, jnp.asarray(GAMMA), key, num_steps=300)
    )(patterns, labels, keys)
    for at, (x, y) in enumerate(zip(patterns, labels, strict=True)):
        losses = losses_of_all(x, y)
        assert np.mean(losses < found.loss[at] - 1e-6) < 0.01
        fields = (x * y[:, None]) @ found.weights[at, 0] / 11**0.5
        assert float(found.loss[at]) == pytest.approx(
            float(jnp.mean(cross_entropy(fields, GAMMA))), abs=1e-6
        )


@pytest.mark.slow
def test_solutions_and_their_neighbors_are_counted():
    """Against a loop over all pairs; what the samples are asked is the same."""
    for seed, num_patterns in ((0, 4), (1, 7), (2, 30)):
        patterns, labels = random_patterns(SMALL, num_patterns / 11, seed)
        every = all_weights(11)
        gauged = np.asarray(patterns) * np.asarray(labels)[:, None]
        solutions = every[np.all(every @ gauged.T > 0, axis=1)]
        near = solutions @ solutions.T == 11 - 2
        alone = ~np.any(near, axis=1)
        found = frozen.enumerated(np.asarray(patterns), np.asarray(labels))
        assert found["solutions"] == len(solutions)
        if not len(solutions):
            assert found["isolated"] is None
            continue
        assert found["isolated"] == pytest.approx(np.mean(alone))
        asked = frozen.have_no_neighbor(SMALL, patterns, labels, jnp.asarray(solutions)[:, None])
        np.testing.assert_array_equal(asked, alone)
        wrong = frozen.have_no_neighbor(SMALL, patterns, labels, -jnp.asarray(solutions)[:, None])
        np.testing.assert_array_equal(wrong, -1)


@pytest.mark.slow
def test_tables_and_pictures_are_made_of_what_was_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(frozen, "SIZES", (9, 11))
    monkeypatch.setattr(frozen, "LARGEST_ENUMERATED", 9)
    monkeypatch.setattr(frozen, "LOADS", (0.5,))
    monkeypatch.setattr(frozen, "NUM_SWEEPS", 200)
    options = theory.Theory(figures=("frozen",), seeds=3, output=tmp_path / "run")
    assert theory.run(options) == 0
    found = json.loads((tmp_path / "run" / "results.json").read_text())["figures"]["frozen"]
    for record in found["records"]:
        for sampled, counted in zip(record["log_solutions"], record["counted"], strict=True):
            if counted and counted["solutions"]:
                assert np.exp(sampled) == pytest.approx(counted["solutions"], rel=0.3)
    text = (tmp_path / "run" / "report.md").read_text()
    assert "Solutions of small binary perceptrons" in text
    assert text.count("\n| ") == 2 + 2
    assert (tmp_path / "run" / "frozen.png").stat().st_size > 5000


@pytest.mark.slow
def test_both_depths_are_measured_at_one_loss(monkeypatch):
    monkeypatch.setattr(depth, "SIGMAS", (0.1, 0.4))
    monkeypatch.setattr(depth, "NUM_STEPS", 32)
    monkeypatch.setattr(depth, "NUM_BURN_IN", 16)
    monkeypatch.setattr(depth, "OPTIMIZERS", {"SGD": depth.OPTIMIZERS["SGD"]})
    found = depth.depth(1)
    sizes = []
    for optimizers in found["networks"].values():
        (record,) = optimizers["SGD"]
        sizes.append(record["weights"])
        assert 0.5 * depth.LOSS < record["train_loss"] <= depth.LOSS
        near, far = record["local_entropy"]
        # More noise, less volume; the ruler starts from that of a point.
        assert far < near < 0 + 3 * record["std_error"][0]
        assert abs(near) < 1e-3
    assert abs(sizes[0] - sizes[1]) < 0.05 * sizes[0]


@pytest.mark.slow
def test_both_message_passings_find_attracted_replicas_wider():
    """On a network small enough for either, and large enough that they agree."""
    found = entropic.entropic(("perceptron",), 301, 2)
    algorithms = found["networks"]["perceptron"]["algorithms"]
    for records in algorithms.values():
        assert records["errors"] == [0, 0]
        fields, messages = (entropic.at_distance(records, way) for way in entropic.WAYS)
        np.testing.assert_allclose(fields, messages, atol=0.01)
    wide, narrow = (
        entropic.at_distance(algorithms[name], entropic.WAYS[0]) for name in ("entropic LAL", "LAL")
    )
    assert np.all(np.array(wide) > np.array(narrow) + 0.1)
    assert len(entropic.table(found)) == 2


def test_local_entropies_are_told_of_solved_instances_with_points_on_both_sides():
    records = {
        "errors": [0, 1, 0, 0],
        "curves": {
            "approximate message passing": {
                "distance": [[0.05, 0.09, 0.13]] * 2 + [[0.12, 0.13, 0.2], [0.05, 0.09, 0.13]],
                "entropy": [[-0.1, -0.2, -0.4]] * 3 + [[-0.1, None, -0.26]],
            }
        },
    }
    found = entropic.at_distance(records, "approximate message passing")
    np.testing.assert_allclose(found, [-0.25, np.nan, np.nan, -0.1 - 0.16 * 5 / 8])
    assert entropic.at_distance(records, "belief propagation") == []
    assert entropic.said(records, "approximate message passing") == "-0.225 (of 2)"
    assert entropic.said(records, "belief propagation") == "-"
