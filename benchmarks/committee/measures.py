"""How wide a solution is: local entropy, local energy, Hessian, error under noise, test error."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.committee.problems import Problem
from entropix import flatness
from entropix.committee import (
    Committee,
    local_entropy_curve,
    noise_robustness,
    surrogate_loss,
)

STRENGTHS = (200.0, 100.0, 50.0, 30.0, 20.0, 12.0, 8.0, 5.0, 3.0)
# Of the strengths: where the correlations are taken, 1 - S^2 near 0.01.
REFERENCE_STRENGTH = 100.0
# Correlated images need more than the default damping.
DAMPING, MAX_SWEEPS = 0.7, 200
RATES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2)
SIGMAS = (0.1, 0.2, 0.3, 0.5)
SAMPLES = 50
LANCZOS_STEPS = 40
# Of the smooth network whose Hessian is taken, the same for every algorithm.
STEEPNESS = 2.0


def settings() -> dict[str, Any]:
    """How the numbers are measured, for the results."""
    return {
        "strengths": list(STRENGTHS),
        "reference_strength": REFERENCE_STRENGTH,
        "damping": DAMPING,
        "max_sweeps": MAX_SWEEPS,
        "rates": list(RATES),
        "sigma": list(SIGMAS),
        "samples": SAMPLES,
        "lanczos_steps": LANCZOS_STEPS,
        "beta": STEEPNESS,
        "gamma": STEEPNESS,
    }


class Measures:
    """Measures networks of one model; its functions compile once for all of them."""

    def __init__(self, model: Committee) -> None:
        """Takes the model."""
        self._model = model
        self._loss = surrogate_loss(model, beta=STEEPNESS, gamma=STEEPNESS)

    def __call__(self, problem: Problem, weights: jax.Array, key: jax.Array) -> dict[str, Any]:
        """Every quantity; two networks of one instance see the same random numbers."""
        energy_key, noise_key, spectrum_key = jax.random.split(key, 3)
        curve = local_entropy_curve(
            self._model, weights, *problem.train, jnp.array(STRENGTHS),
            damping=DAMPING, max_steps=MAX_SWEEPS,
        )  # fmt: skip
        energy = flatness.local_energy(
            self._error, weights, problem.train, energy_key,
            sigma=jnp.array(SIGMAS), num_samples=SAMPLES,
        )  # fmt: skip
        noise = noise_robustness(
            self._model, weights, *problem.train, jnp.array(RATES), noise_key, num_samples=SAMPLES
        )
        spectrum = flatness.spectrum(
            flatness.hessian(self._loss, weights, problem.train),
            spectrum_key,
            num_steps=LANCZOS_STEPS,
            num_probes=1,
        )
        return {
            "distance": listed(curve.distance),
            "relative_entropy": listed(curve.relative_entropy),
            "converged": np.asarray(curve.converged).tolist(),
            "local_energy": listed(energy.mean),
            "noise_error": listed(noise.mean),
            "spectrum": {
                "nodes": listed(spectrum.nodes.ravel()),
                "weights": listed(spectrum.weights.ravel()),
            },
            "test_error": None
            if problem.test is None
            else float(self._error(weights, problem.test)),
        }

    def _error(self, weights: jax.Array, examples: Any) -> jax.Array:
        """Share of the examples got wrong."""
        patterns, labels = examples
        wrong = self._model.errors(weights, patterns, labels)
        return wrong.astype(weights.dtype) / labels.shape[0]


def listed(numbers: jax.Array) -> list[float | None]:
    """Numbers for JSON, which knows no nan."""
    return [float(x) if np.isfinite(x) else None for x in np.asarray(numbers)]
