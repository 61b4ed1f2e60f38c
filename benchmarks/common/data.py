"""Data sets as arrays in memory: scikit-learn's digits, or images or texts through TFDS."""

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.options import ImageOptions, UsageError
from benchmarks.common.run_folder import write_whole

DIGITS_TEST_IMAGES = 497
BLOCK = 1000


@dataclass(frozen=True)
class Dataset:
    """Images with a class each, or windows of a text with the character after each of theirs.

    Attributes:
      name: the set's name and version.
      x_train: training examples: images, uint8 or float32, shape (n, height, width, channels); or
        characters, int32, shape (n, block).
      y_train: their classes, int32, shape (n,); or the characters that follow, shape (n, block).
      x_test: examples to judge by.
      y_test: their classes.
      num_classes: the number of classes, or of different characters.
    """

    name: str
    x_train: NDArray[Any]
    y_train: NDArray[np.int32]
    x_test: NDArray[Any]
    y_test: NDArray[np.int32]
    num_classes: int

    @property
    def example_shape(self) -> tuple[int, ...]:
        """Height, width and channels of an image, or the characters of a window."""
        return self.x_train.shape[1:]

    @property
    def is_text(self) -> bool:
        """Whether it is a text."""
        return self.y_train.ndim > 1

    @property
    def predictions(self) -> int:
        """Classes to be found in each example: 1 for an image."""
        return math.prod(self.y_train.shape[1:])


def load(
    name: str,
    *,
    data_dir: Path | None = None,
    cache_dir: Path | None = None,
    block: int | None = None,
) -> Dataset:
    """Loads an image set, standardized per channel by the training images, or a text.

    Args:
      name: ``digits``, or a TFDS set such as ``mnist``, ``fashion_mnist``, ``tiny_shakespeare``.
      data_dir: where TFDS keeps its sets; default ``$TFDS_DATA_DIR``, else TFDS's own default.
      cache_dir: where decoded arrays are kept; default ``$XDG_CACHE_HOME/entropix``.
      block: characters that the model reads at once, None for a model of images.

    Raises:
      UsageError: there is no such set, it is not what the model takes, or it is neither there nor
        can be prepared here.
    """
    if block is not None:
        return text_windows(name, data_dir, block)
    raw = digits() if name == "digits" else tfds_images(name, data_dir, cache_dir)
    return standardized(raw)


def load_for(
    options: ImageOptions,
    *,
    batch_size: int = 1,
    holdout: float = 0.0,
    block: int | None = None,
) -> Dataset:
    """The data set that the options name.

    Args:
      options: of an experiment.
      batch_size: examples that the training set must hold.
      holdout: share of the training examples that stands for the test set.
      block: characters that the model reads at once, None for a model of images.

    Raises:
      UsageError: as of `load`; the training set does not fill a mini-batch.
    """
    data = load(
        options.dataset, data_dir=options.data_dir, cache_dir=options.cache_dir, block=block
    )
    if holdout:
        data = hold_out(data, holdout)
    if batch_size > len(data.x_train):
        kind = "windows of the text" if data.is_text else "images"
        raise UsageError(
            f"--batch-size {batch_size} is more than the {len(data.x_train)} training {kind}"
        )
    return data


def standardized(data: Dataset) -> Dataset:
    """Images with zero mean and unit variance per channel over the training set."""
    axes = (0, 1, 2)
    # In one go these would be float64 copies of the whole set; a thousand images at a time are not.
    sums = np.zeros((2, data.example_shape[2]))
    for start in range(0, len(data.x_train), BLOCK):
        block = data.x_train[start : start + BLOCK].astype(np.float64)
        sums += np.stack([block.sum(axes), np.square(block).sum(axes)])
    mean, square = sums / np.prod(data.x_train.shape[:3])
    std = np.sqrt(square - np.square(mean))
    std = np.where(std > 0, std, 1)

    def scale(images: NDArray[Any]) -> NDArray[np.float32]:
        scaled = (images.astype(np.float32) - mean.astype(np.float32)) / std.astype(np.float32)
        return scaled.astype(np.float32)

    return replace(data, x_train=scale(data.x_train), x_test=scale(data.x_test))


def hold_out(data: Dataset, fraction: float, seed: int = 0) -> Dataset:
    """The training set parted: its second part, ``fraction`` of it, stands for the test set."""
    order = np.random.default_rng(seed).permutation(len(data.x_train))
    kept, held = np.split(order, [round(len(order) * (1 - fraction))])
    return replace(
        data,
        x_train=data.x_train[kept],
        y_train=data.y_train[kept],
        x_test=data.x_train[held],
        y_test=data.y_train[held],
    )


def digits() -> Dataset:
    """scikit-learn's 1797 hand-written digits of 8x8 pixels: 1300 to train, 497 to test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(
        images.reshape(-1, 8, 8, 1).astype(np.uint8),
        labels.astype(np.int32),
        test_size=DIGITS_TEST_IMAGES,
        stratify=labels,
        random_state=0,
    )
    return Dataset("digits 1.0", x_train, y_train, x_test, y_test, num_classes=10)


def tfds_images(name: str, data_dir: Path | None, cache_dir: Path | None) -> Dataset:
    """A TFDS set decoded once and kept as one .npz under its name and version."""
    from benchmarks.common import tfds_source

    builder = tfds_source.find_builder(name, data_dir)
    cache = (cache_dir or default_cache_dir()) / f"{builder.info.full_name.replace('/', '-')}.npz"
    if not cache.exists():
        arrays = tfds_source.read_splits(builder)
        write_whole(cache, lambda file: np.savez(file, allow_pickle=False, **arrays))
    with np.load(cache) as stored:
        return Dataset(
            name=builder.info.full_name.replace("/", " "),
            x_train=stored["x_train"],
            y_train=stored["y_train"],
            x_test=stored["x_test"],
            y_test=stored["y_test"],
            num_classes=tfds_source.num_classes(builder),
        )


def text_windows(name: str, data_dir: Path | None, block: int) -> Dataset:
    """A TFDS text cut into windows, and what follows each of their characters.

    A character is a byte, numbered by its place among those that occur. To judge by is the
    validation text, so that the test text stays unseen; where a set has no validation text, its
    test text.

    Raises:
      UsageError: the set is not a text, or too short, or not to be had here.
    """
    from benchmarks.common import tfds_source

    builder = tfds_source.find_text_builder(name, data_dir)
    train, held = tfds_source.read_texts(builder)
    alphabet, codes = np.unique(np.frombuffer(train + held, np.uint8), return_inverse=True)
    x_train, y_train = windows(codes[: len(train)], block)
    x_test, y_test = windows(codes[len(train) :], block)
    if not (len(x_train) and len(x_test)):
        raise UsageError(f"the texts of {name!r} are shorter than the {block} that the model reads")
    return Dataset(
        builder.info.full_name.replace("/", " "), x_train, y_train, x_test, y_test, len(alphabet)
    )


def windows(codes: NDArray[Any], block: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Windows of a text one after the other, and the same moved on by one character."""
    count = max(0, (len(codes) - 1) // block)
    whole = codes[: count * block + 1].astype(np.int32)
    return whole[:-1].reshape(count, block), whole[1:].reshape(count, block)


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/entropix``, ``~/.cache/entropix`` where that is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "entropix"
