"""How wide the minimum is that a method found: local energy and Hessian."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common.evaluation import CURVE_IMAGES, unstacked
from benchmarks.common.network import BatchStats, Network, Params
from benchmarks.common.objectives import Objectives
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
        self._objectives = Objectives(network)
        count = max(1, images // train[1][0].size)
        self._examples = train[0][:count], train[1][:count]
        of_text = train[1].ndim > 1
        self._energy = self._objectives.loss if of_text else self._objectives.error

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
            self._measure_seed(one, self._objectives.data(self._examples, old), key)
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
        hessian = flatness.hessian(self._objectives.loss, params, data)
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
