"""`python -m benchmarks papers`: spectra of small networks beside those that papers print."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd

from benchmarks.common import environment
from benchmarks.common.options import (
    ABOVE_ZERO,
    POSITIVE,
    Among,
    FolderOptions,
    ImageOptions,
    Within,
)
from benchmarks.common.plots import save
from benchmarks.common.report import PAGE, write_report
from benchmarks.common.run_folder import Results, open_folder, write_results
from benchmarks.common.terminal import progress_bars, say, show_table
from benchmarks.flatness import plots
from benchmarks.flatness.main import Flatness, examine

ENTROPY_SGD = "Chaudhari et al., Entropy-SGD, ICLR 2017"
VARIATIONAL = "Chaudhari and Soatto, SGD performs variational inference, ICLR 2018"


@dataclass(frozen=True)
class Fact:
    """A quantity of a paper's network.

    Attributes:
      quantity: what it is, with its unit.
      here: its value in what was measured, and the value as text with its uncertainty.
      paper: the value that the paper prints; None where it prints none.
      printed: how the paper prints it, where that is more than the number.
    """

    quantity: str
    here: Callable[[Results], tuple[float, str]]
    paper: float | None = None
    printed: str = ""

    def row(self, found: Results) -> tuple[str, str, str, str]:
        """The quantity, the paper's, the one here, and their quotient."""
        value, text = self.here(found)
        if self.paper is None:
            return self.quantity, "", text, ""
        printed = self.printed or f"{self.paper:,g}"
        return self.quantity, printed, text, f"{value / self.paper:.2f}"


@dataclass(frozen=True)
class Case:
    """A network of a paper.

    Attributes:
      source: the paper.
      configuration: how it is trained and measured here.
      estimators: what is measured.
      picture: the name of its drawing, and what draws it.
      facts: what stands beside the paper.
    """

    source: str
    configuration: Flatness
    estimators: tuple[str, ...]
    picture: tuple[str, Callable[[Results], Any]]
    facts: tuple[Fact, ...]


@dataclass(frozen=True, kw_only=True)
class Papers(ImageOptions, FolderOptions):
    """Train small networks of two papers on MNIST and compare their spectra with the papers'.

    Writes results.json, report.md, report.html and the plots into a folder of its own.
    """

    networks: Annotated[tuple[str, ...], Among("network", lambda: CASES)] = (
        "small_mnistfc",
        "small_lenet",
        "tiny_lenet",
    )
    """Which networks."""
    dataset: str = "mnist"
    """Images to train on; the papers' are MNIST."""
    epochs: Annotated[float | None, ABOVE_ZERO] = None
    """Passes over the training set; by default each network's own."""
    images: Annotated[int | None, POSITIVE] = None
    """Training images that the estimators look at; by default each network's own."""
    seed: Annotated[int, Within(0, 2**31)] = 0
    """Of training and estimators."""


def test_error(found: Results) -> tuple[float, str]:
    """Of all test images, in per cent."""
    error = 100 * found["scores"]["test_error"]
    return error, f"{error:.2f}"


def share_below(threshold: str) -> Callable[[Results], tuple[float, str]]:
    """Share of the eigenvalues that are nearer to 0 than a threshold, in per cent."""

    def share(found: Results) -> tuple[float, str]:
        estimate = found["measured"]["spectrum"]["fraction_below"][threshold]
        mean, std_error = (100 * estimate[part] for part in ("mean", "std_error"))
        return mean, f"{mean:.1f} ± {std_error:.1f}"

    return share


def node_spacing(found: Results) -> tuple[float, str]:
    """The mean distance of the two quadrature nodes that are nearest to 0 from either side."""
    nodes = np.array(found["measured"]["spectrum"]["nodes"])
    above = np.where(nodes > 0, nodes, np.inf).min(axis=1)
    below = np.where(nodes < 0, nodes, -np.inf).max(axis=1)
    spacing = float(np.mean(above - below))
    return spacing, f"{spacing:.1e}"


def extreme(end: str) -> Callable[[Results], tuple[float, str]]:
    """The outermost eigenvalue of one end, with its residual."""

    def value(found: Results) -> tuple[float, str]:
        measured = found["measured"]["eigenvalues"][end]
        outermost, residual = measured["values"][0], measured["residuals"][0]
        converged = "" if measured["converged"] else ", not converged"
        return outermost, f"{outermost:.4g} (residual {residual:.0e}{converged})"

    return value


def asymmetry(found: Results) -> tuple[float, str]:
    """Length of the positive tail in units of the negative one."""
    ends = found["measured"]["eigenvalues"]
    quotient = -ends["largest"]["values"][0] / ends["smallest"]["values"][0]
    return quotient, f"{quotient:.0f}"


def rank(found: Results) -> tuple[float, str]:
    """Rank of D in per cent of the parameters."""
    noise = found["measured"]["gradient_noise"]
    share = 100 * noise["rank"] / noise["parameters"]
    return share, f"{share:.2f} ({noise['rank']})"


def rank_threshold(found: Results) -> tuple[float, str]:
    """Share of the largest eigenvalue of D above which one counts."""
    threshold = found["measured"]["gradient_noise"]["relative_threshold"]
    return threshold, f"{threshold:.2e}"


def noise_mean(found: Results) -> tuple[float, str]:
    """Mean of all eigenvalues of D, the zeros included, times 1000."""
    noise = found["measured"]["gradient_noise"]
    mean = 1e3 * noise["trace"] / noise["parameters"]
    return mean, f"{mean:.2f}"


def noise_deviation(found: Results) -> tuple[float, str]:
    """Standard deviation of all eigenvalues of D, times 1000."""
    noise = found["measured"]["gradient_noise"]
    mean = noise["trace"] / noise["parameters"]
    square = sum(np.square(noise["eigenvalues"])) / noise["parameters"]
    deviation = 1e3 * math.sqrt(square - mean**2)
    return deviation, f"{deviation:.1f}"


def participation(found: Results) -> tuple[float, str]:
    """The number of directions that share the noise."""
    ratio = found["measured"]["gradient_noise"]["participation_ratio"]
    return ratio, f"{ratio:.3g}"


def parameters(found: Results) -> tuple[float, str]:
    """Numbers that are trained."""
    count = found["model"]["parameters"]
    return count, f"{count:,}"


HESSIAN = ("spectrum", "eigenvalues")
CASES: dict[str, Case] = {
    "small_mnistfc": Case(
        ENTROPY_SGD,
        Flatness(
            model="small_mnistfc", method="sgd", set=("sgd.learning_rate=0.01",), epochs=10,
            images=4096, steps=400, probes=5,
        ),
        HESSIAN,
        ("spectrum", plots.spectrum),
        (
            Fact("parameters", parameters, 50_890),
            Fact("test error, %", test_error, 2.5),
            Fact("eigenvalues with |λ| < 0.01, %", share_below("0.01"), 90),
            Fact("spacing of the nodes at 0", node_spacing),
            Fact("largest eigenvalue", extreme("largest")),
            Fact("smallest eigenvalue", extreme("smallest")),
            Fact("largest over smallest, absolute", asymmetry),
        ),
    ),
    "small_lenet": Case(
        ENTROPY_SGD,
        Flatness(
            model="small_lenet", method="adam", epochs=4, images=1024, steps=300, probes=2
        ),
        HESSIAN,
        ("spectrum", plots.spectrum),
        (
            Fact("parameters", parameters, 47_658),
            Fact("test error, %", test_error, 2.4),
            Fact("eigenvalues with |λ| < 0.0001, %", share_below("0.0001"), 94, "about 94"),
            Fact("spacing of the nodes at 0", node_spacing),
            Fact("largest eigenvalue", extreme("largest"), 40, "about 40"),
            Fact("smallest eigenvalue", extreme("smallest"), -0.46),
            Fact("largest over smallest, absolute", asymmetry, 40 / 0.46, "about 87"),
        ),
    ),
    "tiny_lenet": Case(
        VARIATIONAL,
        Flatness(model="tiny_lenet", method="sgd", epochs=4, images=4096),
        ("gradient_noise",),
        ("gradient_noise", plots.gradient_noise),
        (
            Fact("parameters", parameters, 13_338),
            Fact("test error, %", test_error),
            Fact("rank of D, % of the parameters", rank, 1.8),
            Fact("threshold of the rank, of the largest", rank_threshold, 1.6e-3, "1.6e-3"),
            Fact("eigenvalues of D, mean, 1e-3", noise_mean, 0.3),
            Fact("eigenvalues of D, deviation, 1e-3", noise_deviation, 2.11),
            Fact("participation ratio of D", participation),
        ),
    ),
}  # fmt: skip


def run(options: Papers) -> int:
    """Trains, measures and writes; the exit status."""
    folder = open_folder(options, "papers")
    found: Results = {
        "command": environment.command(),
        "environment": environment.describe(),
        "networks": {},
    }
    with progress_bars() as bars:
        for name in options.networks:
            case = CASES[name]
            one = examine(adapted(case, options), folder / name, bars, case.estimators)
            found["networks"][name] = one
            write_results(folder, found)
    write(folder, found)
    for name, one in found["networks"].items():
        show_table(fact_table(name, one), name)
    say(f"Report: {folder / PAGE}")
    return 0


def write(folder: Path, found: Results) -> None:
    """Writes the plots, report.md and report.html."""
    for name, one in found["networks"].items():
        save(folder, f"{name}_{CASES[name].picture[0]}", CASES[name].picture[1], one)
    write_report(
        folder,
        "flatness/papers.md.j2",
        "Spectra of two papers",
        found=found,
        cases=CASES,
        facts={name: fact_table(name, one) for name, one in found["networks"].items()},
    )


def adapted(case: Case, options: Papers) -> Flatness:
    """A case's configuration with what the user chose put over it."""
    own = case.configuration
    return dataclasses.replace(
        own,
        dataset=options.dataset,
        epochs=own.epochs if options.epochs is None else options.epochs,
        images=own.images if options.images is None else options.images,
        seed=options.seed,
        data_dir=options.data_dir,
        cache_dir=options.cache_dir,
    )


def fact_table(name: str, found: Results) -> pd.DataFrame:
    """The facts of one network beside the paper's."""
    return pd.DataFrame(
        [fact.row(found) for fact in CASES[name].facts],
        columns=["quantity", "paper", "here", "here / paper"],
    )
