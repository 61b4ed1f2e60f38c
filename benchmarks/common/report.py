"""Reports: a Markdown template of an experiment, written as report.md and as one HTML page."""

import base64
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markdown_it import MarkdownIt
from markdown_it.token import Token

from benchmarks.common.run_folder import write_text

ROOMS = Path(__file__).parents[1]
MARKDOWN, PAGE = "report.md", "report.html"
# What may stand in a column of numbers, which is right-aligned and never broken.
_NUMBER = r"[+\-−]?[\d.,]+(?:e[+\-]?\d+)?"
NUMBER = re.compile(
    rf"{_NUMBER}(?: ± {_NUMBER}|/\d+|(?:, \d+)*)(?: %| points)?|-|nan|not measured|not run|"
)


def write_report(folder: Path, template: str, title: str, **values: Any) -> None:
    """Writes report.md, and report.html with the pictures inside.

    Args:
      folder: of the run, which holds the pictures.
      template: in `benchmarks/`, such as ``compare/report.md.j2``.
      title: of the page.
      values: what the template names; tables are data frames of text.
    """
    text = templates().get_template(template).render(title=title, **values).strip() + "\n"
    write_text(folder / MARKDOWN, text)
    write_text(folder / PAGE, to_html(text, title, folder))


def templates() -> jinja2.Environment:
    """The templates, which may write a table and a value of JSON."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROOMS),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Markdown takes care of what HTML would read as its own.
        autoescape=False,
    )
    environment.filters["table"] = markdown_table
    environment.filters["json"] = lambda value: json.dumps(value, indent=1)
    environment.filters["values"] = written_values
    return environment


def markdown_table(frame: pd.DataFrame) -> str:
    """A data frame of text as a Markdown table; numbers to the right, prose to the left."""
    rules = ["---:" if is_numeric(frame[column]) else ":---" for column in frame]
    rows = [list(frame), rules, *frame.to_numpy().tolist()]
    escaped = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    return "\n".join(f"| {row} |" for row in escaped)


def is_numeric(cells: Sequence[str]) -> bool:
    """Whether a column holds numbers, each maybe with an error or a unit, or nothing."""
    return all(NUMBER.fullmatch(cell) for cell in cells)


def written_values(values: dict[str, float]) -> str:
    """Hyper-parameters as text."""
    return ", ".join(f"{name} {value:g}" for name, value in values.items())


def to_html(text: str, title: str, folder: Path) -> str:
    """A report in Markdown as one HTML page; pictures inside, JSON folded, tables in own boxes."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    rules: dict[str, Any] = vars(parser.renderer)["rules"]
    plain_fence = rules["fence"]

    def image(tokens: Sequence[Token], at: int, *_: Any) -> str:
        data = base64.b64encode((folder / str(tokens[at].attrs["src"])).read_bytes()).decode()
        return f'<img src="data:image/png;base64,{data}" alt="{tokens[at].content}">'

    def fence(tokens: Sequence[Token], at: int, *rest: Any) -> str:
        block = plain_fence(tokens, at, *rest)
        if tokens[at].info != "json":
            return block
        return f"<details><summary>for machines</summary>\n{block}</details>\n"

    rules |= {
        "image": image,
        "fence": fence,
        "table_open": lambda *_: '<div class="wide" tabindex="0"><table>\n',
        "table_close": lambda *_: "</table></div>\n",
    }
    # On a narrow screen a number is broken before its error, never inside of it.
    text = text.replace(" ± ", " ±\N{NO-BREAK SPACE}")
    page = templates().get_template("common/templates/page.html.j2")
    return page.render(title=title, body=parser.render(text))
