"""How strong a coupling may be, and how strong it should be at the start."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from entropix._checks import check_integer, check_number


def largest_stable_gamma(
    learning_rate: float | Float[Array, ""],
    *,
    every: int | Int[Array, ""] = 1,
    momentum: float | Float[Array, ""] | None = None,
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
      >>> from entropix.scoping import exponential_to
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
