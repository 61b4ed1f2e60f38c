"""Stacks of replicas: making, measuring and mending them, and running a step on many devices."""

from entropix.replicas.plan import Plan as Plan
from entropix.replicas.plan import plan as plan
from entropix.replicas.stacked import Revived as Revived
from entropix.replicas.stacked import Spread as Spread
from entropix.replicas.stacked import center as center
from entropix.replicas.stacked import collapse as collapse
from entropix.replicas.stacked import replicate as replicate
from entropix.replicas.stacked import resize as resize
from entropix.replicas.stacked import revive as revive
from entropix.replicas.stacked import spread as spread
from entropix.replicas.stacked import stack_states as stack_states
