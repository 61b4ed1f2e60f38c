"""What is measured of trained weights beside their error: how wide the minimum is."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common.data import Dataset
from benchmarks.common.network import BatchStats, Network, Params
from benchmarks.common.objectives import Objectives
from benchmarks.tuning.scores import (
    answers_in_blocks,
    calibration_error,
    error_and_loss,
    with_noise,
)
from entropix import flatness

# Of the training images, with the labels that were trained on.
IMAGES = 500
ENERGY_SIGMA = 0.2
ENERGY_SAMPLES = 20
SAM_RADIUS = 0.05
TRACE_PROBES = 20
TOP_TOLERANCE = 3e-2
TOP_PRODUCTS = 60

# Name, title, factor, digits of every number of a fresh training.
QUANTITIES: dict[str, tuple[str, float, int]] = {
    "error": ("test error %", 100, 2),
    "loss": ("test NLL", 1, 3),
    "calibration": ("calibration error %", 100, 2),
    "noisy_error": ("error under input noise %", 100, 2),
    "train_error": ("train error %", 100, 2),
    "local_energy": ("local energy %", 100, 2),
    "top_eigenvalue": ("top eigenvalue", 1, 2),
    "trace": ("trace", 1, 1),
    "sam_sharpness": ("SAM sharpness", 1, 4),
}
# Those that are measured without any test image.
WIDTHS = ("local_energy", "top_eigenvalue", "trace", "sam_sharpness")


def on_images(
    network: Network, data: Dataset, params: Params, stats: BatchStats
) -> list[dict[str, float]]:
    """Errors, cross entropy and calibration of stacked weights, one record each."""
    test = answers_in_blocks(network, params, stats, data.x_test)
    noisy = answers_in_blocks(network, params, stats, with_noise(data.x_test))
    train = answers_in_blocks(network, params, stats, data.x_train)
    records = []
    for plain, shaken, seen in zip(test, noisy, train, strict=True):
        error, loss = error_and_loss(plain, data.y_test)
        records.append(
            {
                "error": error,
                "loss": loss,
                "calibration": calibration_error(plain, data.y_test),
                "noisy_error": error_and_loss(shaken, data.y_test)[0],
                "train_error": error_and_loss(seen, data.y_train)[0],
            }
        )
    return records


class Widths:
    """Measures single weights; its functions compile once for all methods of a row."""

    def __init__(self, network: Network, data: Dataset) -> None:
        """Takes the first training images."""
        self._objectives = Objectives(network)
        self._examples = jnp.asarray(data.x_train[:IMAGES]), jnp.asarray(data.y_train[:IMAGES])

    def measure(self, params: Params, stats: BatchStats, seed: int) -> dict[str, float]:
        """The widths; the draws of a seed are the same for all methods."""
        energy_key, top_key, trace_key = jax.random.split(jax.random.key(seed), 3)
        loss, error = self._objectives.loss, self._objectives.error
        data = self._objectives.data(self._examples, stats)
        energy = flatness.local_energy(
            error, params, data, energy_key, sigma=ENERGY_SIGMA, num_samples=ENERGY_SAMPLES
        )
        hessian = flatness.hessian(loss, params, data)
        top = flatness.eigenvalues(
            hessian, top_key, k=1, tol=TOP_TOLERANCE, max_products=TOP_PRODUCTS
        )
        trace = flatness.trace(hessian, trace_key, num_probes=TRACE_PROBES)
        sharpness = flatness.sam_sharpness(loss, params, data, radius=SAM_RADIUS)
        return {
            "local_energy": float(np.ravel(energy.mean)[0]),
            "top_eigenvalue": float(top.eigenvalues[0]),
            "trace": float(trace.mean),
            "sam_sharpness": float(sharpness.mean),
        }
