"""The evaluation weights of a finished method on disk: one .npz, each array under its path."""

from pathlib import Path

import jax
import numpy as np
from flax import traverse_util

from benchmarks.common.network import BatchStats, Network, Params
from benchmarks.common.options import UsageError
from benchmarks.common.run_folder import write_whole

FOLDER = "weights"


def save(run: Path, method: str, params: Params, stats: BatchStats) -> None:
    """Writes the weights and batch statistics, stacked over the seeds, of one method of a run."""
    arrays = traverse_util.flatten_dict({"params": params, "batch_stats": stats}, sep="/")
    on_host = {path: np.asarray(leaf) for path, leaf in arrays.items()}
    write_whole(file_of(run, method), lambda file: np.savez(file, allow_pickle=False, **on_host))


def load(run: Path, method: str, seed_index: int, network: Network) -> tuple[Params, BatchStats]:
    """The weights and batch statistics of one seed of a method of a finished run.

    Raises:
      UsageError: there are none, or they are not of this network.
    """
    path = file_of(run, method)
    if not path.exists():
        raise UsageError(f"there are no weights at {path}")
    with np.load(path) as stored:
        arrays = {name: stored[name][seed_index] for name in stored.files}
    tree = traverse_util.unflatten_dict(arrays, sep="/")
    found = tree["params"], tree.get("batch_stats", {})
    expected = jax.eval_shape(network.init, jax.random.key(0))
    shapes = [jax.tree.map(lambda leaf: leaf.shape, pair) for pair in (expected, found)]
    if shapes[0] != shapes[1]:
        raise UsageError(
            f"the weights at {path} are not those of the model that results.json names"
        )
    return found


def file_of(run: Path, method: str) -> Path:
    """Where a run keeps the weights of a method."""
    return run / FOLDER / f"{method}.npz"
