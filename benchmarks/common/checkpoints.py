"""The state of a run on disk, by Orbax: whole and unchanged, or passed over for an older one.

Orbax leaves out what a killed process had half written. A file that was cut short, lost or changed
later is found here: each checkpoint holds a checksum of each array and of what is known of the run.
"""

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from benchmarks.common.options import UsageError

Record = dict[str, Any]
# Under the folder of the checkpoints, where damaged ones are put.
DAMAGED = "damaged"


class Checkpoints:
    """The last few states of a run, each with a record of what is known of the run there.

    Each process writes the part that its devices hold; what several hold is written once.
    """

    def __init__(
        self,
        folder: Path,
        say: Callable[[str], None],
        *,
        keep: int = 2,
        in_background: bool = False,
    ) -> None:
        """Opens or makes ``folder``, and forgets what a killed process had half written in it.

        Args:
          folder: of the checkpoints of one state.
          say: called with one line for each checkpoint that is passed over.
          keep: how many stay; with one there is nothing older to fall back on.
          in_background: whether the training goes on while a checkpoint is written.
        """
        self._folder, self._say = folder.resolve(), say
        self._options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            enable_async_checkpointing=in_background,
            cleanup_tmp_directories=True,
        )
        self._manager = self._open()

    def save(self, step: int, state: Any, record: Record) -> None:
        """Writes a state and its record, or starts to; ``step`` is above that of the last one."""
        signed = {"record": record, "record_sum": record_sum(record), "sums": checksums(state)}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(signed)
            ),
        )

    def latest(self, like: Callable[[Record], Any]) -> tuple[Any, Record] | None:
        """The newest whole checkpoint.

        Those that are damaged are named, and put aside so that their steps can be written anew.

        Args:
          like: from a record to the state's shapes and shardings; it may refuse the record.

        Returns:
          State and record; None where there is no checkpoint.

        Raises:
          UsageError: there are checkpoints, and none is whole.
        """
        steps = self._steps()
        for step in steps:
            record, problem = self._read_record(step)
            if record is not None:
                state, problem = self._read_state(step, like(record["record"]), record["sums"])
                if state is not None:
                    return state, record["record"]
            self._say(f"The checkpoint of step {step} is damaged ({problem}): passed over.")
            self._put_aside(step)
        if steps:
            raise UsageError(
                f"--resume: none of the {len(steps)} checkpoints in {self._folder} is whole; start "
                "anew with another --output"
            )
        return None

    def close(self) -> None:
        """Waits for what is being written, and releases what Orbax holds."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _open(self) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(self._folder, options=self._options)

    def _steps(self) -> list[int]:
        """All there are, the newest first; whether Orbax takes them for whole or not."""
        return sorted(
            (int(path.name) for path in self._folder.iterdir() if path.name.isdigit()), reverse=True
        )

    def _read_record(self, step: int) -> tuple[Record | None, str]:
        """What was saved beside the state; None, and why, where it is damaged."""

        def read() -> Record:
            found = self._manager.restore(
                step, args=ocp.args.Composite(record=ocp.args.JsonRestore())
            )
            signed: Record = found.record
            if record_sum(signed["record"]) != signed["record_sum"]:
                raise ValueError("the record does not have its checksum")
            return signed

        return attempt(read)

    def _read_state(self, step: int, like: Any, sums: dict[str, int]) -> tuple[Any | None, str]:
        """The state in the shapes and shardings of ``like``; None, and why, where it is damaged."""

        def read() -> Any:
            found = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like))
            )
            return found.state

        state, problem = attempt(read)
        if state is not None:
            found = checksums(state)
            changed = [name for name in sums if found.get(name) != sums[name]]
            if changed or len(found) != len(sums):
                return None, f"{' '.join(changed) or 'it'} does not have its checksum"
        return state, problem

    def _put_aside(self, step: int) -> None:
        """Moves a checkpoint out of the way."""
        self._manager.close()
        if jax.process_index() == 0:
            aside = self._folder.parent / f"{self._folder.name}-{DAMAGED}"
            aside.mkdir(exist_ok=True)
            (self._folder / str(step)).rename(free_name(aside / str(step)))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"step {step} put aside")
        self._manager = self._open()


def attempt(read: Callable[[], Any]) -> tuple[Any | None, str]:
    """What was read; None, and why not, where any process failed, in all of them."""
    found, problem = None, "another process could not read it"
    try:
        found = read()
    # Each part of Orbax, and what it reads with, has exceptions of its own.
    except Exception as error:
        problem = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120]}"
    good = found is not None
    if jax.process_count() > 1:
        good = bool(np.all(multihost_utils.process_allgather(np.asarray(good))))
    return (found, "") if good else (None, problem)


def free_name(path: Path) -> Path:
    """The path, or one with a number behind it that is not there."""
    names = (path, *(path.with_name(f"{path.name}-{at}") for at in range(1, 1000)))
    return next(name for name in names if not name.exists())


def record_sum(record: Record) -> int:
    """The checksum of a record."""
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def checksums(state: Any) -> dict[str, int]:
    """The checksum of each array, by its path; the same whatever devices hold which part."""
    sums = jax.device_get(_sums(jax.tree.map(jnp.asarray, state)))
    return {
        jax.tree_util.keystr(path): int(value) for path, value in jax.tree.leaves_with_path(sums)
    }


@jax.jit
def _sums(state: Any) -> Any:
    return jax.tree.map(_sum_of_bits, state)


def _sum_of_bits(leaf: jax.Array) -> jax.Array:
    """The sum modulo 2^32 of the words of an array, each times an odd number of its own.

    One flipped bit changes it by an odd number times a power of 2, which is never 0.
    """
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if leaf.dtype == jnp.bool_:
        leaf = leaf.astype(jnp.uint8)
    width = min(leaf.dtype.itemsize, 4)
    words = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * width}")).astype(jnp.uint32)
    place = jnp.zeros(words.shape, jnp.uint32)
    for axis, length in enumerate(words.shape):
        place = place * length + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    return jnp.sum(words * (2 * place + 1), dtype=jnp.uint32)
