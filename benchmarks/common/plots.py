"""How pictures look and are written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from numpy.typing import NDArray

from benchmarks.common.intervals import standard_error
from benchmarks.common.run_folder import Results, write_whole

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
    """Mean over seeds (the last axis) and a band of one standard error; of one point a bar."""
    mean = numbers.mean(-1)
    if len(x) == 1:
        # A line through one point is not to be seen.
        style = style | {"marker": "o"}
    axes.plot(x, mean, label=name, **style)
    if numbers.shape[-1] > 1:
        error = standard_error(numbers)
        if len(x) == 1:
            axes.errorbar(x, mean, error, fmt="none", ecolor=style["color"])
        axes.fill_between(x, mean - error, mean + error, color=style["color"], alpha=0.15, lw=0)


def line_style(at: int) -> dict[str, Any]:
    """The style of the n-th of up to forty-nine curves; where colors start again, lines do not."""
    lap, place = divmod(at, len(COLORS))
    return {"color": COLORS[place], "linestyle": LINES[(place + lap) % len(LINES)]}


def plain_ticks(axes: Axes) -> None:
    """Numbers such as 1,000 and 0.5 on logarithmic axes, rather than powers."""
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        low, high = axis.get_view_interval()
        if high / low < 20:
            axis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        else:
            axis.set_minor_formatter(NullFormatter())
