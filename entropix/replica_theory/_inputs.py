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


def check_hidden_units(num_hidden: Any, *, accepted: str) -> None:
    """Raises unless ``num_hidden`` is an odd integer or infinite, among those ``accepted``."""
    if num_hidden == math.inf:
        return
    check_integer("num_hidden", num_hidden, at_least=1)
    if num_hidden % 2 == 0:
        raise ValueError(f"num_hidden must be {accepted}, got {num_hidden}")


def check_one_or_infinite(num_hidden: Any) -> None:
    """Raises unless ``num_hidden`` is 1 or infinite."""
    if num_hidden not in (1, math.inf):
        raise ValueError(f"num_hidden must be 1 or math.inf, got {num_hidden!r}")


def check_one_three_or_infinite(num_hidden: Any) -> None:
    """Raises unless ``num_hidden`` is 1, 3 or infinite."""
    if num_hidden not in (1, 3, math.inf):
        raise ValueError(f"num_hidden must be 1, 3 or math.inf, got {num_hidden!r}")


def check_distance(distance: Any) -> None:
    """Raises unless every distance is inside (0, 1)."""
    check_number("distance", distance, above=0, below=1)


def overlap_at(distance: jax.Array, weights: Weights) -> jax.Array:
    """Overlap at a Hamming distance (binary) or at a squared sine of the angle (spherical)."""
    return 1 - 2 * distance if weights == "binary" else jnp.sqrt(1 - distance)


def check_machine(num_hidden: Any, output: Any, weights: Weights) -> None:
    """Raises unless the widest minima of this machine are known."""
    if output not in ("majority", "parity"):
        raise ValueError(f"output must be 'majority' or 'parity', got {output!r}")
    if output == "parity" and num_hidden != math.inf:
        check_integer("num_hidden", num_hidden, at_least=1)
    else:
        check_hidden_units(num_hidden, accepted="an odd integer or math.inf for a majority")
    if weights == "binary" and num_hidden != 1:
        raise ValueError(f"num_hidden must be 1 for binary weights, got {num_hidden!r}")


def load(alpha: Any, *, above: float | None = None) -> jax.Array:
    """The load as an array of doubles, at least 0."""
    check_number("alpha", alpha, at_least=0, above=above)
    return jnp.asarray(alpha, float)
