"""The Lanczos process for a symmetric operator on pytrees."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from entropix._checks import check_integer
from entropix.flatness._basis import Basis, empty_basis, orthogonalize, write
from entropix.flatness._operator import Operator, check_operator
from entropix.flatness._space import Parts, dot, norm, scale, subtract, unit


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

    diagonal: Float[Array, "*batch m"]
    off_diagonal: Float[Array, "*batch m-1"]
    residual_norm: Float[Array, "*batch"]
    num_steps: jax.Array
    basis: Any


def lanczos(operator: Operator, v0: Any, num_steps: int, *, with_basis: bool = False) -> Lanczos:
    r"""Reduces a symmetric operator to a tridiagonal matrix on a Krylov space.

    .. math:: \beta_j q_{j+1} = A q_j - \alpha_j q_j - \beta_{j-1} q_{j-1}, \qquad
       \alpha_j = q_j^T A q_j, \quad q_1 = v_0 / |v_0|

    Each new vector is orthogonalized against all before it, so the Ritz values (eigenvalues of T)
    have no ghosts. Where the next vector would be rounding noise, because the Krylov space is
    exhausted, or a product is not finite, the process stops: the remaining entries are 0, no
    product is spent on them, and ``num_steps`` says so. Memory is m vectors; time is m products
    and about :math:`m^2` reads of a vector.

    Args:
      operator: A, an `Operator`, such as the answer of `hessian`.
      v0: starting vector, a pytree like the operator's. Not 0; its scale does not matter.
      num_steps: m, at most the dimension of ``v0`` (clipped to it).
      with_basis: whether to return the basis. Default False.

    Returns:
      A `Lanczos`.

    Raises:
      TypeError: ``operator`` is no `Operator`, or ``num_steps`` is not an integer.
      ValueError: ``num_steps`` is below 1, or ``v0`` is 0, not finite, or of other shapes than the
        operator's vectors.

    Examples:
      >>> import jax.numpy as jnp
      >>> matrix = jnp.array([[2.0, 1.0], [1.0, 2.0]])
      >>> A = Operator.from_matvec(lambda v: matrix @ v, jnp.zeros(2))
      >>> result = lanczos(A, jnp.array([1.0, 0.0]), num_steps=5)
      >>> result.diagonal.tolist(), result.off_diagonal.tolist(), int(result.num_steps)
      ([2.0, 2.0], [1.0], 2)

    Reference:
      Golub and Van Loan, Matrix Computations, 4th ed., section 10.1 (the process) and 10.3.4 (full
      re-orthogonalization); Parlett, The Symmetric Eigenvalue Problem, section 6.9 (twice is
      enough).
    """
    check_integer("num_steps", num_steps, at_least=1)
    check_operator(operator)
    expected, got = (
        jax.tree.map(lambda leaf: tuple(jnp.shape(leaf)), tree)
        for tree in (operator.space.like, v0)
    )
    if expected != got:
        raise ValueError(
            f"v0 must have the shapes of the operator's vectors, {expected}, got {got}"
        )
    if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(v0)):
        # What is known stays so where lanczos itself is being compiled into another function.
        with jax.ensure_compile_time_eval():
            v0 = jax.tree.map(jnp.asarray, v0)
            length = float(norm(operator.space.parts(v0)))
        if not 0 < length < float("inf"):
            raise ValueError(f"v0 must be finite and not 0, got one of norm {length}")
    return _lanczos(
        operator, v0, num_steps=min(int(num_steps), operator.size), with_basis=with_basis
    )


@functools.partial(jax.jit, static_argnames=("num_steps", "with_basis"))
def _lanczos(operator: Operator, v0: Any, *, num_steps: int, with_basis: bool) -> Lanczos:
    """The compiled part of `lanczos`."""
    space = operator.space
    result, basis = tridiagonalize(operator, space.parts(v0), num_steps)
    if not with_basis:
        return result
    rows = tuple(jnp.concatenate(parts) for parts in zip(*basis, strict=True))
    return result._replace(basis=jax.vmap(space.tree)(rows))


def tridiagonalize(
    operator: Operator, start: Parts, num_steps: int, *, reorthogonalize: bool = True
) -> tuple[Lanczos, Basis]:
    """`lanczos` on vectors as the Krylov methods hold them, for use inside a compiled function.

    Args:
      operator: A.
      start: starting vector.
      num_steps: m, at most N.
      reorthogonalize: whether to keep the basis and each vector orthogonal to it. Without, memory
        is three vectors and no vector is read again; eigenvalues that have converged then appear
        more than once, the copies sharing the weight of the one.

    Returns:
      The answer without its basis, and the basis as blocks, empty without ``reorthogonalize``.
    """
    space = operator.space
    epsilon = jnp.finfo(space.dtype).eps

    def step(carry: Any) -> Any:
        index, basis, diagonal, off_diagonal, q, previous, beta, size, _ = carry
        w = operator.product(q)
        alpha = dot(q, w)
        w = subtract(w, (alpha, q), (beta, previous))
        if reorthogonalize:
            basis = write(basis, index, q)
            w, beta = orthogonalize(basis, index + 1, w)
        else:
            # The coefficient as rounding left it, taken out once more.
            w = subtract(w, (dot(q, w), q))
            beta = norm(w)
        # The operator's size as far as it has shown: rounding noise is a small multiple of it.
        size = jnp.maximum(size, jnp.abs(alpha) + beta)
        goes_on = beta > 100 * epsilon * size
        beta = jnp.where(goes_on | jnp.isnan(beta), beta, 0)
        following = scale(jnp.where(goes_on, 1 / jnp.where(goes_on, beta, 1), 0), w)
        return (
            index + 1,
            basis,
            diagonal.at[index].set(alpha),
            off_diagonal.at[index].set(beta),
            following,
            q,
            beta,
            size,
            goes_on & jnp.isfinite(beta),
        )

    zero = jnp.zeros([], space.dtype)
    entries = jnp.zeros(num_steps, space.dtype)
    q = unit(start)
    carry = (
        jnp.zeros([], jnp.int32),
        empty_basis(num_steps, space) if reorthogonalize else (),
        entries, entries, q, space.zeros(), zero, zero, jnp.ones([], bool),
    )  # fmt: skip
    taken, basis, diagonal, off_diagonal, _, _, beta, _, _ = jax.lax.while_loop(
        lambda carry: carry[-1] & (carry[0] < num_steps), step, carry
    )
    return Lanczos(diagonal, off_diagonal[:-1], beta, taken, None), basis
