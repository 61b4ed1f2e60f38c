"""The pictures of the committee experiments."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.common.plots import COLORS, LINES, SMALLEST_SHOWN, band, save, share_beyond, tail

FARTHEST_SHOWN = 0.25

Record = dict[str, Any]
Draw = Callable[[Axes, list[Record], str, dict[str, Any], dict[str, Any]], None]


def draw(folder: Path, found: dict[str, Any]) -> dict[str, Path]:
    """Draws what there is to draw as PNG and SVG; answers the PNG files by name."""
    pictures = {
        "local_entropy": by_experiment(entropy_curve),
        "hessian": by_experiment(hessian),
        "noise": by_experiment(noise),
    }
    if found["correlations"]:
        pictures["correlation"] = correlation
    return {name: save(folder, name, picture, found) for name, picture in pictures.items()}


def by_experiment(draw_one: Draw) -> Callable[[dict[str, Any]], Figure]:
    """A figure with a panel for each experiment and a line for each algorithm."""

    def panels(found: dict[str, Any]) -> Figure:
        experiments = found["experiments"]
        figure = Figure(figsize=(4.4 * len(experiments) + 2, 4.2), layout="constrained")
        axes = figure.subplots(1, len(experiments), squeeze=False)[0]
        styles = styles_of(found)
        for one, (name, experiment) in zip(axes, experiments.items(), strict=True):
            for algorithm, records in experiment["algorithms"].items():
                draw_one(one, records, algorithm, styles[algorithm], found["measures"])
            one.set_title(f"{name}: {experiment['title']}")
        handles = {
            label: handle
            for one in axes
            for handle, label in zip(*one.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside right upper", handlelength=3)
        return figure

    return panels


def styles_of(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A color and a line for each algorithm, the same in all pictures."""
    names = list(
        dict.fromkeys(name for one in found["experiments"].values() for name in one["algorithms"])
    )
    return {
        name: {"color": COLORS[at % len(COLORS)], "linestyle": LINES[at % len(LINES)]}
        for at, name in enumerate(names)
    }


def entropy_curve(
    axes: Axes,
    records: list[Record],
    name: str,
    style: dict[str, Any],
    measures: dict[str, Any],
) -> None:
    """Mean over the solved instances of the local entropy; points converged for all of them."""
    del measures
    records = [record for record in records if record["errors"] == 0]
    if not records:
        return
    distance, entropy = (
        np.array([record[quantity] for record in records], float)
        for quantity in ("distance", "relative_entropy")
    )
    place = distance.mean(axis=0)
    shown = np.array([record["converged"] for record in records]).all(axis=0)
    shown &= place <= FARTHEST_SHOWN
    place = place[shown]
    band(axes, place, entropy[:, shown].T, name, {**style, "marker": "."})
    axes.set(
        xlabel="distance 1 − S²",
        ylabel="log share of solutions, per weight",
        xlim=(0, FARTHEST_SHOWN),
    )


def hessian(
    axes: Axes,
    records: list[Record],
    name: str,
    style: dict[str, Any],
    measures: dict[str, Any],
) -> None:
    """Share of the eigenvalues beyond a size."""
    del measures
    tails = [
        tail(np.array(record["spectrum"]["nodes"]), np.array(record["spectrum"]["weights"]))
        for record in records
    ]
    sizes = np.unique(np.concatenate([nodes for nodes, _ in tails]))
    sizes = sizes[sizes > SMALLEST_SHOWN * sizes[-1]]
    shares = np.mean([share_beyond(sizes, *one) for one in tails], axis=0)
    axes.plot(sizes, shares, drawstyle="steps-pre", label=name, **style)
    axes.set(xscale="log", yscale="log", xlabel="λ", ylabel="share of eigenvalues beyond")


def noise(
    axes: Axes,
    records: list[Record],
    name: str,
    style: dict[str, Any],
    measures: dict[str, Any],
) -> None:
    """Training error under noise on the inputs."""
    errors = 100 * np.array([record["noise_error"] for record in records])
    band(axes, np.array(measures["rates"]), errors.T, name, style)
    axes.set(xlabel="share of inputs flipped", ylabel="training error (%)")


def correlation(found: dict[str, Any]) -> Figure:
    """Each run as a point: local entropy and local energy against the test error."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    styles = styles_of(found)
    experiment = found["experiments"]["images"]
    labels = {
        "local_entropy": "local entropy per weight",
        "local_energy": "local energy: rise of the training error (%)",
    }
    for one, (quantity, label) in zip(axes, labels.items(), strict=True):
        for algorithm, records in experiment["algorithms"].items():
            points = np.array([coordinates(record, found["measures"]) for record in records])
            x = points[:, list(labels).index(quantity)]
            one.plot(x, points[:, 2], "o", color=styles[algorithm]["color"], label=algorithm)
        one.set(xlabel=label, ylabel="test error (%)")
        one.locator_params(axis="x", nbins=5)
        correlations = found["correlations"]
        title = f"correlation {correlations[quantity]:+.2f}, {correlations['runs']} runs"
        if within := correlations.get(f"{quantity}_within"):
            title += f"; within an algorithm {within:+.2f}"
        one.set_title(title)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper")
    return figure


def coordinates(record: Record, measures: dict[str, Any]) -> tuple[float, float, float]:
    """Local entropy at the reference strength, local energy at the largest noise, test error."""
    return (
        reference_entropy(record, measures),
        100 * record["local_energy"][-1],
        100 * record["test_error"],
    )


def reference_entropy(record: Record, measures: dict[str, Any]) -> float:
    """Local entropy at the reference strength; nan where that is not one around a solution."""
    if not known(record, measures):
        return float("nan")
    return float(record["relative_entropy"][reference_point(measures)])


def known(record: Record, measures: dict[str, Any]) -> bool:
    """Whether the network solves its patterns and the sweeps at the reference strength ended."""
    return record["errors"] == 0 and bool(record["converged"][reference_point(measures)])


def reference_point(measures: dict[str, Any]) -> int:
    """The place of the reference strength on the curves."""
    place: int = measures["strengths"].index(measures["reference_strength"])
    return place
