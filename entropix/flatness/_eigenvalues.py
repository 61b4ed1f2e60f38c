"""The eigenvalues at the ends of a spectrum, by Lanczos with thick restarts."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from entropix._checks import check_integer, check_number
from entropix._keys import check_key, fresh_key
from entropix.flatness._basis import Basis, combine, empty_basis, orthogonalize, write
from entropix.flatness._hessian import hessian_operator
from entropix.flatness._vectors import MatVec, check_operator, vectors_like

End = Literal["largest", "smallest", "both"]


class Eigenvalues(NamedTuple):
    """What `top_eigenvalues` answers.

    Attributes:
      eigenvalues: the largest ones, in falling order; the smallest, in rising order; or, from both
        ends, the k of largest absolute value, in falling order of it. # shape=(k,)
      eigenvectors: orthonormal; a tree like ``params`` with a leading axis of length k.
      residuals: the norms |A v - lambda v|; an eigenvalue is off by less. # shape=(k,)
      num_products: products of the operator with a vector that were made.
      converged: whether every residual is below tol times the largest absolute eigenvalue.
    """

    eigenvalues: jax.Array
    eigenvectors: Any
    residuals: jax.Array
    num_products: jax.Array
    converged: jax.Array


def operator_eigenvalues(
    matvec: MatVec,
    like: Any,
    key: jax.Array | int,
    *,
    k: int = 5,
    tol: float = 1e-4,
    which: End = "largest",
    max_products: int = 1000,
) -> Eigenvalues:
    """Eigenvalues at the ends of any symmetric operator: `top_eigenvalues` for operators.

    Args:
      matvec: v -> A v on pytrees like ``like``, linear and symmetric (see `lanczos`).
      like: a pytree of arrays in the shapes that the operator takes.
      key: see `top_eigenvalues`.
      k: see `top_eigenvalues`.
      tol: see `top_eigenvalues`.
      which: see `top_eigenvalues`.
      max_products: see `top_eigenvalues`.

    Returns:
      See `top_eigenvalues`.

    Raises:
      TypeError: see `top_eigenvalues`.
      ValueError: see `top_eigenvalues`.

    Examples:
      >>> import jax.numpy as jnp
      >>> from entropix.flatness import operator_eigenvalues
      >>> answer = operator_eigenvalues(lambda v: jnp.arange(100.0) * v, jnp.zeros(100), 0, k=2)
      >>> print(f"{answer.eigenvalues[0]:.2f} {answer.eigenvalues[1]:.2f}")
      99.00 98.00

    Reference:
      Wu and Simon, Thick-restart Lanczos method for large symmetric eigenvalue problems, SIAM J.
      Matrix Anal. Appl. 22, 2000.
    """
    operator = check_operator(matvec, like)
    check_key(key)
    check_number("tol", tol, at_least=0)
    check_integer("k", k, at_least=1)
    check_integer("max_products", max_products, at_least=1)
    if which not in ("largest", "smallest", "both"):
        raise ValueError(f"which must be 'largest', 'smallest' or 'both', got {which!r}")
    dimension = vectors_like(like).size
    if k > dimension:
        raise ValueError(f"k must be at most the number of parameters {dimension}, got {k}")
    return _thick_restart(operator, like, fresh_key(key), k, tol, which, max_products)


def top_eigenvalues(
    loss: Callable[[Any, Any], jax.Array],
    params: Any,
    data: Any,
    key: jax.Array | int,
    *,
    k: int = 5,
    tol: float = 1e-4,
    which: End = "largest",
    batch_size: int | None = None,
    max_products: int = 1000,
) -> Eigenvalues:
    r"""The eigenvalues and eigenvectors at the ends of the Hessian's spectrum.

    .. math:: H v_i = \lambda_i v_i

    Lanczos in a space of max(2 k + 16, 4 k) vectors, restarted with the best of them until every
    residual :math:`|H v - \lambda v|` is below ``tol`` times the largest :math:`|\lambda|`.

    Args:
      loss: f(params, batch), the mean over the batch; a scalar.
      params: w, a pytree of floating-point arrays, N numbers in all.
      data: a pytree of arrays with one leading example axis.
      key: an integer seed or a key of ``jax.random.key``, for the start vector.
      k: how many, from 1 to N. Default 5.
      tol: relative residual to stop at. At least 0, default 1e-4 (eigenvalues, whose error is
        quadratic in the residual, are then right to about 1e-8 where they are well separated).
      which: "largest" (the default), "smallest" (most negative), or "both": the k of largest
        absolute value.
      batch_size: examples looked at together. Default: all.
      max_products: Hessian-vector products after which to stop anyway. Default 1000.

    Returns:
      An `Eigenvalues`; ``converged`` and ``residuals`` say how far it got.

    Raises:
      TypeError: an argument or a parameter is of the wrong type.
      ValueError: an argument is out of its range, ``loss`` is not a scalar, ``data`` is empty or
        uneven, or ``params`` is not finite.

    Examples:
      >>> import jax.numpy as jnp
      >>> from entropix.flatness import top_eigenvalues
      >>> f = lambda w, x: jnp.mean((x @ w) ** 2) / 2
      >>> answer = top_eigenvalues(f, jnp.zeros(3), jnp.diag(jnp.array([0.0, 3.0, 6.0])), 0, k=2)
      >>> print(f"{answer.eigenvalues[0]:.3f} {answer.eigenvalues[1]:.3f}")
      12.000 3.000

    Reference:
      Wu and Simon, Thick-restart Lanczos method for large symmetric eigenvalue problems, SIAM J.
      Matrix Anal. Appl. 22, 2000.
    """
    operator = hessian_operator(loss, params, data, batch_size=batch_size)
    return operator_eigenvalues(
        operator, params, key, k=k, tol=tol, which=which, max_products=max_products
    )


class _Space(NamedTuple):
    """A Krylov space with the operator projected on it: A Q = Q T + residual following e^T."""

    basis: Basis
    projected: jax.Array
    following: jax.Array
    residual: jax.Array
    kept: jax.Array
    products: jax.Array
    scale: jax.Array


@functools.partial(jax.jit, static_argnums=(3, 5))
def _thick_restart(
    operator: MatVec,
    like: Any,
    key: jax.Array,
    k: int,
    tol: jax.Array,
    which: End,
    max_products: jax.Array,
) -> Eigenvalues:
    vectors = vectors_like(like)
    dtype = vectors.dtype
    epsilon = jnp.finfo(dtype).eps
    size = min(max(2 * k + 16, 4 * k), vectors.size)
    keep = min(k + (size - k) // 2, size - 1)

    def random_direction(space: _Space, rows: jax.Array) -> jax.Array:
        """A direction outside of the space, for when it has become invariant."""
        v = jax.random.normal(jax.random.fold_in(key, space.products), (vectors.size,), dtype)
        v, norm = orthogonalize(space.basis, rows, v)
        return v / norm

    def expand(j: jax.Array, space: _Space) -> _Space:
        basis = write(space.basis, j, space.following)
        product = vectors.flatten(operator(vectors.unflatten(space.following)))
        column = jnp.concatenate([jnp.matmul(q, product, precision="highest") for q in basis])
        column = jnp.where(jnp.arange(size) <= j, column, 0)
        w, norm = orthogonalize(basis, j + 1, product - combine(basis, column[None])[0])
        scale = jnp.maximum(space.scale, jnp.linalg.norm(product))
        invariant = norm <= 100 * epsilon * scale
        space = space._replace(
            basis=basis,
            projected=space.projected.at[:, j].set(column).at[j, :].set(column),
            residual=jnp.where(invariant, 0, norm),
            products=space.products + 1,
            scale=scale,
        )
        following = jax.lax.cond(
            invariant & (j + 1 < size),
            lambda: random_direction(space, j + 1),
            lambda: w / jnp.where(norm > 0, norm, 1),
        )
        return space._replace(following=following)

    def ritz(space: _Space) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Ritz values, their coordinates in the basis, residual norms; the wanted ones first."""
        values, coordinates = jnp.linalg.eigh(space.projected)
        by = {"largest": -values, "smallest": values, "both": -jnp.abs(values)}[which]
        order = jnp.argsort(by)
        coordinates = coordinates[:, order]
        return values[order], coordinates, jnp.abs(space.residual * coordinates[-1])

    def restart(space: _Space) -> _Space:
        values, coordinates, _ = ritz(space)
        rows = jnp.zeros((size, size), dtype).at[:keep].set(coordinates[:, :keep].T)
        kept = combine(space.basis, rows)
        starts = [sum(len(block) for block in space.basis[:i]) for i in range(len(space.basis))]
        return space._replace(
            basis=tuple(
                kept[start : start + len(block)]
                for start, block in zip(starts, space.basis, strict=True)
            ),
            projected=jnp.diag(jnp.where(jnp.arange(size) < keep, values, 0)),
            kept=jnp.int32(keep),
        )

    def converged(space: _Space) -> jax.Array:
        values, _, residuals = ritz(space)
        # Rounding in the products bounds what can be reached.
        reachable = jnp.maximum(tol, 10 * epsilon) * jnp.max(jnp.abs(values))
        return jnp.all(residuals[:k] <= reachable)

    def sweep(space: _Space) -> _Space:
        return jax.lax.fori_loop(space.kept, size, expand, space)

    start = jax.random.normal(key, (vectors.size,), dtype)
    zero = jnp.zeros([], dtype)
    space = _Space(
        empty_basis(size, vectors.size, dtype), jnp.zeros((size, size), dtype),
        start / jnp.linalg.norm(start), zero, jnp.int32(0), jnp.int32(0), zero,
    )  # fmt: skip
    space = jax.lax.while_loop(
        lambda space: ~converged(space) & (space.products + size - keep <= max_products),
        lambda space: sweep(restart(space)),
        sweep(space),
    )
    values, coordinates, residuals = ritz(space)
    eigenvectors = jax.vmap(vectors.unflatten)(combine(space.basis, coordinates[:, :k].T))
    return Eigenvalues(values[:k], eigenvectors, residuals[:k], space.products, converged(space))
