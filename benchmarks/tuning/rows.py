"""The rows of the contest: which images, how many labels are wrong, which network, what budget."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.data import Dataset, load
from benchmarks.common.models import MODELS
from benchmarks.common.network import Network


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
      title: for the report.
      dataset: name of the image set.
      gradients: budget of one run.
      images: how many of the training images are used; None means all.
      label_noise: share of their labels that are wrong.
      model: name of the network.
      batch_size: images per gradient.
      seeds: fresh trainings of each winner.
      not_run: why there are no results, where there are none.
    """

    title: str
    dataset: str
    gradients: int
    images: int | None = None
    label_noise: float = 0.0
    model: str = "mlp"
    batch_size: int = 32
    seeds: int = 10
    not_run: str = ""


SLOW = "more than the hour of one CPU core that a row may take"
ACCELERATOR = "needs an accelerator"
ROWS: dict[str, Row] = {
    "fashion_1000": Row("Fashion-MNIST, 1,000 images", "fashion_mnist", 2400, 1000),
    "digits_noise40": Row("digits, 40 % of the labels wrong", "digits", 2400, None, 0.4),
    "digits": Row("digits", "digits", 2400),
    "fashion_5000_noise40": Row(
        "Fashion-MNIST, 5,000 images, 40 % of the labels wrong", "fashion_mnist", 2400, 5000, 0.4
    ),
    "mnist_1000": Row("MNIST, 1,000 images", "mnist", 2400, 1000),
    "fashion_5000": Row("Fashion-MNIST, 5,000 images", "fashion_mnist", 2400, 5000),
    "fashion_5000_noise20": Row(
        "Fashion-MNIST, 5,000 images, 20 % of the labels wrong", "fashion_mnist", 2400, 5000, 0.2
    ),
    "fashion_20000_noise40": Row(
        "Fashion-MNIST, 20,000 images, 40 % of the labels wrong",
        "fashion_mnist", 9600, 20_000, 0.4, "mnistfc", 128, 5, SLOW,
    ),
    "fashion_mnist": Row(
        "Fashion-MNIST, all images, mnistfc",
        "fashion_mnist", 9600, None, 0.0, "mnistfc", 128, 5, SLOW,
    ),
    "mnist": Row("MNIST, all images, LeNet", "mnist", 9600, None, 0.0, "lenet", 128, 5, SLOW),
    "cifar10": Row(
        "CIFAR-10, All-CNN, no augmentation",
        "cifar10", 48_000, None, 0.0, "allcnn", 128, 5, ACCELERATOR,
    ),
    "cifar100": Row(
        "CIFAR-100, All-CNN, no augmentation",
        "cifar100", 48_000, None, 0.0, "allcnn", 128, 5, ACCELERATOR,
    ),
}  # fmt: skip


def prepare(
    row: Row, data_dir: Path | None = None, cache_dir: Path | None = None, seed: int = 0
) -> Dataset:
    """The images of a row: a random part of the training set, some of its labels made wrong.

    The test set is untouched.
    """
    data = load(row.dataset, data_dir=data_dir, cache_dir=cache_dir)
    chosen = np.random.default_rng((seed, 0)).permutation(len(data.x_train))[: row.images]
    labels = wrong_labels(data.y_train[chosen], row.label_noise, data.num_classes, seed)
    return replace(data, x_train=data.x_train[chosen], y_train=labels)


def wrong_labels(
    labels: NDArray[np.int32], share: float, num_classes: int, seed: int
) -> NDArray[np.int32]:
    """The labels, a share of them replaced by one of the other classes, each as often."""
    generator = np.random.default_rng((seed, 1))
    chosen = generator.permutation(len(labels))[: round(share * len(labels))]
    shifts = generator.integers(1, num_classes, len(chosen))
    noisy = labels.copy()
    noisy[chosen] = (labels[chosen] + shifts) % num_classes
    return noisy


def network_of(row: Row, data: Dataset) -> Network:
    """The network of a row."""
    model = MODELS[row.model]
    return Network(model.build(data.num_classes, model.dropout), data.example_shape)


@dataclass(frozen=True)
class Fold:
    """One way to part the training set.

    Attributes:
      seed: of the network and the order of the images.
      seen: places of the images to train on.
      held: places of the images to judge by; empty where all are trained on.
    """

    seed: int
    seen: NDArray[np.int32]
    held: NDArray[np.int32]


def folds(count: int, num_examples: int, seed: int = 0) -> list[Fold]:
    """Cross-validation: ``count`` ways to hold out a part, the parts disjoint and of one size."""
    order = np.random.default_rng((seed, 2)).permutation(num_examples).astype(np.int32)
    size = num_examples // count
    parts = [order[at * size : (at + 1) * size] for at in range(count)]
    return [Fold(at, np.setdiff1d(order, held), held) for at, held in enumerate(parts)]


def whole(seeds: Sequence[int], num_examples: int) -> list[Fold]:
    """The whole training set, once for each seed."""
    every = np.arange(num_examples, dtype=np.int32)
    return [Fold(seed, every, every[:0]) for seed in seeds]
