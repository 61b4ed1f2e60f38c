"""Benchmarks run Flax models, which promote ranks."""

import pytest


@pytest.fixture(autouse=True)
def strict_ranks() -> None:
    """Replaces the strict fixture of the library's own tests."""
