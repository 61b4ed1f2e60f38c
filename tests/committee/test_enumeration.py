"""Belief propagation against the enumeration of all weights, where few solutions are left."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropix.committee import Committee, belief_propagation, random_patterns
from tests.committee.exhaustive import counted, outputs

# The machine, its patterns, and the largest error of the entropy per weight: that of the loops, on
# up to 300 instances. Where nothing went wrong but the loops, most errors are ten times smaller.
MACHINES = [
    (Committee(15), 6, 0.10),
    (Committee(17), 9, 0.10),
    (Committee(17), 13, 0.125),
    (Committee(15, 3), 6, 0.13),
    (Committee(15, 3), 10, 0.185),
    (Committee(5, 3, "full"), 6, 0.24),
    (Committee(17, output="parity"), 9, 0.10),
    (Committee(15, 3, output="parity"), 6, 0.06),
    (Committee(5, 3, "full", output="parity"), 5, 0.12),
    (Committee(14, 2, output="parity"), 6, 0.105),
    (Committee(7, 2, "full", output="parity"), 5, 0.12),
    (Committee(12, 4, output="parity"), 5, 0.10),
    (Committee(3, 4, "full", output="parity"), 4, 0.175),
]
QUICK = (0, 9)


def solve(model, num_patterns, num_instances, node):
    """Beliefs and numbers of solutions of random instances, together."""
    keys = jax.random.split(jax.random.key(7), num_instances)
    load = num_patterns / model.num_weights
    examples = jax.vmap(lambda key: random_patterns(model, load, key))(keys)
    together = jax.jit(jax.vmap(lambda *one: belief_propagation(model, *one, node=node)))
    found = jax.tree.map(np.asarray, together(*examples))
    numbers = []
    for patterns, labels in zip(*map(np.asarray, examples), strict=True):
        _, answers = outputs(model, patterns)
        numbers.append(np.sum(np.all(answers == labels, axis=1)))
    return found, np.array(numbers)


@pytest.mark.parametrize(
    ("model", "num_patterns", "largest", "num_instances"),
    [(*MACHINES[index], 24) for index in QUICK]
    + [pytest.param(*machine, 300, marks=pytest.mark.slow) for machine in MACHINES],
    ids=str,
)
def test_what_converges_is_right(model, num_patterns, largest, num_instances):
    """By default: and with solutions at hand nearly everything converges."""
    found, numbers = solve(model, num_patterns, num_instances, None)
    solvable = numbers > 0
    counted_right = solvable & found.converged
    assert np.sum(counted_right) >= 0.97 * np.sum(solvable) > 0
    errors = np.abs(found.entropy - np.log(np.maximum(numbers, 1))) / model.num_weights
    assert np.max(errors[counted_right]) < largest
    assert np.mean(errors[counted_right]) < largest / 2
    # Not even what did not converge is absurd.
    told = found.entropy[solvable & ~np.isnan(found.entropy)] / model.num_weights
    assert np.all(told > -np.log(2))


@pytest.mark.parametrize("num_instances", [24, pytest.param(299, marks=pytest.mark.slow)])
def test_saturated_gaussian_nodes_say_that_they_are_contradicted(num_instances):
    """Of 299 instances 26 had converged to an entropy of -1e12, the floor of the variance."""
    found, numbers = solve(Committee(15), 6, num_instances, "gaussian")
    assert np.all(numbers > 0)
    assert np.array_equal(np.isnan(found.entropy), found.contradicted)
    assert not np.any(found.converged & found.contradicted)
    assert np.mean(found.contradicted) < 0.2
    errors = np.abs(found.entropy - np.log(numbers)) / 15
    assert np.sum(~found.converged & ~found.contradicted) <= 2
    assert np.max(errors[found.converged]) < 0.09


@pytest.mark.parametrize(
    ("model", "node"),
    [
        (Committee(10, 2, output="parity"), "exact"),
        (Committee(10, 2, output="parity"), "gaussian"),
        (Committee(5, 2, "full", output="parity"), "exact"),
        (Committee(12, 4, output="parity"), "exact"),
    ],
    ids=str,
)
def test_an_even_parity_heeds_its_labels(model, node, x64):
    """Inputs times the label leave it as it is; the two labels part the weights between them."""
    pattern = random_patterns(model, 1 / model.num_weights, 0).patterns
    # Toward weights that agree with the pattern, so that every unit's sign is likely.
    field = 0.5 * model.unit_inputs(pattern)[0] * jnp.ones(model.shape)
    found = []
    for label in (1.0, -1.0):
        beliefs = belief_propagation(
            model, pattern, jnp.array([label]), field=field, node=node, tolerance=1e-12
        )
        expected, mean = counted(model, pattern, [label], field)
        # One pattern is a tree, exact but for the normal sums.
        tolerance = 1e-9 if node == "exact" else 0.02
        assert float(beliefs.free_entropy) == pytest.approx(expected, abs=tolerance)
        np.testing.assert_allclose(beliefs.mean, mean, atol=3 * tolerance)
        found.append(float(beliefs.free_entropy))
    assert abs(found[0] - found[1]) > 1e-3
    everything = jnp.sum(jnp.logaddexp(field, -field))
    assert np.logaddexp(*found) == pytest.approx(float(everything), abs=2 * tolerance)


def test_exact_nodes_are_exact_for_probabilities_far_below_the_rounding_of_one():
    """In single precision: a pattern that a strong field makes all but impossible."""
    model = Committee(5)
    patterns = jnp.array([[1.0, 1.0, 1.0, -1.0, -1.0]])
    field = jnp.array([[-6.0, -6.0, -6.0, 6.0, 6.0]])
    found = belief_propagation(model, patterns, jnp.ones(1), field=field, tolerance=1e-6)
    expected, mean = counted(model, patterns, [1.0], field)
    assert float(found.free_entropy) == pytest.approx(expected, abs=1e-4)
    np.testing.assert_allclose(found.mean, mean, atol=1e-5)
