"""Image sets: what is read, kept and refused."""

import importlib.util
import os
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.common import data, tfds_source
from benchmarks.common.options import UsageError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Source:
    """A TFDS data source of 30 known images."""

    def __init__(self, split):
        generator = np.random.default_rng(len(split))
        self.images = generator.integers(0, 256, (30, 32, 32, 3), np.uint8)

    def __len__(self):
        return len(self.images)

    def __getitems__(self, places):
        return [{"image": self.images[place], "label": place % 10} for place in places]


@pytest.fixture
def mocked(monkeypatch):
    """TFDS that finds every set prepared, with the images of `Source`; counts its reads."""
    import tensorflow_datasets as tfds

    reads = []

    def as_data_source(self, split=None, **kwargs):
        reads.append(split)
        return Source(split)

    monkeypatch.setattr(tfds.core.DatasetBuilder, "is_prepared", lambda self: True)
    monkeypatch.setattr(tfds_source, "READ_AT_ONCE", 7)
    with tfds.testing.mock_data(as_data_source_fn=as_data_source):
        yield reads


def test_digits_are_whole_split_and_standardized():
    digits = data.load("digits")
    assert digits.x_train.shape == (1300, 8, 8, 1)
    assert digits.x_test.shape == (497, 8, 8, 1)
    assert np.bincount(digits.y_train).min() >= 125
    np.testing.assert_allclose(digits.x_train.mean(), 0, atol=1e-6)
    np.testing.assert_allclose(digits.x_train.std(), 1, atol=1e-5)
    np.testing.assert_array_equal(digits.x_train, data.load("digits").x_train)


def test_standardized_channel_by_channel_and_blank_channels_pass():
    images = np.zeros((2500, 2, 2, 2), np.uint8)
    images[::2, ..., 0] = 200
    labels = np.zeros(2500, np.int32)
    scaled = data.standardized(data.Dataset("x", images, labels, images[:1], labels[:1], 2))
    np.testing.assert_allclose(scaled.x_train[:2, 0, 0, 0], [1, -1], atol=1e-5)
    np.testing.assert_array_equal(scaled.x_train[..., 1], 0)


def test_hold_out_parts_the_training_set():
    digits = data.load("digits")
    parted = data.hold_out(digits, 0.2)
    assert len(parted.x_test) == 260
    both = np.concatenate([parted.x_train, parted.x_test]).reshape(1300, -1)
    order, reference = (np.lexsort(x.T) for x in (both, digits.x_train.reshape(1300, -1)))
    np.testing.assert_array_equal(both[order], digits.x_train.reshape(1300, -1)[reference])


def test_tfds_set_is_read_once_and_kept(mocked, tmp_path):
    first = data.load("cifar10", data_dir=tmp_path / "none", cache_dir=tmp_path)
    again = data.load("cifar10", data_dir=tmp_path / "none", cache_dir=tmp_path)
    assert mocked == ["train", "test"]
    assert first.num_classes == 10
    assert first.example_shape == (32, 32, 3)
    np.testing.assert_array_equal(first.x_train, again.x_train)
    np.testing.assert_array_equal(first.y_train, np.arange(30) % 10)
    with np.load(next(tmp_path.glob("cifar10-*.npz"))) as kept:
        np.testing.assert_array_equal(kept["x_train"], Source("train").images)
        np.testing.assert_array_equal(kept["x_test"], Source("test").images)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnits", "unknown; accepted: digits, mnist"),
        ("imagenet2012", "not a set of equal-sized images"),
        ("imdb_reviews", "not a set of equal-sized images"),
    ],
)
def test_unusable_sets_are_refused(name, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        data.load(name, data_dir=tmp_path, cache_dir=tmp_path)


def test_missing_set_without_tensorflow_is_refused_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    begin = time.monotonic()
    with pytest.raises(UsageError, match=r"cifar10.*pip install tensorflow.*--data-dir"):
        data.load("cifar10", data_dir=tmp_path, cache_dir=tmp_path)
    # A ceiling far above what it takes, and far below the minutes of TFDS's retries.
    assert time.monotonic() - begin < 60


def test_unreachable_host_is_named(monkeypatch):
    def refuse(address, timeout):
        raise OSError(address)

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(tfds_source.urllib.request, "getproxies", dict)
    builder = SimpleNamespace(url_infos=["https://data.example.org/images.tar"])
    assert tfds_source.unreachable_host(builder) == "data.example.org"
    monkeypatch.setattr(
        tfds_source.urllib.request, "getproxies", lambda: {"https": "proxy.example.org:3128"}
    )
    assert tfds_source.unreachable_host(builder) == "proxy.example.org"
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: socket.socket())
    assert tfds_source.unreachable_host(builder) is None


def test_missing_tfds_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "tensorflow_datasets", None)
    with pytest.raises(UsageError, match=r"-e .\.\[tfds\]"):
        data.load("mnist", cache_dir=tmp_path)


@pytest.mark.skipif("TFDS_DATA_DIR" not in os.environ, reason="needs real data in TFDS_DATA_DIR")
@pytest.mark.slow
def test_real_images(tmp_path):
    name = "fashion_mnist"
    if not (Path(os.environ["TFDS_DATA_DIR"]) / name).exists():
        pytest.skip(f"no {name} in TFDS_DATA_DIR")
    images = data.load(name, cache_dir=tmp_path)
    assert images.x_train.shape == (60000, 28, 28, 1)
    np.testing.assert_array_equal(np.bincount(images.y_train), 6000)
