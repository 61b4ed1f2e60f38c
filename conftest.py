"""What every test runs under: simulated devices, the CPU fault's cure, a cache, checked shapes."""

import os
from pathlib import Path

# Both must be in the environment before jax starts its backend. The empty fusion type is the cure
# for the wrong reductions of jax 0.10.2 on CPU (README, "A fault in jax 0.10.2").
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_cpu_experimental_ynn_fusion_type=",
    ]
)
# Programs compiled once serve the other workers, the processes that tests start, and the next run.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jaxtyping
import pytest

# Shapes and types in signatures are checked at run time in the tests only. Before the library is
# imported, in every worker. An integer is a float, as for mypy.
jaxtyping.install_import_hook(
    "entropix", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
)
unwrapped_raises = pytest.raises
# Examples in docstrings that take more than a few seconds.
SLOW_EXAMPLES = {
    "entropix.committee._amp.approximate_message_passing",
    "entropix.committee._focusing_bp.focusing_bp",
    "entropix.committee._lal.entropic_lal",
    "entropix.committee._parallel_tempering.parallel_tempering",
    "entropix.committee._replicated_lal.replicated_lal",
    "entropix.committee._robustness.noise_robustness",
    "entropix.committee._sampling.sampled_local_entropy",
    "entropix.flatness._layer_curvature.layer_curvature",
    "entropix.flatness._local_entropy.local_entropy",
    "entropix.replica_theory._cross_entropy.franz_parisi_of_cross_entropy",
    "entropix.replica_theory._franz_parisi.franz_parisi",
    "entropix.replica_theory._robust_ensemble.robust_ensemble",
    "entropix.scoping._finder.find_gamma",
    "entropix.transforms._elastic_sgd.elastic_sgd",
    "entropix.transforms._entropy_sgd.entropy_adam",
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the slow examples, before what is slow is left out."""
    for item in items:
        if item.name in SLOW_EXAMPLES:
            item.add_marker(pytest.mark.slow)


@contextlib.contextmanager
def raises(*args: Any, **kwargs: Any) -> Iterator[Any]:
    """`pytest.raises` with unchecked signatures: the library itself refuses what is wrong."""
    with unwrapped_raises(*args, **kwargs) as caught:
        jaxtyping.config.update("jaxtyping_disable", True)
        try:
            yield caught
        finally:
            jaxtyping.config.update("jaxtyping_disable", False)


pytest.raises = raises


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
