"""Replica theory of committee machines: what the algorithms' solutions are compared with."""

from entropix.replica_theory._bayes_optimal import (
    BayesOptimal,
    PerfectGeneralization,
    bayes_optimal,
    perfect_generalization,
)
from entropix.replica_theory._cross_entropy import (
    FranzParisiOfCrossEntropy,
    franz_parisi_of_cross_entropy,
)
from entropix.replica_theory._franz_parisi import FranzParisi, franz_parisi
from entropix.replica_theory._replica_symmetric import (
    Capacity,
    ReplicaSymmetric,
    capacity,
    de_almeida_thouless_load,
    replica_symmetric,
)
from entropix.replica_theory._robust_ensemble import RobustEnsemble, robust_ensemble
from entropix.replica_theory._state_evolution import StateEvolution, state_evolution
from entropix.replica_theory._wide_minima import WideMinima, wide_minima

__all__ = [
    "BayesOptimal",
    "Capacity",
    "FranzParisi",
    "FranzParisiOfCrossEntropy",
    "PerfectGeneralization",
    "ReplicaSymmetric",
    "RobustEnsemble",
    "StateEvolution",
    "WideMinima",
    "bayes_optimal",
    "capacity",
    "de_almeida_thouless_load",
    "franz_parisi",
    "franz_parisi_of_cross_entropy",
    "perfect_generalization",
    "replica_symmetric",
    "robust_ensemble",
    "state_evolution",
    "wide_minima",
]
