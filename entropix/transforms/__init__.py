"""Optax gradient transformations, each pure: (grads, state, params) -> (updates, state)."""

from entropix.transforms.coupling import CoupleReplicasState as CoupleReplicasState
from entropix.transforms.coupling import couple_replicas as couple_replicas
from entropix.transforms.coupling import replicated_sgd as replicated_sgd
from entropix.transforms.elastic_sgd import elastic_sgd as elastic_sgd
from entropix.transforms.entropy import EntropyDescentState as EntropyDescentState
from entropix.transforms.entropy import entropy_descent as entropy_descent
from entropix.transforms.entropy import eval_params as eval_params
from entropix.transforms.entropy_sgd import entropy_adam as entropy_adam
from entropix.transforms.entropy_sgd import entropy_sgd as entropy_sgd
from entropix.transforms.langevin import LangevinNoiseState as LangevinNoiseState
from entropix.transforms.langevin import langevin_noise as langevin_noise
from entropix.transforms.langevin import sgld as sgld
from entropix.transforms.parle import parle as parle
from entropix.transforms.relaxation import heat_sgd as heat_sgd
from entropix.transforms.relaxation import hopf_lax_sgd as hopf_lax_sgd
from entropix.transforms.relaxation import plain_average as plain_average
