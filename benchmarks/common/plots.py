"""The pictures of a comparison."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from numpy.typing import NDArray

from benchmarks.common.files import write_whole
from benchmarks.common.results import Results

# Okabe and Ito's colors, which color-blind readers tell apart, each with a line style of its own.
COLORS = ("#000000", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#0072B2", "#56B4E9")
LINES = ("-", "--", "-.", (0, (5, 1)), (0, (3, 1, 1, 1)), ":", (0, (1, 1)))
# Of the largest eigenvalue.
SMALLEST_SHOWN = 1e-4
STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "font.size": 10,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "svg.hashsalt": "entropix",
}


def draw(folder: Path, found: Results) -> dict[str, Path]:
    """Draws all pictures as PNG and SVG; answers the PNG files by name."""
    drawers = {
        "learning_curves": learning_curves,
        "local_energy": local_energy,
        "spectrum": spectrum,
    }
    return {name: save(folder, name, draw_one, found) for name, draw_one in drawers.items()}


def save(folder: Path, name: str, draw_one: Callable[[Results], Figure], found: Results) -> Path:
    """Draws one picture in both formats."""
    with mpl.rc_context(STYLE):
        figure = draw_one(found)
        # Without a date two runs with the same results write the same files.
        write_whole(
            folder / f"{name}.svg",
            lambda file: figure.savefig(file, format="svg", metadata={"Date": None}),
        )
        write_whole(
            folder / f"{name}.png", lambda file: figure.savefig(file, format="png", dpi=150)
        )
    return folder / f"{name}.png"


def methods_with_style(found: Results) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Each method's name, record, and the style that it has in all pictures."""
    for at, (name, record) in enumerate(found["methods"].items()):
        style = {"color": COLORS[at % len(COLORS)], "linestyle": LINES[at % len(LINES)]}
        yield name, record, style


def learning_curves(found: Results) -> Figure:
    """Test error and training cross entropy at the evaluation weights against gradients."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, record, style in methods_with_style(found):
        gradients = [point["gradients"] for point in record["curve"]]
        for axes, quantity, scale in ((left, "test_error", 100), (right, "train_loss", 1)):
            numbers = scale * np.array([point[quantity] for point in record["curve"]])
            band(axes, np.array(gradients), numbers, name, style)
    left.set(title=f"Error on the {found['data']['judged_on']}", ylabel="error (%)")
    right.set(title="Training loss", ylabel="cross entropy (nats)")
    for axes in (left, right):
        axes.set(xlabel="gradient evaluations of one run", xscale="log", yscale="log")
        plain_ticks(axes)
    finish(figure, left, found)
    return figure


def local_energy(found: Results) -> Figure:
    """Rise of the training error under multiplicative noise on the weights."""
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axes = figure.subplots()
    for name, record, style in methods_with_style(found):
        energies = 100 * np.array(record["flatness"]["local_energy"]).T
        band(axes, np.array(found["widths"]["sigma"]), energies, name, style)
    axes.set(
        title="Local energy: rise of the training error under noise",
        xlabel="relative size σ of the noise,  w → w (1 + σ z)",
        ylabel="error increase (percentage points)",
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


def tail(nodes: NDArray[Any], weights: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The positive nodes in rising order and their weights."""
    order = np.argsort(nodes)
    kept = order[nodes[order] > 0]
    return nodes[kept], weights[kept]


def share_beyond(sizes: NDArray[Any], nodes: NDArray[Any], weights: NDArray[Any]) -> NDArray[Any]:
    """Total weight of the nodes at or above each size."""
    beyond = np.append(np.cumsum(weights[::-1])[::-1], 0.0)
    return np.asarray(beyond[np.searchsorted(nodes, sizes)])


def band(
    axes: Axes, x: NDArray[Any], numbers: NDArray[Any], name: str, style: dict[str, Any]
) -> None:
    """Mean over seeds (the last axis) and a band of one standard error."""
    mean = numbers.mean(-1)
    axes.plot(x, mean, label=name, **style)
    if numbers.shape[-1] > 1:
        error = standard_error(numbers)
        axes.fill_between(x, mean - error, mean + error, color=style["color"], alpha=0.15, lw=0)


def standard_error(numbers: NDArray[Any]) -> NDArray[Any]:
    """Of the mean over seeds (the last axis), 0 with one seed."""
    count = numbers.shape[-1]
    if count == 1:
        return np.zeros(numbers.shape[:-1])
    return np.asarray(numbers.std(-1, ddof=1) / np.sqrt(count))


def plain_ticks(axes: Axes) -> None:
    """Numbers such as 1,000 and 0.5 on logarithmic axes, rather than powers."""
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        low, high = axis.get_view_interval()
        if high / low < 20:
            axis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        else:
            axis.set_minor_formatter(NullFormatter())


def finish(figure: Figure, axes: Axes, found: Results) -> None:
    """The common legend and the line that says what was run."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", handlelength=3)
    seeds = found["configuration"]["seeds"]
    what = f"{found['data']['name']}, {found['configuration']['model']}, {seeds} seeds"
    figure.suptitle(what, fontsize=10, color="0.35")
