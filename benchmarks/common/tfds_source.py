"""Images and texts through `tfds.data_source`; a plain answer where TFDS would retry or mislead.

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
# Texts by short names; any other TFDS set whose examples hold a text and nothing else is accepted.
TEXTS = {
    "tiny_shakespeare": "tiny_shakespeare",
    "wikitext2": "huggingface:wikitext/wikitext-2-raw-v1",
}


def find_builder(name: str, data_dir: Path | None) -> Any:
    """The TFDS builder of a set of equal-sized, labeled images; nothing is read or fetched yet."""
    builder = open_builder(name, data_dir, EXAMPLES, "TFDS set of equal-sized images")
    check_images(builder, name)
    return builder


def find_text_builder(name: str, data_dir: Path | None) -> Any:
    """The TFDS builder of a text; nothing is read or fetched yet."""
    if name == "digits":
        raise UsageError(
            "dataset 'digits' is not a text, which this model reads: give --dataset, one of "
            + ", ".join(TEXTS)
        )
    kind = "TFDS set of texts without classes"
    address = TEXTS.get(name, name)
    check_hugging_face(name, address)
    builder = open_builder(address, data_dir, tuple(TEXTS), kind)
    if set(builder.info.features) != {"text"}:
        raise UsageError(
            f"dataset {name!r} is not a text, which this model reads; accepted: "
            f"{', '.join(TEXTS)}, or any other {kind}"
        )
    return builder


def check_hugging_face(name: str, address: str) -> None:
    """Raises where what a set of Hugging Face's needs is missing; TFDS would name one at a time."""
    packages = ("datasets", "huggingface_hub")
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if address.startswith("huggingface:") and missing:
        raise UsageError(
            f"dataset {name!r} is {address.removeprefix('huggingface:')} of Hugging Face, training "
            "part and all, and needs packages that are missing here: pip install "
            f"{' '.join(missing)}; its first use also needs a network that reaches huggingface.co"
        )


def open_builder(name: str, data_dir: Path | None, examples: tuple[str, ...], kind: str) -> Any:
    """The TFDS builder of any set.

    Args:
      name: of the set.
      data_dir: where TFDS keeps its sets.
      examples: names to be proposed for one that is unknown.
      kind: what else is accepted.

    Raises:
      UsageError: the set is unknown, needs a package, or was prepared as what cannot be read.
    """
    tfds = import_tfds()
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except tfds.core.DatasetNotFoundError:
        known = (*examples, *tfds.list_builders(with_community_datasets=False))
        near = [near for near in difflib.get_close_matches(name, known) if near not in examples]
        raise UsageError(
            f"dataset {name!r} is unknown; accepted: {', '.join((*examples, *near))}, or any other "
            f"{kind}"
        ) from None
    except ModuleNotFoundError as error:
        raise UsageError(
            f"dataset {name!r} needs a package that is missing here: pip install {error.name}"
        ) from None
    except ValueError as error:
        if "File format" not in str(error):
            raise
        raise UsageError(
            f"dataset {name!r} was prepared as tfrecord, which only TensorFlow reads; "
            "give another --data-dir to have it prepared as array_record"
        ) from None
    return builder


def import_tfds() -> ModuleType:
    """tensorflow_datasets, an optional extra."""
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise UsageError(
            "this dataset needs tensorflow-datasets: pip install -e '.[tfds]', "
            "or use --dataset digits with a model of images, which needs nothing"
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
        hint = "; it is a text: --model must be one that reads texts, such as gpt_small"
        is_text = set(builder.info.features) == {"text"}
        raise UsageError(
            f"dataset {name!r} is not a set of equal-sized images with one class each"
            + hint * is_text
        )


def num_classes(builder: Any) -> int:
    """The number of classes of the set's labels."""
    return int(builder.info.features[builder.info.supervised_keys[1]].num_classes)


def read_splits(builder: Any) -> dict[str, NDArray[Any]]:
    """Decodes the train and the test split, preparing the set first where that is possible."""
    prepare(builder)
    x_train, y_train = read_split(builder, "train")
    x_test, y_test = read_split(builder, "test")
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


def read_texts(builder: Any) -> tuple[bytes, bytes]:
    """The training text and the one to judge by, preparing the set first where that is possible."""
    prepare(builder)
    held = "validation" if "validation" in builder.info.splits else "test"
    return read_text(builder, "train"), read_text(builder, held)


def read_text(builder: Any, split: str) -> bytes:
    """The examples of a split one after the other; where there are several, a line for each."""
    check_split(builder, split)
    source = builder.as_data_source(split=split)
    examples = source.__getitems__(list(range(len(source))))
    return b"\n".join(example["text"].rstrip(b"\n" * (len(source) > 1)) for example in examples)


def prepare(builder: Any) -> None:
    """Downloads and prepares a set that is not there; raises at once where that cannot be."""
    if not builder.is_prepared():
        check_can_prepare(builder)
        builder.download_and_prepare(file_format="array_record")


def check_split(builder: Any, split: str) -> None:
    """Raises unless the set has the split."""
    if builder.info.splits and split not in builder.info.splits:
        accepted = ", ".join(builder.info.splits)
        raise UsageError(f"dataset {builder.name!r} has no {split!r} split, only: {accepted}")


def read_split(builder: Any, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Images (n, height, width, channels) and classes (n,) of one split, in the set's own order."""
    check_split(builder, split)
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
