"""A report as a list of blocks, written as Markdown or as one self-contained HTML page."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto;
       padding: 0 1rem; color: #1a1a1a; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: right;
         white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { border-bottom: 2px solid #888; }
pre { background: #f4f4f4; padding: .8rem; overflow-x: auto; }
img { max-width: 100%; }
figure { margin: 1.5rem 0; }
figcaption { color: #555; }
""".strip()


@dataclass(frozen=True)
class Heading:
    """A title; level 1 is the document's."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Code:
    """Text to copy."""

    text: str


@dataclass(frozen=True)
class TableBlock:
    """Rows of text under a head; the first column is the row's name."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """An image file beside the document."""

    path: Path
    caption: str


Block = Heading | Paragraph | Code | TableBlock | Picture


def to_markdown(blocks: Sequence[Block]) -> str:
    """The document as Markdown; pictures are linked by file name."""
    return "\n\n".join(markdown_block(block) for block in blocks) + "\n"


def markdown_block(block: Block) -> str:
    """One block as Markdown."""
    match block:
        case Heading(text, level):
            return f"{'#' * level} {text}"
        case Paragraph(text):
            return text
        case Code(text):
            return f"```\n{text}\n```"
        case TableBlock(head, rows):
            rule = [":---"] + ["---:"] * (len(head) - 1)
            escaped = [[cell.replace("|", r"\|") for cell in row] for row in (head, rule, *rows)]
            return "\n".join(f"| {' | '.join(row)} |" for row in escaped)
        case Picture(path, caption):
            return f"![{caption}]({path.name})\n\n{caption}"


def to_html(blocks: Sequence[Block], title: str) -> str:
    """The document as one HTML page with its pictures inside."""
    body = "\n".join(html_block(block) for block in blocks)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{STYLE}\n</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def html_block(block: Block) -> str:
    """One block as HTML."""
    match block:
        case Heading(text, level):
            return f"<h{level}>{html.escape(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{html.escape(text)}</p>"
        case Code(text):
            return f"<pre>{html.escape(text)}</pre>"
        case TableBlock(head, rows):
            top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
            lines = "\n".join(
                "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
                for row in rows
            )
            table = f"<table>\n<thead><tr>{top}</tr></thead>\n<tbody>\n{lines}\n</tbody>\n</table>"
            return f'<div class="wide">{table}</div>'
        case Picture(path, caption):
            data = base64.b64encode(path.read_bytes()).decode()
            text = html.escape(caption)
            image = f'<img src="data:image/png;base64,{data}" alt="{text}">'
            return f"<figure>{image}<figcaption>{text}</figcaption></figure>"
