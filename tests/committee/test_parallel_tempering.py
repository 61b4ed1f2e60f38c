"""Parallel tempering against all weights of small machines."""

import numpy as np
import pytest

from entropix.committee import Committee, parallel_tempering, random_patterns
from tests.committee.exhaustive import outputs

BETA = np.array([0.0, 0.5, 1.0, 2.0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        Committee(9),
        pytest.param(Committee(9, 3), marks=pytest.mark.slow),
        pytest.param(Committee(5, 2, "full", "parity"), marks=pytest.mark.slow),
    ],
)
def test_samples_the_distribution_of_the_enumeration(model):
    """Energies, partition functions, mean weights: all moments of a chain out of balance differ."""
    patterns, labels = random_patterns(model, 0.9, 1)
    found = parallel_tempering(model, patterns, labels, BETA, 0, num_sweeps=2000, num_runs=6)
    weights, answers = outputs(model, patterns)
    energy = np.sum(answers != np.asarray(labels), axis=1)
    chance = np.exp(-BETA[:, None] * energy)
    partition = chance.sum(1)
    chance /= partition[:, None]
    bars = 6 * np.asarray(found.std_error) + 1e-4
    assert np.all(np.abs(found.log_partition - np.log(partition)) < bars)
    assert np.all(bars < 0.4)
    # 6,000 samples, of which some are alike.
    np.testing.assert_allclose(found.energy, chance @ energy, atol=0.12)
    mean = np.einsum("tw,wkn->tkn", chance, weights)
    np.testing.assert_allclose(found.overlap, np.mean(mean**2, axis=(1, 2)), atol=0.05)
    count = np.sum(energy == 0)
    assert np.exp(found.log_solutions) == pytest.approx(count, rel=0.25)
    # Some flips change nothing, and at beta = 0 all are taken.
    assert found.accepted[0] == 1
    assert np.all(np.diff(found.accepted) < 0)
    assert np.all((found.exchanged > 0.2) & (found.exchanged <= 1))


def test_arguments_are_refused_by_name():
    model = Committee(9)
    examples = random_patterns(model, 0.5, 0)
    with pytest.raises(ValueError, match=r"beta.*\[1\. 2\.\]"):
        parallel_tempering(model, *examples, np.array([1.0, 2.0]), 0)
    with pytest.raises(ValueError, match=r"beta.*\(1,\)"):
        parallel_tempering(model, *examples, np.array([0.0]), 0)
    with pytest.raises(ValueError, match=r"model.*spherical"):
        parallel_tempering(Committee(9, weights="spherical"), *examples, BETA, 0)
    with pytest.raises(ValueError, match=r"num_runs.*1"):
        parallel_tempering(model, *examples, BETA, 0, num_runs=1)
