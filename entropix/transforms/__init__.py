"""Optax gradient transformations, each pure: (grads, state, params) -> (updates, state)."""

from entropix.transforms._average_updates import AverageUpdatesState, average_updates
from entropix.transforms._coupling import CoupleReplicasState, couple_replicas, replicated_sgd
from entropix.transforms._diloco import DiLoCoState, diloco
from entropix.transforms._elastic_sgd import elastic_sgd
from entropix.transforms._entropy_descent import entropy_descent
from entropix.transforms._entropy_sgd import entropy_adam, entropy_sgd
from entropix.transforms._eval_params import eval_params
from entropix.transforms._exchange import Compression
from entropix.transforms._fragments import fragments
from entropix.transforms._grad_fn_descent import entropy_descent_with_grad_fn
from entropix.transforms._inner_loop import EntropyDescentState
from entropix.transforms._langevin import LangevinNoiseState, langevin_noise, sgld
from entropix.transforms._normalize import normalize_updates
from entropix.transforms._parle import parle
from entropix.transforms._relaxation import heat_sgd, hopf_lax_sgd, plain_average

__all__ = [
    "AverageUpdatesState",
    "Compression",
    "CoupleReplicasState",
    "DiLoCoState",
    "EntropyDescentState",
    "LangevinNoiseState",
    "average_updates",
    "couple_replicas",
    "diloco",
    "elastic_sgd",
    "entropy_adam",
    "entropy_descent",
    "entropy_descent_with_grad_fn",
    "entropy_sgd",
    "eval_params",
    "fragments",
    "heat_sgd",
    "hopf_lax_sgd",
    "langevin_noise",
    "normalize_updates",
    "parle",
    "plain_average",
    "replicated_sgd",
    "sgld",
]
