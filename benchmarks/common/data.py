"""Image sets as arrays in memory: scikit-learn's digits, or any TFDS set of equal-sized images."""

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
class ImageData:
    """A classification set.

    Attributes:
      name: the set's name and version.
      x_train: training images, uint8 or float32, shape (n, height, width, channels).
      y_train: their classes, int32, shape (n,).
      x_test: images to judge by.
      y_test: their classes.
      num_classes: the number of classes.
    """

    name: str
    x_train: NDArray[Any]
    y_train: NDArray[np.int32]
    x_test: NDArray[Any]
    y_test: NDArray[np.int32]
    num_classes: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one image."""
        height, width, channels = self.x_train.shape[1:]
        return height, width, channels


def load(name: str, *, data_dir: Path | None = None, cache_dir: Path | None = None) -> ImageData:
    """Loads an image set, standardized per channel by the training images.

    Args:
      name: ``digits``, or a TFDS set such as ``mnist``, ``fashion_mnist``, ``cifar10``.
      data_dir: where TFDS keeps its sets; default ``$TFDS_DATA_DIR``, else TFDS's own default.
      cache_dir: where decoded arrays are kept; default ``$XDG_CACHE_HOME/entropix``.

    Raises:
      UsageError: there is no such set, it is not of equal-sized images, or it is neither there nor
        can be prepared here.
    """
    raw = digits() if name == "digits" else tfds_images(name, data_dir, cache_dir)
    return standardized(raw)


def load_for(options: ImageOptions, *, batch_size: int = 1, holdout: float = 0.0) -> ImageData:
    """The image set that the options name.

    Args:
      options: of an experiment.
      batch_size: images that the training set must hold.
      holdout: share of the training images that stands for the test set.

    Raises:
      UsageError: as of `load`; the training set does not fill a mini-batch.
    """
    data = load(options.dataset, data_dir=options.data_dir, cache_dir=options.cache_dir)
    if holdout:
        data = hold_out(data, holdout)
    if batch_size > len(data.x_train):
        raise UsageError(
            f"--batch-size {batch_size} is more than the {len(data.x_train)} training images"
        )
    return data


def standardized(data: ImageData) -> ImageData:
    """Images with zero mean and unit variance per channel over the training set."""
    axes = (0, 1, 2)
    # In one go these would be float64 copies of the whole set; a thousand images at a time are not.
    sums = np.zeros((2, data.image_shape[2]))
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


def hold_out(data: ImageData, fraction: float, seed: int = 0) -> ImageData:
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


def digits() -> ImageData:
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
    return ImageData("digits 1.0", x_train, y_train, x_test, y_test, num_classes=10)


def tfds_images(name: str, data_dir: Path | None, cache_dir: Path | None) -> ImageData:
    """A TFDS set decoded once and kept as one .npz under its name and version."""
    from benchmarks.common import tfds_source

    builder = tfds_source.find_builder(name, data_dir)
    cache = (cache_dir or default_cache_dir()) / f"{builder.info.full_name.replace('/', '-')}.npz"
    if not cache.exists():
        arrays = tfds_source.read_splits(builder)
        write_whole(cache, lambda file: np.savez(file, allow_pickle=False, **arrays))
    with np.load(cache) as stored:
        return ImageData(
            name=builder.info.full_name.replace("/", " "),
            x_train=stored["x_train"],
            y_train=stored["y_train"],
            x_test=stored["x_test"],
            y_test=stored["y_test"],
            num_classes=tfds_source.num_classes(builder),
        )


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/entropix``, ``~/.cache/entropix`` where that is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "entropix"
