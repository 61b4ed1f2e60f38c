"""Estimators of how wide a minimum is; each answers with a NamedTuple and its error bar."""

from entropix.flatness._critical_sharpness import (
    CriticalSharpness,
    critical_sharpness,
    directional_curvature,
)
from entropix.flatness._eigenvalues import Eigenvalues, eigenvalues
from entropix.flatness._entries import dense, diagonal
from entropix.flatness._estimate import Bounded, Estimate
from entropix.flatness._gradient_noise import GradientNoise, gradient_covariance, gradient_noise
from entropix.flatness._hessian import gauss_newton, hessian
from entropix.flatness._lanczos import Lanczos, lanczos
from entropix.flatness._layer_curvature import LayerCurvature, layer_curvature
from entropix.flatness._layer_temperature import LayerTemperature, layer_temperature
from entropix.flatness._local_energy import LocalEnergy, local_energy
from entropix.flatness._local_entropy import LocalEntropy, local_entropy
from entropix.flatness._operator import Operator
from entropix.flatness._sharpness import Sharpness, sam_sharpness
from entropix.flatness._slices import (
    Barrier,
    filter_normalized_direction,
    linear_barrier,
    loss_slice,
)
from entropix.flatness._spectrum import Spectrum, spectrum
from entropix.flatness._traces import trace
from entropix.flatness._tracker import Tracker, TrackerRecord, TrackerState, tracker

__all__ = [
    "Barrier",
    "Bounded",
    "CriticalSharpness",
    "Eigenvalues",
    "Estimate",
    "GradientNoise",
    "Lanczos",
    "LayerCurvature",
    "LayerTemperature",
    "LocalEnergy",
    "LocalEntropy",
    "Operator",
    "Sharpness",
    "Spectrum",
    "Tracker",
    "TrackerRecord",
    "TrackerState",
    "critical_sharpness",
    "dense",
    "diagonal",
    "directional_curvature",
    "eigenvalues",
    "filter_normalized_direction",
    "gauss_newton",
    "gradient_covariance",
    "gradient_noise",
    "hessian",
    "lanczos",
    "layer_curvature",
    "layer_temperature",
    "linear_barrier",
    "local_energy",
    "local_entropy",
    "loss_slice",
    "sam_sharpness",
    "spectrum",
    "trace",
    "tracker",
]
