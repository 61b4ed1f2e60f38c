r"""Schedules of the coupling gamma, and converters from the units of other papers.

Everywhere in entropix gamma is the coefficient of the papers on Entropy-SGD and replicated-SGD: the
pull on the weights is gamma (x' - x). Scoping makes it grow while training goes on, so that a wide
search ends in a narrow one.

A schedule is a function of the step, as in Optax: of the outer step in `entropix.entropy_sgd`, of
the number of updates in `entropix.couple_replicas`. With ``cap`` the value never exceeds it.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from entropix._checks import check_integer, check_number

__all__ = [
    "ParleSchedules",
    "automatic",
    "cosine",
    "exponential",
    "exponential_to",
    "from_deep_relaxation",
    "from_easgd",
    "from_entropy_mcmc",
    "from_parle",
    "from_sacreddnn",
    "largest_stable_gamma",
    "linear",
    "parle_schedules",
    "quadratic",
    "saturating",
]


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


def largest_stable_gamma(
    learning_rate: float | Float[Array, ""],
    *,
    every: int = 1,
    momentum: float | None = None,
    nesterov: bool = True,
) -> float | Float[Array, ""]:
    r"""The coupling above which the replicas of `entropix.replicated_sgd` diverge from their mean.

    Where the loss is flat, the distance :math:`\delta` of a replica from the mean and the velocity
    go through one coupled step and K - 1 free ones by a matrix that is linear in
    :math:`p = \eta K \gamma`. Its eigenvalues leave the unit circle at -1, at

    .. math:: p = \frac{2 (1 + m^K)}{c + e \frac{1 - m^{K-1}}{1 - m} + (c m - e) m^{K-1}}, \qquad
              (c, e) = (1, m) \text{ or, for Nesterov's momentum, } (1 + m, m^2),

    which is 2 without momentum. Curvature of the loss lowers it, so stay well below, at a half or
    less: as the ``cap`` of a schedule, without which those of the papers grow past it.

    Args:
      learning_rate: eta, above 0. Where it is a schedule, that of the step at hand.
      every: K, steps between couplings. Default 1.
      momentum: m, decay of the momentum that the pull goes through, or None. Default None. The pull
        of `entropix.elastic_sgd` goes through none.
      nesterov: whether the momentum is Nesterov's. Default True.

    Returns:
      gamma, in units of 1 / parameter^2; for the outer step of `entropix.parle`, rho.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: an argument is out of its range.

    Examples:
      >>> print(f"{largest_stable_gamma(0.1, every=10, momentum=0.9):.3f}")
      0.374
      >>> cap = 0.5 * largest_stable_gamma(0.1, every=10, momentum=0.9)
      >>> gamma = exponential_to(1e-3, 1e4, steps=1000, cap=cap)

    Reference:
      None: Jury's criterion for the two by two matrix above.
    """
    check_number("learning_rate", learning_rate, above=0)
    check_integer("every", every, at_least=1)
    if momentum is not None:
        check_number("momentum", momentum, at_least=0, below=1)
    m = momentum or 0.0
    kick, glide = (1 + m, m**2) if nesterov else (1.0, m)
    free = m ** (every - 1)
    largest_p = (
        2 * (1 + m * free) / (kick + glide * (1 - free) / (1 - m) + (kick * m - glide) * free)
    )
    return largest_p / (learning_rate * every)


def automatic(loss: Any, params: optax.Params, *, axis: int = 0) -> jax.Array:
    r"""The coupling at which pull and loss are of one size for replicas as they are now.

    .. math:: \gamma_0 = \frac{f}{\frac{1}{y} \sum_a |x^a - \bar x|^2}

    Use it once, at the start or after the first epoch, as gamma_0 of `exponential_to`.

    Args:
      loss: mean training loss f of the replicas, a scalar.
      params: the replicas, stacked on ``axis`` of every leaf.
      axis: the replica axis. Default 0.

    Returns:
      gamma_0, a scalar; infinite when all replicas are at one point.

    Raises:
      ValueError: ``params`` has no leaves.

    Examples:
      >>> import jax.numpy as jnp
      >>> print(automatic(2.0, {"w": jnp.array([[0.0, 1.0], [0.0, 3.0]])}))
      2.0

    Reference:
      Pittorino et al., Entropic gradient descent algorithms and wide flat minima, ICLR 2021,
      released code (where the coefficient is half of this gamma, see `from_sacreddnn`).
    """
    leaves = jax.tree.leaves(params)
    if not leaves:
        raise ValueError(f"params must hold at least one array, got {params!r}")
    squares = [jnp.sum((x - jnp.mean(x, axis, keepdims=True)) ** 2) for x in leaves]
    return loss / (sum(squares) / leaves[0].shape[axis])


def from_parle(gamma: Any) -> Any:
    """The coupling for Parle's gamma or rho, which are lengths squared: 1 / gamma.

    Args:
      gamma: gamma or rho of the Parle paper, in units of parameter^2.

    Returns:
      The coupling, in units of 1 / parameter^2.

    Examples:
      >>> from_parle(100.0)
      0.01

    Reference:
      Chaudhari et al., Parle: parallelizing stochastic gradient descent, SysML 2018.
    """
    return 1 / gamma


def from_deep_relaxation(gamma: Any) -> Any:
    """The coupling for the time gamma of the viscous Hamilton-Jacobi equation: 1 / gamma.

    Args:
      gamma: the smoothing time of the Deep Relaxation paper, in units of parameter^2.

    Returns:
      The coupling, in units of 1 / parameter^2.

    Examples:
      >>> from_deep_relaxation(0.1)
      10.0

    Reference:
      Chaudhari et al., Deep relaxation: partial differential equations for optimizing deep neural
      networks, 2017.
    """
    return 1 / gamma


def from_easgd(alpha: Any, learning_rate: Any, *, every: int = 1) -> Any:
    r"""The coupling for EASGD's moving rate alpha = eta rho: :math:`\gamma = \alpha / (\eta K)`.

    Args:
      alpha: the share of the distance to the center that one coupling closes.
      learning_rate: eta of the SGD that the pull goes through.
      every: K, steps between couplings. Default 1.

    Returns:
      The coupling, in units of 1 / parameter^2: rho of the EASGD paper over K.

    Raises:
      TypeError: ``every`` is not an integer.
      ValueError: ``every`` is below 1.

    Examples:
      >>> from_easgd(0.5, 0.125, every=4)
      1.0

    Reference:
      Zhang et al., Deep learning with Elastic Averaging SGD, NeurIPS 2015.
    """
    check_integer("every", every, at_least=1)
    return alpha / (learning_rate * every)


def from_sacreddnn(g: Any) -> Any:
    """The coupling for the coefficient g of the released replicated-SGD code: 2 g.

    Args:
      g: the code's coefficient of mean_a |x^a - xbar|^2, which has no 1/2, in units of 1 /
        parameter^2.

    Returns:
      The coupling, in the same units.

    Examples:
      >>> from_sacreddnn(0.25)
      0.5

    Reference:
      Pittorino et al., Entropic gradient descent algorithms and wide flat minima, ICLR 2021,
      released code (sacreddnn).
    """
    return 2 * g


def from_entropy_mcmc(eta: Any) -> Any:
    """The coupling for the variance eta of Entropy-MCMC: 1 / eta.

    Args:
      eta: variance of the Gaussian between the pair of chains, in units of parameter^2.

    Returns:
      The coupling to a potential f that is not divided by the number of examples, in units of 1 /
      parameter^2.

    Examples:
      >>> from_entropy_mcmc(0.25)
      4.0

    Reference:
      Li and Zhang, Entropy-MCMC: Sampling from flat basins with ease, ICLR 2024.
    """
    return 1 / eta
