"""The networks of the comparison: in Flax linen, for images of any size, and models of language.

A model is called as ``apply(variables, examples, train=...)`` with images (batch, height, width,
channels) and answers with logits (batch, classes), or with characters (batch, block) and logits
for each. Sizes are those of the papers where the data are theirs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import flax.linen as nn
import jax

from benchmarks.common.convolution import conv, max_pool
from benchmarks.common.language import LanguageModel
from benchmarks.common.network import Module

PAPER_DIGIT_SIZE = 28


class Dense(nn.Module):
    """Fully connected ReLU layers with dropout after each.

    Attributes:
      widths: units of each hidden layer.
      num_classes: units of the last layer.
      dropout: probability of dropping a hidden unit.
    """

    widths: Sequence[int]
    num_classes: int
    dropout: float

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = images.reshape(images.shape[0], -1)
        for width in self.widths:
            x = nn.relu(nn.Dense(width)(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes)(x)


class LeNet(nn.Module):
    """Two layers of 5x5 filters with pooling, and one hidden layer with dropout.

    Attributes:
      num_classes: units of the last layer.
      dropout: probability of dropping a hidden unit.
      filters: of the two convolutions.
      pools: edges of the blocks that each convolution is pooled over.
      units: of the hidden layer.
      normalized: whether batch normalization comes before each ReLU.
      biased: whether the layers below a ReLU have biases.
    """

    num_classes: int
    dropout: float
    filters: tuple[int, int] = (20, 50)
    pools: tuple[int, int] = (2, 2)
    units: int = 500
    normalized: bool = True
    biased: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        # Unpadded 5x5 filters leave nothing of images smaller than the ones LeNet was made for.
        padding = "VALID" if min(images.shape[1:3]) >= PAPER_DIGIT_SIZE else "SAME"

        def activate(x: jax.Array) -> jax.Array:
            return nn.relu(batch_norm(train)(x) if self.normalized else x)

        x = images
        for filters, size in zip(self.filters, self.pools, strict=True):
            x = conv(filters, 5, padding=padding, use_bias=self.biased)(x)
            x = max_pool(activate(x), size)
        x = activate(nn.Dense(self.units, use_bias=self.biased)(x.reshape(x.shape[0], -1)))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes)(x)


class AllCNN(nn.Module):
    """All-CNN-C: nine convolutions, strides for pooling, with batch normalization after each.

    Attributes:
      num_classes: filters of the last layer.
      dropout: probability of dropping a unit after each strided convolution; 0.4 of it on the
        input.
    """

    num_classes: int
    dropout: float

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        layers = [(96, 3, 1), (96, 3, 1), (96, 3, 2), (192, 3, 1), (192, 3, 1), (192, 3, 2)]
        layers += [(192, 3, 1), (192, 1, 1)]
        x = nn.Dropout(0.4 * self.dropout, deterministic=not train)(images)
        for filters, size, stride in layers:
            x = conv(filters, size, stride=stride, use_bias=False)(x)
            x = nn.relu(batch_norm(train)(x))
            if stride > 1:
                x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = conv(self.num_classes, 1, use_bias=False)(x)
        return batch_norm(train)(x).mean(axis=(1, 2))


class SmallConv(nn.Module):
    """Three 3x3 convolutions with pooling between, and one dense layer.

    Attributes:
      num_classes: units of the last layer.
      dropout: probability of dropping a unit before the last layer.
    """

    num_classes: int
    dropout: float

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = images
        for filters in (16, 32):
            x = max_pool(nn.relu(conv(filters, 3)(x)), 2)
        x = nn.relu(conv(32, 3)(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x.reshape(x.shape[0], -1))
        return nn.Dense(self.num_classes)(x)


def batch_norm(train: bool) -> nn.BatchNorm:
    """Batch normalization that uses the mini-batch in training and stored statistics otherwise."""
    return nn.BatchNorm(use_running_average=not train, momentum=0.9)


@dataclass(frozen=True)
class Model:
    """One entry of the registry.

    Attributes:
      build: the module for a number of classes and a dropout probability.
      dropout: the default dropout probability.
      summary: one line for the report.
      block: characters that a model of language reads at once; None for a model of images.
      batch_size: examples per gradient unless the user says how many.
    """

    build: Callable[[int, float], Module]
    dropout: float
    summary: str
    block: int | None = None
    batch_size: int = 128


def language_model(kind: str, layers: int, width: int, heads: int, block: int) -> Model:
    """An entry of the registry for a model of language."""
    name = "GPT" if kind == "gpt" else "LSTM"
    of_heads = f", {heads} heads" if kind == "gpt" else ""
    return Model(
        lambda num_classes, _: LanguageModel(kind, num_classes, layers, width, heads, block),
        0.0,
        summary=f"{name} of {layers} layers, width {width}{of_heads}, windows of {block}",
        block=block,
        batch_size=12,
    )


# Entropy-SGD's paper drops 0.15 (mnistfc) and 0.25 (LeNet) with Entropy-SGD, 0.5 with Adam. Here
# all methods train the same network: the smaller value.
MODELS: dict[str, Model] = {
    "mlp": Model(
        lambda num_classes, dropout: Dense((64, 64), num_classes, dropout),
        0.0,
        summary="two hidden layers of 64",
    ),
    "mnistfc": Model(
        lambda num_classes, dropout: Dense((1024, 1024), num_classes, dropout),
        0.15,
        summary="two hidden layers of 1024 with dropout",
    ),
    "smallconv": Model(SmallConv, 0.0, summary="three convolutions of 16, 32, 32 filters"),
    "lenet": Model(LeNet, 0.25, summary="LeNet (20, 50, 500) with batch normalization"),
    "small_mnistfc": Model(
        lambda num_classes, dropout: Dense((64,), num_classes, dropout),
        0.0,
        summary="one hidden layer of 64",
    ),
    "small_lenet": Model(
        lambda num_classes, dropout: LeNet(
            num_classes, dropout, (10, 20), units=128, normalized=False, biased=True
        ),
        0.0,
        summary="LeNet (10, 20, 128) without batch normalization",
    ),
    "tiny_lenet": Model(
        lambda num_classes, dropout: LeNet(
            num_classes, dropout, (8, 16), pools=(3, 2), units=128, biased=True
        ),
        0.0,
        summary="LeNet (8, 16, 128), pooled by 3 and 2, with batch normalization",
    ),
    "allcnn": Model(AllCNN, 0.5, summary="All-CNN-C with batch normalization"),
    # nanoGPT's sizes for a CPU, and half their width and depth.
    "gpt_small": language_model("gpt", layers=4, width=128, heads=4, block=64),
    "gpt_tiny": language_model("gpt", layers=2, width=64, heads=2, block=64),
    "char_lstm": language_model("lstm", layers=2, width=128, heads=1, block=50),
}
