"""What recorded weights tell: periodograms, autocorrelations, probability currents."""

from entropix.dynamics._probability_current import (
    CurrentField,
    ProbabilityCurrent,
    current_field,
    probability_current,
)
from entropix.dynamics._trajectory import (
    Autocorrelation,
    Periodogram,
    PrincipalComponents,
    autocorrelation,
    pca_projection,
    periodogram,
    random_projection,
)

__all__ = [
    "Autocorrelation",
    "CurrentField",
    "Periodogram",
    "PrincipalComponents",
    "ProbabilityCurrent",
    "autocorrelation",
    "current_field",
    "pca_projection",
    "periodogram",
    "probability_current",
    "random_projection",
]
