"""Stacks of replicas: making, measuring and mending them, and running a step on many devices."""

from entropix.replicas._changes import Revived, resize, revive
from entropix.replicas._disagreement import Disagreement, disagreement
from entropix.replicas._plan import Plan, plan
from entropix.replicas._stacked import (
    Spread,
    center,
    collapse,
    replicate,
    spread,
    stack_states,
)

__all__ = [
    "Disagreement",
    "Plan",
    "Revived",
    "Spread",
    "center",
    "collapse",
    "disagreement",
    "plan",
    "replicate",
    "resize",
    "revive",
    "spread",
    "stack_states",
]
