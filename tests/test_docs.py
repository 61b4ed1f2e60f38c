"""Every Python block of the pages whose examples are whole runs, one after another."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(autouse=True)
def strict_ranks():
    """A reader's session promotes ranks."""


@pytest.mark.parametrize(
    ("page", "printed"), [("committee.md", ""), ("flatness.md", "Estimate"), ("langevin.md", "")]
)
def test_python_blocks_run(page, printed, capsys):
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    assert blocks
    session: dict = {}
    for block in blocks:
        exec(compile(block, page, "exec"), session)  # the page is ours
    assert printed in capsys.readouterr().out
