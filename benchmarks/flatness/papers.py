"""`python -m benchmarks papers`: spectra of small networks beside those that papers print."""

import dataclasses
import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import environment
from benchmarks.document import (
    Block,
    Code,
    Heading,
    Paragraph,
    Picture,
    TableBlock,
    to_html,
    to_markdown,
)
from benchmarks.errors import UsageError, check_known
from benchmarks.files import write_text
from benchmarks.flatness import plots
from benchmarks.flatness.main import Flatness, examine, progress_bars
from benchmarks.plots import save
from benchmarks.report import written_values
from benchmarks.results import Results

ENTROPY_SGD = "Chaudhari et al., Entropy-SGD, ICLR 2017"
VARIATIONAL = "Chaudhari and Soatto, SGD performs variational inference, ICLR 2018"
HEAD = ("quantity", "paper", "here")


@dataclass(frozen=True)
class Fact:
    """A quantity that a paper prints.

    Attributes:
      quantity: what it is.
      paper: as printed there; nothing where the paper does not say.
      here: the same from what was measured.
    """

    quantity: str
    paper: str
    here: Callable[[Results], str]


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


def test_error(found: Results) -> str:
    """Of all test images."""
    return f"{100 * found['scores']['test_error']:.2f} %"


def share_below(threshold: str) -> Callable[[Results], str]:
    """Share of the eigenvalues that are nearer to 0 than a threshold."""

    def share(found: Results) -> str:
        estimate = found["measured"]["spectrum"]["fraction_below"][threshold]
        return f"{100 * estimate['mean']:.1f} ± {100 * estimate['std_error']:.1f} %"

    return share


def extreme(end: str) -> Callable[[Results], str]:
    """The outermost eigenvalue of one end, with its residual."""

    def value(found: Results) -> str:
        measured = found["measured"]["eigenvalues"][end]
        converged = "" if measured["converged"] else ", not converged"
        return f"{measured['values'][0]:.4g} (residual {measured['residuals'][0]:.0e}{converged})"

    return value


def asymmetry(found: Results) -> str:
    """Length of the positive tail in units of the negative one."""
    ends = found["measured"]["eigenvalues"]
    return f"{-ends['largest']['values'][0] / ends['smallest']['values'][0]:.0f}"


def rank(found: Results) -> str:
    """Rank of D in parts of the parameters, with its threshold."""
    noise = found["measured"]["gradient_noise"]
    share = 100 * noise["rank"] / noise["parameters"]
    return (
        f"{share:.2f} % ({noise['rank']} above {noise['relative_threshold']:.1e} of the largest, "
        f"{noise['examples']:,} examples)"
    )


def noise_eigenvalues(found: Results) -> str:
    """Mean and standard deviation over all eigenvalues of D, the zeros included."""
    noise = found["measured"]["gradient_noise"]
    size = noise["parameters"]
    mean = noise["trace"] / size
    square = sum(np.square(noise["eigenvalues"])) / size
    return f"({1e3 * mean:.2g} ± {1e3 * math.sqrt(square - mean**2):.2g})e-3"


def participation(found: Results) -> str:
    """The number of directions that share the noise."""
    return f"{found['measured']['gradient_noise']['participation_ratio']:.3g}"


def parameters(found: Results) -> str:
    """Numbers that are trained."""
    return f"{found['model']['parameters']:,}"


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
            Fact("parameters", "50,890", parameters),
            Fact("test error", "2.5 %", test_error),
            Fact("eigenvalues with |λ| < 0.01", "90 %", share_below("0.01")),
            Fact("largest eigenvalue", "", extreme("largest")),
            Fact("smallest eigenvalue", "", extreme("smallest")),
            Fact("largest over smallest, absolute", "", asymmetry),
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
            Fact("parameters", "47,658", parameters),
            Fact("test error", "2.4 %", test_error),
            Fact("eigenvalues with |λ| < 0.0001", "about 94 %", share_below("0.0001")),
            Fact("largest eigenvalue", "about 40", extreme("largest")),
            Fact("smallest eigenvalue", "-0.46", extreme("smallest")),
            Fact("largest over smallest, absolute", "about 87", asymmetry),
        ),
    ),
    "tiny_lenet": Case(
        VARIATIONAL,
        Flatness(model="tiny_lenet", method="sgd", epochs=4, images=4096),
        ("gradient_noise",),
        ("gradient_noise", plots.gradient_noise),
        (
            Fact("parameters", "13,338", parameters),
            Fact("test error", "", test_error),
            Fact("rank of D, share of the parameters", "1.8 %", rank),
            Fact("eigenvalues of D, mean ± deviation", "(0.3 ± 2.11)e-3", noise_eigenvalues),
            Fact("participation ratio of D", "", participation),
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
        "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        "environment": environment.describe(),
        "networks": {},
    }
    with progress_bars() as bars:
        for name in config.networks:
            case = CASES[name]
            one = examine(adapted(case, config), folder / name, bars, case.estimators)
            found["networks"][name] = one
            write_text(folder / "results.json", json.dumps(found, indent=1) + "\n")
    pictures = {
        name: save(folder, f"{name}_{CASES[name].picture[0]}", CASES[name].picture[1], one)
        for name, one in found["networks"].items()
    }
    blocks = compose(found, pictures)
    write_text(folder / "report.md", to_markdown(blocks))
    write_text(folder / "report.html", to_html(blocks, "Spectra of two papers"))
    show(found, folder)
    return 0


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


def rows(name: str, found: Results) -> list[tuple[str, str, str]]:
    """The facts of one network beside the paper's."""
    return [(fact.quantity, fact.paper, fact.here(found)) for fact in CASES[name].facts]


def compose(found: Results, pictures: dict[str, Path]) -> Sequence[Block]:
    """The report, block by block."""
    blocks: list[Block] = [
        Heading("Spectra of two papers", level=1),
        Paragraph(
            "The papers diagonalised dense matrices; here the share of eigenvalues near zero is "
            "from Lanczos quadrature, whose ± is the standard error over probe vectors and does "
            "not know of eigenvalues that the quadrature cannot tell from zero. The ends of the "
            "spectrum are from restarted Lanczos, with their residuals. Training recipes are not "
            "the papers', and the minima need not be theirs: where a number is not the paper's, "
            "the table says so by itself. Empty cells: the paper does not print it."
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
