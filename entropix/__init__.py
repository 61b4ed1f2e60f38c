"""Find and measure wide, flat minima of neural networks."""

from typing import Any

from entropix import committee as committee
from entropix import flatness as flatness
from entropix import losses as losses
from entropix import replicas as replicas
from entropix import scoping as scoping
from entropix._canary import FaultyBackendWarning as FaultyBackendWarning
from entropix.transforms import CoupleReplicasState as CoupleReplicasState
from entropix.transforms import EntropyDescentState as EntropyDescentState
from entropix.transforms import LangevinNoiseState as LangevinNoiseState
from entropix.transforms import couple_replicas as couple_replicas
from entropix.transforms import elastic_sgd as elastic_sgd
from entropix.transforms import entropy_adam as entropy_adam
from entropix.transforms import entropy_descent as entropy_descent
from entropix.transforms import entropy_sgd as entropy_sgd
from entropix.transforms import eval_params as eval_params
from entropix.transforms import heat_sgd as heat_sgd
from entropix.transforms import hopf_lax_sgd as hopf_lax_sgd
from entropix.transforms import langevin_noise as langevin_noise
from entropix.transforms import parle as parle
from entropix.transforms import plain_average as plain_average
from entropix.transforms import replicated_sgd as replicated_sgd
from entropix.transforms import sgld as sgld

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Flax takes a second to import, and only entropix.nn needs it.
    if name == "nn":
        import importlib

        return importlib.import_module("entropix.nn")
    raise AttributeError(f"module 'entropix' has no attribute {name!r}")
