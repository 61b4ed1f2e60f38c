"""Entries of a symmetric operator: all of them, or its diagonal."""

import functools
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from entropix._checks import check_integer
from entropix._keys import check_key, fresh_key
from entropix.flatness._estimate import Estimate
from entropix.flatness._operator import Operator, check_operator
from entropix.flatness._space import Parts, dot
from entropix.flatness._vectors import vectors_like

_DENSE_AT_MOST = 8192
_Sums: TypeAlias = tuple[Parts, Parts, Float[Array, ""]]


def dense(operator: Operator) -> Float[Array, "N N"]:
    r"""A symmetric operator as a matrix, for up to 8,192 parameters.

    .. math:: A_{ij} = e_i^T A e_j

    Args:
      operator: A, an `Operator` of dimension N <= 8192, such as the answer of `hessian`.

    Returns:
      The matrix, rows and columns in the order of ``jax.flatten_util.ravel_pytree``, symmetric to
      the last bit. # shape=(N, N)

    Raises:
      TypeError: ``operator`` is no `Operator`.
      ValueError: it has more than 8,192 dimensions.

    Examples:
      >>> import jax.numpy as jnp
      >>> from entropix.flatness import hessian
      >>> loss = lambda w, x: jnp.mean((x @ w) ** 2) / 2
      >>> print(dense(hessian(loss, jnp.ones(2), jnp.array([[2.0, 0.0], [0.0, 4.0]]))))
      [[2. 0.]
       [0. 8.]]
    """
    check_operator(operator)
    if operator.size > _DENSE_AT_MOST:
        raise ValueError(
            f"dense forms an N x N matrix: operator must have N <= {_DENSE_AT_MOST} dimensions, "
            f"got {operator.size}; spectrum and eigenvalues form none"
        )
    return _dense(operator)


@jax.jit
def _dense(operator: Operator) -> Float[Array, "N N"]:
    """The matrix, column by column."""
    space = vectors_like(operator.space.like)
    columns = jax.lax.map(
        lambda unit: space.flatten(operator.matvec(space.unflatten(unit))),
        jnp.eye(space.size, dtype=space.dtype),
        batch_size=16,
    )
    return (columns + columns.T) / 2


def diagonal(operator: Operator, key: jax.Array | int, *, num_probes: int = 100) -> Estimate:
    r"""Diagonal of a symmetric operator, as a pytree like the parameters.

    .. math:: A_{ii} \approx \frac1P \sum_{p=1}^P v_{pi} \, (A v_p)_i, \qquad v_{pi} = \pm 1

    Without bias; the variance of an entry is the sum of the squares of the other entries of its
    row, over P. Memory is three vectors.

    Args:
      operator: A, an `Operator`, such as the answer of `hessian`.
      key: an integer seed or a key of ``jax.random.key``.
      num_probes: P, products to spend; at least 2. Default 100.

    Returns:
      An `Estimate` whose ``mean`` and ``std_error`` are pytrees like the parameters, of at least
      32 bits.

    Raises:
      TypeError: ``operator`` is no `Operator`, or ``num_probes`` is not an integer.
      ValueError: ``num_probes`` is below 2.

    Examples:
      >>> import jax.numpy as jnp
      >>> from entropix.flatness import hessian
      >>> loss = lambda w, x: jnp.mean((x @ w) ** 2) / 2
      >>> H = hessian(loss, jnp.ones(2), jnp.array([[2.0, 0.0], [0.0, 4.0]]))
      >>> print(diagonal(H, 0).mean)
      [2. 8.]

    Reference:
      Bekas, Kokiopoulou and Saad, An estimator for the diagonal of a matrix, Appl. Numer. Math. 57
      (2007).
    """
    check_operator(operator)
    check_integer("num_probes", num_probes, at_least=2)
    check_key(key)
    return _diagonal(operator, fresh_key(key), num_probes=int(num_probes))


@functools.partial(jax.jit, static_argnames="num_probes")
def _diagonal(operator: Operator, key: jax.Array, *, num_probes: int) -> Estimate:
    """Mean and spread by Welford's recurrence."""
    space = operator.space
    zero = space.zeros()

    def add(index: jax.Array | int, carry: _Sums) -> _Sums:
        mean, squares, total = carry
        v = space.draw(jax.random.rademacher, jax.random.fold_in(key, index))
        samples = jax.tree.map(jnp.multiply, v, operator.product(v))
        total = total + dot(samples, samples)
        new = jax.tree.map(lambda m, s: m + (s - m) / (index + 1), mean, samples)
        squares = jax.tree.map(
            lambda q, s, m, n: q + (s - m) * (s - n), squares, samples, mean, new
        )
        return new, squares, total

    start = (zero, zero, jnp.zeros([], space.dtype))
    mean, squares, total = jax.lax.fori_loop(0, num_probes, add, start)
    # An entry may be rounding alone, of numbers as large as the others.
    typical = jnp.sqrt(total / num_probes / space.size)
    error = jax.tree.map(
        lambda q, m: jnp.hypot(
            jnp.sqrt(q / (num_probes - 1) / num_probes), operator.rounding * jnp.hypot(m, typical)
        ),
        squares,
        mean,
    )
    return Estimate(space.tree(mean, keep_dtype=False), space.tree(error, keep_dtype=False))
