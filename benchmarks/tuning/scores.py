"""Numbers from the answers of a network: error, cross entropy, calibration, error under noise."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from benchmarks.common.network import BatchStats, Network, Params

CALIBRATION_BINS = 15
# In units of a pixel's standard deviation over the training set.
INPUT_NOISE = 0.5
IMAGES_AT_ONCE = 1000


@partial(jax.jit, static_argnums=0)
def answers(network: Network, params: Params, stats: BatchStats, images: jax.Array) -> jax.Array:
    """Logits of stacked weights, each on its own images, (weights, images, classes)."""
    return jax.vmap(network.logits)(params, stats, images)


def answers_in_blocks(
    network: Network, params: Params, stats: BatchStats, images: NDArray[Any]
) -> NDArray[np.float32]:
    """Logits of stacked weights, all on the same images."""
    count = jax.tree.leaves(params)[0].shape[0]
    blocks = []
    for start in range(0, len(images), IMAGES_AT_ONCE):
        block = jnp.asarray(images[start : start + IMAGES_AT_ONCE])
        repeated = jnp.broadcast_to(block, (count, *block.shape))
        blocks.append(np.asarray(answers(network, params, stats, repeated)))
    return np.concatenate(blocks, axis=1)


def with_noise(images: NDArray[Any], seed: int = 0) -> NDArray[np.float32]:
    """The images with normal noise on every pixel, the same for all methods and seeds."""
    noise = np.random.default_rng((seed, 3)).standard_normal(images.shape, np.float32)
    return images + np.float32(INPUT_NOISE) * noise


def error_and_loss(logits: NDArray[Any], labels: NDArray[Any]) -> tuple[float, float]:
    """Share of the answers that are wrong, and their mean cross entropy in nats.

    A network whose answers are not finite is wrong everywhere, at a loss that is infinite.
    """
    if not np.isfinite(logits).all():
        return 1.0, float("inf")
    wrong = logits.argmax(-1) != labels
    chosen = np.take_along_axis(log_softmax(logits.astype(np.float64), -1), labels[:, None], -1)
    return float(wrong.mean()), float(-chosen.mean())


def calibration_error(logits: NDArray[Any], labels: NDArray[Any]) -> float:
    """Mean gap between confidence and accuracy over equal bins of confidence (ECE)."""
    probabilities = np.exp(log_softmax(logits.astype(np.float64), -1))
    confidence = probabilities.max(-1)
    right = probabilities.argmax(-1) == labels
    place = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(place, weights=right - confidence, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(labels))
