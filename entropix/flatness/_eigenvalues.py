"""The eigenvalues at the ends of a spectrum, by Lanczos with thick restarts."""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from entropix._checks import check_integer, check_number
from entropix._keys import check_key, fresh_key
from entropix.flatness._basis import Basis, empty_basis, first, orthogonalize, rotate, write
from entropix.flatness._operator import Operator, check_operator
from entropix.flatness._space import Parts, dot, norm, scale, subtract, unit

End = Literal["largest", "smallest", "both"]


class Eigenvalues(NamedTuple):
    """What `eigenvalues` answers.

    Attributes:
      eigenvalues: the largest ones, in falling order; the smallest, in rising order; or, from both
        ends, the k of largest absolute value, in falling order of it. # shape=(k,)
      eigenvectors: orthonormal; a tree like ``params`` with a leading axis of length k.
      residuals: bounds on the errors of the eigenvalues: the norms |A v - lambda v|, computed with
        the eigenvectors as they are returned, plus the rounding of the products, ``operator.error``
        times the largest absolute eigenvalue. # shape=(k,)
      num_products: products of the operator with a vector that were made, the k that compute the
        residuals among them.
      converged: whether every residual is below tol times the largest absolute eigenvalue.
    """

    eigenvalues: Float[Array, "*batch k"]
    eigenvectors: Any
    residuals: Float[Array, "*batch k"]
    num_products: Int[Array, "*batch"]
    converged: Bool[Array, "*batch"]


def eigenvalues(
    operator: Operator,
    key: jax.Array | int,
    *,
    k: int = 5,
    which: End = "largest",
    tol: float = 1e-4,
    max_products: int = 1000,
    basis_size: int | None = None,
) -> Eigenvalues:
    r"""The eigenvalues and eigenvectors at the ends of an operator's spectrum.

    .. math:: A v_i = \lambda_i v_i

    Lanczos in a space of a few vectors, each orthogonal to all others, restarted with the best of
    them until every residual :math:`|A v - \lambda v|` is below ``tol`` times the largest
    :math:`|\lambda|`. The residuals are then computed once more, from the eigenvectors found: in
    low precision the process believes itself more exact than its products are. One vector at a
    time finds one copy of a multiple eigenvalue, until rounding brings in the others.

    Args:
      operator: A, an `Operator`, such as the answer of `hessian`.
      key: an integer seed or a key of ``jax.random.key``, for the start vector.
      k: how many, from 1 to N. Default 5.
      which: "largest" (the default), "smallest" (most negative), or "both": the k of largest
        absolute value.
      tol: relative residual to stop at. At least 0, default 1e-4 (eigenvalues, whose error is
        quadratic in the residual, are then right to about 1e-8 where they are well separated).
      max_products: products after which to stop anyway, at least 2 k. Default 1000.
      basis_size: vectors in the space, the memory of the method; more than k, and clipped to N.
        More of them need fewer products. Default max(2 k + 16, 4 k).

    Returns:
      An `Eigenvalues`; ``converged`` and ``residuals`` say how far it got. Where a product is not
      finite the search stops at once, and the eigenvalues are NaN.

    Raises:
      TypeError: ``operator`` is no `Operator`, or an argument is of the wrong type.
      ValueError: an argument is out of its range.

    Examples:
      >>> import jax.numpy as jnp
      >>> from entropix.flatness import hessian
      >>> f = lambda w, x: jnp.mean((x @ w) ** 2) / 2
      >>> H = hessian(f, jnp.zeros(3), jnp.diag(jnp.array([0.0, 3.0, 6.0])))
      >>> answer = eigenvalues(H, 0, k=2)
      >>> print(f"{answer.eigenvalues[0]:.3f} {answer.eigenvalues[1]:.3f}")
      12.000 3.000

    Reference:
      Wu and Simon, Thick-restart Lanczos method for large symmetric eigenvalue problems, SIAM J.
      Matrix Anal. Appl. 22, 2000.
    """
    check_operator(operator)
    check_key(key)
    check_number("tol", tol, at_least=0)
    check_integer("k", k, at_least=1)
    if k > operator.size:
        raise ValueError(f"k must be at most the number of parameters {operator.size}, got {k}")
    check_integer("max_products", max_products, at_least=2 * k)
    if which not in ("largest", "smallest", "both"):
        raise ValueError(f"which must be 'largest', 'smallest' or 'both', got {which!r}")
    if basis_size is None:
        basis_size = max(2 * k + 16, 4 * k)
    check_integer("basis_size", basis_size, at_least=min(k + 1, operator.size))
    size = min(int(basis_size), operator.size)
    return _search(operator, fresh_key(key), tol, max_products, k=int(k), which=which, size=size)


class _Space(NamedTuple):
    """A Krylov space with the operator projected on it: A Q = Q T + residual following e^T.

    Attributes:
      basis: Q, of which ``filled`` vectors are in use.
      projected: T.
      following: the vector to come next.
      previous: the one before it.
      residual: what the last product left outside the basis.
      kept: vectors that the last restart kept.
      scale: the operator's size as far as it has shown.
      done: whether the wanted ones have converged.
      exhausted: whether the space was ever invariant: a multiple eigenvalue may have copies
        outside of it, so that only a full one tells.
      finite: whether every product has been.
    """

    basis: Basis
    projected: jax.Array
    following: Parts
    previous: Parts
    residual: jax.Array
    filled: jax.Array
    kept: jax.Array
    products: jax.Array
    scale: jax.Array
    done: jax.Array
    exhausted: jax.Array
    finite: jax.Array


@functools.partial(jax.jit, static_argnames=("k", "which", "size"))
def _search(
    operator: Operator,
    key: jax.Array,
    tol: float | jax.Array,
    max_products: int | jax.Array,
    *,
    k: int,
    which: End,
    size: int,
) -> Eigenvalues:
    """The compiled part of `eigenvalues`."""
    vectors = operator.space
    dtype = vectors.dtype
    epsilon = jnp.finfo(dtype).eps
    tol = jnp.asarray(tol, dtype)
    # The bound at the end adds the products' rounding; where that alone is above the tolerance the
    # search is not made longer for it. Rounding in the process bounds what can be reached.
    left = jnp.where(tol > 2 * operator.error, tol - operator.error, tol)
    reachable = jnp.maximum(left, 10 * epsilon)
    keep = min(k + (size - k) // 2, size - 1)
    rows = jnp.arange(size, dtype=jnp.int32)
    # The products that compute the residuals at the end are part of the budget.
    budget = jnp.asarray(max_products, jnp.int32) - k
    check_every = max(1, size // 16)

    def random_direction(space: _Space, count: jax.Array) -> Parts:
        """A direction outside of the space, for when it has become invariant."""
        v = vectors.draw(jax.random.normal, jax.random.fold_in(key, space.products))
        return unit(orthogonalize(space.basis, count, v)[0])

    def expand(space: _Space) -> _Space:
        j, q = space.filled, space.following
        basis = write(space.basis, j, q)
        w = operator.product(q)
        alpha = dot(q, w)
        # After a restart the new vector is coupled to all that were kept, else to the last alone.
        coupling = jnp.where(j > space.kept, space.residual, 0)
        rest = subtract(w, (alpha, q), (coupling, space.previous))
        rest, length = orthogonalize(basis, j + 1, rest)
        largest = jnp.maximum(space.scale, jnp.abs(alpha) + length)
        invariant = length <= 100 * epsilon * largest
        residual = jnp.where(invariant, 0, length)
        before = jnp.where(rows == j - 1, coupling, 0) + jnp.where(
            j > space.kept, 0, space.projected[:, j]
        )
        column = jnp.where(rows < j, before, 0).at[j].set(alpha)
        space = space._replace(
            basis=basis,
            projected=space.projected.at[:, j].set(column).at[j, :].set(column),
            previous=q,
            residual=residual,
            filled=j + 1,
            products=space.products + 1,
            scale=largest,
            exhausted=space.exhausted | invariant,
            finite=jnp.isfinite(alpha + length),
        )
        following = jax.lax.cond(
            invariant & (j + 1 < size),
            lambda: random_direction(space, j + 1),
            lambda: scale(1 / jnp.where(length > 0, length, 1), rest),
        )
        is_due = (space.filled == size) | (
            ~space.exhausted & (space.filled >= k) & (space.filled % check_every == 0)
        )
        done = jax.lax.cond(is_due, has_converged, lambda _: jnp.zeros([], bool), space)
        return space._replace(following=following, done=done)

    def ritz(space: _Space) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Ritz values, their coordinates in the basis, residual norms; the wanted ones first."""
        # Vectors not in use stand for eigenvalues beyond all others, which no vector mixes with.
        beyond = 4 * (1 + size) * jnp.max(jnp.abs(space.projected)) + 1
        inside = rows < space.filled
        square = jnp.where(inside[:, None] & inside[None, :], space.projected, 0)
        values, coordinates = jnp.linalg.eigh(square + jnp.diag(jnp.where(inside, 0, beyond)))
        by = {"largest": -values, "smallest": values, "both": -jnp.abs(values)}[which]
        order = jnp.argsort(jnp.where(inside, by, jnp.inf))
        coordinates = coordinates[:, order]
        values = jnp.where(inside, values[order], 0)
        last = jnp.take(coordinates, space.filled - 1, axis=0)
        return values, coordinates, jnp.abs(space.residual * last)

    def has_converged(space: _Space) -> jax.Array:
        values, _, residuals = ritz(space)
        largest = jnp.max(jnp.abs(values))
        # Beside a larger end of the other sign the residual of any number near zero is small from
        # the start: whether it is the end that is wanted, only a full space tells.
        is_seen = (space.filled == size) | (space.kept > 0) | (jnp.abs(values[0]) == largest)
        return is_seen & jnp.all(residuals[:k] <= reachable * largest)

    def restart(space: _Space) -> tuple[_Space, jax.Array]:
        """The best Ritz vectors in place of the basis, the wanted ones first; and their values."""
        values, coordinates, _ = ritz(space)
        kept = jnp.where(rows[:, None] < max(keep, k), coordinates.T, 0)
        last = jnp.take(coordinates, space.filled - 1, axis=0)
        arrow = jnp.where(rows < keep, space.residual * last, 0)
        projected = jnp.diag(jnp.where(rows < keep, values, 0))
        count = jnp.asarray(keep, jnp.int32)
        space = space._replace(
            basis=rotate(space.basis, kept),
            projected=projected.at[:, keep].set(arrow),
            filled=count,
            kept=count,
        )
        return space, values

    def may_go_on(space: _Space) -> jax.Array:
        return ~space.done & space.finite & (space.products < budget)

    def sweep(space: _Space) -> _Space:
        return jax.lax.while_loop(
            lambda space: may_go_on(space) & (space.filled < size), expand, space
        )

    zero, none = jnp.zeros([], dtype), jnp.zeros([], jnp.int32)
    space = _Space(
        basis=empty_basis(size, vectors),
        projected=jnp.zeros((size, size), dtype),
        following=unit(vectors.draw(jax.random.normal, key)),
        previous=vectors.zeros(),
        residual=zero, filled=none, kept=none, products=none, scale=zero,
        done=jnp.zeros([], bool), exhausted=jnp.zeros([], bool), finite=jnp.ones([], bool),
    )  # fmt: skip
    if size == 1:
        # Nothing is left to restart with.
        space = expand(space)
        values = ritz(space)[0]
    else:
        space, values = jax.lax.while_loop(
            lambda carry: may_go_on(carry[0]),
            lambda carry: restart(sweep(carry[0])),
            (space, jnp.zeros(size, dtype)),
        )
    return _answer(operator, space, values, jnp.maximum(tol, 20 * epsilon), k)


def _answer(
    operator: Operator, space: _Space, ritz_values: jax.Array, reachable: jax.Array, k: int
) -> Eigenvalues:
    """The wanted ones, which are the first of the basis, with their residuals computed anew."""
    wanted, values = first(space.basis, k), ritz_values[:k]

    def residual(pair: tuple[Float[Array, ""], Parts]) -> Float[Array, ""]:
        value, vector = pair
        return norm(subtract(operator.product(vector), (value, vector)))

    def residuals() -> Float[Array, " k"]:
        return jax.lax.map(residual, (values, wanted))

    largest = jnp.max(jnp.abs(ritz_values))
    found = jax.lax.cond(space.finite, residuals, lambda: jnp.full_like(values, jnp.nan))
    bounds = found + operator.error * largest
    return Eigenvalues(
        jnp.where(space.finite, values, jnp.nan),
        jax.vmap(operator.space.tree)(wanted),
        bounds,
        space.products + jnp.where(space.finite, k, 0),
        jnp.all(bounds <= reachable * largest) & space.done,
    )
