"""What importing the library does: nothing that a program can no longer undo."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

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


def test_no_import_starts_a_backend():
    """After one has started, `jax.distributed.initialize` and a choice of devices are refused."""
    finished = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL], cwd=ROOT, text=True, capture_output=True, check=True
    )
    assert finished.stdout.split() == ["False"]
