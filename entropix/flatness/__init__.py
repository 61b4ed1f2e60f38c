"""Estimators of how wide a minimum is; each answers with a NamedTuple and its error bar."""

from entropix.flatness._critical_sharpness import (
    CriticalSharpness,
    critical_sharpness,
    directional_curvature,
)
from entropix.flatness._eigenvalues import Eigenvalues, operator_eigenvalues, top_eigenvalues
from entropix.flatness._estimate import Estimate
from entropix.flatness._gradient_noise import (
    GradientNoise,
    LayerTemperature,
    gradient_noise,
    layer_temperature,
)
from entropix.flatness._hessian import exact_hessian, gauss_newton_operator, hessian_operator
from entropix.flatness._lanczos import Lanczos, lanczos
from entropix.flatness._local_energy import LocalEnergy, local_energy
from entropix.flatness._local_entropy import LocalEntropy, local_entropy
from entropix.flatness._sharpness import Sharpness, sam_sharpness
from entropix.flatness._slices import (
    Barrier,
    filter_normalized_direction,
    linear_barrier,
    loss_slice,
)
from entropix.flatness._spectrum import Spectrum, hessian_spectrum, operator_spectrum
from entropix.flatness._traces import operator_trace, trace
from entropix.flatness._tracker import Tracker, TrackerRecord, TrackerState, tracker

__all__ = [
    "Barrier",
    "CriticalSharpness",
    "Eigenvalues",
    "Estimate",
    "GradientNoise",
    "Lanczos",
    "LayerTemperature",
    "LocalEnergy",
    "LocalEntropy",
    "Sharpness",
    "Spectrum",
    "Tracker",
    "TrackerRecord",
    "TrackerState",
    "critical_sharpness",
    "directional_curvature",
    "exact_hessian",
    "filter_normalized_direction",
    "gauss_newton_operator",
    "gradient_noise",
    "hessian_operator",
    "hessian_spectrum",
    "lanczos",
    "layer_temperature",
    "linear_barrier",
    "local_energy",
    "local_entropy",
    "loss_slice",
    "operator_eigenvalues",
    "operator_spectrum",
    "operator_trace",
    "sam_sharpness",
    "top_eigenvalues",
    "trace",
    "tracker",
]
