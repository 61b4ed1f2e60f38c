"""Every Python block of the README runs, one after another, as a reader would paste them."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(autouse=True)
def strict_ranks():
    """A reader's session promotes ranks."""


def test_python_blocks_run(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) >= 4
    session: dict = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), session)  # the README is ours
    assert session["errors"] < 0.03
    assert 0 < session["energy"].std_error < session["energy"].mean
    assert "0.833" in capsys.readouterr().out


def test_first_screen_has_the_two_commands():
    first_screen = README.read_text().split("## Train")[0]
    commands = re.findall(r"```bash\n(.*?)\n```", first_screen, re.DOTALL)
    assert len(commands) == 2
    assert all(command.startswith("python -m pip install") for command in commands)
    assert "python -m benchmarks compare" in commands[0]
    assert "python -m pytest" in commands[1]
    assert len(README.read_text().splitlines()) <= 150


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README.read_text())
    assert links
    for link in links:
        assert (README.parent / link).exists(), link
