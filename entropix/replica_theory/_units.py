"""A tree committee seen from its output: K independent hidden units with noisy signs."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri

from entropix._gaussian import log_tail
from entropix.replica_theory._quadrature import gaussian_quadrature

# Logarithm of the probability 0; finite, so that derivatives are.
NEVER = -1e30


def log_majority(fields: jax.Array) -> jax.Array:
    """Logarithm of P(sum_k sign(u_k + z_k) > 0), z_k normal, for an odd number K of units.

    Args:
      fields: u. # shape=(K,)

    Returns:
      The log-probability. # shape=()
    """
    units = fields.shape[0]

    def count_positive(log_counts: jax.Array, u: jax.Array) -> tuple[jax.Array, None]:
        one_more = jnp.concatenate([jnp.full(1, NEVER), log_counts[:-1]])
        return jnp.logaddexp(log_counts + log_tail(u), one_more + log_tail(-u)), None

    none_yet = jnp.full(units + 1, NEVER).at[0].set(0)
    log_counts, _ = jax.lax.scan(count_positive, none_yet, fields)
    return jax.scipy.special.logsumexp(log_counts[(units + 1) // 2 :])


def log_even_parity(fields: jax.Array) -> jax.Array:
    """Logarithm of P(prod_k sign(u_k + z_k) = 1), z_k normal.

    Args:
      fields: u. # shape=(K,)

    Returns:
      The log-probability. # shape=()
    """

    def count_negative(log_parity: jax.Array, u: jax.Array) -> tuple[jax.Array, None]:
        return jnp.logaddexp(log_parity + log_tail(-u), log_parity[::-1] + log_tail(u)), None

    log_parity, _ = jax.lax.scan(count_negative, jnp.array([0, NEVER]), fields)
    return log_parity[0]


@functools.cache
def symmetric_nodes(
    units: int, size: int | None = None, spacing: float = 0.4
) -> tuple[jax.Array, jax.Array]:
    """Nodes and weights for integrals of symmetric functions over K normal variables.

    A product of trapezoidal rules, of which only the ordered nodes are kept; or, where K is too
    large for it, a Kronecker sequence: point n is the fraction of n (1/r, 1/r^2, ...), r the root
    of r^(K+1) = r + 1, mapped by the inverse of the normal distribution, reflected, z and -z, and
    made to integrate every quadratic form exactly.

    Args:
      units: K.
      size: G, points of the sequence. Default None: the product, for K up to 3.
      spacing: of the product. Default 0.4.

    Returns:
      The nodes, of shape (G, K), and their weights, of shape (G,) and sum 1.
    """
    with jax.ensure_compile_time_eval():
        return _kronecker_sequence(units, size) if size else _ordered_grid(units, spacing)


def _ordered_grid(units: int, spacing: float) -> tuple[jax.Array, jax.Array]:
    """Nodes z_1 <= z_2 <= ..., each weighing as much as all its permutations."""
    line, weights = gaussian_quadrature(spacing, 8.0)
    index = np.array(list(itertools.combinations_with_replacement(range(line.size), units)))
    # The product of 1, 2, ... along each run of equal nodes is that of the factorials of the runs.
    repeats, same = np.ones(len(index)), np.ones(len(index))
    for left, right in itertools.pairwise(index.T):
        same = np.where(left == right, same + 1, 1)
        repeats *= same
    permutations = math.factorial(units) / repeats
    return line[index], jnp.prod(weights[index], axis=1) * jnp.asarray(permutations)


def _kronecker_sequence(units: int, size: int) -> tuple[jax.Array, jax.Array]:
    """Equally weighted nodes of low discrepancy."""
    ratio = 2.0
    for _ in range(60):
        ratio = (1 + ratio) ** (1 / (units + 1))
    steps = ratio ** -np.arange(1, units + 1)
    points = (0.5 + np.arange(1, size // 2 + 1)[:, None] * steps[None]) % 1
    nodes = ndtri(jnp.asarray(points))
    nodes = jnp.concatenate([nodes, -nodes])
    factor = jnp.linalg.cholesky(nodes.T @ nodes / size)
    nodes = jax.scipy.linalg.solve_triangular(factor, nodes.T, lower=True).T
    return nodes, jnp.full(size, 1 / size)
