"""The two figures of the layer-by-layer experiment."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from benchmarks.common.intervals import standard_error
from benchmarks.common.plots import line_style, plain_ticks, save


def draw(folder: Path, found: dict[str, Any]) -> dict[str, Path]:
    """Draws both as PNG and SVG; answers the PNG files by name."""
    drawers = {"radius_sweep": radius_sweep, "layer_temperature": layer_temperature}
    return {name: save(folder, name, draw_one, found) for name, draw_one in drawers.items()}


def radius_sweep(found: dict[str, Any]) -> Figure:
    """Test error against radius, a curve for each choice of layers, a panel for each depth."""
    depths = found["configuration"]["depths"]
    figure = Figure(figsize=(5.5 * len(depths), 4.6), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(depths)))
    for axes, depth in zip(panels, depths, strict=True):
        records = [cell for cell in found["cells"].values() if cell["depth"] == depth]
        labels = list(dict.fromkeys(cell["label"] for cell in records))
        for at, label in enumerate(labels):
            curve = sorted(
                (cell for cell in records if cell["label"] == label), key=lambda c: c["radius"]
            )
            errors = 100 * np.array([cell["test_error"] for cell in curve])
            style = line_style(at)
            mean, bar = errors.mean(1), standard_error(errors)
            if curve[0]["radius"] == 0:
                axes.axhline(mean[0], label=label, **style)
                axes.axhspan(
                    mean[0] - bar[0], mean[0] + bar[0], color=style["color"], alpha=0.1, lw=0
                )
            else:
                radii = [cell["radius"] for cell in curve]
                axes.errorbar(radii, mean, bar, label=label, marker="o", capsize=2, **style)
        axes.set(
            title=f"{depth} layers of weights", xscale="log", xlabel="half the side of the cube, R",
            ylabel="error on the test images (%)", xticks=found["configuration"]["radii"],
        )  # fmt: skip
        plain_ticks(axes)
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.legend()
    config = found["configuration"]
    what = f"{config['loss']}, {config['samples']} samples, {config['seeds']} seeds"
    figure.suptitle(f"{subtitle(found)}, {what}", fontsize=10, color="0.35")
    return figure


def layer_temperature(found: dict[str, Any]) -> Figure:
    """Temperature of each layer against updates, a panel for each depth."""
    depths = found["configuration"]["depths"]
    figure = Figure(figsize=(5.5 * len(depths), 4.6), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(depths)))
    for axes, depth in zip(panels, depths, strict=True):
        points = found["temperatures"][str(depth)]
        steps = [point["step"] for point in points]
        for at, name in enumerate(points[0]["temperature"]):
            mean = np.array([point["temperature"][name] for point in points])
            bar = np.array([point["temperature_std_error"][name] for point in points])
            style = line_style(at)
            axes.plot(steps, mean, label=name, **style)
            axes.fill_between(steps, mean - bar, mean + bar, color=style["color"], alpha=0.15, lw=0)
        axes.set(
            title=f"{depth} layers of weights", xscale="log", yscale="log",
            xlabel="updates of the plain training", ylabel="temperature of the layer",
        )  # fmt: skip
        plain_ticks(axes)
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.legend()
    figure.suptitle(subtitle(found), fontsize=10, color="0.35")
    return figure


def subtitle(found: dict[str, Any]) -> str:
    """What was run."""
    config = found["configuration"]
    return f"{config['dataset']}, fully connected, width {config['width']}"
