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
    assert len(blocks) >= 5
    session: dict = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), session)  # the README is ours
    assert session["prediction"].shape == (64, 1)
    assert session["evaluated"].norm.use_running_average
    assert "Estimate" in capsys.readouterr().out


def test_first_screen_has_the_two_commands():
    first_screen = README.read_text().split("## Train")[0]
    commands = re.findall(r"```bash\n(.*?)\n```", first_screen, re.DOTALL)
    assert len(commands) == 2
    assert all(command.startswith("python -m pip install") for command in commands)
    assert "python -m benchmarks compare" in commands[0]
    assert "python -m pytest" in commands[1]
