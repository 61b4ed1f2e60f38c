r"""Schedules of the coupling gamma, and converters from the units of other papers.

Everywhere in entropix gamma is the coefficient of the papers on Entropy-SGD and replicated-SGD: the
pull on the weights is gamma (x' - x). Scoping makes it grow while training goes on, so that a wide
search ends in a narrow one.

A schedule is a function of the step, as in Optax: of the outer step in `entropix.entropy_sgd`, of
the number of updates in `entropix.couple_replicas`. With ``cap`` the value never exceeds it.
"""

from entropix.scoping._finder import GammaRange, find_gamma
from entropix.scoping._schedules import (
    ParleSchedules,
    cosine,
    exponential,
    exponential_to,
    linear,
    parle_schedules,
    quadratic,
    saturating,
)
from entropix.scoping._strength import automatic, largest_stable_gamma
from entropix.scoping._units import (
    from_deep_relaxation,
    from_easgd,
    from_entropy_mcmc,
    from_parle,
    from_sacreddnn,
)

__all__ = [
    "GammaRange",
    "ParleSchedules",
    "automatic",
    "cosine",
    "exponential",
    "exponential_to",
    "find_gamma",
    "from_deep_relaxation",
    "from_easgd",
    "from_entropy_mcmc",
    "from_parle",
    "from_sacreddnn",
    "largest_stable_gamma",
    "linear",
    "parle_schedules",
    "quadratic",
    "saturating",
]
