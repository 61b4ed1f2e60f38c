"""What the committees learn: random patterns, two classes of images, the same with pixels shuffled.

The machine with random patterns is a tree, as in the papers; the one with images sees all pixels
in every unit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from benchmarks.common.data import Dataset
from entropix.committee import (
    Committee,
    Examples,
    binarize,
    random_patterns,
    shuffle_pixels,
    two_classes,
)


@dataclass(frozen=True)
class Problem:
    """One instance.

    Attributes:
      model: the network.
      train: what it learns.
      test: unseen examples to judge it by; None where there is nothing to generalize.
    """

    model: Committee
    train: Examples
    test: Examples | None = None


@dataclass(frozen=True)
class Sizes:
    """Sizes of the problems.

    Attributes:
      num_hidden: K.
      num_inputs: N of the tree.
      alpha: load of the tree.
      pair: the two classes of images.
      per_class: training images of each.
    """

    num_hidden: int
    num_inputs: int
    alpha: float
    pair: tuple[int, int]
    per_class: int


def random_problem(sizes: Sizes, images: Dataset | None, key: jax.Array) -> Problem:
    """Random patterns on a tree."""
    del images
    model = Committee(sizes.num_inputs, sizes.num_hidden, weights="spherical")
    return Problem(model, random_patterns(model, sizes.alpha, key))


def image_problem(sizes: Sizes, images: Dataset | None, key: jax.Array) -> Problem:
    """Two classes of images, each binarized at its own median, and all test images of the two."""
    assert images is not None
    train_key, test_key = jax.random.split(key)
    train = both_classes(images.x_train, images.y_train, sizes.pair, sizes.per_class, train_key)
    available = min(int((images.y_test == one).sum()) for one in sizes.pair)
    test = both_classes(images.x_test, images.y_test, sizes.pair, available, test_key)
    inputs = train.patterns.shape[1]
    return Problem(Committee(inputs, sizes.num_hidden, "full", weights="spherical"), train, test)


def both_classes(
    pixels: NDArray[Any],
    classes: NDArray[np.int32],
    pair: tuple[int, int],
    per_class: int,
    key: jax.Array,
) -> Examples:
    """The same number of images of each class, binarized."""
    chosen = np.isin(classes, pair)
    patterns = binarize(jnp.asarray(pixels[chosen]))
    return two_classes(patterns, jnp.asarray(classes[chosen]), pair, per_class, key)


def shuffled_problem(sizes: Sizes, images: Dataset | None, key: jax.Array) -> Problem:
    """The training images of `image_problem` with every pixel permuted over them."""
    problem = image_problem(sizes, images, key)
    shuffled = shuffle_pixels(problem.train.patterns, jax.random.fold_in(key, 1))
    return Problem(problem.model, problem.train._replace(patterns=shuffled))


# Each experiment: how an instance is made, whether of images, and its title.
PROBLEMS: dict[
    str, tuple[Callable[[Sizes, Dataset | None, jax.Array], Problem], bool, str]
] = {
    "random": (random_problem, False, "random patterns, tree"),
    "images": (image_problem, True, "two classes of images, shared inputs"),
    "shuffled": (shuffled_problem, True, "the same images, pixels shuffled"),
}  # fmt: skip
