"""The command line: `python -m benchmarks` lists what there is."""

import importlib
import os
import sys
from typing import NamedTuple

# jax 0.10.2 compiles some small matrix products followed by a reduction to wrong numbers on CPU; an
# empty fusion type turns that compilation off. It must be there before jax starts its backend.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_experimental_ynn_fusion_type=".strip()
)

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.common.memory import keep_freed_memory
from benchmarks.common.options import UsageError, check_known


class Command(NamedTuple):
    """One experiment.

    Attributes:
      module: where it is, as ``run(options)``.
      options: the class of its options in that module.
      summary: what it does.
      time: with default options on two CPU cores.
    """

    module: str
    options: str
    summary: str
    time: str


COMMANDS: dict[str, Command] = {
    "compare": Command(
        "benchmarks.compare.main",
        "Compare",
        "methods at the same number of gradients: errors, widths, a report",
        "2 minutes",
    ),
    "tune": Command(
        "benchmarks.tuning.tune",
        "Tune",
        "every method tuned alike, by cross-validation on the training images of one row",
        "4 to 10 minutes",
    ),
    "table": Command(
        "benchmarks.tuning.table",
        "Table",
        "the tuned methods on fresh seeds and the test images, with intervals",
        "1 to 3 minutes",
    ),
    "budgets": Command(
        "benchmarks.tuning.budgets",
        "Budgets",
        "the tuned methods at other budgets, with their test errors all along the runs",
        "1 minute",
    ),
    "devices": Command(
        "benchmarks.tuning.devices",
        "Devices",
        "replicated and data-parallel methods: error against bytes sent and steps in parallel",
        "3 minutes, needs Fashion-MNIST",
    ),
    "defaults": Command(
        "benchmarks.tuning.defaults",
        "Defaults",
        "settings of entropy_sgd beside SGD, only the learning rate chosen",
        "5 minutes, needs MNIST and Fashion-MNIST",
    ),
    "gammas": Command(
        "benchmarks.tuning.gammas",
        "Gammas",
        "the couplings that a range test finds, beside those that tuning chose",
        "1 minute, needs Fashion-MNIST",
    ),
    "found": Command(
        "benchmarks.tuning.found",
        "Found",
        "the page that says what the tables found",
        "1 second",
    ),
    "flatness": Command(
        "benchmarks.flatness.main",
        "Flatness",
        "every estimator of flatness on one minimum",
        "1 minute",
    ),
    "edge": Command(
        "benchmarks.flatness.edge",
        "Edge",
        "sharpness during training by four methods: the edge of stability",
        "1 minute",
    ),
    "papers": Command(
        "benchmarks.flatness.papers",
        "Papers",
        "spectra of small networks beside those that two papers print",
        "1 hour, needs MNIST",
    ),
    "partial": Command(
        "benchmarks.partial.main",
        "Partial",
        "smoothing layer by layer, and the layers' temperatures",
        "5 minutes",
    ),
    "committee": Command(
        "benchmarks.committee.main",
        "CommitteeMachines",
        "widths of the solutions of committee machines, by algorithm",
        "20 minutes, needs Fashion-MNIST",
    ),
    "loads": Command(
        "benchmarks.committee.loads",
        "Loads",
        "up to which loads each algorithm solves random patterns",
        "1 hour",
    ),
    "theory": Command(
        "benchmarks.committee.theory",
        "Theory",
        "replica theory beside what algorithms find in finite networks",
        "20 minutes",
    ),
    "distributed": Command(
        "benchmarks.distributed.main",
        "Distributed",
        "coupled replicas over the devices of one or several processes",
        "20 seconds",
    ),
    "kill_test": Command(
        "benchmarks.distributed.kill_test",
        "KillTest",
        "kills distributed runs at random moments; no bit may change",
        "2 minutes",
    ),
    "language": Command(
        "benchmarks.language.main",
        "Language",
        "local SGD on a language model: loss and bytes by workers and steps between meetings",
        "20 minutes, needs tiny_shakespeare",
    ),
    "nanogpt": Command(
        "benchmarks.language.nanogpt",
        "NanoGPT",
        "AdamW on a language model, beside losses that others have reported",
        "20 minutes, needs tiny_shakespeare",
    ),
    "scaling": Command(
        "benchmarks.scaling.main",
        "Scaling",
        "step time and traffic against replicas, devices and K",
        "3 minutes",
    ),
    "speed": Command(
        "benchmarks.speed.main",
        "Speed",
        "what the library costs, as ratios to floors",
        "10 minutes",
    ),
    "peers": Command(
        "benchmarks.peers.main",
        "Peers",
        "the same work by this library and by others, in turn",
        "3 minutes",
    ),
}


def main() -> int:
    """Reads the command line and runs the experiment; the exit status."""
    name = sys.argv[1].replace("-", "_") if len(sys.argv) > 1 else "__help"
    if name in ("__help", "_h"):
        show_commands()
        return 0
    try:
        check_known("command", name, COMMANDS)
        command = COMMANDS[name]
        # The others need not be imported.
        module = importlib.import_module(command.module)
        options = tyro.cli(
            getattr(module, command.options),
            prog=f"python -m benchmarks {name}",
            args=sys.argv[2:],
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
        )
        keep_freed_memory()
        status: int = module.run(options)
    except UsageError as error:
        print(f"python -m benchmarks: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return status


def show_commands() -> None:
    """The experiments, what they do and how long they take."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("python -m benchmarks", no_wrap=True)
    table.add_column("what it does")
    table.add_column("on two CPU cores")
    for name, command in COMMANDS.items():
        table.add_row(name, command.summary, command.time)
    console = Console()
    console.print(table)
    console.print("Each explains its options: python -m benchmarks compare --help", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
