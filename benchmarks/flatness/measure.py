"""Every estimator of the library on one minimum, as plain numbers."""

import functools
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.common.network import Params
from benchmarks.flatness.subject import Subject
from entropix import flatness

SIGMAS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
RADIUS = 0.05
ASCENT_STEPS = 10
GROUP = 100
TOLERANCE = 1e-4
MAX_PRODUCTS = 1000
TRACE_PRODUCTS = 99
NEAR_ZERO = (1e-4, 1e-3, 1e-2, 1e-1)
GRID = 400
SLICE_LENGTH = 1.0
# Per-example gradients kept at once, in numbers, above which their spectrum is Lanczos'.
GRADIENTS_AT_MOST = 100_000_000
# Images whose gradients are computed together.
AT_ONCE = 256


@dataclass(frozen=True)
class Effort:
    """How much is spent on the estimates.

    Attributes:
      images: training images that all estimators look at.
      draws: Monte-Carlo draws of the local energy.
      steps: Lanczos steps.
      probes: probe vectors of the spectrum.
      eigenvalues: computed at each end of the spectrum.
      points: of a slice, along each direction.
    """

    images: int
    draws: int
    steps: int
    probes: int
    eigenvalues: int
    points: int


class Gauge:
    """The estimators on one subject; each method answers with the numbers of one of them."""

    def __init__(self, subject: Subject, effort: Effort, seed: int) -> None:
        """Takes the first images of the training set."""
        self.effort = effort
        self.key = jax.random.key(seed)
        self.params = jax.tree.map(jnp.asarray, subject.params)
        count = effort.images
        self.data = jax.device_put((subject.images.x_train[:count], subject.images.y_train[:count]))

        def logits(params: Params, images: jax.Array) -> jax.Array:
            return subject.network.logits(params, subject.stats, images)

        def loss(params: Params, data: Any) -> jax.Array:
            """Mean cross entropy in evaluation mode."""
            answers = logits(params, data[0])
            return optax.softmax_cross_entropy_with_integer_labels(answers, data[1]).mean()

        def error(params: Params, data: Any) -> jax.Array:
            """Share of the images got wrong."""
            wrong = jnp.argmax(logits(params, data[0]), axis=-1) != data[1]
            return wrong.astype(jnp.float32).mean()

        self.loss, self.error = loss, error

    def local_energy(self) -> dict[str, Any]:
        """Rise of error and loss under multiplicative noise."""
        found: dict[str, Any] = {"sigma": list(SIGMAS), "draws": self.effort.draws}
        for name, objective in (("error", self.error), ("loss", self.loss)):
            energy = flatness.local_energy(
                objective, self.params, self.data, self._key("local energy"),
                sigma=jnp.array(SIGMAS), num_samples=self.effort.draws,
            )  # fmt: skip
            found[name] = {"mean": plain(energy.mean), "std_error": plain(energy.std_error)}
        return found

    def spectrum(self) -> dict[str, Any]:
        """The Hessian's spectral density over its range and around zero, and what follows."""
        found = flatness.spectrum(
            self._hessian, self._key("spectrum"),
            num_steps=self.effort.steps, num_probes=self.effort.probes,
        )  # fmt: skip
        top, bottom = float(found.top.value), float(found.bottom.value)
        margin = 0.05 * (top - bottom)
        center = 1.5 * max(-bottom, 1e-3 * top)
        return {
            "steps": self.effort.steps,
            "probes": self.effort.probes,
            "dimension": float(found.dimension),
            "nodes": plain(found.nodes),
            "weights": plain(found.weights),
            "largest": bounded(found.top),
            "smallest": bounded(found.bottom),
            "fraction_below": {
                f"{threshold:g}": numbers(found.fraction_below(threshold))
                for threshold in NEAR_ZERO
            },
            "density": density(found, bottom - margin, top + margin),
            "density_near_zero": density(found, -center, center),
        }

    def eigenvalues(self) -> dict[str, Any]:
        """Both ends of the spectrum by restarted Lanczos."""
        found: dict[str, Any] = {"tolerance": TOLERANCE}
        for end in ("largest", "smallest"):
            answer = self._ends[end]
            found[end] = {
                "values": plain(answer.eigenvalues),
                "residuals": plain(answer.residuals),
                "products": int(answer.num_products),
                "converged": bool(answer.converged),
            }
        return found

    def trace(self) -> dict[str, Any]:
        """The Hessian's trace by XTrace."""
        estimate = flatness.trace(self._hessian, self._key("trace"), num_probes=TRACE_PRODUCTS)
        return {"products": TRACE_PRODUCTS, **numbers(estimate)}

    def gradient_noise(self) -> dict[str, Any]:
        """Spectrum and rank of the covariance of per-example gradients."""
        size = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        exact = len(self.data[0]) * size <= GRADIENTS_AT_MOST
        noise = flatness.gradient_noise(
            self.loss, self.params, self.data, key=self._key("gradient noise"),
            num_steps=None if exact else self.effort.steps,
            batch_size=min(AT_ONCE, len(self.data[0])),
        )  # fmt: skip
        return {
            "exact": exact,
            "examples": noise.num_examples,
            "parameters": noise.num_parameters,
            "eigenvalues": plain(noise.eigenvalues),
            "threshold": float(noise.threshold),
            "relative_threshold": float(noise.threshold / noise.eigenvalues[0]),
            "rank": int(noise.rank),
            "participation_ratio": float(noise.participation_ratio),
            "trace": float(noise.trace),
        }

    def sharpness(self) -> dict[str, Any]:
        """SAM's sharpness: one step of ascent, several, and one for each group of images."""
        ways: dict[str, dict[str, int]] = {
            "one step": {},
            f"{ASCENT_STEPS} steps": {"num_steps": ASCENT_STEPS},
            f"one step, groups of {GROUP}": {"group_size": GROUP},
        }
        found = {
            name: flatness.sam_sharpness(
                self.loss, self.params, self.data, radius=RADIUS, **options
            )
            for name, options in ways.items()
        }
        return {"radius": RADIUS} | {name: numbers(answer) for name, answer in found.items()}

    def slices(self) -> dict[str, Any]:
        """The loss along lines and over a plane through the minimum."""
        first, second = (
            flatness.filter_normalized_direction(self.params, self._key(name))
            for name in ("first direction", "second direction")
        )
        length = optax.tree.norm(first)
        coordinates = jnp.linspace(-SLICE_LENGTH, SLICE_LENGTH, self.effort.points)
        directions = {
            "random": first,
            "largest": self._eigenvector("largest", length),
            "smallest": self._eigenvector("smallest", length),
        }
        lines = {
            name: plain(
                flatness.loss_slice(self.loss, self.params, self.data, [direction], coordinates)
            )
            for name, direction in directions.items()
        }
        plane = flatness.loss_slice(self.loss, self.params, self.data, [first, second], coordinates)
        return {"coordinates": plain(coordinates), "lines": lines, "plane": plain(plane)}

    @functools.cached_property
    def _hessian(self) -> flatness.Operator:
        """The Hessian of the loss, for all its estimators."""
        return flatness.hessian(self.loss, self.params, self.data)

    @functools.cached_property
    def _ends(self) -> dict[str, flatness.Eigenvalues]:
        """Eigenvalues and vectors at each end of the spectrum."""
        ends: tuple[Literal["largest", "smallest"], ...] = ("largest", "smallest")
        return {
            end: flatness.eigenvalues(
                self._hessian, self._key(end), which=end,
                k=self.effort.eigenvalues, tol=TOLERANCE, max_products=MAX_PRODUCTS,
            )
            for end in ends
        }  # fmt: skip

    def _eigenvector(self, end: str, length: jax.Array) -> Params:
        """The outermost eigenvector of one end, scaled to a length."""
        return jax.tree.map(lambda leaf: length * leaf[0], self._ends[end].eigenvectors)

    def _key(self, name: str) -> jax.Array:
        """A key for each purpose, the same whichever estimators run."""
        return jax.random.fold_in(self.key, zlib.crc32(name.encode()))


ESTIMATORS: dict[str, Callable[[Gauge], dict[str, Any]]] = {
    "local_energy": Gauge.local_energy,
    "spectrum": Gauge.spectrum,
    "eigenvalues": Gauge.eigenvalues,
    "trace": Gauge.trace,
    "gradient_noise": Gauge.gradient_noise,
    "sharpness": Gauge.sharpness,
    "slices": Gauge.slices,
}


def measure(
    gauge: Gauge, names: Iterable[str] = tuple(ESTIMATORS)
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The name and numbers of each estimator, with the seconds it took, as they come."""
    for name in names:
        begin = time.perf_counter()
        found = ESTIMATORS[name](gauge)
        yield name, found | {"seconds": time.perf_counter() - begin}


def density(found: flatness.Spectrum, low: float, high: float) -> dict[str, Any]:
    """The spectral density on an interval, broadened to a hundredth of it."""
    grid, width = jnp.linspace(low, high, GRID), (high - low) / 100
    return {"grid": plain(grid), "width": width, **arrays(found.density(grid, width))}


def arrays(estimate: flatness.Estimate) -> dict[str, Any]:
    """Estimates with their error bars."""
    return {"mean": plain(estimate.mean), "std_error": plain(estimate.std_error)}


def numbers(estimate: flatness.Estimate | flatness.Sharpness) -> dict[str, float]:
    """One estimate with its error bar."""
    return {"mean": float(estimate.mean), "std_error": float(estimate.std_error)}


def bounded(number: flatness.Bounded) -> dict[str, float]:
    """One number with the bound on its error."""
    return {"value": float(number.value), "bound": float(number.bound)}


def plain(values: Any) -> Any:
    """An array as JSON keeps it."""
    return np.asarray(values).tolist()
