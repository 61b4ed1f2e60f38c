"""Find and measure wide, flat minima of neural networks."""

import importlib
from typing import TYPE_CHECKING, Any

from entropix._canary import FaultyBackendWarning
from entropix.transforms import (
    AverageUpdatesState,
    Compression,
    CoupleReplicasState,
    DiLoCoState,
    EntropyDescentState,
    LangevinNoiseState,
    average_updates,
    couple_replicas,
    diloco,
    elastic_sgd,
    entropy_adam,
    entropy_descent,
    entropy_descent_with_grad_fn,
    entropy_sgd,
    eval_params,
    fragments,
    heat_sgd,
    hopf_lax_sgd,
    langevin_noise,
    normalize_updates,
    parle,
    plain_average,
    replicated_sgd,
    sgld,
)

if TYPE_CHECKING:
    from entropix import (
        committee,
        dynamics,
        flatness,
        losses,
        nn,
        replica_theory,
        replicas,
        scoping,
    )

__version__ = "0.2.0"

__all__ = [
    "AverageUpdatesState",
    "Compression",
    "CoupleReplicasState",
    "DiLoCoState",
    "EntropyDescentState",
    "FaultyBackendWarning",
    "LangevinNoiseState",
    "average_updates",
    "committee",
    "couple_replicas",
    "diloco",
    "dynamics",
    "elastic_sgd",
    "entropy_adam",
    "entropy_descent",
    "entropy_descent_with_grad_fn",
    "entropy_sgd",
    "eval_params",
    "flatness",
    "fragments",
    "heat_sgd",
    "hopf_lax_sgd",
    "langevin_noise",
    "losses",
    "nn",
    "normalize_updates",
    "parle",
    "plain_average",
    "replica_theory",
    "replicas",
    "replicated_sgd",
    "scoping",
    "sgld",
]

_LAZY = frozenset(
    {"committee", "dynamics", "flatness", "losses", "nn", "replica_theory", "replicas", "scoping"}
)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"entropix.{name}")
    raise AttributeError(f"module 'entropix' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
