"""The training state of one method on disk, by Orbax: a step is there whole or not at all."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from benchmarks.common.training import TrainState


class Progress(NamedTuple):
    """Where a method's training stands.

    Attributes:
      step: updates made.
      seconds: training time so far.
      curve: the points of the learning curve so far, as `results.json` keeps them.
    """

    step: int
    seconds: float
    curve: list[dict[str, Any]]


class Checkpoints:
    """The checkpoints of one method; a part written by a killed process is never read."""

    def __init__(self, folder: Path) -> None:
        """Opens or makes ``folder``."""
        options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(folder.resolve(), options=options)

    def save(self, state: TrainState, progress: Progress) -> None:
        """Writes the state and where it stands as one step."""
        self._manager.save(
            progress.step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress._asdict())
            ),
        )

    def latest(self, like: TrainState) -> tuple[TrainState, Progress] | None:
        """The last whole checkpoint, in the form of ``like``; None where there is none."""
        step = self._manager.latest_step()
        if step is None:
            return None
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract), progress=ocp.args.JsonRestore()
            ),
        )
        return restored.state, Progress(**restored.progress)

    def close(self) -> None:
        """Releases what Orbax holds."""
        self._manager.close()
