"""Committee machines: count the solutions around a solution, and find the wide ones."""

from entropix.committee._amp import ApproximateMessagePassing, approximate_message_passing
from entropix.committee._bp import Beliefs, belief_propagation
from entropix.committee._entropy_curve import LocalEntropyCurve, local_entropy_curve
from entropix.committee._focusing_bp import (
    FocusingBP,
    FocusingHistory,
    Protocol,
    focusing_bp,
    pseudo_reinforcement,
    rising_coupling,
)
from entropix.committee._lal import entropic_lal, least_action, least_action_learning
from entropix.committee._learning import Learned
from entropix.committee._model import Committee
from entropix.committee._parallel_tempering import ParallelTempering, parallel_tempering
from entropix.committee._patterns import (
    Examples,
    binarize,
    random_patterns,
    shuffle_pixels,
    teacher_student,
    two_classes,
)
from entropix.committee._replicated_lal import replicated_lal
from entropix.committee._robustness import NoiseRobustness, noise_robustness
from entropix.committee._sampling import SampledLocalEntropy, sampled_local_entropy
from entropix.committee._surrogate_sgd import cross_entropy, surrogate_loss, surrogate_sgd

__all__ = [
    "ApproximateMessagePassing",
    "Beliefs",
    "Committee",
    "Examples",
    "FocusingBP",
    "FocusingHistory",
    "Learned",
    "LocalEntropyCurve",
    "NoiseRobustness",
    "ParallelTempering",
    "Protocol",
    "SampledLocalEntropy",
    "approximate_message_passing",
    "belief_propagation",
    "binarize",
    "cross_entropy",
    "entropic_lal",
    "focusing_bp",
    "least_action",
    "least_action_learning",
    "local_entropy_curve",
    "noise_robustness",
    "parallel_tempering",
    "pseudo_reinforcement",
    "random_patterns",
    "replicated_lal",
    "rising_coupling",
    "sampled_local_entropy",
    "shuffle_pixels",
    "surrogate_loss",
    "surrogate_sgd",
    "teacher_student",
    "two_classes",
]
