"""The pictures of replica theory: lines are the theory, marks what was found in finite networks."""

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.committee.frozen import isolated, mean, spread
from benchmarks.committee.minima import local_entropies, shortfalls
from benchmarks.common.intervals import standard_error
from benchmarks.common.plots import COLORS, LINES, band

MARKS = ("o", "s", "^", "D", "v")
# Where minima of the loss were searched for.
SEARCHES: dict[str, dict[str, Any]] = {
    "annealing": {"marker": "o", "markersize": 6},
    "gradient descent": {"marker": "s", "markersize": 6, "markerfacecolor": "none"},
}
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
    """How wide minima of the cross-entropy are, against gamma: theory, and minima found."""
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    whole, below = figure.subplots(1, 2)
    gammas = np.array(found["gammas"])
    minima = np.array(found["minima"]["entropy"])
    minima = np.where(found["minima"]["converged"], minima, np.nan)
    widest, typical = (np.array(found[name]["entropy"]) for name in ("widest", "typical"))
    for at, distance in enumerate(found["distances"]):
        style = {"color": COLORS[at + 1], "linestyle": LINES[at]}
        whole.plot(gammas, minima[at], label=f"minima at a distance of {distance:g}", **style)
        whole.axhline(typical[at], color=style["color"], linestyle=":", linewidth=1)
        below.plot(gammas, widest[at] - minima[at], **style)
        for place, (name, shape) in enumerate(SEARCHES.items()):
            # A little apart, so that both are seen.
            apart = gammas * (1.02, 0.98)[place]
            for axes, numbers in (
                (whole, local_entropies(found, name, at)),
                (below, shortfalls(found, name, at)),
            ):
                axes.errorbar(
                    apart, np.nanmean(numbers, axis=1), error_of(numbers), color=style["color"],
                    linestyle="none", **shape,
                )  # fmt: skip
    whole.plot([], [], color="0.3", linestyle=":", linewidth=1, label="typical solutions")
    for name, shape in SEARCHES.items():
        words = f"{name}, {found['points']['weights']} weights"
        whole.plot([], [], color="0.3", linestyle="none", label=words, **shape)
    whole.set(ylabel="local entropy", title="local entropy around minima")
    below.set(
        ylabel="local entropy missed",
        title="below the widest: theory's; focusing BP's of the instance",
    )
    for axes in (whole, below):
        axes.set(xscale="log", xlabel="steepness γ of the loss")
        axes.set_xticks(gammas, [f"{gamma:g}" for gamma in gammas])
        axes.minorticks_off()
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    figure.suptitle(f"minima of the cross-entropy, binary perceptron, α = {found['load']:g}")
    return figure


def error_of(numbers: NDArray[Any]) -> NDArray[Any]:
    """Standard error over the instances (the last axis) that have a number."""
    count = np.sum(np.isfinite(numbers), axis=-1)
    return np.asarray(np.nanstd(numbers, axis=-1, ddof=1) / np.sqrt(count))


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


def frozen(found: Found) -> Figure:
    """How many solutions have no other one flip away: all counted, and samples of tempering."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for at, size in enumerate(dict.fromkeys(record["size"] for record in found["records"])):
        records = [record for record in found["records"] if record["size"] == size]
        color = COLORS[at + 1]
        counted = [mean(isolated(record, "counted")) for record in records]
        axes.plot(found["loads"], counted, color=color)
        shares = [isolated(record, "sampled") for record in records]
        axes.errorbar(
            found["loads"], [mean(one) for one in shares], [spread(one) for one in shares],
            color=color, marker=MARKS[at], linestyle="none", label=f"N = {size}",
        )  # fmt: skip
    axes.plot([], [], color="0.3", label="enumeration")
    axes.plot([], [], color="0.3", marker="o", linestyle="none", label="parallel tempering")
    axes.set(
        xlabel="load α, patterns per weight", ylim=(-0.02, 1.02),
        ylabel="share of solutions without one a flip away",
        title="binary perceptrons",
    )  # fmt: skip
    axes.legend(fontsize=8)
    return figure


def entropic(found: Found) -> Figure:
    """Local entropy around what attracted replicas agree on, and around what one network finds."""
    figure = Figure(figsize=(3.6 * len(found["networks"]), 3.8), layout="constrained")
    panels = figure.subplots(1, len(found["networks"]), sharey=True, squeeze=False)[0]
    for axes, (network, one) in zip(panels, found["networks"].items(), strict=True):
        for at, (algorithm, records) in enumerate(one["algorithms"].items()):
            for way, shape in zip(records["curves"], ("-", "x"), strict=False):
                curve = records["curves"][way]
                for line in zip(curve["distance"], curve["entropy"], strict=True):
                    distance, entropy = np.array(line, float)
                    axes.plot(distance, entropy, shape, color=COLORS[at + 1], linewidth=1)
            axes.plot([], [], color=COLORS[at + 1], label=algorithm)
        axes.set(title=f"{network}, {one['weights']:,} weights", xlabel="distance 1 − S²")
    panels[0].set_ylabel("log share of solutions, per weight")
    panels[0].plot([], [], "x", color="0.3", label="by belief propagation")
    panels[0].legend(fontsize=8)
    return figure


def depth(found: Found) -> Figure:
    """Local energy and local entropy of networks of one and two hidden layers."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    energy, entropy = figure.subplots(1, 2)
    sigmas = np.array(found["sigmas"])
    for line, (network, optimizers) in zip(LINES, found["networks"].items(), strict=False):
        for color, (optimizer, records) in zip(COLORS[1:], optimizers.items(), strict=False):
            style = {"color": color, "linestyle": line, "marker": "."}
            name = f"{network}, {optimizer}"
            rises = 100 * np.array([record["local_energy"] for record in records])
            band(energy, sigmas, rises.T, name, style)
            volumes = np.array([record["local_entropy"] for record in records])
            band(entropy, sigmas, volumes.T, name, style)
    energy.set(ylabel="local energy: rise of the training error (%)")
    entropy.set(ylabel="local entropy per weight, less that of the point")
    for axes in (energy, entropy):
        axes.set(xlabel="noise σ, relative to each weight")
    energy.legend(fontsize=8)
    return figure
