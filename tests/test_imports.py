"""The public face: one address for each name, and what importing the library does and does not."""

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import entropix

ROOT = Path(__file__).parents[1]

PUBLIC_MODULES = [
    "entropix",
    *(
        module.name
        for module in pkgutil.walk_packages(entropix.__path__, "entropix.")
        if "._" not in module.name
    ),
]


def run_python(program):
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, text=True, capture_output=True
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.split()


@pytest.mark.parametrize("module_name", PUBLIC_MODULES)
def test_every_public_name_is_there_and_listed(module_name):
    module = importlib.import_module(module_name)
    assert sorted(module.__all__) == list(module.__all__), "sorted, so that it is found"
    assert len(set(module.__all__)) == len(module.__all__)
    assert set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_every_public_name_has_one_address():
    """What chains into an optimizer is at the top, and in `entropix.transforms` where it lives."""
    addresses = {}
    for module_name in PUBLIC_MODULES:
        module = importlib.import_module(module_name)
        for name in module.__all__:
            thing = getattr(module, name)
            if not isinstance(thing, ModuleType):
                addresses.setdefault(id(thing), []).append((module_name, name))
    for known in addresses.values():
        modules = {module_name for module_name, _ in known}
        assert len(known) == 1 or modules == {"entropix", "entropix.transforms"}, known
        assert len({name for _, name in known}) == 1, known


@pytest.mark.parametrize("module_name", PUBLIC_MODULES[1:])
def test_no_module_is_shadowed_by_what_it_holds(module_name):
    """`import entropix.flatness.lanczos` gave a function once."""
    parent, _, name = module_name.rpartition(".")
    module = importlib.import_module(module_name)
    assert getattr(importlib.import_module(parent), name) is module is sys.modules[module_name]


def test_unknown_name_is_an_attribute_error_that_names_it():
    with pytest.raises(AttributeError, match="entropy_sdg"):
        _ = entropix.entropy_sdg


IMPORT_AND_LIST = """
import sys
import jax, optax
before = {name.partition(".")[0] for name in sys.modules} - {"entropix"}
import entropix
print(*sorted(name for name in sys.modules if name.partition(".")[0] not in before))
"""


def test_import_loads_the_transforms_alone():
    """Everything else waits until it is asked for, Flax and the numerical packages first of all."""
    loaded = run_python(IMPORT_AND_LIST)
    foreign = {name.partition(".")[0] for name in loaded} - set(sys.stdlib_module_names)
    assert foreign <= {"entropix", "jaxtyping", "numpy", "wadler_lindig"}
    rooms = {name.split(".")[1] for name in loaded if name.startswith("entropix.")}
    assert {room for room in rooms if not room.startswith("_")} == {"transforms"}


LAZY = """
import sys
import entropix
assert "entropix.flatness" not in sys.modules
entropix.flatness.trace
assert "entropix.flatness" in sys.modules and "flatness" in dir(entropix)
print("flax" in sys.modules)
"""


def test_packages_load_when_first_asked_for():
    assert run_python(LAZY) == ["False"]


IMPORT_ALL = """
import importlib, pkgutil
import benchmarks, entropix
for package in (entropix, benchmarks):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
from jax._src import xla_bridge
print(xla_bridge.backends_are_initialized())
"""


@pytest.mark.slow
def test_no_import_starts_a_backend():
    """After one has started, `jax.distributed.initialize` and a choice of devices are refused."""
    assert run_python(IMPORT_ALL) == ["False"]


TYPED = """
import entropix
reveal_type(entropix.entropy_sgd)
reveal_type(entropix.flatness.trace)
reveal_type(entropix.committee.Committee)
reveal_type(entropix.nn.eval_model)
"""


@pytest.mark.slow
def test_type_checkers_see_what_loads_lazily(tmp_path):
    (tmp_path / "program.py").write_text(TYPED)
    finished = subprocess.run(
        [sys.executable, "-m", "mypy", str(tmp_path / "program.py")],
        cwd=ROOT,
        text=True,
        capture_output=True,
    )
    revealed = [line for line in finished.stdout.splitlines() if "Revealed type" in line]
    assert len(revealed) == 4, finished.stdout
    assert not any('"Any"' in line or "ModuleType" in line for line in revealed), revealed
