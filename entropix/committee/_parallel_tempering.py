"""Parallel tempering of binary committees: samples and counts without any approximation."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from entropix._canary import warn_if_backend_is_faulty
from entropix._checks import check_integer, check_number, holds
from entropix._keys import check_key, fresh_key
from entropix.committee._arguments import dtype_of
from entropix.committee._messages import Problem
from entropix.committee._model import Committee, check_examples


class ParallelTempering(NamedTuple):
    r"""Answer of `parallel_tempering`, for each inverse temperature.

    Attributes:
      beta: # shape=(T,)
      energy: mean number of errors, over the runs. # shape=(T,)
      log_partition: log Z, for all weights. # shape=(T,)
      std_error: of ``log_partition``, from the spread of the runs. # shape=(T,)
      log_solutions: log of the number of weights without errors, from the largest beta; -inf where
        none was met. # shape=()
      overlap: q, of the mean weights of two runs. # shape=(T,)
      accepted: share of the flips that were taken. # shape=(T,)
      exchanged: share of the exchanges with the next larger beta that were taken. # shape=(T - 1,)
      weights: at the end of each run. # shape=(R, T, K, n)
    """

    beta: Float[Array, "*batch T"]
    energy: Float[Array, "*batch T"]
    log_partition: Float[Array, "*batch T"]
    std_error: Float[Array, "*batch T"]
    log_solutions: Float[Array, "*batch"]
    overlap: Float[Array, "*batch T"]
    accepted: Float[Array, "*batch T"]
    exchanged: Float[Array, "*batch exchanges"]
    weights: Float[Array, "*batch R T K n"]


def parallel_tempering(
    model: Committee,
    patterns: Real[ArrayLike, "patterns inputs"],
    labels: Real[ArrayLike, " patterns"],
    beta: Real[ArrayLike, " temperatures"],
    key: jax.Array | int,
    *,
    num_sweeps: int = 1000,
    num_runs: int = 4,
) -> ParallelTempering:
    r"""Samples binary weights at several temperatures at once, and counts them.

    .. math:: P_\beta(W) = \frac{1}{Z(\beta)} e^{-\beta E(W)}, \qquad
       \log Z(\beta) = N \log 2 - \int_0^\beta \langle E \rangle_{\beta'} d\beta'

    with E(W) the number of errors. A sweep proposes as many flips of a single random weight as
    there are weights (Metropolis), at each temperature, and then to exchange the weights of
    neighboring temperatures, so that what is stuck in the cold comes loose in the warm. The first
    half of the sweeps is not counted. Each step of log Z is
    :math:`\log \langle e^{-\Delta E / 2} \rangle_\beta - \log \langle e^{\Delta E / 2}
    \rangle_{\beta + \Delta}`, which needs temperatures whose energies overlap: see ``exchanged``.

    It knows nothing of replicas, of Gaussian sums or of loops: what it counts at a few dozen
    weights is what `belief_propagation` should count. Near the capacity the solutions are isolated,
    and the flips that are taken at large beta are nearly none.

    Args:
      model: the network; its weights must be binary.
      patterns: x, each +-1. # shape=(M, N)
      labels: sigma, each +1 or -1. # shape=(M,)
      beta: inverse temperatures, rising from 0, two or more. # shape=(T,)
      key: an integer seed or a key of ``jax.random.key``.
      num_sweeps: at least 4. Default 1000.
      num_runs: independent runs, R, at least 2. Default 4.

    Returns:
      `ParallelTempering`.

    Raises:
      TypeError: a number is of the wrong type or ``key`` is not a key.
      ValueError: the weights are not binary, a number is out of its range, a shape does not fit, or
        a label or pattern is not of +-1.

    Examples:
      One pattern leaves 16 of 32 networks right, 2 to the power of

      >>> import jax.numpy as jnp
      >>> model = Committee(5)
      >>> found = parallel_tempering(
      ...     model, jnp.ones((1, 5)), jnp.ones(1), jnp.array([0.0, 2.0]), 0
      ... )
      >>> round(float(found.log_solutions / jnp.log(2)))
      4

    Reference:
      Hukushima and Nemoto, Exchange Monte Carlo method and application to spin glass simulations,
      J. Phys. Soc. Japan 65 (1996).
    """
    warn_if_backend_is_faulty()
    if model.weights != "binary":
        raise ValueError(f"model must have binary weights, got {model.weights}")
    check_examples(model, patterns, labels, signs_only=True)
    check_key(key)
    beta = beta if isinstance(beta, jax.Array) else np.asarray(beta, float)
    check_number("beta", beta, at_least=0)
    if np.ndim(beta) != 1 or np.shape(beta)[0] < 2:
        raise ValueError(f"beta must have shape (T,), T at least 2, got {np.shape(beta)}")
    if not holds(lambda x: (x[0] == 0) & jnp.all(jnp.diff(x) > 0), beta):
        raise ValueError(f"beta must rise from 0, got {beta}")
    check_integer("num_sweeps", num_sweeps, at_least=4)
    check_integer("num_runs", num_runs, at_least=2)
    dtype = dtype_of(patterns)
    return _parallel_tempering(
        Problem(jnp.asarray(patterns, dtype), jnp.asarray(labels, dtype)),
        jnp.asarray(beta, dtype), fresh_key(key),
        model=model, num_sweeps=num_sweeps, num_runs=num_runs,
    )  # fmt: skip


class _Chain(NamedTuple):
    """Weights at one temperature, and the fields and errors that they make.

    Attributes:
      weights: # shape=(K, n)
      fields: of the units, times sqrt(n): whole numbers. # shape=(M, K)
      energy: # shape=()
    """

    weights: jax.Array
    fields: jax.Array
    energy: jax.Array


@functools.partial(jax.jit, static_argnames=("model", "num_sweeps", "num_runs"))
def _parallel_tempering(
    problem: Problem,
    beta: jax.Array,
    key: jax.Array,
    *,
    model: Committee,
    num_sweeps: int,
    num_runs: int,
) -> ParallelTempering:
    """The compiled part of `parallel_tempering`."""
    units, size = model.shape
    inputs = model.unit_inputs(problem.patterns)
    temperatures = beta.shape[0]

    def energy_of(fields: jax.Array) -> jax.Array:
        signs = jnp.sign(fields)
        answer = jnp.sum(signs, axis=1) if model.output == "majority" else jnp.prod(signs, axis=1)
        return jnp.sum((answer * problem.labels <= 0).astype(fields.dtype))

    def flip(chain: _Chain, key: jax.Array, beta: jax.Array) -> tuple[_Chain, jax.Array]:
        site_key, chance_key = jax.random.split(key)
        site = jax.random.randint(site_key, (), 0, units * size)
        unit, place = site // size, site % size
        seen = inputs[:, jnp.minimum(unit, inputs.shape[1] - 1), place]
        fields = chain.fields.at[:, unit].add(-2 * chain.weights[unit, place] * seen)
        trial = _Chain(chain.weights.at[unit, place].multiply(-1), fields, energy_of(fields))
        chance = jax.random.uniform(chance_key, (), beta.dtype)
        taken = chance < jnp.exp(-beta * (trial.energy - chain.energy))
        return jax.tree.map(lambda new, old: jnp.where(taken, new, old), trial, chain), taken

    def exchange(chains: _Chain, key: jax.Array, first: jax.Array) -> tuple[_Chain, jax.Array]:
        """Pairs (first, first + 1), (first + 2, ...); which were exchanged. # shape=(T - 1,)."""
        places = jnp.arange(temperatures - 1, dtype=jnp.int32)
        gain = (beta[1:] - beta[:-1]) * (chains.energy[1:] - chains.energy[:-1])
        chance = jax.random.uniform(key, gain.shape, gain.dtype)
        taken = (chance < jnp.exp(gain)) & (places % 2 == first)
        up = jnp.append(taken, False).astype(jnp.int32)
        down = jnp.append(jnp.zeros(1, bool), taken).astype(jnp.int32)
        order = jnp.arange(temperatures, dtype=jnp.int32) + up - down
        return jax.tree.map(lambda x: x[order], chains), taken

    def sweep(
        carry: tuple[_Chain, jax.Array], step: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[_Chain, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]:
        chains, total = carry
        index, key = step
        flip_key, exchange_key = jax.random.split(key)

        def flips(chains: _Chain, key: jax.Array) -> tuple[_Chain, jax.Array]:
            return jax.vmap(flip)(chains, jax.random.split(key, temperatures), beta)

        chains, taken = jax.lax.scan(flips, chains, jax.random.split(flip_key, units * size))
        chains, exchanged = exchange(chains, exchange_key, index % 2)
        total = total + jnp.where(index >= warm_up, chains.weights, 0)
        rate = jnp.mean(taken.astype(beta.dtype), axis=0)
        return (chains, total), (chains.energy, rate, exchanged.astype(beta.dtype))

    def run(key: jax.Array) -> tuple[jax.Array, ...]:
        """Mean weights, last weights, and after each counted sweep energies and rates."""
        start_key, sweep_key = jax.random.split(key)
        weights = jax.random.rademacher(start_key, (temperatures, units, size), beta.dtype)
        fields = jnp.sum(inputs[None] * weights[:, None], axis=3)
        chains = _Chain(weights, fields, jax.vmap(energy_of)(fields))
        steps = jnp.arange(num_sweeps, dtype=jnp.int32), jax.random.split(sweep_key, num_sweeps)
        (chains, total), kept = jax.lax.scan(sweep, (chains, jnp.zeros_like(weights)), steps)
        counted = jax.tree.map(lambda every: every[warm_up:], kept)
        return total / (num_sweeps - warm_up), chains.weights, *counted

    warm_up = num_sweeps // 2
    means, weights, energy, accepted, exchanged = jax.vmap(run)(jax.random.split(key, num_runs))
    step = (beta[1:] - beta[:-1])[None, None] / 2
    count = jnp.log(jnp.asarray(num_sweeps - warm_up, beta.dtype))
    forth = jax.nn.logsumexp(-step * energy[..., :-1], axis=1) - count
    back = jax.nn.logsumexp(step * energy[..., 1:], axis=1) - count
    everything = jnp.full((num_runs, 1), model.num_weights * math.log(2), beta.dtype)
    log_z = jnp.cumsum(jnp.concatenate([everything, forth - back], axis=1), axis=1)
    solved = jnp.mean((energy[..., -1] == 0).astype(beta.dtype))
    # All pairs of different runs at once: the sum over runs squared, less each run's own square.
    product = jnp.sum(means, axis=0) ** 2 - jnp.sum(means**2, axis=0)
    tries = exchanged.shape[1] / 2
    return ParallelTempering(
        beta=beta,
        energy=jnp.mean(energy, axis=(0, 1)),
        log_partition=jnp.mean(log_z, axis=0),
        std_error=jnp.std(log_z, axis=0, ddof=1) / num_runs**0.5,
        log_solutions=jnp.mean(log_z[:, -1]) + jnp.log(solved),
        overlap=jnp.mean(product, axis=(1, 2)) / (num_runs * (num_runs - 1)),
        accepted=jnp.mean(accepted, axis=(0, 1)),
        exchanged=jnp.sum(jnp.mean(exchanged, axis=0), axis=0) / tries,
        weights=weights,
    )
