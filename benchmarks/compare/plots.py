"""The pictures of a comparison."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from benchmarks.common.plots import (
    COLORS,
    LINES,
    SMALLEST_SHOWN,
    band,
    plain_ticks,
    save,
    share_beyond,
    tail,
)
from benchmarks.common.run_folder import Results
from benchmarks.compare.results import yardstick


def draw(folder: Path, found: Results) -> dict[str, Path]:
    """Draws all pictures as PNG and SVG; answers the PNG files by name."""
    drawers = {
        "learning_curves": learning_curves,
        "local_energy": local_energy,
        "spectrum": spectrum,
    }
    return {name: save(folder, name, draw_one, found) for name, draw_one in drawers.items()}


def methods_with_style(found: Results) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Each method's name, record, and the style that it has in all pictures."""
    for at, (name, record) in enumerate(found["methods"].items()):
        style = {"color": COLORS[at % len(COLORS)], "linestyle": LINES[at % len(LINES)]}
        yield name, record, style


def learning_curves(found: Results) -> Figure:
    """What is judged, and training cross entropy, at the evaluation weights against gradients."""
    judge = yardstick(found)
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, record, style in methods_with_style(found):
        gradients = [point["gradients"] for point in record["curve"]]
        for axes, quantity, scale in ((left, judge.test, judge.scale), (right, "train_loss", 1)):
            numbers = scale * np.array([point[quantity] for point in record["curve"]])
            band(axes, np.array(gradients), numbers, name, style)
    left.set(
        title=f"{judge.name.capitalize()} on the {found['data']['judged_on']}",
        ylabel=f"{judge.name} ({judge.unit})",
    )
    right.set(title="Training loss", ylabel="cross entropy (nats)")
    for axes in (left, right):
        axes.set(xlabel="gradient evaluations of one run", xscale="log", yscale="log")
        plain_ticks(axes)
    finish(figure, left, found)
    return figure


def local_energy(found: Results) -> Figure:
    """Rise of the training error, or loss, under multiplicative noise on the weights."""
    judge = yardstick(found)
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axes = figure.subplots()
    for name, record, style in methods_with_style(found):
        energies = judge.scale * np.array(record["flatness"]["local_energy"]).T
        band(axes, np.array(found["widths"]["sigma"]), energies, name, style)
    axes.set(
        title=f"Local energy: rise of the training {judge.name} under noise",
        xlabel="relative size σ of the noise,  w → w (1 + σ z)",
        ylabel=f"{judge.name} increase ({judge.difference.split()[0]})",
    )
    finish(figure, axes, found)
    return figure


def spectrum(found: Results) -> Figure:
    """Share of the Hessian's eigenvalues beyond a size, on both sides of zero."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    negative, positive = figure.subplots(1, 2, sharey=True)
    largest = {-1: 0.0, 1: 0.0}
    for name, record, style in methods_with_style(found):
        for axes, sign in ((negative, -1), (positive, 1)):
            tails = [
                tail(sign * np.array(seed["nodes"]), np.array(seed["weights"]))
                for seed in record["flatness"]["spectrum"]
            ]
            sizes = np.unique(np.concatenate([sizes for sizes, _ in tails]))
            if sizes.size:
                shares = np.mean([share_beyond(sizes, *one) for one in tails], axis=0)
                axes.plot(sizes, shares, label=name, drawstyle="steps-pre", **style)
                largest[sign] = max(largest[sign], sizes[-1])
    negative.set(title="Negative tail", xlabel="−λ", ylabel="share of eigenvalues beyond")
    positive.set(title="Positive tail", xlabel="λ")
    for axes, sign in ((negative, -1), (positive, 1)):
        axes.set(xscale="log", yscale="log", ylim=(0.5 / found["model"]["parameters"], 1))
        # Nearer to zero the quadrature does not resolve the bulk.
        axes.set_xlim(SMALLEST_SHOWN * largest[1], 1.5 * max(largest[sign], SMALLEST_SHOWN))
        axes.xaxis.set_minor_formatter(NullFormatter())
    negative.invert_xaxis()
    finish(figure, positive, found)
    return figure


def finish(figure: Figure, axes: Axes, found: Results) -> None:
    """The common legend and the line that says what was run."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", handlelength=3)
    seeds = found["configuration"]["seeds"]
    what = f"{found['data']['name']}, {found['configuration']['model']}, {seeds} seeds"
    figure.suptitle(what, fontsize=10, color="0.35")
