"""What a run shows on the terminal: tables whose cells are never cut, and progress."""

import textwrap

import pandas as pd
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from benchmarks.common.report import is_numeric

# Between two columns.
PADDING = 2


def say(text: str) -> None:
    """A line, which is not broken: a path in it can be copied, and a log searched."""
    Console().print(text, markup=False, highlight=False, soft_wrap=True)


def show_table(frame: pd.DataFrame, title: str) -> None:
    """A data frame of text; in parts one below the other where the terminal is too narrow.

    The first column stands in each part. Numbers are never broken; prose is, between words.
    """
    console = Console()
    for columns in parts(frame, console.width):
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for column in columns:
            numeric = is_numeric(frame[column])
            table.add_column(
                "\n".join(textwrap.wrap(column, least(frame, column), break_long_words=False)),
                justify="right" if numeric else "left",
                no_wrap=numeric or column == columns[0],
                overflow="fold",
            )
        for row in frame[columns].to_numpy().tolist():
            table.add_row(*row)
        console.print(table, markup=False)


def parts(frame: pd.DataFrame, width: int) -> list[list[str]]:
    """The columns of each part, as many as fit beside the first."""
    name, *others = list(frame)
    found: list[list[str]] = []
    room = 0
    for column in others:
        needed = least(frame, column) + PADDING
        if not found or needed > room:
            found.append([name])
            room = width - least(frame, name) - PADDING
        found[-1].append(column)
        room -= needed
    return found or [[name]]


def least(frame: pd.DataFrame, column: str) -> int:
    """The width below which a cell or a word of the head would be cut."""
    whole = is_numeric(frame[column]) or column == next(iter(frame))
    words = [part for cell in frame[column] for part in ([cell] if whole else cell.split())]
    return max(map(len, [*words, *column.split()]))


def progress_bars(*texts: str) -> Progress:
    """Bars with what is done, the texts (of a task's fields), time gone and time left."""
    return Progress(
        TextColumn("{task.description:<16}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        # Markup is read by a relative import at each refresh, in a thread of its own; TFDS forbids
        # such imports everywhere while it is imported itself.
        *(TextColumn(text, markup=False) for text in texts),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        expand=True,
    )
