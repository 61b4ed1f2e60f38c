"""What the solvers accept, checked before any of them starts."""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from entropix._checks import check_integer, check_number

Weights = Literal["binary", "spherical"]


def check_precision() -> None:
    """Raises unless double precision is on: the saddle points are lost in single precision."""
    if not jax.config.read("jax_enable_x64"):
        raise ValueError(
            "jax_enable_x64 must be True, got False: replica theory needs double precision; "
            "call jax.config.update('jax_enable_x64', True) first, or use "
            "'with jax.enable_x64(True):'"
        )


def check_weights(weights: str) -> None:
    """Raises unless ``weights`` names a prior of the weights."""
    if weights not in ("binary", "spherical"):
        raise ValueError(f"weights must be 'binary' or 'spherical', got {weights!r}")


def check_hidden_units(hidden_units: Any, *, accepted: str) -> None:
    """Raises unless ``hidden_units`` is an odd integer or infinite, among those ``accepted``."""
    if hidden_units == math.inf:
        return
    check_integer("hidden_units", hidden_units, at_least=1)
    if hidden_units % 2 == 0:
        raise ValueError(f"hidden_units must be {accepted}, got {hidden_units}")


def check_one_or_infinite(hidden_units: Any) -> None:
    """Raises unless ``hidden_units`` is 1 or infinite."""
    if hidden_units not in (1, math.inf):
        raise ValueError(f"hidden_units must be 1 or math.inf, got {hidden_units!r}")


def check_distance(distance: Any) -> None:
    """Raises unless every distance is inside (0, 1)."""
    check_number("distance", distance, above=0, below=1)


def overlap_at(distance: jax.Array, weights: Weights) -> jax.Array:
    """Overlap at a Hamming distance (binary) or at a squared sine of the angle (spherical)."""
    return 1 - 2 * distance if weights == "binary" else jnp.sqrt(1 - distance)


def check_machine(hidden_units: Any, output: Any, weights: Weights) -> None:
    """Raises unless the widest minima of this machine are known."""
    if output not in ("majority", "parity"):
        raise ValueError(f"output must be 'majority' or 'parity', got {output!r}")
    if output == "parity" and hidden_units != math.inf:
        check_integer("hidden_units", hidden_units, at_least=1)
    else:
        check_hidden_units(hidden_units, accepted="an odd integer or math.inf for a majority")
    if weights == "binary" and hidden_units != 1:
        raise ValueError(f"hidden_units must be 1 for binary weights, got {hidden_units!r}")


def load(alpha: Any, *, above: float | None = None) -> jax.Array:
    """The load as an array of doubles, at least 0."""
    check_number("alpha", alpha, at_least=0, above=above)
    return jnp.asarray(alpha, float)
