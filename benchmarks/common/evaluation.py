"""Error and cross entropy at given weights, batch statistics recomputed for them."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks.common.network import BatchStats, Network, Params
from entropix.nn import recompute_batch_stats

IMAGES_AT_ONCE = 1000
STATISTICS_IMAGES = 2000
STATISTICS_BATCHES = 4
# Predictions: one for an image, one for each character of a text.
CURVE_IMAGES = 10_000
# A whole text would take longer than the training.
WHOLE_TEXT = 100_000
WINDOWS_AT_ONCE = 128


class Scores(NamedTuple):
    """One number per seed in each.

    Attributes:
      train_error: share of the training images (of the first `CURVE_IMAGES` on the way) got wrong;
        of a text, of the first `WHOLE_TEXT` characters at the end.
      train_loss: their mean cross entropy, in nats.
      test_error: share of the test images, or of the characters to judge by, got wrong.
      test_loss: their mean cross entropy, in nats.
    """

    train_error: list[float]
    train_loss: list[float]
    test_error: list[float]
    test_loss: list[float]


class Evaluator:
    """Evaluates weights stacked over seeds; one compiled program for all methods of a run."""

    def __init__(
        self,
        network: Network,
        train: tuple[jax.Array, jax.Array],
        test: tuple[jax.Array, jax.Array],
    ) -> None:
        """Takes (images, classes) of both sets, on the device."""
        self._network = network
        self._train = train
        self._test = test
        self._sums = jax.jit(jax.vmap(self._sum, in_axes=(0, 0, None, None)))
        self._statistics_of_batch = jax.jit(network.training_stats)

    def statistics(self, params: Params, stats: BatchStats) -> BatchStats:
        """Batch statistics of each seed's weights, over the first training images."""
        if not jax.tree.leaves(stats):
            return stats
        batches = jnp.array_split(self._train[0][:STATISTICS_IMAGES], STATISTICS_BATCHES)
        count = jax.tree.leaves(stats)[0].shape[0]
        seeds = [
            recompute_batch_stats(partial(self._statistics_of_batch, one), old, batches)
            for one, old in zip(unstacked(params, count), unstacked(stats, count), strict=True)
        ]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *seeds)

    def scores(self, params: Params, stats: BatchStats, *, whole: bool) -> Scores:
        """Scores of each seed; ``whole``: on all training images, not only the first ones."""
        each = self._train[1][0].size
        most = CURVE_IMAGES // each if not whole else WHOLE_TEXT // each if each > 1 else None
        return self._scores(params, stats, most, None)

    def glance(self, params: Params, stats: BatchStats) -> Scores:
        """Scores for a point of a curve: of a text, on the first `CURVE_IMAGES` of both parts."""
        each = self._train[1][0].size
        most = CURVE_IMAGES // each
        return self._scores(params, stats, most, most if each > 1 else None)

    def _scores(
        self, params: Params, stats: BatchStats, train: int | None, test: int | None
    ) -> Scores:
        """Scores on the first examples, so many of each part; None for all."""
        return Scores(
            *self._means(params, stats, *(array[:train] for array in self._train)),
            *self._means(params, stats, *(array[:test] for array in self._test)),
        )

    def _sum(
        self, params: Params, stats: BatchStats, images: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        logits = self._network.logits(params, stats, images)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        wrong = jnp.argmax(logits, axis=-1) != labels
        return wrong.astype(jnp.float32).sum(), loss.sum()

    def _means(
        self, params: Params, stats: BatchStats, images: jax.Array, labels: jax.Array
    ) -> tuple[list[float], list[float]]:
        """Error and loss of each seed, images taken a block at a time."""
        step = IMAGES_AT_ONCE if labels.ndim == 1 else WINDOWS_AT_ONCE
        sums = [
            jax.device_get(
                self._sums(
                    params, stats, images[start : start + step], labels[start : start + step]
                )
            )
            for start in range(0, len(images), step)
        ]
        wrong, loss = (
            sum(part.astype(float) for part in parts) for parts in zip(*sums, strict=True)
        )
        return (wrong / labels.size).tolist(), (loss / labels.size).tolist()


def unstacked(tree: Any, count: int) -> list[Any]:
    """The trees of the ``count`` seeds that are stacked on the first axis."""
    return [jax.tree.map(lambda leaf, at=at: leaf[at], tree) for at in range(count)]
