"""How wide the minimum is that a method found: local energy and Hessian."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.common.evaluation import CURVE_IMAGES, unstacked
from benchmarks.common.network import BatchStats, Network, Params
from entropix import flatness

SIGMAS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
ENERGY_SAMPLES = 20
LANCZOS_STEPS = 40
PROBES = 1
TRACE_PRODUCTS = 30
# Of the residual; the eigenvalue's error is quadratic in it.
TOP_TOLERANCE = 1e-2
TOP_PRODUCTS = 200


class Widths:
    """Measures weights stacked over seeds; its functions compile once for all methods of a run."""

    def __init__(self, network: Network, train: tuple[jax.Array, jax.Array], images: int) -> None:
        """Takes the training set, of which the first ``images`` (characters of a text) are used."""
        self._network = network
        count = max(1, images // train[1][0].size)
        self._examples = train[0][:count], train[1][:count]
        self._energy = self._loss if train[1].ndim > 1 else self._error

    def settings(self) -> dict[str, Any]:
        """How the numbers are measured, for the report."""
        return {
            "images": len(self._examples[0]),
            "curve_images": CURVE_IMAGES,
            "sigma": list(SIGMAS),
            "energy_samples": ENERGY_SAMPLES,
            "lanczos_steps": LANCZOS_STEPS,
            "probes": PROBES,
            "trace_products": TRACE_PRODUCTS,
            "top_tolerance": TOP_TOLERANCE,
        }

    def measure(
        self, params: Params, stats: BatchStats, seeds: tuple[int, ...]
    ) -> dict[str, list[Any]]:
        """Every quantity, seed by seed; the draws of a seed are the same for all methods."""
        count = len(seeds)
        each = [
            self._measure_seed(one, self._with_statistics(old), key)
            for one, old, key in zip(
                unstacked(params, count),
                unstacked(stats, count),
                map(jax.random.key, seeds),
                strict=True,
            )
        ]
        return {name: [one[name] for one in each] for name in each[0]}

    def _measure_seed(self, params: Params, data: Any, key: jax.Array) -> dict[str, Any]:
        energy_key, top_key, trace_key, spectrum_key = jax.random.split(key, 4)
        energy = flatness.local_energy(
            self._energy, params, data, energy_key, sigma=jnp.array(SIGMAS),
            num_samples=ENERGY_SAMPLES,
        )  # fmt: skip
        hessian = flatness.hessian(self._loss, params, data)
        top = flatness.eigenvalues(
            hessian, top_key, k=1, tol=TOP_TOLERANCE, max_products=TOP_PRODUCTS
        )
        trace = flatness.trace(hessian, trace_key, num_probes=TRACE_PRODUCTS)
        spectrum = flatness.spectrum(
            hessian, spectrum_key, num_steps=LANCZOS_STEPS, num_probes=PROBES
        )
        return {
            "local_energy": np.asarray(energy.mean).tolist(),
            "local_energy_std_error": np.asarray(energy.std_error).tolist(),
            "top_eigenvalue": float(top.eigenvalues[0]),
            "top_eigenvalue_residual": float(top.residuals[0]),
            "trace": float(trace.mean),
            "trace_std_error": float(trace.std_error),
            "spectrum": {
                "nodes": np.ravel(spectrum.nodes).tolist(),
                "weights": (np.ravel(spectrum.weights) / PROBES).tolist(),
            },
        }

    def _with_statistics(self, stats: BatchStats) -> Any:
        """The examples, each with the batch statistics beside it.

        The estimators compile once per loss function; a loss that closed over the statistics would
        be another function for each seed and method.
        """
        count = len(self._examples[0])
        repeated = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), stats)
        return *self._examples, repeated

    def _logits(self, params: Params, data: Any) -> jax.Array:
        images, _, repeated = data
        stats = jax.tree.map(lambda leaf: leaf[0], repeated)
        return self._network.logits(params, stats, images)

    def _loss(self, params: Params, data: Any) -> jax.Array:
        """Mean cross entropy in evaluation mode."""
        logits = self._logits(params, data)
        return optax.softmax_cross_entropy_with_integer_labels(logits, data[1]).mean()

    def _error(self, params: Params, data: Any) -> jax.Array:
        """Share of the images got wrong."""
        wrong = jnp.argmax(self._logits(params, data), axis=-1) != data[1]
        return wrong.astype(jnp.float32).mean()
