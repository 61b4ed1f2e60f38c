"""Checkpoints of a distributed run, written by Orbax while the training goes on."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from benchmarks.common.errors import UsageError
from benchmarks.common.replicated import RunState
from entropix.replicas import Plan


class ReplicaCheckpoints:
    """The last few states of a run; each is there whole or not at all.

    Each process writes the part that its devices hold; what several hold is written once.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        """Opens or makes ``folder``, and forgets what a killed process had half written in it."""
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=True, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(folder.resolve(), options=options)

    def save(self, plan: Plan, state: RunState, record: dict[str, Any]) -> None:
        """Starts to write a state of the devices, and what is known of the run."""
        # pmap's arrays are of this process alone, which Orbax does not know how to join.
        whole = plan.collect(state) if plan.backend == "pmap" else state
        self._manager.save(
            record["step"],
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(whole), record=ocp.args.JsonSave(record)
            ),
        )

    def last_record(self) -> dict[str, Any] | None:
        """What was known of the run at its last whole checkpoint; None where there is none."""
        step = self._manager.latest_step()
        if step is None:
            return None
        found = self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))
        record: dict[str, Any] = found.record
        return record

    def restore(self, step: int, like: RunState) -> RunState:
        """The state of a step, in the shapes and shardings of ``like``."""
        try:
            found = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like))
            )
        except ValueError as error:
            raise UsageError(f"--resume: the checkpoint is of another model: {error}") from None
        state: RunState = found.state
        return state

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.wait_until_finished()
        self._manager.close()


def abstract(state: RunState, sharding: jax.sharding.Sharding) -> RunState:
    """Shapes, dtypes and one sharding for all leaves."""
    shapes: RunState = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state
    )
    return shapes
