"""The Lanczos process for a symmetric operator on pytrees."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from entropix._checks import check_integer
from entropix.flatness._basis import Basis, empty_basis, matmul, orthogonalize, write
from entropix.flatness._vectors import MatVec, check_operator, vectors_like


class Lanczos(NamedTuple):
    r"""Answer of `lanczos`: :math:`A Q^T = Q^T T + \beta \, r \, e_t^T` after t steps.

    Attributes:
      diagonal: of the tridiagonal T; 0 beyond the steps taken. # shape=(m,)
      off_diagonal: of T; 0 beyond the steps taken. # shape=(m - 1,)
      residual_norm: norm of what the last product leaves outside the basis; 0 where the process
        found an invariant subspace and stopped. # shape=()
      num_steps: steps t taken: the ``num_steps`` asked for, unless these exceed the dimension or
        the process stopped. # shape=(), dtype=int32
      basis: orthonormal vectors, a pytree like the starting vector with a leading axis of length
        m, rows beyond t being 0; None unless asked for.
    """

    diagonal: jax.Array
    off_diagonal: jax.Array
    residual_norm: jax.Array
    num_steps: jax.Array
    basis: Any


def lanczos(matvec: MatVec, v0: Any, num_steps: int, *, with_basis: bool = False) -> Lanczos:
    r"""Reduces a symmetric operator to a tridiagonal matrix on a Krylov space.

    .. math:: \beta_j q_{j+1} = A q_j - \alpha_j q_j - \beta_{j-1} q_{j-1}, \qquad
       \alpha_j = q_j^T A q_j, \quad q_1 = v_0 / |v_0|

    Each new vector is orthogonalized against all before it, so the Ritz values (eigenvalues of T)
    have no ghosts. Where the next vector would be rounding noise, because the Krylov space is
    exhausted, the process stops: the remaining entries are 0, no product is spent on them, and
    ``num_steps`` says so. Memory is m vectors; time is m products and about :math:`m^2` reads of a
    vector.

    Args:
      matvec: v -> A v on pytrees like ``v0``, linear and symmetric; such as the answer of
        `hessian_operator` or `gauss_newton_operator`, or any function. A
        ``jax.tree_util.Partial`` passes its arrays as arguments: nothing is compiled again for
        another one with the same function. A plain function is compiled once for each function
        object.
      v0: starting vector, a pytree of float arrays. Not 0; its scale does not matter.
      num_steps: m, at most the dimension of ``v0`` (clipped to it).
      with_basis: whether to return the basis. Default False.

    Returns:
      A `Lanczos`.

    Raises:
      TypeError: ``v0`` holds anything but float arrays, or ``num_steps`` is not an integer.
      ValueError: ``num_steps`` is below 1, or ``matvec`` does not answer in the shapes of ``v0``.

    Examples:
      >>> import jax.numpy as jnp
      >>> A = jnp.array([[2.0, 1.0], [1.0, 2.0]])
      >>> result = lanczos(lambda v: A @ v, jnp.array([1.0, 0.0]), num_steps=5)
      >>> result.diagonal.tolist(), result.off_diagonal.tolist(), int(result.num_steps)
      ([2.0, 2.0], [1.0], 2)

    Reference:
      Golub and Van Loan, Matrix Computations, 4th ed., section 10.1 (the process) and 10.3.4 (full
      re-orthogonalization); Parlett, The Symmetric Eigenvalue Problem, section 6.9 (twice is
      enough).
    """
    check_integer("num_steps", num_steps, at_least=1)
    operator = check_operator(matvec, v0)
    num_steps = min(int(num_steps), vectors_like(v0).size)
    return _lanczos(operator, v0, num_steps=num_steps, with_basis=with_basis)


@functools.partial(jax.jit, static_argnames=("num_steps", "with_basis"))
def _lanczos(operator: MatVec, v0: Any, *, num_steps: int, with_basis: bool) -> Lanczos:
    """The compiled part of `lanczos`."""
    space = vectors_like(v0)
    result, basis = tridiagonalize(operator, space.flatten(v0), v0, num_steps)
    if not with_basis:
        return result
    return result._replace(basis=jax.vmap(space.unflatten)(jnp.concatenate(basis)))


def tridiagonalize(
    operator: MatVec, start: jax.Array, like: Any, num_steps: int
) -> tuple[Lanczos, Basis]:
    """`lanczos` on flat vectors, for use inside a compiled function.

    Args:
      operator: v -> A v on pytrees like ``like``.
      start: starting vector, flat. # shape=(N,)
      like: pytree that gives the structure of the operator's argument.
      num_steps: m, at most N.

    Returns:
      The answer without its basis, and the basis as blocks.
    """
    space = vectors_like(like)
    epsilon = jnp.finfo(space.dtype).eps

    def product(vector: jax.Array) -> jax.Array:
        return space.flatten(operator(space.unflatten(vector)))

    def step(index: jax.Array, carry: Any) -> Any:
        basis, diagonal, off_diagonal, q, previous, beta, scale, taken, alive = carry
        basis = write(basis, index, q)
        w = jax.lax.cond(alive, product, jnp.zeros_like, q)
        alpha = matmul(q, w)
        w, beta = orthogonalize(basis, index + 1, w - alpha * q - beta * previous)
        # The operator's size as far as it has shown: rounding noise is a small multiple of it.
        scale = jnp.maximum(scale, jnp.abs(alpha) + beta)
        goes_on = alive & (beta > 100 * epsilon * scale)
        beta = jnp.where(goes_on, beta, 0)
        next_q = jnp.where(goes_on, w / jnp.where(goes_on, beta, 1), 0)
        return (
            basis,
            diagonal.at[index].set(alpha),
            off_diagonal.at[index].set(beta),
            next_q,
            q,
            beta,
            scale,
            taken + alive.astype(jnp.int32),
            goes_on,
        )

    zero = jnp.zeros([], space.dtype)
    entries = jnp.zeros(num_steps, space.dtype)
    q = start / jnp.linalg.norm(start)
    carry = (
        empty_basis(num_steps, space.size, space.dtype),
        entries, entries, q, jnp.zeros_like(q), zero, zero,
        jnp.zeros([], jnp.int32), jnp.ones([], bool),
    )  # fmt: skip
    basis, diagonal, off_diagonal, _, _, beta, _, taken, _ = jax.lax.fori_loop(
        0, num_steps, step, carry
    )
    return Lanczos(diagonal, off_diagonal[:-1], beta, taken, None), basis
