"""What every test runs under: eight simulated devices, the CPU fault's cure."""

import os

# Both must be in the environment before jax starts its backend. The empty fusion type is the cure
# for the wrong reductions of jax 0.10.2 on CPU (README, "A fault in jax 0.10.2").
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_cpu_experimental_ynn_fusion_type=",
    ]
)

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def fresh_caches() -> Iterator[None]:
    """Frees a file's compiled programs: in one process all of them exhaust its memory mappings."""
    yield
    jax.clear_caches()


@pytest.fixture
def x64() -> Iterator[None]:
    """Runs a test in double precision, where the closed forms hold to 1e-9."""
    with jax.enable_x64(True):
        yield
