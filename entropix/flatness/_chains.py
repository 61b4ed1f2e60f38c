r"""Langevin chains under a quadratic coupling, whose step does not shrink with the dimension.

The target is exp(-U(d) - gamma |d|^2 / 2), d the displacement from the reference weights. A step
treats the Gaussian part exactly and the rest explicitly (Crank-Nicolson),

.. math:: d' = \rho d - (1 - \rho) P^{-1} \nabla \Phi(d) + \sqrt{1 - \rho^2} P^{-1/2} \xi,
    \qquad \rho = \frac{2 - \tau}{2 + \tau}, \quad \xi \sim N(0, I)

with P = gamma I + V^T diag(e) V the precision of the Gaussian part and
:math:`\Phi = U - \tfrac12 \sum_i e_i (V d)_i^2` the rest. A proposal d' from d has density, with
respect to a kernel that leaves the Gaussian part invariant, exp(-R(d, d')),

.. math:: R(d, d') = \frac{(d' - \rho d) \cdot \nabla \Phi(d)
    + \tfrac{1 - \rho}{2} \nabla \Phi(d) \cdot P^{-1} \nabla \Phi(d)}{1 + \rho}

so Metropolis accepts with probability min(1, exp(Phi(d) - Phi(d') + R(d, d') - R(d', d))), in which
the many flat directions cancel exactly. Each step takes tau from (0, step size] at random: where
the loss is steeper than a quadratic, a fixed tau too large for one steep place would hold a chain
there for good.

Reference: Cotter, Roberts, Stuart and White, MCMC methods for functions: modifying old algorithms
to make them faster, Statistical Science 28, 2013 (CNL). Roberts and Tweedie, Exponential
convergence of Langevin distributions and their discrete approximations, Bernoulli 2, 1996 (MALA).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Potential = Callable[[Float[Array, " d"]], tuple[Float[Array, ""], Float[Array, " d"]]]

BATCHES_PER_CHAIN = 8


class Gaussian(NamedTuple):
    """The Gaussian part of the target, of precision P = gamma I + V^T diag(e) V.

    Attributes:
      gamma: the coupling. # shape=()
      stiffness: e, at least 0. # shape=(k,)
      modes: orthonormal rows V, none for an isotropic Gaussian. # shape=(k, d)
    """

    gamma: Float[Array, "*batch"]
    stiffness: Float[Array, "*batch k"]
    modes: Float[Array, "*batch k d"]

    def power(self, exponent: float, vector: Float[Array, " d"]) -> Float[Array, " d"]:
        """P^exponent times a vector."""
        plain = self.gamma**exponent
        extra = (self.gamma + self.stiffness) ** exponent - plain
        return plain * vector + self.combine(extra * self.along(vector))

    def along(self, vector: Float[Array, " d"]) -> Float[Array, " k"]:
        """Components of a vector along the modes."""
        return jnp.matmul(self.modes, vector, precision="highest")

    def combine(self, components: Float[Array, " k"]) -> Float[Array, " d"]:
        """The vector of the modes that has these components."""
        return jnp.matmul(components, self.modes, precision="highest")


class Chain(NamedTuple):
    """Where one chain is.

    Attributes:
      displacement: d. # shape=(d,)
      energy: U(d). # shape=()
      gradient: of U at d. # shape=(d,)
    """

    displacement: Float[Array, "*batch d"]
    energy: Float[Array, "*batch"]
    gradient: Float[Array, "*batch d"]


class Moments(NamedTuple):
    """Averages over a batch of steps, per chain and batch.

    Attributes:
      excess: gamma |d|^2 minus the dimension.
      excess_square: its square.
      virial: gradient . d.
      slope: gradient . g0 + gamma d . g0, g0 the unit vector along the gradient at the center.
      acceptance: Metropolis' probability of acceptance.
    """

    excess: Float[Array, "*batch"]
    excess_square: Float[Array, "*batch"]
    virial: Float[Array, "*batch"]
    slope: Float[Array, "*batch"]
    acceptance: Float[Array, "*batch"]


def _rest(chain: Chain, gaussian: Gaussian) -> tuple[Float[Array, ""], Float[Array, " d"]]:
    """Phi and its gradient: what of U the Gaussian part does not hold."""
    along = gaussian.along(chain.displacement)
    pull = gaussian.stiffness * along
    return chain.energy - jnp.vdot(pull, along) / 2, chain.gradient - gaussian.combine(pull)


def step(
    chain: Chain,
    key: jax.Array,
    potential: Potential,
    gaussian: Gaussian,
    step_size: Float[Array, ""],
    adjusted: bool,
) -> tuple[Chain, Float[Array, ""]]:
    """One step of a chain, and Metropolis' probability of accepting its proposal.

    Args:
      chain: where it is.
      key: typed key.
      potential: U and its gradient, of a displacement.
      gaussian: the Gaussian part of the target.
      step_size: largest tau, in (0, 2]; tau = 2 draws afresh from the Gaussian part.
      adjusted: whether to reject (MALA) or to accept always (Langevin, biased).

    Returns:
      The chain's next place and the probability.
    """
    dtype = chain.displacement.dtype
    size_key, noise_key, accept_key = jax.random.split(key, 3)
    tau = step_size * jax.random.uniform(size_key, (), dtype)
    rho = (2 - tau) / (2 + tau)
    noise = jax.random.normal(noise_key, chain.displacement.shape, dtype)
    phi, force = _rest(chain, gaussian)
    drift = gaussian.power(-1, force)
    displacement = (
        rho * chain.displacement
        - (1 - rho) * drift
        + jnp.sqrt(1 - rho**2) * gaussian.power(-0.5, noise)
    )
    proposal = Chain(displacement, *potential(displacement))
    next_phi, next_force = _rest(proposal, gaussian)

    def rate(
        start: Chain, end: Chain, force: Float[Array, " d"], drift: Float[Array, " d"]
    ) -> Float[Array, ""]:
        moved = jnp.vdot(end.displacement - rho * start.displacement, force)
        return (moved + (1 - rho) / 2 * jnp.vdot(force, drift)) / (1 + rho)

    forth = rate(chain, proposal, force, drift)
    back = rate(proposal, chain, next_force, gaussian.power(-1, next_force))
    log_ratio = phi - next_phi + forth - back
    # A proposal that overflows is one that Metropolis would never take.
    acceptance = jnp.where(jnp.isfinite(log_ratio), jnp.exp(jnp.minimum(log_ratio, 0)), 0)
    if not adjusted:
        return proposal, acceptance
    taken = jax.random.uniform(accept_key, (), dtype) < acceptance
    return jax.tree.map(lambda new, old: jnp.where(taken, new, old), proposal, chain), acceptance


def _all_chains(
    chains: Chain,
    key: jax.Array,
    potential: Potential,
    gaussian: Gaussian,
    step_size: Float[Array, " chains"],
    adjusted: bool,
) -> tuple[Chain, Float[Array, " chains"]]:
    """One step of every chain, each with a step size and noise of its own."""
    keys = jax.random.split(key, len(chains.energy))
    return jax.vmap(lambda c, k, tau: step(c, k, potential, gaussian, tau, adjusted))(
        chains, keys, step_size
    )


def burn_in(
    chains: Chain,
    key: jax.Array,
    potential: Potential,
    gaussian: Gaussian,
    step_size: Float[Array, " chains"],
    adjusted: bool,
    num_steps: int,
    target: Float[Array, ""] | float,
) -> tuple[Chain, Float[Array, " chains"]]:
    """Runs the chains while the step size of each seeks the target acceptance.

    Stochastic approximation on its logarithm, with a gain that falls as t^-0.6, and averaged over
    the second half, as Polyak does.
    """

    def adapt(
        carry: tuple[Chain, jax.Array], t: jax.Array
    ) -> tuple[tuple[Chain, jax.Array], jax.Array]:
        chains, log_tau = carry
        step_key = jax.random.fold_in(key, t)
        chains, acceptance = _all_chains(
            chains, step_key, potential, gaussian, jnp.exp(log_tau), adjusted
        )
        gain = (t + 1).astype(log_tau.dtype) ** -0.6
        log_tau = jnp.minimum(log_tau + gain * (acceptance - target), jnp.log(2.0))
        return (chains, log_tau), log_tau

    steps = jnp.arange(num_steps)
    (chains, _), history = jax.lax.scan(adapt, (chains, jnp.log(step_size)), steps)
    return chains, jnp.exp(jnp.mean(history[num_steps // 2 :], 0))


def long_run_error(
    variance: Float[Array, "*shape"], neighbors: Float[Array, "*shape"], count: int
) -> Float[Array, "*shape"]:
    """Standard error of the mean of batch means that may be correlated with their neighbors.

    The variance is inflated by (1 + r) / (1 - r), r the correlation of neighbors if positive, as
    if the batches were an autoregressive series of first order.

    Args:
      variance: of the batch means, around the mean of all.
      neighbors: covariance of a batch mean and the next.
      count: number of batches.

    Returns:
      The standard error, in the shape of ``variance``.
    """
    r = jnp.clip(neighbors / jnp.where(variance > 0, variance, 1), 0, 0.95)
    return jnp.sqrt(jnp.maximum(variance, 0) / (count - 1) * (1 + r) / (1 - r))


def sample(
    chains: Chain,
    key: jax.Array,
    potential: Potential,
    gaussian: Gaussian,
    step_size: Float[Array, " chains"],
    adjusted: bool,
    num_steps: int,
    direction: Float[Array, " d"],
) -> tuple[Chain, Moments, tuple[Float[Array, " d"], Float[Array, " d"]]]:
    """Runs the chains at a fixed step size and averages over batches of consecutive steps.

    Returns:
      The chains; their moments, each of shape (chains, batches); the mean gradient over all steps,
      and its standard error from the spread of the batches, each of shape (d,).
    """
    num_chains, dimension = chains.displacement.shape
    length = num_steps // BATCHES_PER_CHAIN

    def moments(chain: Chain, acceptance: Float[Array, ""]) -> Moments:
        pull = gaussian.gamma * chain.displacement
        excess = jnp.vdot(pull, chain.displacement) - dimension
        virial = jnp.vdot(chain.gradient, chain.displacement)
        slope = jnp.vdot(chain.gradient + pull, direction)
        return Moments(excess, excess**2, virial, slope, acceptance)

    Total = tuple[Moments, jax.Array]

    def advance(carry: tuple[Chain, Total], key: jax.Array) -> tuple[tuple[Chain, Total], None]:
        chains, total = carry
        chains, acceptance = _all_chains(chains, key, potential, gaussian, step_size, adjusted)
        seen = (jax.vmap(moments)(chains, acceptance), chains.gradient)
        return (chains, jax.tree.map(jnp.add, total, seen)), None

    def batch(carry: Any, key: jax.Array) -> tuple[Any, Moments]:
        chains, previous, sums = carry
        nothing = jnp.zeros_like(chains.energy)
        total = (Moments(*[nothing] * len(Moments._fields)), jnp.zeros_like(chains.gradient))
        keys = jax.random.split(key, length)
        (chains, total), _ = jax.lax.scan(advance, (chains, total), keys)
        means, gradient = jax.tree.map(lambda x: x / length, total)
        # Counted from a point near the mean, or the squares would cancel.
        gradient = gradient - origin[None, :]
        terms = (gradient, gradient**2, gradient * previous)
        sums = jax.tree.map(lambda s, x: s + jnp.sum(x, 0), sums, terms)
        return (chains, gradient, sums), means

    origin = jnp.mean(chains.gradient, 0)
    nil = jnp.zeros_like(origin)
    keys = jax.random.split(key, BATCHES_PER_CHAIN)
    start = (chains, jnp.zeros_like(chains.gradient), (nil, nil, nil))
    (chains, _, sums), means = jax.lax.scan(batch, start, keys)
    count = num_chains * BATCHES_PER_CHAIN
    mean = sums[0] / count
    neighbors = sums[2] / (count - num_chains) - mean**2
    error = long_run_error(sums[1] / count - mean**2, neighbors, count)
    return chains, jax.tree.map(lambda x: x.T, means), (origin + mean, error)


def error_of_mean(batches: Float[Array, "chains batches"]) -> Float[Array, ""]:
    """Standard error of the mean of (chains, batches) means."""
    centered = batches - jnp.mean(batches)
    neighbors = jnp.mean(centered[:, 1:] * centered[:, :-1])
    return long_run_error(jnp.mean(centered**2), neighbors, batches.size)


def error_if_chains_disagree(
    chains: Float[Array, "rows chains"],
    plain: Float[Array, "rows chains"],
    within: Float[Array, " rows"],
    error: Float[Array, " rows"],
) -> Float[Array, " rows"]:
    """A standard error, or half the range of the chains where those are in different basins.

    Those that stay in the first one leave out the others, and those that come back from another one
    do so later than they should: the truth is between. The range is that of the answers without
    control variates, which are fitted to the other chains and draw them together.

    Args:
      chains: the answer of each.
      plain: without control variates.
      within: standard error by the spread inside the chains alone. Six times its square is too
        much by chance for the variance of the chains' mean.
      error: standard error by the spread of all.
    """
    variance = jnp.var(chains, axis=-1, ddof=1) / chains.shape[-1]
    half_range = jnp.ptp(plain, axis=-1) / 2
    return jnp.where(variance > 6 * within**2, jnp.maximum(half_range, error), error)
