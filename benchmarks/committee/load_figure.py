"""The picture of the loads that algorithms solve, beside the theory's capacities."""

from typing import Any

from matplotlib.figure import Figure

from benchmarks.common.plots import COLORS, LINES

MARKS = ("o", "s", "^", "D", "v", "P")


def draw(found: dict[str, Any]) -> Figure:
    """A panel for each network: the largest load that is solved against the size."""
    networks = found["capacities"]
    figure = Figure(figsize=(3.6 * len(networks) + 2, 3.8), layout="constrained")
    panels = figure.subplots(1, len(networks), squeeze=False)[0]
    algorithms = list(dict.fromkeys(one["algorithm"] for one in found["reached"]))
    handles: dict[str, Any] = {}
    for axes, (network, capacity) in zip(panels, networks.items(), strict=True):
        known = [one for one in found["reached"] if one["network"] == network]
        sizes = sorted({one["size"] for one in known})
        for at, algorithm in enumerate(algorithms):
            # What nothing was solved of has no place on the axes, nor has a ladder that was left
            # before its end: its last load would look like a fall.
            points = sorted(
                (one["size"], one["load"])
                for one in known
                if one["algorithm"] == algorithm and one["load"] is not None and not one["open"]
            )
            if points:
                handles[algorithm] = axes.plot(
                    *zip(*points, strict=True), color=COLORS[at + 1], marker=MARKS[at],
                    linestyle=LINES[at], markersize=6,
                )[0]  # fmt: skip
        label = "capacity, replica-symmetric theory"
        handles[label] = axes.axhline(capacity, color=COLORS[0])
        axes.set(xscale="log", xlabel="weights N", ylim=(0, 1.1 * capacity), title=network)
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
    panels[0].set_ylabel("largest load solved, patterns per weight")
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", handlelength=3)
    return figure
