"""Replica theory of committee machines: what the algorithms' solutions are compared with."""

from entropix.committee.replica_theory.cross_entropy import (
    FranzParisiOfCrossEntropy as FranzParisiOfCrossEntropy,
)
from entropix.committee.replica_theory.cross_entropy import (
    franz_parisi_of_cross_entropy as franz_parisi_of_cross_entropy,
)
from entropix.committee.replica_theory.franz_parisi import FranzParisi as FranzParisi
from entropix.committee.replica_theory.franz_parisi import franz_parisi as franz_parisi
from entropix.committee.replica_theory.replica_symmetric import Capacity as Capacity
from entropix.committee.replica_theory.replica_symmetric import ReplicaSymmetric as ReplicaSymmetric
from entropix.committee.replica_theory.replica_symmetric import capacity as capacity
from entropix.committee.replica_theory.replica_symmetric import (
    de_almeida_thouless_load as de_almeida_thouless_load,
)
from entropix.committee.replica_theory.replica_symmetric import (
    replica_symmetric as replica_symmetric,
)
from entropix.committee.replica_theory.robust_ensemble import RobustEnsemble as RobustEnsemble
from entropix.committee.replica_theory.robust_ensemble import robust_ensemble as robust_ensemble
from entropix.committee.replica_theory.wide_minima import WideMinima as WideMinima
from entropix.committee.replica_theory.wide_minima import wide_minima as wide_minima
