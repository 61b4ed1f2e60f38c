"""The algorithms of a distributed run; their settings are constant, so that a run can be longer."""

from collections.abc import Callable
from typing import Protocol

import optax

import entropix


class Settings(Protocol):
    """What the algorithms are told.

    Attributes:
      learning_rate: of SGD, or of Parle's inner loop.
      gamma: coupling between replicas; for Parle, of the inner loop.
      every: steps between couplings.
      momentum: Nesterov's.
    """

    @property
    def learning_rate(self) -> float: ...
    @property
    def gamma(self) -> float: ...
    @property
    def every(self) -> int: ...
    @property
    def momentum(self) -> float: ...


def replicated_sgd(settings: Settings, axis_name: tuple[str, ...]) -> optax.GradientTransformation:
    """SGD on coupled replicas."""
    return entropix.replicated_sgd(
        settings.learning_rate,
        gamma=settings.gamma,
        every=settings.every,
        momentum=settings.momentum,
        axis_name=axis_name,
    )


def elastic_sgd(settings: Settings, axis_name: tuple[str, ...]) -> optax.GradientTransformation:
    """Replicas on springs to a moving center."""
    return entropix.elastic_sgd(
        settings.learning_rate,
        gamma=settings.gamma,
        every=settings.every,
        momentum=settings.momentum,
        axis_name=axis_name,
    )


def parle(settings: Settings, axis_name: tuple[str, ...]) -> optax.GradientTransformation:
    """Replicas of Entropy-SGD that meet at every outer step."""
    return entropix.parle(
        gamma=settings.gamma,
        rho=1.0,
        inner_learning_rate=settings.learning_rate,
        inner_steps=settings.every,
        inner_momentum=settings.momentum,
        momentum=None,
        axis_name=axis_name,
    )


def diloco(settings: Settings, axis_name: tuple[str, ...]) -> optax.GradientTransformation:
    """Replicas that train alone and meet by Nesterov's momentum; there is no gamma."""
    return entropix.diloco(
        optax.sgd(settings.learning_rate, momentum=settings.momentum, nesterov=True),
        inner_steps=settings.every,
        axis_name=axis_name,
    )


# The optimizer of one replica, from the settings and the names of the mapped axes.
ALGORITHMS: dict[str, Callable[[Settings, tuple[str, ...]], optax.GradientTransformation]] = {
    "replicated_sgd": replicated_sgd,
    "elastic_sgd": elastic_sgd,
    "parle": parle,
    "diloco": diloco,
}
