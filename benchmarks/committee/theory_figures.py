"""The pictures of replica theory: lines are the theory, marks what was found in finite networks."""

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.common.plots import COLORS, LINES, standard_error

MARKS = ("o", "s", "^", "D")
Found = dict[str, Any]


def generalization(found: Found) -> Figure:
    """Errors on new patterns against the load, binary and spherical perceptrons."""
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    binary, spherical = figure.subplots(1, 2, sharey=True)
    loads, theory = np.array(found["loads"]["binary"]), found["binary"]
    spinodal, jump = found["transition"]["spinodal"], found["transition"]["load"]
    for end, overlap, name, style in (
        (spinodal, "spinodal_overlap", "message passing, theory", {"color": COLORS[5], "ls": "--"}),
        (jump, "overlap", "Bayes-optimal, theory", {"color": COLORS[0]}),
    ):
        shown = loads < end
        errors = np.array(theory["message_passing_error"])[shown]
        last = np.arccos(found["transition"][overlap] ** 0.5) / np.pi
        binary.plot(np.append(loads[shown], end), np.append(errors, last), label=name, **style)
    binary.plot([jump, loads[-1]], [0, 0], color=COLORS[0])
    for at, name in ((jump, "jump"), (spinodal, "spinodal")):
        binary.axvline(at, color="0.6", linewidth=0.8)
        binary.annotate(
            f"{name} {at:.3f}", (at, 0.47), rotation=90, ha="right", va="top", fontsize=8
        )
    points(binary, found["points"]["binary"], 2)
    binary.set_title("binary perceptron")
    loads, theory = np.array(found["loads"]["spherical"]), found["spherical"]
    spherical.plot(
        loads, theory["generalization_error"], color=COLORS[0], label="Bayes-optimal, theory"
    )
    spherical.plot(
        loads, theory["gibbs_error"], color=COLORS[0], linestyle=":", label="one solution, theory"
    )
    points(spherical, found["points"]["spherical"], 2)
    spherical.set_title("spherical perceptron")
    for axes in (binary, spherical):
        axes.set_xlabel("load α, patterns per weight")
        axes.set_ylim(-0.01, 0.5)
        axes.legend(fontsize=8, loc="lower left" if axes is binary else "upper right")
    binary.set_ylabel("error on new patterns")
    return figure


def points(axes: Axes, series: Found, first: int) -> None:
    """Means over instances with one standard error, a mark and a color for each algorithm."""
    for at, (name, one) in enumerate(series.items()):
        # The first is hollow and larger, so that another mark in its place is seen.
        shape = {"markersize": 9, "markerfacecolor": "none"} if at == 0 else {"markersize": 5}
        errors = np.array(one["errors"])
        axes.errorbar(
            one["loads"], errors.mean(1), standard_error(errors),
            color=COLORS[first + at], marker=MARKS[at], linestyle="none", label=name, **shape,
        )  # fmt: skip


def cross_entropy(found: Found) -> Figure:
    """What minima of the cross-entropy miss of the widest regions, against gamma."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    minima = np.array(found["minima"]["entropy"])
    converged = np.array(found["minima"]["converged"])
    widest, typical = (np.array(found[name]["entropy"]) for name in ("widest", "typical"))
    for at, distance in enumerate(found["distances"]):
        missed = np.where(converged[at], widest[at] - minima[at], np.nan)
        axes.plot(
            found["gammas"], missed, color=COLORS[at + 1], linestyle=LINES[at], marker=MARKS[at],
            label=f"distance {distance:g} (typical solution: {widest[at] - typical[at]:.3f})",
        )  # fmt: skip
    axes.set(
        xscale="log", xlabel="steepness γ of the loss",
        ylabel="local entropy below the widest regions", ylim=(0, None),
    )  # fmt: skip
    axes.set_xticks(found["gammas"], [f"{gamma:g}" for gamma in found["gammas"]])
    axes.minorticks_off()
    axes.set_title(f"minima of the cross-entropy, binary perceptron, α = {found['load']:g}")
    axes.legend(fontsize=8)
    return figure


def parity(found: Found) -> Figure:
    """The widest regions of parity machines."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for at, (units, curve) in enumerate(found["units"].items()):
        axes.plot(
            found["distances"], curve["entropy"], color=COLORS[at + 1], linestyle=LINES[at],
            marker=MARKS[at], label=f"K = {units}",
        )  # fmt: skip
    axes.axhline(-found["load"] * math.log(2), color=COLORS[0], label="K infinite: −α log 2")
    around(axes)
    axes.set_title(f"parity machines, α = {found['load']:g}")
    axes.legend(fontsize=8)
    return figure


def wide_minima(found: Found) -> Figure:
    """Widest regions of committees, with focusing BP in finite ones."""
    figure = Figure(figsize=(6.8, 4.4), layout="constrained")
    axes = figure.subplots()
    for at, (units, curve) in enumerate(found["units"].items()):
        name = "infinite" if units == "inf" else units
        axes.plot(
            found["distances"], curve["entropy"], color=COLORS[at + 1], linestyle=LINES[at],
            label=f"widest, theory, K {name}",
        )  # fmt: skip
        one = found["points"].get(units)
        if one and one["distance"]:
            shown = np.array(one["converged"]) & (np.array(one["distance"]) <= 0.26)
            axes.plot(
                np.array(one["distance"])[shown], np.array(one["entropy"])[shown],
                MARKS[at], color=COLORS[at + 1], markersize=4,
                label=f"focusing BP, K {units}, {one['weights']} weights",
            )  # fmt: skip
    axes.plot(
        found["distances"], found["typical"]["entropy"], color=COLORS[0], linestyle=":",
        label="typical solution, theory, K infinite",
    )  # fmt: skip
    around(axes)
    axes.set_title(f"committee machines, α = {found['load']:g}")
    axes.legend(fontsize=8)
    return figure


def around(axes: Axes) -> None:
    """Axes of local entropy against distance."""
    axes.set(xlabel="distance 1 − S²", ylabel="log share of solutions, per weight", xlim=(0, 0.26))
