"""Trace of a symmetric operator from products with random vectors."""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from entropix._checks import check_integer
from entropix._keys import check_key, fresh_key
from entropix.flatness._basis import (
    Basis,
    all_components,
    empty_basis,
    orthogonalize,
    read,
    write,
)
from entropix.flatness._estimate import Estimate, map_probes, mean_over_probes, with_rounding
from entropix.flatness._operator import Operator, check_operator
from entropix.flatness._space import Parts, dot, scale, unit

# Answers of the jackknife.
_GROUPS = 32

Method = Literal["xtrace", "hutchinson"]


def trace(
    operator: Operator,
    key: jax.Array | int,
    *,
    num_probes: int = 100,
    method: Method = "xtrace",
    probe_batch_size: int = 1,
) -> Estimate:
    r"""Trace of a symmetric operator.

    Hutchinson's estimator is the mean of :math:`v^T A v` over random signs v. XTrace spends half
    of its products on the images of s random vectors, with an orthonormal basis Q of them, and
    half on :math:`A Q`. It leaves out one vector at a time, takes the trace exactly on the basis
    :math:`Q_i` of the others' images, and estimates what is left with the one left out:

    .. math:: \mathrm{tr}\, A \approx \frac1s \sum_{i=1}^s \Big[ \mathrm{tr}(Q_i^T A Q_i) +
       \frac{N - s + 1}{|P_i v_i|^2} \, v_i^T P_i A P_i v_i \Big], \qquad P_i = I - Q_i Q_i^T

    Every vector serves twice. Hessians have a few large eigenvalues, which the bases hold, so its
    error is far below Hutchinson's for the same products. Both are without bias.

    Args:
      operator: A, an `Operator`, such as the answer of `hessian`.
      key: an integer seed or a key of ``jax.random.key``.
      num_probes: products to spend; at least 2, and 4 with ``"xtrace"``, which spends an even
        number of them, at most 2 N. Default 100.
      method: ``"xtrace"`` (default; memory of half of ``num_probes`` vectors, and the exact trace
        where that is N or more) or ``"hutchinson"`` (memory of one vector).
      probe_batch_size: products of Hutchinson's method computed at the same time. Default 1, the
        least memory.

    Returns:
      An `Estimate`. The standard error is that of a mean with ``"hutchinson"``. The summands of
      ``"xtrace"`` depend on each other, and their spread would be too small; its standard error is
      the jackknife's, from the estimates that leave out a vector altogether, which by Efron's and
      Stein's inequality is not too small on average, and is two to four times too large
      where the eigenvalues fall off fast.

    Raises:
      TypeError: ``operator`` is no `Operator`, or a number is not an integer.
      ValueError: a number is too small, or ``method`` is unknown.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from entropix.flatness import hessian
      >>> loss = lambda w, x: jnp.mean((x @ w) ** 2) / 2
      >>> H = hessian(loss, jnp.zeros(3), jnp.diag(jnp.array([1.0, 2.0, 3.0])))
      >>> print(f"{trace(H, jax.random.key(0)).mean:.3f}")
      4.667

    Reference:
      Hutchinson, Commun. Stat. Simul. 19 (1990); Epperly, Tropp and Webber, `XTrace: making the
      most of every sample in stochastic trace estimation <https://arxiv.org/abs/2301.07825>`_,
      SIAM J. Matrix Anal. Appl. 45 (2024); Efron and Stein, The jackknife estimate of variance,
      Ann. Stat. 9 (1981).
    """
    check_operator(operator)
    if method not in ("xtrace", "hutchinson"):
        raise ValueError(f"method must be 'xtrace' or 'hutchinson', got {method!r}")
    check_integer("num_probes", num_probes, at_least=4 if method == "xtrace" else 2)
    check_integer("probe_batch_size", probe_batch_size, at_least=1)
    check_key(key)
    if method == "xtrace":
        count = min(int(num_probes) // 2, operator.size)
        return _xtrace(operator, fresh_key(key), count=count)
    return _hutchinson(
        operator,
        fresh_key(key),
        num_probes=int(num_probes),
        probe_batch_size=int(probe_batch_size),
    )


@functools.partial(jax.jit, static_argnames=("num_probes", "probe_batch_size"))
def _hutchinson(
    operator: Operator, key: jax.Array, *, num_probes: int, probe_batch_size: int
) -> Estimate:
    """Mean of v^T A v over random signs."""

    def sample(key: jax.Array) -> Float[Array, ""]:
        v = operator.space.draw(jax.random.rademacher, key)
        return dot(v, operator.product(v))

    samples = map_probes(sample, jax.random.split(key, num_probes), probe_batch_size)
    size = jnp.mean(jnp.abs(samples))
    return with_rounding(mean_over_probes(samples), size, operator.rounding)


@functools.partial(jax.jit, static_argnames="count")
def _xtrace(operator: Operator, key: jax.Array, *, count: int) -> Estimate:
    """XTrace; with Q, R of the images and W = Q^T V all that remains is small matrices."""
    space = operator.space
    dtype = space.dtype
    epsilon = jnp.finfo(dtype).eps
    keys = jax.random.split(key, count)

    def probe(index: jax.Array | int) -> Parts:
        return space.draw(jax.random.normal, keys[index])

    def add_image(index: jax.Array | int, carry: tuple[Basis, jax.Array, jax.Array]) -> Any:
        basis, r, largest = carry
        image = operator.product(probe(index))
        rest, length = orthogonalize(basis, index, image)
        largest = jnp.maximum(largest, jnp.sqrt(dot(image, image)))
        # An image inside the range of the others is followed by any direction outside of it.
        is_new = ~(length <= 100 * epsilon * largest)

        def other() -> Parts:
            v = space.draw(jax.random.normal, jax.random.fold_in(keys[index], 1))
            return unit(orthogonalize(basis, index, v)[0])

        direction = jax.lax.cond(
            is_new, lambda: scale(1 / jnp.where(is_new, length, 1), rest), other
        )
        basis = write(basis, index, direction)
        along = all_components(basis, image)
        least = epsilon * jnp.where(largest > 0, largest, 1)
        along = along.at[index].set(jnp.where(is_new, along[index], least))
        return basis, r.at[:, index].set(along), largest

    basis, r, _ = jax.lax.fori_loop(
        0,
        count,
        add_image,
        (empty_basis(count, space), jnp.zeros((count, count), dtype), jnp.zeros([], dtype)),
    )

    def on_basis(index: jax.Array | int) -> tuple[jax.Array, jax.Array, jax.Array]:
        v = probe(index)
        return (
            dot(v, v),
            all_components(basis, v),
            all_components(basis, operator.product(read(basis, index))),
        )

    indices = jnp.arange(count, dtype=jnp.int32)
    squares, w, h = jax.lax.map(on_basis, indices)
    matrices = squares, w.T, r, (h + h.T) / 2
    if count == space.size:
        # With all of the space in the basis nothing is left to estimate.
        exact = Estimate(jnp.trace(h), jnp.zeros([], dtype))
        return with_rounding(exact, jnp.max(jnp.abs(h)) * count, operator.rounding)
    samples, sizes = _summands(*matrices, space.size)
    estimate = Estimate(jnp.mean(samples), _jackknife(*matrices, space.size))
    return with_rounding(estimate, jnp.mean(sizes), operator.rounding)


def _summands(
    squares: Float[Array, " s"],
    w: Float[Array, "s s"],
    r: Float[Array, "s s"],
    h: Float[Array, "s s"],
    size: int,
) -> tuple[Float[Array, " s"], Float[Array, " s"]]:
    """XTrace's summands, and the sizes of what is added up to each of them.

    Args:
      squares: |v_i|^2. # shape=(s,)
      w: Q^T V, a column for each vector. # shape=(s, s)
      r: Q^T A V, upper triangular. # shape=(s, s)
      h: Q^T A Q. # shape=(s, s)
      size: N.
    """
    count = len(squares)
    matmul = functools.partial(jnp.matmul, precision="highest")
    # Column i is the direction of the range of Q that only image i reaches.
    alone = jax.scipy.linalg.solve_triangular(r, jnp.eye(count, dtype=r.dtype), lower=False).T
    alone = alone / jnp.max(jnp.abs(alone), axis=0, keepdims=True)
    alone = alone / jnp.linalg.norm(alone, axis=0, keepdims=True)
    x = w - alone * jnp.sum(alone * w, axis=0, keepdims=True)
    on_basis = jnp.trace(h) - jnp.sum(alone * matmul(h, alone), axis=0)
    outside = (
        jnp.sum(w * r, axis=0) - 2 * jnp.sum(x * r, axis=0) + jnp.sum(x * matmul(h, x), axis=0)
    )
    left = jnp.maximum(squares - jnp.sum(x**2, axis=0), jnp.finfo(r.dtype).eps * squares)
    weight = (size - count + 1) / left
    lengths = [jnp.linalg.norm(columns, axis=0) for columns in (w, x, r)]
    largest = jnp.max(jnp.abs(h))
    sizes = (lengths[0] + 2 * lengths[1]) * lengths[2] + lengths[1] ** 2 * largest
    return on_basis + weight * outside, count * largest + weight * sizes


def _jackknife(
    squares: Float[Array, " s"],
    w: Float[Array, "s s"],
    r: Float[Array, "s s"],
    h: Float[Array, "s s"],
    size: int,
) -> Float[Array, ""]:
    """The standard error of XTrace's mean, from its answers without some of the vectors.

    At most `_GROUPS` answers: of many vectors several are left out together. The arguments are
    those of `_summands`.
    """
    count = len(squares)
    left_out = -(-count // _GROUPS)
    groups = count // left_out
    numbers = np.arange(count)
    starts = numbers[: groups * left_out : left_out]
    kept = np.stack([np.delete(numbers, slice(i, i + left_out)) for i in starts])
    matmul = functools.partial(jnp.matmul, precision="highest")

    def without(kept: jax.Array) -> jax.Array:
        q, rest = jnp.linalg.qr(r[:, kept])
        inner = matmul(matmul(q.T, h), q)
        return jnp.mean(_summands(squares[kept], matmul(q.T, w[:, kept]), rest, inner, size)[0])

    answers = jax.lax.map(without, jnp.asarray(kept))
    variance = jnp.sum((answers - jnp.mean(answers)) ** 2) * (groups - 1) / groups
    return jnp.sqrt(variance * count / (groups * left_out))
