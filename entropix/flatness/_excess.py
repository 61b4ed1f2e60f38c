"""What the chains at one coupling say: the slope of the free energy, and how well they mix."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from entropix.flatness import _chains


class Excess(NamedTuple):
    """E at a node, as `excess_of` measures it.

    Attributes:
      of_chains: of each chain.
      plain: of each chain, without control variates.
      error: standard error of the mean.
      within: the same by the spread inside the chains alone.
      virial_z: the virial's z-score.
    """

    of_chains: Float[Array, "*batch chains"]
    plain: Float[Array, "*batch chains"]
    error: Float[Array, "*batch"]
    within: Float[Array, "*batch"]
    virial_z: Float[Array, "*batch"]


def excess_of(moments: _chains.Moments) -> Excess:
    r"""E = d - gamma <|x - x'|^2> of each chain, its standard errors, the virial's z-score.

    In equilibrium E = beta <grad f . (x' - x)> too, and <beta grad f + gamma (x' - x)> = 0. So E
    is the mean of the virial less any multiple of both identities' residuals: in flat directions
    the virial alone has no noise, in stiff ones the residual takes it. The multiples are fitted to
    the batch means, to minimize the variance of the long run; those of a chain are fitted to the
    other chains, for a fit to its own data would bias the mean.
    """
    residual = -moments.excess - moments.virial
    controls = jnp.stack([residual, moments.slope])
    size = jnp.sqrt(jnp.mean(controls**2, (1, 2), keepdims=True))
    controls = controls / jnp.where(size > 0, size, 1)
    num_chains = len(residual)
    ridge = jnp.sqrt(jnp.finfo(residual.dtype).eps)

    def corrected(chain: jax.Array) -> jax.Array:
        others = (chain + 1 + jnp.arange(num_chains - 1)) % num_chains
        seen = controls[:, others].reshape(2, -1)
        centered = seen - jnp.mean(seen, 1, keepdims=True)
        # The ridge keeps rounding out of the fit where a residual is the same throughout.
        gram = jnp.matmul(centered, centered.T, precision="highest") + ridge * jnp.eye(
            2, dtype=seen.dtype
        )
        slopes = jnp.matmul(centered, moments.virial[others].ravel(), precision="highest")
        fit = jnp.linalg.solve(gram, slopes)
        return moments.virial[chain] - jnp.tensordot(fit, controls[:, chain], 1)

    batches = jax.vmap(corrected)(jnp.arange(num_chains))
    error = _chains.error_of_mean(residual)
    virial_z = jnp.mean(residual) / jnp.where(error > 0, error, 1)
    of_chains = jnp.mean(batches, 1)
    return Excess(
        of_chains,
        -jnp.mean(moments.excess, 1),
        _chains.error_of_mean(batches),
        _chains.error_of_mean(batches - of_chains[:, None]),
        virial_z,
    )


def mixing(moments: _chains.Moments) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Effective samples and r_hat of |x - x'|^2."""
    excess, square = moments.excess, moments.excess_square
    variance = jnp.mean(square) - jnp.mean(excess) ** 2
    effective = variance / jnp.maximum(
        _chains.error_of_mean(excess) ** 2, jnp.finfo(excess.dtype).tiny
    )
    between = jnp.var(jnp.mean(excess, 1), ddof=1)
    within = jnp.mean(jnp.mean(square, 1) - jnp.mean(excess, 1) ** 2)
    return effective, jnp.sqrt(1 + between / jnp.where(within > 0, within, 1))
