"""Belief propagation against enumeration, orthant probabilities, replica values, plain NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_ndtr, logsumexp
from scipy.stats import multivariate_normal

from entropix.committee import (
    Committee,
    approximate_message_passing,
    belief_propagation,
    random_patterns,
)
from entropix.committee._bp import _belief_propagation
from entropix.committee._contradiction import has_opposed
from entropix.committee._fixed_point import Stop
from entropix.committee._messages import Problem
from tests.committee.exhaustive import counted, solutions

PERCEPTRON = Committee(21)
TREE = Committee(21, 3)
SPHERE = Committee(45, 3, weights="spherical")


def random_field(model, seed):
    return 0.3 * jax.random.normal(jax.random.key(100 + seed), model.shape)


def load(model, count):
    return count / model.num_weights


@pytest.mark.parametrize(
    "model",
    [
        Committee(15),
        Committee(15, 3),
        Committee(15, 5),
        Committee(5, 3, "full"),
        Committee(15, 3, output="parity"),
    ],
    ids=str,
)
def test_is_exact_where_the_factor_graph_is_a_tree(model, x64):
    """One pattern: the graph has no loop."""
    for seed in range(2):
        examples = random_patterns(model, load(model, 1), seed)
        field = random_field(model, seed)
        found = belief_propagation(model, *examples, field=field, node="exact", tolerance=1e-12)
        free_entropy, mean = counted(model, *examples, field)
        assert bool(found.converged)
        np.testing.assert_allclose(found.free_entropy, free_entropy, atol=1e-10)
        np.testing.assert_allclose(found.mean, mean, atol=1e-10)
        np.testing.assert_allclose(found.variance, 1 - mean**2, atol=1e-10)
        np.testing.assert_allclose(
            found.entropy, free_entropy - np.sum(np.asarray(field) * mean), atol=1e-10
        )


# What is left is the loops' error: mean and maximum of the entropy's, per weight, and the root mean
# square of the mean weights', over four instances.
@pytest.mark.parametrize(
    ("model", "count", "mean_error", "largest", "rms"),
    [
        (PERCEPTRON, 4, 0.005, 0.010, 0.04),
        pytest.param(PERCEPTRON, 8, 0.016, 0.032, 0.10, marks=pytest.mark.slow),
        pytest.param(TREE, 4, 0.006, 0.015, 0.05, marks=pytest.mark.slow),
        (TREE, 8, 0.018, 0.027, 0.10),
        pytest.param(Committee(7, 3, "full"), 4, 0.016, 0.034, 0.08, marks=pytest.mark.slow),
        pytest.param(
            Committee(15, 3, output="parity"), 4, 0.005, 0.010, 0.08, marks=pytest.mark.slow
        ),
    ],
    ids=str,
)
@pytest.mark.slow
def test_counts_what_enumeration_counts(model, count, mean_error, largest, rms):
    examples = [random_patterns(model, load(model, count), seed) for seed in range(4)]
    fields = jnp.stack([random_field(model, seed) for seed in range(4)])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *examples)
    exact = [counted(model, *one, field) for one, field in zip(examples, fields, strict=True)]
    for node in ("gaussian", "exact"):
        solve = lambda patterns, labels, field, node=node: belief_propagation(
            model, patterns, labels, field=field, node=node
        )
        found = jax.vmap(solve)(*stacked, fields)
        assert np.all(found.converged)
        errors = np.abs(found.free_entropy - np.array([f for f, _ in exact])) / model.num_weights
        assert np.mean(errors) < mean_error
        assert np.max(errors) < largest
        assert np.sqrt(np.mean((found.mean - np.array([m for _, m in exact])) ** 2)) < rms


def reference_sweeps(model, patterns, labels, field, steps, damping):
    """Flooding by the formulas with a loop over patterns and all 2^K states of the signs."""
    k, n = model.shape
    inputs = labels[:, None, None] * patterns.reshape(len(patterns), -1, n)
    inputs = np.broadcast_to(inputs, (len(patterns), k, n))
    states = np.array(list(itertools.product([1, -1], repeat=k)))
    right = states.sum(1) > 0 if model.output == "majority" else states.prod(1) > 0
    u = np.zeros(inputs.shape)
    log_z = np.zeros(len(u))
    for _ in range(steps):
        total, new = field + u.sum(0), np.zeros_like(u)
        for mu, a in enumerate(inputs):
            m = np.tanh(total - u[mu])
            mean, variance = (a * m).sum(1), (1 - m**2).sum(1)
            yes = log_ndtr(mean / np.sqrt(variance))
            no = log_ndtr(-mean / np.sqrt(variance))
            logs = np.where(states > 0, yes, no)
            log_z[mu] = logsumexp(logs.sum(1)[right])
            for unit, i in itertools.product(range(k), range(n)):
                spread = np.sqrt(variance[unit] - (1 - m[unit, i] ** 2))
                value = []
                for sign in (1, -1):
                    t = (mean[unit] - a[unit, i] * m[unit, i] + sign * a[unit, i]) / spread
                    mine = logs.copy()
                    mine[:, unit] = np.where(states[:, unit] > 0, log_ndtr(t), log_ndtr(-t))
                    value.append(logsumexp(mine.sum(1)[right]))
                new[mu, unit, i] = (value[0] - value[1]) / 2
        u = damping * u + (1 - damping) * new
    return u


@pytest.mark.parametrize(
    "model",
    [
        PERCEPTRON,
        TREE,
        pytest.param(Committee(7, 3, "full"), marks=pytest.mark.slow),
        Committee(21, 3, output="parity"),
    ],
    ids=str,
)
def test_sweeps_are_those_of_plain_numpy(model, x64):
    patterns, labels = random_patterns(model, 0.5, 5)
    field = random_field(model, 5)
    found = belief_propagation(
        model,
        patterns,
        labels,
        field=field,
        node="gaussian",
        damping=0.3,
        max_steps=3,
        tolerance=0.0,
    )
    expected = reference_sweeps(
        model, np.asarray(patterns), np.asarray(labels), np.asarray(field), 3, 0.3
    )
    np.testing.assert_allclose(found.messages, expected, atol=1e-10)
    np.testing.assert_allclose(found.mean, np.tanh(field + expected.sum(0)), atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("alpha", "entropy", "tolerance"),
    [
        (0.2, 0.55012, 0.01),
        pytest.param(0.4, 0.39646, 0.02, marks=pytest.mark.slow),
        pytest.param(0.6, 0.22778, 0.03, marks=pytest.mark.slow),
    ],
)
def test_entropy_of_many_inputs_is_that_of_replica_theory(alpha, entropy, tolerance):
    """The replica-symmetric entropy, from which one sample deviates by 0.002, 0.007 and 0.011."""
    model = Committee(1001)
    examples = random_patterns(model, alpha, 0)
    found = belief_propagation(model, *examples, node="relaxed")
    assert bool(found.converged)
    assert float(found.entropy) / 1001 == pytest.approx(entropy, abs=tolerance)


@pytest.mark.slow
def test_relaxed_node_agrees_with_the_gaussian_one_for_many_inputs():
    model = Committee(501, 3)
    examples = random_patterns(model, 0.3, 0)
    relaxed, gaussian = (
        belief_propagation(model, *examples, node=node) for node in ("relaxed", "gaussian")
    )
    np.testing.assert_allclose(relaxed.mean, gaussian.mean, atol=0.02)
    assert abs(float(relaxed.entropy - gaussian.entropy)) / 501 < 1e-4


@pytest.mark.parametrize("num_hidden", [1, 3])
def test_half_of_the_sphere_solves_one_pattern(num_hidden, x64):
    model = Committee(45, num_hidden, weights="spherical")
    examples = random_patterns(model, 1 / 45, 0, distribution="normal")
    found = belief_propagation(model, *examples, tolerance=1e-12)
    np.testing.assert_allclose(found.entropy, np.log(0.5), atol=1e-9)
    np.testing.assert_allclose(np.mean(found.mean**2 + found.variance), 1, atol=1e-12)


@pytest.mark.slow
def test_spherical_volume_is_an_orthant_probability(x64):
    """Of a perceptron with 10 patterns, up to the loops' error."""
    model = Committee(100, weights="spherical")
    patterns, labels = random_patterns(model, 0.1, 0, distribution="normal")
    found = belief_propagation(model, patterns, labels)
    gauged = np.asarray(labels[:, None] * patterns)
    orthant = multivariate_normal(np.zeros(10), gauged @ gauged.T).cdf(np.zeros(10))
    assert float(found.entropy) == pytest.approx(np.log(orthant), abs=0.03)


@pytest.mark.parametrize("model", [TREE, SPHERE], ids=str)
@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.slow
def test_answer_does_not_depend_on_the_batch(model, batch_size, x64):
    examples = random_patterns(model, load(model, 10), 0)
    whole = belief_propagation(model, *examples)
    batched = belief_propagation(model, *examples, batch_size=batch_size)
    assert int(batched.steps) == int(whole.steps)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), batched, whole)


@pytest.mark.slow
def test_integer_patterns_give_the_same_as_floats():
    examples = random_patterns(TREE, 0.5, 0)
    as_int = jax.tree.map(lambda leaf: leaf.astype(jnp.int8), examples)
    found, same = (belief_propagation(TREE, *one) for one in (examples, as_int))
    assert same.messages.dtype == jnp.float32
    jax.tree.map(np.testing.assert_array_equal, found, same)


@pytest.mark.slow
def test_starts_again_from_its_messages():
    examples = random_patterns(TREE, 0.3, 0)
    found = belief_propagation(TREE, *examples, tolerance=1e-5)
    again = belief_propagation(TREE, *examples, init=found.messages)
    assert int(again.steps) == 1
    np.testing.assert_allclose(again.mean, found.mean, atol=1e-4)


def test_says_that_it_did_not_converge():
    examples = random_patterns(TREE, 0.5, 0)
    found = belief_propagation(TREE, *examples, max_steps=2)
    assert not bool(found.converged)
    assert int(found.steps) == 2
    assert float(found.residual) > 1e-4
    assert np.all(np.isfinite(found.mean))


@pytest.mark.slow
def test_undamped_sweeps_that_run_away_are_damped():
    """Correlated patterns: without damping that adapts, 500 sweeps do not converge."""
    rng = np.random.default_rng(0)
    prototypes = rng.normal(size=(6, 63))
    kinds = rng.integers(0, 6, 40)
    patterns = np.sign(prototypes[kinds] + 0.7 * rng.normal(size=(40, 63))).astype(np.float32)
    labels = np.where(kinds < 3, 1.0, -1.0).astype(np.float32)
    model = Committee(63, 3, "full", weights="spherical")
    found = belief_propagation(model, patterns, labels, damping=0.0, max_steps=500)
    assert bool(found.converged)
    damped = belief_propagation(model, patterns, labels, damping=0.7)
    assert float(found.entropy) == pytest.approx(float(damped.entropy), abs=0.05)


def test_second_call_compiles_nothing():
    belief_propagation(TREE, *random_patterns(TREE, 0.5, 0), damping=0.4)
    compiled = _belief_propagation._cache_size()
    belief_propagation(TREE, *random_patterns(TREE, 0.5, 1), damping=0.6, max_steps=10)
    assert _belief_propagation._cache_size() == compiled


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(labels=jnp.array([1.0, 0.0])), r"labels must each be \+1 or -1, got 0.0"),
        (dict(labels=jnp.ones(3)), r"labels must have shape \(2,\).*got \(3,\)"),
        (dict(patterns=jnp.full((2, 21), 0.5)), r"patterns must each be \+1 or -1, got 0.5"),
        (dict(patterns=jnp.ones((2, 20))), r"patterns .*got \(2, 20\)"),
        (dict(patterns=jnp.ones((0, 21)), labels=jnp.ones(0)), "must hold 1 pattern or more"),
        (dict(field=jnp.ones((3, 7))), r"field .*got \(3, 7\)"),
        (dict(field=jnp.full((1, 21), jnp.inf)), "field .*inf"),
        (dict(node="mean"), "node .*got 'mean'"),
        (dict(damping=1.0), "damping .*got 1.0"),
        (dict(max_steps=0), "max_steps .*got 0"),
        (dict(tolerance=-1.0), "tolerance .*got -1.0"),
        (dict(batch_size=3), "batch_size .*got 3"),
        (dict(init=jnp.zeros((2, 21))), "init must hold messages of shapes.*2, 1, 21"),
    ],
)
def test_impossible_input_is_refused_by_name(change, message):
    arguments = dict(patterns=jnp.ones((2, 21)), labels=jnp.ones(2)) | change
    with pytest.raises(ValueError, match=message):
        belief_propagation(PERCEPTRON, **arguments)


def test_nodes_of_binary_weights_are_refused_for_spherical_ones():
    with pytest.raises(ValueError, match=r"node .*got 'exact'"):
        belief_propagation(SPHERE, jnp.ones((1, 45)), jnp.ones(1), node="exact")


@pytest.mark.parametrize(
    ("model", "node"),
    [
        pytest.param(Committee(1001), "gaussian", marks=pytest.mark.slow),
        (Committee(1001), "relaxed"),
        (Committee(1011, 3), "gaussian"),
        pytest.param(Committee(1001, 1, weights="spherical"), "gaussian", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_messages_are_written_over_the_old_ones(model, node):
    """Besides one set of messages, memory holds a few batches only."""
    count, size = 1000, 16
    shape = lambda *axes: jax.ShapeDtypeStruct(axes, jnp.float32)
    problem = Problem(
        jax.ShapeDtypeStruct((count, model.num_inputs), jnp.int8),
        jax.ShapeDtypeStruct((count,), jnp.int8),
    )
    stop = Stop(shape(), jax.ShapeDtypeStruct((), jnp.int32), shape())
    compiled = _belief_propagation.lower(
        problem, shape(*model.shape), None, stop, model=model, node=node, batch_size=size
    ).compile()
    memory = compiled.memory_analysis()
    messages = 4 * count * model.num_weights * (2 if model.weights == "spherical" else 1)
    assert memory.output_size_in_bytes < 1.1 * messages
    assert memory.temp_size_in_bytes < 0.3 * messages


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        Committee(3),
        Committee(3, 3),
        Committee(3, 3, "full"),
        Committee(3, 3, output="parity"),
        Committee(4, 4, output="parity"),
        Committee(3, 2, "full", output="parity"),
    ],
    ids=str,
)
def test_two_patterns_contradict_each_other_where_no_weights_solve_both(model):
    every = list(itertools.product([-1.0, 1.0], repeat=model.num_inputs))
    patterns = np.array(list(itertools.product(every, every)), np.float32)
    tell = jax.jit(jax.vmap(lambda x, y: has_opposed(model, Problem(x, y)), in_axes=(0, None)))
    for labels in [(1.0, 1.0), (1.0, -1.0)]:
        expected = [len(solutions(model, pair, labels)) == 0 for pair in patterns]
        np.testing.assert_array_equal(tell(patterns, jnp.array(labels)), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "model"), [(belief_propagation, PERCEPTRON), (approximate_message_passing, SPHERE)]
)
def test_contradicting_patterns_are_not_counted(count, model):
    patterns, labels = random_patterns(model, load(model, 5), 0)
    again = jnp.concatenate([patterns, patterns[1:2]])
    assert bool(count(model, again, jnp.append(labels, labels[1])).converged)
    opposed = count(model, again, jnp.append(labels, -labels[1]))
    assert not bool(opposed.converged)
    if count is belief_propagation:
        assert bool(opposed.contradicted)
        assert np.isnan(opposed.entropy)
