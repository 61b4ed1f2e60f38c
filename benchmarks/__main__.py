"""The command line: `python -m benchmarks compare --help`."""

import os
import sys
from collections.abc import Callable
from typing import Any

# jax 0.10.2 compiles some small matrix products followed by a reduction to wrong numbers on CPU; an
# empty fusion type turns that compilation off. It must be there before jax starts its backend.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_experimental_ynn_fusion_type=".strip()
)

import tyro

from benchmarks.committee import main as committee
from benchmarks.common.errors import UsageError
from benchmarks.common.memory import keep_freed_memory
from benchmarks.compare import main as compare
from benchmarks.distributed import main as distributed
from benchmarks.flatness import main as flatness
from benchmarks.flatness import papers
from benchmarks.partial import main as partial
from benchmarks.scaling import main as scaling
from benchmarks.speed import main as speed

# Each experiment: the dataclass of its options, and the function that runs it and answers the exit
# status.
EXPERIMENTS: dict[str, tuple[type, Callable[[Any], int]]] = {
    "committee": (committee.CommitteeMachines, committee.run),
    "compare": (compare.Compare, compare.run),
    "distributed": (distributed.Distributed, distributed.run),
    "flatness": (flatness.Flatness, flatness.run),
    "papers": (papers.Papers, papers.run),
    "partial": (partial.Partial, partial.run),
    "scaling": (scaling.Scaling, scaling.run),
    "speed": (speed.Speed, speed.run),
}


def main() -> int:
    """Reads the command line and runs the experiment; the exit status."""
    options = tyro.extras.subcommand_cli_from_dict(
        {name: options for name, (options, _) in EXPERIMENTS.items()},
        prog="python -m benchmarks",
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
    )
    runners = dict(EXPERIMENTS.values())
    keep_freed_memory()
    try:
        return runners[type(options)](options)
    except UsageError as error:
        print(f"python -m benchmarks: {error}", file=sys.stderr)  # noqa: T201
        return 2


if __name__ == "__main__":
    sys.exit(main())
