"""The pictures of one minimum."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray

from benchmarks.common.plots import COLORS, LINES, save
from benchmarks.common.run_folder import Results

BLACK, ORANGE, GREEN, RED = COLORS[:4]
LINE_NAMES = {
    "random": "random, filter-normalized",
    "largest": "eigenvector of the largest eigenvalue",
    "smallest": "eigenvector of the smallest eigenvalue",
}
LEVELS = 15


def draw(folder: Path, found: Results) -> dict[str, Path]:
    """Draws all pictures as PNG and SVG; answers the PNG files by name."""
    drawers = {
        "local_energy": local_energy,
        "spectrum": spectrum,
        "gradient_noise": gradient_noise,
        "slices": slices,
    }
    return {name: save(folder, name, draw_one, found) for name, draw_one in drawers.items()}


def local_energy(found: Results) -> Figure:
    """Rise of error and loss with the noise, each with bars of one standard error."""
    figure, (left, right) = side_by_side(found)
    energy = found["measured"]["local_energy"]
    for axes, name, scale in ((left, "error", 100), (right, "loss", 1)):
        mean, std_error = (scale * np.array(energy[name][part]) for part in ("mean", "std_error"))
        axes.errorbar(energy["sigma"], mean, std_error, color=BLACK, capsize=3, marker="o", ms=3)
        axes.set_xlabel("relative size σ of the noise,  w → w (1 + σ z)")
    left.set(title="Local energy, error", ylabel="rise of the training error (points)")
    right.set(title="Local energy, cross entropy", ylabel="rise of the training loss (nats)")
    return figure


def spectrum(found: Results) -> Figure:
    """Density of eigenvalues on a log scale: the whole range, and as far as the negative tail."""
    figure, (left, right) = side_by_side(found)
    measured = found["measured"]["spectrum"]
    ends = found["measured"]["eigenvalues"]
    known = np.array([*ends["largest"]["values"], *ends["smallest"]["values"]])
    for axes, part in ((left, "density"), (right, "density_near_zero")):
        density_on(axes, measured[part], measured["dimension"])
        low, high = measured[part]["grid"][0], measured[part]["grid"][-1]
        inside = known[(known >= low) & (known <= high)]
        axes.plot(
            inside, np.full_like(inside, 0.02), "|", color=RED, ms=10, mew=1.2,
            transform=axes.get_xaxis_transform(), label="eigenvalues computed to a tolerance",
        )  # fmt: skip
        axes.set(xlabel="eigenvalue λ of the Hessian", xlim=(low, high))
    left.set(title="Whole spectrum", ylabel="eigenvalues per unit of λ")
    right.set(title="Around zero, as far as the negative tail")
    right.legend(loc="upper right", fontsize=8)
    return figure


def density_on(axes: Axes, density: dict[str, Any], dimension: float) -> None:
    """A density of eigenvalues with its band, down to half an eigenvalue in the whole width."""
    mean, std_error = (dimension * np.array(density[part]) for part in ("mean", "std_error"))
    floor = 0.05 / density["width"]
    axes.plot(density["grid"], np.maximum(mean, floor / 10), color=BLACK)
    axes.fill_between(
        density["grid"], np.maximum(mean - std_error, floor / 10),
        np.maximum(mean + std_error, floor / 10), color=BLACK, alpha=0.2, lw=0,
    )  # fmt: skip
    axes.set(yscale="log", ylim=(floor, 3 * mean.max()))


def gradient_noise(found: Results) -> Figure:
    """Eigenvalues of the covariance of per-example gradients against their rank."""
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axes = figure.subplots()
    noise = found["measured"]["gradient_noise"]
    values = np.array(noise["eigenvalues"])
    shown = values > 1e-9 * values[0]
    axes.plot(np.arange(1, len(values) + 1)[shown], values[shown], color=BLACK)
    axes.axhline(noise["threshold"], color=ORANGE, ls="--", label="threshold of the rank")
    axes.set(
        title="Covariance of per-example gradients", xscale="log", yscale="log",
        xlabel="number of the eigenvalue", ylabel="eigenvalue",
    )  # fmt: skip
    axes.legend()
    say_what(figure, found)
    return figure


def slices(found: Results) -> Figure:
    """The loss along three lines, and over the plane of two random directions."""
    figure, (left, right) = side_by_side(found)
    measured = found["measured"]["slices"]
    at = np.array(measured["coordinates"])
    for (name, values), color, style in zip(
        measured["lines"].items(), (BLACK, ORANGE, GREEN), LINES, strict=False
    ):
        left.plot(at, values, color=color, linestyle=style, label=LINE_NAMES[name])
    left.set(title="Along lines", yscale="log", xlabel="position", ylabel="cross entropy (nats)")
    left.legend(fontsize=8)
    plane = np.array(measured["plane"])
    right.set(
        title="Over a plane of two random directions", aspect="equal",
        xlabel="position along the first", ylabel="along the second",
    )  # fmt: skip
    contours(figure, right, at, plane)
    return figure


def contours(figure: Figure, axes: Axes, at: NDArray[Any], plane: NDArray[Any]) -> None:
    """Filled contours of log10 of the loss, the first direction to the right."""
    logarithm = np.log10(np.maximum(plane, 1e-12))
    filled = axes.contourf(at, at, logarithm.T, levels=LEVELS, cmap="cividis")
    figure.colorbar(filled, ax=axes, label="log₁₀ of the cross entropy")
    axes.plot(0, 0, "+", color=RED, ms=10)
    axes.grid(visible=False)


def side_by_side(found: Results) -> tuple[Figure, tuple[Axes, Axes]]:
    """Two pictures beside each other under the line that says what was measured."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        axes.yaxis.set_minor_formatter(NullFormatter())
    say_what(figure, found)
    return figure, (left, right)


def say_what(figure: Figure, found: Results) -> None:
    """The line that says what was measured."""
    training = found["training"]
    what = (
        f"{found['data']['name']}, {training['configuration']['model']}, "
        f"{training['method']}, seed {training['seed']}"
    )
    figure.suptitle(what, fontsize=10, color="0.35")
