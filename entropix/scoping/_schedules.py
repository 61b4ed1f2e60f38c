"""Schedules of the coupling: how it grows with the step."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from entropix._checks import check_integer, check_number


def _capped(gamma: Any, cap: float | None) -> Any:
    return gamma if cap is None else jnp.minimum(gamma, cap)


def _check(gamma_0: float, cap: float | None) -> None:
    check_number("gamma_0", gamma_0, at_least=0)
    if cap is not None:
        check_number("cap", cap, at_least=0)


def exponential(gamma_0: float, gamma_1: float, *, cap: float | None = None) -> optax.Schedule:
    r"""Scoping of the Entropy-SGD paper, :math:`\gamma(t) = \gamma_0 (1 + \gamma_1)^t`.

    Args:
      gamma_0: coupling at the start, in units of 1 / parameter^2. At least 0.
      gamma_1: growth per step. Above -1; 1e-3 in the paper.
      cap: largest value, None (the default) for none.

    Returns:
      A schedule of the step t.

    Raises:
      TypeError: an argument is not a number.
      ValueError: an argument is out of its range.

    Examples:
      >>> print(f"{exponential(1e-4, 1e-3)(2340):.2e}")
      1.04e-03

    Reference:
      Chaudhari et al., Entropy-SGD, ICLR 2017, section 4.3.
    """
    _check(gamma_0, cap)
    check_number("gamma_1", gamma_1, above=-1)
    # 1.001 in float32 is off by 5e-8, and its power by t times as much: the logarithm is taken
    # first.
    rate = math.log1p(gamma_1)
    return lambda step: _capped(gamma_0 * jnp.exp(rate * step), cap)


def exponential_to(
    gamma_0: float, factor: float, steps: int, *, cap: float | None = None
) -> optax.Schedule:
    r"""Exponential growth by a total factor, :math:`\gamma(t) = \gamma_0 f^{t / T}`, also after T.

    Args:
      gamma_0: coupling at the start, in units of 1 / parameter^2. At least 0.
      factor: f, total growth over ``steps``. Above 0; 1e4 in the replicated-SGD code.
      steps: T, in how many steps. At least 1.
      cap: largest value, None (the default) for none.

    Returns:
      A schedule of the step t.

    Raises:
      TypeError: an argument is not a number.
      ValueError: an argument is out of its range.

    Examples:
      >>> print(f"{exponential_to(1e-3, 1e4, 100)(50):.3f}")
      0.100

    Reference:
      Pittorino et al., Entropic gradient descent algorithms and wide flat minima, ICLR 2021,
      released code.
    """
    _check(gamma_0, cap)
    check_number("factor", factor, above=0)
    check_integer("steps", steps, at_least=1)
    rate = math.log(factor) / steps
    return lambda step: _capped(gamma_0 * jnp.exp(rate * step), cap)


def linear(gamma_0: float, gamma_1: float, *, cap: float | None = None) -> optax.Schedule:
    r"""Linear scoping, :math:`\gamma(t) = \gamma_0 (1 + \gamma_1 t)`.

    Args:
      gamma_0: coupling at the start, in units of 1 / parameter^2. At least 0.
      gamma_1: growth per step relative to the start. At least 0.
      cap: largest value, None (the default) for none.

    Returns:
      A schedule of the step t.

    Raises:
      TypeError: an argument is not a number.
      ValueError: an argument is out of its range.

    Examples:
      >>> print(f"{linear(0.5, 0.1, cap=0.8)(5):.2f} {linear(0.5, 0.1, cap=0.8)(50):.2f}")
      0.75 0.80

    Reference:
      Chaudhari et al., Entropy-SGD, ICLR 2017, section 4.3.
    """
    _check(gamma_0, cap)
    check_number("gamma_1", gamma_1, at_least=0)
    return lambda step: _capped(gamma_0 * (1 + gamma_1 * jnp.asarray(step, float)), cap)


def quadratic(gamma_0: float, gamma_1: float, *, cap: float | None = None) -> optax.Schedule:
    r"""Quadratic scoping, :math:`\gamma(t) = \gamma_0 (1 + \gamma_1 t^2)`.

    Args:
      gamma_0: coupling at the start, in units of 1 / parameter^2. At least 0.
      gamma_1: growth per squared step relative to the start. At least 0.
      cap: largest value, None (the default) for none.

    Returns:
      A schedule of the step t.

    Raises:
      TypeError: an argument is not a number.
      ValueError: an argument is out of its range.

    Examples:
      >>> print(f"{quadratic(0.5, 0.01)(10):.1f}")
      1.0

    Reference:
      Chaudhari et al., Entropy-SGD, ICLR 2017, section 4.3.
    """
    _check(gamma_0, cap)
    check_number("gamma_1", gamma_1, at_least=0)
    return lambda step: _capped(gamma_0 * (1 + gamma_1 * jnp.asarray(step, float) ** 2), cap)


def saturating(gamma_0: float, tau: float, *, cap: float | None = None) -> optax.Schedule:
    r"""Scoping that starts at 0 and saturates, :math:`\gamma(t) = \gamma_0 (1 - e^{-\tau t})`.

    Args:
      gamma_0: coupling at the end, in units of 1 / parameter^2. At least 0.
      tau: rate, in units of 1 / step. Above 0.
      cap: largest value, None (the default) for none.

    Returns:
      A schedule of the step t.

    Raises:
      TypeError: an argument is not a number.
      ValueError: an argument is out of its range.

    Examples:
      >>> print(f"{saturating(2.0, 0.1)(0):.1f} {saturating(2.0, 0.1)(100):.1f}")
      0.0 2.0

    Reference:
      Chaudhari et al., Entropy-SGD, ICLR 2017, section 4.3.
    """
    _check(gamma_0, cap)
    check_number("tau", tau, above=0)
    return lambda step: _capped(-gamma_0 * jnp.expm1(-tau * jnp.asarray(step, float)), cap)


def cosine(
    gamma_0: float, gamma_end: float, steps: int, *, cap: float | None = None
) -> optax.Schedule:
    r"""Half a cosine from one coupling to another.

    .. math:: \gamma(t) = \gamma_0 + (\gamma_T - \gamma_0) \frac{1 - \cos(\pi \min(t, T) / T)}{2}

    Args:
      gamma_0: coupling at the start, in units of 1 / parameter^2. At least 0.
      gamma_end: coupling at step T and after it, in the same units. At least 0.
      steps: T, in how many steps. At least 1.
      cap: largest value, None (the default) for none.

    Returns:
      A schedule of the step t.

    Raises:
      TypeError: an argument is not a number.
      ValueError: an argument is out of its range.

    Examples:
      >>> print(f"{cosine(0.0, 2.0, 10)(5):.1f} {cosine(0.0, 2.0, 10)(99):.1f}")
      1.0 2.0

    Reference:
      Pittorino et al., Entropic gradient descent algorithms and wide flat minima, ICLR 2021,
      released code.
    """
    _check(gamma_0, cap)
    check_number("gamma_end", gamma_end, at_least=0)
    check_integer("steps", steps, at_least=1)

    def schedule(step: Any) -> jax.Array:
        phase = jnp.pi * jnp.minimum(step, steps) / steps
        return jnp.asarray(_capped(gamma_0 + (gamma_end - gamma_0) * (1 - jnp.cos(phase)) / 2, cap))

    return schedule


class ParleSchedules(NamedTuple):
    """Answer of `parle_schedules`.

    Attributes:
      gamma: coupling of the inner loop, in units of 1 / parameter^2.
      rho: pull toward the other replicas relative to that toward the own average, without unit.
    """

    gamma: optax.Schedule
    rho: optax.Schedule


def parle_schedules(batches_per_epoch: int, *, rho_cap: float = 10.0) -> ParleSchedules:
    r"""Both schedules of `entropix.parle` in the released code.

    .. math:: \gamma_t = \min(0.01 \, s^t, 1), \qquad \rho_t = \min(s^t, \rho_{\max}), \qquad
              s = 1 + \frac{1}{2 B}

    Args:
      batches_per_epoch: B, mini-batches of one replica in one pass over its data. At least 1.
      rho_cap: the largest rho. At least 0. Default 10, that of the released code. At a learning
        rate of 1, the default of `entropix.parle`, the replicas diverge above 2, which is
        ``largest_stable_gamma(1.0)``: take a learning rate of 0.1, or a cap of 1.

    Returns:
      Schedules of the outer step t.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: an argument is out of its range.

    Examples:
      >>> gamma, rho = parle_schedules(390)
      >>> print(f"{gamma(0):.2f} {rho(0):.0f} {gamma(10_000):.0f} {rho(10_000):.0f}")
      0.01 1 1 10

    Reference:
      Chaudhari et al., Parle: parallelizing stochastic gradient descent, SysML 2018, released
      code.
    """
    check_integer("batches_per_epoch", batches_per_epoch, at_least=1)
    growth = 0.5 / batches_per_epoch
    rho = exponential(1.0, growth, cap=rho_cap)
    return ParleSchedules(exponential(0.01, growth, cap=1.0), rho)
