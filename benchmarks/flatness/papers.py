"""`python -m benchmarks papers`: spectra of small networks beside those that papers print."""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.common import environment
from benchmarks.common.document import (
    Block,
    Code,
    Heading,
    Paragraph,
    Picture,
    TableBlock,
    to_html,
    to_markdown,
)
from benchmarks.common.errors import UsageError, check_known
from benchmarks.common.files import write_text
from benchmarks.common.plots import save
from benchmarks.common.results import Results
from benchmarks.compare.report import written_values
from benchmarks.flatness import plots
from benchmarks.flatness.main import Flatness, examine, progress_bars

ENTROPY_SGD = "Chaudhari et al., Entropy-SGD, ICLR 2017"
VARIATIONAL = "Chaudhari and Soatto, SGD performs variational inference, ICLR 2018"
HEAD = ("quantity", "paper", "here", "here / paper")


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


@dataclass(frozen=True)
class Papers:
    """Train small networks of two papers on MNIST and compare their spectra with the papers'.

    Writes results.json, report.md, report.html and the plots into a folder of its own.
    """

    networks: tuple[str, ...] = ("small_mnistfc", "small_lenet", "tiny_lenet")
    """Which networks."""
    dataset: str = "mnist"
    """Images to train on; the papers' are MNIST."""
    epochs: float | None = None
    """Passes over the training set; by default each network's own."""
    images: int | None = None
    """Training images that the estimators look at; by default each network's own."""
    seed: int = 0
    """Of training and estimators."""
    data_dir: Path | None = None
    """Where TFDS keeps its sets; by default $TFDS_DATA_DIR, else TFDS's own."""
    cache_dir: Path | None = None
    """Where decoded images are kept; by default entropix in $XDG_CACHE_HOME or ~/.cache."""
    output: Path | None = None
    """Folder to write; by default runs/papers-<time>."""


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


def run(config: Papers) -> int:
    """Trains, measures and writes; the exit status."""
    for name in config.networks:
        check_known("network", name, CASES)
    folder = config.output or Path("runs") / f"papers-{time.strftime('%Y%m%d-%H%M%S')}"
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"--output {folder} is not empty")
    found: Results = {
        "command": environment.command(),
        "environment": environment.describe(),
        "networks": {},
    }
    with progress_bars() as bars:
        for name in config.networks:
            case = CASES[name]
            one = examine(adapted(case, config), folder / name, bars, case.estimators)
            found["networks"][name] = one
            write_text(folder / "results.json", json.dumps(found, indent=1) + "\n")
    write(folder, found)
    show(found, folder)
    return 0


def write(folder: Path, found: Results) -> None:
    """Writes the plots, report.md and report.html."""
    pictures = {
        name: save(folder, f"{name}_{CASES[name].picture[0]}", CASES[name].picture[1], one)
        for name, one in found["networks"].items()
    }
    blocks = compose(found, pictures)
    write_text(folder / "report.md", to_markdown(blocks))
    write_text(folder / "report.html", to_html(blocks, "Spectra of two papers"))


def adapted(case: Case, config: Papers) -> Flatness:
    """A case's configuration with what the user chose put over it."""
    own = case.configuration
    return dataclasses.replace(
        own,
        dataset=config.dataset,
        epochs=own.epochs if config.epochs is None else config.epochs,
        images=own.images if config.images is None else config.images,
        seed=config.seed,
        data_dir=config.data_dir,
        cache_dir=config.cache_dir,
    )


def rows(name: str, found: Results) -> list[tuple[str, str, str, str]]:
    """The facts of one network beside the paper's."""
    return [fact.row(found) for fact in CASES[name].facts]


def compose(found: Results, pictures: dict[str, Path]) -> Sequence[Block]:
    """The report, block by block."""
    blocks: list[Block] = [
        Heading("Spectra of two papers", level=1),
        Paragraph(
            "The papers diagonalised dense matrices. Here the share of eigenvalues near zero is "
            "from Lanczos quadrature: its ± is the standard error over probe vectors, and "
            "eigenvalues nearer to zero than the spacing of its nodes there are not told apart, so "
            "that a threshold below the spacing asks more than it can answer. The ends of the "
            "spectrum are from restarted Lanczos, with their residuals. Training recipes are not "
            "the papers', whose minima these need not be: the last column is 1 where a number "
            "reproduces, and else it does not. Empty cells: the paper does not print it."
        ),
        Code(found["command"]),
    ]
    for name, one in found["networks"].items():
        training, effort = one["training"], one["effort"]
        blocks += [
            Heading(name),
            Paragraph(
                f"{CASES[name].source}. {one['model']['summary']}, {one['data']['name']}, trained "
                f"by {training['method']} ({written_values(training['hyperparameters'])}) with "
                f"{training['gradients']:,} gradients of "
                f"{training['configuration']['batch_size']} images, seed {training['seed']}. "
                f"Measured on the first {effort['images']:,} training images"
                + (
                    f" with {effort['probes']} probes of {effort['steps']} Lanczos steps."
                    if "spectrum" in one["measured"]
                    else "."
                )
            ),
            TableBlock(HEAD, rows(name, one)),
            Picture(pictures[name], f"{name}: {CASES[name].picture[0].replace('_', ' ')}."),
        ]
    return [*blocks, Heading("Where it ran"), Code(json.dumps(found["environment"], indent=1))]


def show(found: Results, folder: Path) -> None:
    """The tables on the terminal."""
    console = Console()
    for name, one in found["networks"].items():
        table = Table(title=name, title_justify="left", box=box.SIMPLE_HEAD)
        for column in HEAD:
            table.add_column(column, overflow="fold")
        for row in rows(name, one):
            table.add_row(*row)
        console.print(table)
    console.print(f"Report: {folder / 'report.html'}")
