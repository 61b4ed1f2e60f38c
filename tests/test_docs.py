"""Every Python block of the pages runs, pasted one after another; every package has a page."""

import re
from pathlib import Path

import jax
import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest

import entropix

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# Pages that take more than a few seconds.
SLOW = {
    "committee.md",
    "dynamics.md",
    "flatness.md",
    "index.md",
    "local_sgd.md",
    "pod.md",
    "quickstart.md",
    "recipes.md",
    "replica_theory.md",
    "sharp_bits.md",
}


@pytest.fixture(autouse=True)
def strict_ranks():
    """A reader's session promotes ranks."""


@pytest.fixture(autouse=True)
def precision_of_its_own():
    """A page may set double precision; what runs after it has not."""
    double = jax.config.jax_enable_x64
    yield
    jax.config.update("jax_enable_x64", double)


def python_blocks(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


PAGES = sorted(
    page for page in [*DOCS.rglob("*.md"), ROOT / "CONTRIBUTING.md"] if python_blocks(page)
)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(
            page,
            marks=[pytest.mark.slow] if page.name in SLOW else [],
            id=page.name,
        )
        for page in PAGES
    ],
)
def test_python_blocks_run(page):
    session: dict = {}
    for block in python_blocks(page):
        exec(compile(block, str(page), "exec"), session)  # the page is ours


@pytest.mark.slow
@pytest.mark.parametrize(
    "notebook", sorted((ROOT / "notebooks").glob("*.py")), ids=lambda p: p.stem
)
def test_notebooks_run(notebook):
    mpl.use("agg")
    try:
        exec(compile(notebook.read_text(), str(notebook), "exec"), {})  # the notebook is ours
    finally:
        plt.close("all")


def test_formulas_are_written_as_the_site_and_the_code_host_read_them():
    r"""MyST and GitHub know $x$, and show \(x\) as it is."""
    for page in DOCS.rglob("*.md"):
        assert not re.search(r"\\[(\[]|^:::", page.read_text(), re.MULTILINE), page


def test_every_public_module_has_a_page():
    """That each of its names has an entry there is checked when the pages are built."""
    pages = "".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    documented = set(re.findall(r"^\.\. public-api:: (.*)$", pages, re.MULTILINE))
    documented = set(" ".join(documented).split())
    public = {
        f"entropix.{path.stem}"
        for path in Path(entropix.__file__).parent.iterdir()
        if not path.stem.startswith("_")
        and (path.suffix == ".py" or (path / "__init__.py").exists())
    }
    assert documented == public | {"entropix"}
