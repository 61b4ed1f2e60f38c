"""Stacks of replicas: making, measuring and mending them, and running a step on many devices."""

from entropix.replicas._plan import Plan, plan
from entropix.replicas._stacked import (
    Revived,
    Spread,
    center,
    collapse,
    replicate,
    resize,
    revive,
    spread,
    stack_states,
)

__all__ = [
    "Plan",
    "Revived",
    "Spread",
    "center",
    "collapse",
    "plan",
    "replicate",
    "resize",
    "revive",
    "spread",
    "stack_states",
]
