"""The library's own arithmetic never promotes ranks; its tests hold it to that."""

from collections.abc import Iterator

import jax
import numpy as np
import pytest


@pytest.fixture(autouse=True)
def strict_ranks() -> Iterator[None]:
    """Tests of code that goes through Flax, which does promote ranks, override this fixture."""
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(autouse=True)
def numbers_of_its_own(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test draws the same numbers whichever tests ran before it in the same process."""
    if hasattr(request.module, "RNG"):
        monkeypatch.setattr(request.module, "RNG", np.random.default_rng(0))
