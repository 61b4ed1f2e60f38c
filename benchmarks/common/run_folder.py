"""The folder of a run: its name, whether it is free, and files that are whole or not there."""

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from benchmarks.common.options import (
    FolderOptions,
    ResumeOptions,
    UsageError,
    check_options,
    configuration,
)

PART = ".part"
RESULTS = "results.json"
Results = dict[str, Any]


def open_folder(options: FolderOptions, name: str) -> Path:
    """Checks the options; answers the folder to write, which is free or to be gone on with.

    Raises:
      UsageError: an option is out of its bounds, or the folder holds something and --resume is not
        given.
    """
    check_options(options)
    resume = isinstance(options, ResumeOptions) and options.resume
    if options.output is None:
        if resume:
            raise UsageError("--resume needs --output, the folder of the run to go on with")
        return Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if options.output.exists() and any(options.output.iterdir()) and not resume:
        hint = "; give --resume to go on with its run" * isinstance(options, ResumeOptions)
        raise UsageError(f"--output {options.output} is not empty{hint}")
    return options.output


def stored_results(folder: Path, options: Any) -> Results | None:
    """The results so far of the run to go on with; None for a new run.

    Raises:
      UsageError: the folder holds something else, or a run of another configuration.
    """
    if not folder.exists():
        return None
    for path in folder.glob(f".*{PART}"):
        path.unlink()
    stored = read_results(folder)
    if stored is None:
        if any(folder.iterdir()):
            raise UsageError(f"--resume: {folder} holds no {RESULTS} of a run to go on with")
        return None
    check_same(folder, configuration(options), stored["configuration"])
    return stored


def check_same(folder: Path, here: dict[str, Any], there: dict[str, Any]) -> None:
    """Raises a `UsageError` that names what differs between a run and the one in the folder."""
    differences = ", ".join(
        f"{name} {there.get(name)!r} there, {here[name]!r} here"
        for name in here
        if there.get(name) != here[name]
    )
    if differences:
        raise UsageError(f"--resume: {folder} holds a run of another configuration: {differences}")


def read_results(folder: Path) -> Results | None:
    """The results in a folder; None where there are none."""
    path = folder / RESULTS
    return json.loads(path.read_text()) if path.exists() else None


def write_results(folder: Path, found: Results) -> None:
    """Writes results.json, whole or not at all."""
    write_text(folder / RESULTS, json.dumps(found, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes ``text`` to ``path`` in UTF-8, whole or not at all."""
    write_whole(path, lambda file: file.write(text.encode()))


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Calls ``write`` on a temporary file beside ``path``, then renames it into place.

    A process killed at any moment leaves the old file or the new one, never a part.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART)
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner may read.
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
