"""Converters from the units of other papers to those of this library."""

from typing import Any

from entropix._checks import check_integer


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
