"""What a run shows on the terminal: progress while it trains, a table at its end."""

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.table import Table

from benchmarks.common.results import Results
from benchmarks.compare.report import table_rows

ERROR_COLUMNS = ("method", "gradients", "error %", "minus SGD", "cross entropy", "seconds")
WIDTH_COLUMNS = ("method", "train error %", "local energy", "top eigenvalue", "trace")


class ProgressBars:
    """A bar per method: gradients done, the last test error, time left."""

    def __init__(self, folder: Path) -> None:
        """Shows nothing yet; ``folder`` is what an interrupted run is taken up from."""
        self._folder = folder
        self._bars = RichProgress(
            TextColumn("{task.description:<16}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("gradients, error {task.fields[error]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )

    def __enter__(self) -> Self:
        """Starts to draw."""
        self._bars.console.print(
            f"Writing to {self._folder}; after an interruption add --resume --output {self._folder}"
        )
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stops drawing."""
        self._bars.stop()

    def start(self, name: str, gradients: int) -> Callable[[int, float], None]:
        """Adds a method's bar; call the answer with (gradients done, test error)."""
        task = self._bars.add_task(name, total=gradients, error="   --")

        def show(done: int, error: float) -> None:
            self._bars.update(task, completed=done, error=f"{100 * error:5.2f} %")

        return show


def show_tables(found: Results, folder: Path) -> None:
    """The final tables, errors and widths, and where the rest is."""
    console = Console()
    rows = table_rows(found)
    for title, columns in (("Errors", ERROR_COLUMNS), ("Widths", WIDTH_COLUMNS)):
        table = Table(title=title, box=None, pad_edge=False, title_justify="left")
        for column in columns:
            table.add_column(
                column, justify="left" if column == "method" else "right", no_wrap=True
            )
        for row in rows:
            table.add_row(*(row[column] for column in columns))
        console.print(table)
        console.print()
    seeds = found["configuration"]["seeds"]
    console.print(f"Seeds: {seeds}. Mean ± standard error. Report: {folder / 'report.html'}")
