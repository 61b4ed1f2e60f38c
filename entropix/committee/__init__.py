"""Committee machines: count the solutions around a solution, and find the wide ones."""

from entropix.committee import replica_theory as replica_theory
from entropix.committee.bp import Beliefs as Beliefs
from entropix.committee.bp import belief_propagation as belief_propagation
from entropix.committee.entropy_curve import LocalEntropyCurve as LocalEntropyCurve
from entropix.committee.entropy_curve import local_entropy_curve as local_entropy_curve
from entropix.committee.focusing_bp import FocusingBP as FocusingBP
from entropix.committee.focusing_bp import FocusingHistory as FocusingHistory
from entropix.committee.focusing_bp import Protocol as Protocol
from entropix.committee.focusing_bp import focusing_bp as focusing_bp
from entropix.committee.focusing_bp import pseudo_reinforcement as pseudo_reinforcement
from entropix.committee.focusing_bp import scoping as scoping
from entropix.committee.lal import Learned as Learned
from entropix.committee.lal import entropic_lal as entropic_lal
from entropix.committee.lal import least_action as least_action
from entropix.committee.lal import least_action_learning as least_action_learning
from entropix.committee.model import Committee as Committee
from entropix.committee.patterns import Examples as Examples
from entropix.committee.patterns import binarize as binarize
from entropix.committee.patterns import random_patterns as random_patterns
from entropix.committee.patterns import shuffle_pixels as shuffle_pixels
from entropix.committee.patterns import teacher_student as teacher_student
from entropix.committee.patterns import two_classes as two_classes
from entropix.committee.replicated_lal import replicated_lal as replicated_lal
