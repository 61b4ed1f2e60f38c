"""Image sets through `tfds.data_source`, with a plain answer where TFDS would retry or mislead.

TFDS reads array_record files without TensorFlow, but preparing (downloading) a set needs TensorFlow
and the network, and without a network it retries for minutes: what preparing needs is checked
first.
"""

import difflib
import importlib.util
import logging
import socket
import urllib.parse
import urllib.request
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.options import UsageError

READ_AT_ONCE = 2000
PROBE_SECONDS = 5.0
# Names of sets that fit every model here; any other TFDS set of equal-sized images is accepted too.
EXAMPLES = ("digits", "mnist", "fashion_mnist", "kmnist", "cifar10", "cifar100", "svhn_cropped")


def find_builder(name: str, data_dir: Path | None) -> Any:
    """The TFDS builder of a set of equal-sized, labeled images; nothing is read or fetched yet."""
    tfds = import_tfds()
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except tfds.core.DatasetNotFoundError:
        known = (*EXAMPLES, *tfds.list_builders(with_community_datasets=False))
        near = [near for near in difflib.get_close_matches(name, known) if near not in EXAMPLES]
        raise UsageError(
            f"dataset {name!r} is unknown; accepted: {', '.join((*EXAMPLES, *near))}, or any other "
            "TFDS set of equal-sized images"
        ) from None
    except ValueError as error:
        if "File format" not in str(error):
            raise
        raise UsageError(
            f"dataset {name!r} was prepared as tfrecord, which only TensorFlow reads; "
            "give another --data-dir to have it prepared as array_record"
        ) from None
    check_images(builder, name)
    return builder


def import_tfds() -> ModuleType:
    """tensorflow_datasets, an optional extra."""
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise UsageError(
            "this dataset needs tensorflow-datasets: pip install -e '.[tfds]', "
            "or use --dataset digits, which needs nothing"
        ) from None
    # TFDS warns of a missing set before the one line that says what to do about it.
    logging.getLogger("absl").setLevel(logging.ERROR)
    module: ModuleType = tfds
    return module


def check_images(builder: Any, name: str) -> None:
    """Raises unless the set holds images of one size, each with one class."""
    keys = builder.info.supervised_keys
    features = [builder.info.features[key] for key in keys or () if isinstance(key, str)]
    kinds = [type(feature).__name__ for feature in features]
    if kinds != ["Image", "ClassLabel"] or None in features[0].shape:
        raise UsageError(f"dataset {name!r} is not a set of equal-sized images with one class each")


def num_classes(builder: Any) -> int:
    """The number of classes of the set's labels."""
    return int(builder.info.features[builder.info.supervised_keys[1]].num_classes)


def read_splits(builder: Any) -> dict[str, NDArray[Any]]:
    """Decodes the train and the test split, preparing the set first where that is possible."""
    if not builder.is_prepared():
        check_can_prepare(builder)
        builder.download_and_prepare(file_format="array_record")
    x_train, y_train = read_split(builder, "train")
    x_test, y_test = read_split(builder, "test")
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


def read_split(builder: Any, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Images (n, height, width, channels) and classes (n,) of one split, in the set's own order."""
    if builder.info.splits and split not in builder.info.splits:
        accepted = ", ".join(builder.info.splits)
        raise UsageError(f"dataset {builder.name!r} has no {split!r} split, only: {accepted}")
    image_key, label_key = builder.info.supervised_keys
    source = builder.as_data_source(split=split)
    images = np.empty((len(source), *builder.info.features[image_key].shape), np.uint8)
    labels = np.empty(len(source), np.int32)
    for start in range(0, len(source), READ_AT_ONCE):
        places = range(start, min(start + READ_AT_ONCE, len(source)))
        # One by one takes two and a half times as long.
        for place, example in zip(places, source.__getitems__(list(places)), strict=True):
            images[place] = example[image_key]
            labels[place] = example[label_key]
    return images, labels


def check_can_prepare(builder: Any) -> None:
    """Raises at once, saying what to do, where TFDS could not prepare the set."""
    missing = [
        package
        for package in ("tensorflow", "importlib_resources")
        if importlib.util.find_spec(package) is None
    ]
    if missing:
        obstacle = f"preparing it needs the packages missing here: pip install {' '.join(missing)}"
    elif (host := unreachable_host(builder)) is not None:
        obstacle = f"its download host {host} cannot be reached"
    else:
        return
    folder = Path(builder.data_dir)
    raise UsageError(
        f"dataset {builder.name!r} is not in {folder.parent}, and {obstacle}; or set TFDS_DATA_DIR "
        f"or --data-dir to a folder that holds {builder.name}/{folder.name} as array_record files"
    )


def unreachable_host(builder: Any) -> str | None:
    """The set's download host, or the proxy to it, where no connection to it opens; else None."""
    urls = [urllib.parse.urlsplit(url) for url in builder.url_infos]
    remote = [url for url in urls if url.hostname]
    if not remote:
        return None
    target = remote[0]
    proxy = urllib.request.getproxies().get(target.scheme)
    if proxy:
        target = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
    host = target.hostname or ""
    port = target.port or (80 if target.scheme == "http" else 443)
    try:
        socket.create_connection((host, port), timeout=PROBE_SECONDS).close()
    except OSError:
        return host
    return None
