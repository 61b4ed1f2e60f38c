"""The library's own arithmetic never promotes ranks; its tests hold it to that."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def strict_ranks() -> Iterator[None]:
    """Tests of code that goes through Flax, which does promote ranks, override this fixture."""
    with jax.numpy_rank_promotion("raise"):
        yield
