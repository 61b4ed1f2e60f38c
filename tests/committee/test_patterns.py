"""Examples: their statistics, their balance, and what shuffling keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropix.committee import (
    Committee,
    binarize,
    random_patterns,
    shuffle_pixels,
    two_classes,
)


@pytest.mark.parametrize("distribution", ["signs", "normal"])
def test_random_patterns_have_mean_zero_and_variance_one(distribution):
    patterns, labels = random_patterns(Committee(101), 5.0, 0, distribution=distribution)
    assert patterns.shape == (505, 101)
    error = 5 / np.sqrt(patterns.size)
    np.testing.assert_allclose(jnp.mean(patterns), 0, atol=error)
    np.testing.assert_allclose(jnp.mean(patterns**2), 1, atol=1.5 * error)
    assert set(np.unique(labels)) == {-1, 1}
    assert (len(np.unique(patterns)) == 2) == (distribution == "signs")


def test_the_load_counts_weights_not_inputs():
    assert len(random_patterns(Committee(11, 3, "full"), 2.0, 0).labels) == 66


@pytest.mark.slow
def test_keys_may_be_mapped_over():
    model = Committee(11)
    keys = jax.random.split(jax.random.key(0), 3)
    together = jax.vmap(lambda key: random_patterns(model, 1.0, key))(keys)
    for at, key in enumerate(keys):
        alone = random_patterns(model, 1.0, key)
        assert jnp.array_equal(together.patterns[at], alone.patterns)
        assert jnp.array_equal(together.labels[at], alone.labels)


def test_binarize_by_the_images_own_median_and_by_given_thresholds():
    images = np.random.default_rng(0).normal(size=(20, 4, 7))
    own = binarize(images)
    assert own.shape == (20, 28)
    np.testing.assert_array_equal(jnp.sum(own, axis=1), 0)
    by_pixel = binarize(images, np.median(images, axis=0))
    np.testing.assert_array_equal(jnp.sum(by_pixel, axis=0), 0)


def test_binarize_splits_pixels_that_equal_the_median():
    """Black backgrounds: half of each image is +1 however many of its pixels are alike."""
    images = np.zeros((3, 5, 6))
    images[0, :2] = 1.0
    images[1, :4] = 1.0
    own = np.asarray(binarize(images))
    np.testing.assert_array_equal(np.sum(own, axis=1), 0)
    # What is brighter than the median stays bright, what is darker dark.
    assert np.all(own[0, :12] == 1)
    assert np.all(own[1, 24:] == -1)


def test_two_classes_are_balanced_and_drawn_without_replacement():
    patterns = jnp.arange(100.0)[:, None]
    classes = np.arange(100) % 10
    examples = two_classes(patterns, classes, (3, 4), 6, 1)
    values = np.asarray(examples.patterns[:, 0]).astype(int)
    assert len(set(values)) == 12
    np.testing.assert_array_equal(np.where(values % 10 == 3, 1, -1), examples.labels)
    assert float(jnp.sum(examples.labels)) == 0
    assert not np.all(np.diff(np.asarray(examples.labels)) <= 0)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [bool, np.uint8])
def test_classes_of_patterns_without_a_sign_have_labels_of_both_signs(dtype):
    patterns = np.array([[0, 1], [1, 0], [1, 1], [0, 0]], dtype)
    examples = two_classes(patterns, np.array([3, 3, 4, 4]), (3, 4), 2, 0)
    assert sorted(np.asarray(examples.labels).tolist()) == [-1, -1, 1, 1]


def test_shuffling_keeps_biases_and_destroys_correlations():
    rng = np.random.default_rng(0)
    common = rng.normal(size=(2000, 1))
    patterns = jnp.asarray(np.sign(common + 0.3 * rng.normal(size=(2000, 30)) + 0.4))
    shuffled = shuffle_pixels(patterns, 0)
    np.testing.assert_array_equal(jnp.sort(shuffled, 0), jnp.sort(patterns, 0))

    def correlations(x):
        return np.corrcoef(np.asarray(x).T)[np.triu_indices(30, 1)]

    assert np.min(correlations(patterns)) > 0.5
    assert np.max(np.abs(correlations(shuffled))) < 5 / np.sqrt(2000)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: random_patterns(Committee(9), 0.0, 0), "alpha .*got 0.0"),
        (lambda: random_patterns(Committee(9), 0.01, 0), "alpha must give 1 pattern or more.*0.01"),
        (
            lambda: random_patterns(Committee(9), 1.0, 0, distribution="cauchy"),
            "distribution must be of.*'cauchy'",
        ),
        (lambda: binarize(jnp.ones(3)), r"images .*got \(3,\)"),
        (lambda: binarize(jnp.full((3, 2), jnp.nan)), "images.*nan"),
        (lambda: binarize(jnp.ones((3, 2)), jnp.ones(3)), r"thresholds must.*\(2,\), got \(3,\)"),
        (
            lambda: two_classes(jnp.ones((4, 1)), np.array([0, 0, 1, 1]), (0, 1), 3, 0),
            "per_class .*got 3",
        ),
        (
            lambda: two_classes(jnp.ones((4, 1)), np.array([0, 0, 1, 1]), (1, 1), 1, 0),
            r"pair .*got \(1, 1\)",
        ),
    ],
)
def test_impossible_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
