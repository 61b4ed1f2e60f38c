"""Trace of a symmetric operator from products with random vectors."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from entropix._checks import check_integer
from entropix._keys import check_key, fresh_key
from entropix.flatness._basis import matmul
from entropix.flatness._estimate import Estimate, map_probes, mean_over_probes
from entropix.flatness._hessian import hessian_operator
from entropix.flatness._vectors import MatVec, check_operator, vectors_like

Method = Literal["hutch++", "hutchinson"]


def trace(
    loss: Callable[[Any, Any], jax.Array],
    params: Any,
    data: Any,
    key: jax.Array | int,
    *,
    num_probes: int = 99,
    method: Method = "hutch++",
    batch_size: int | None = None,
    probe_batch_size: int = 1,
) -> Estimate:
    r"""Trace of the Hessian of a loss.

    Hutchinson's estimator is the mean of :math:`v^T H v` over random signs v. Hutch++ first finds
    an orthonormal basis Q of the range of H S, S a third of the probes, takes the trace on it
    exactly, and estimates only what is left:

    .. math:: \mathrm{tr}\, H = \mathrm{tr}(Q^T H Q) + E_v [v^T P H P v], \qquad P = I - Q Q^T

    Hessians have a few large eigenvalues, so its error is a half to a third of Hutchinson's for
    the same products. Both are without bias.

    Args:
      loss: f(params, batch) -> scalar, a mean over the examples of the batch. Compiled once for
        each function object: pass the same one each time.
      params: w, a pytree of N float numbers.
      data: a pytree of arrays with one leading axis of n examples.
      key: an integer seed or a key of ``jax.random.key``.
      num_probes: products Hv to spend. At least 2, and 6 with ``"hutch++"``. Default 99.
      method: ``"hutch++"`` (default; memory of a third of ``num_probes`` vectors, and the exact
        trace where that is N or more) or ``"hutchinson"`` (memory of one vector).
      batch_size: examples in a chunk. Default all n at once (see `hessian_operator`).
      probe_batch_size: products computed at the same time. Default 1, the least memory.

    Returns:
      An `Estimate`; its standard error is over the products that sample what is left.

    Raises:
      TypeError: a parameter is not a float array, or a number is not an integer.
      ValueError: a parameter is not finite, ``data`` is empty or uneven, the loss is not scalar,
        a number is too small, or ``method`` is unknown.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> loss = lambda w, x: jnp.mean((x @ w) ** 2) / 2
      >>> data = jnp.diag(jnp.array([1.0, 2.0, 3.0]))
      >>> print(f"{trace(loss, jnp.zeros(3), data, jax.random.key(0)).mean:.3f}")
      4.667

    Reference:
      Hutchinson, Commun. Stat. Simul. 19 (1990); Meyer, Musco, Musco and Woodruff, Hutch++:
      Optimal stochastic trace estimation, SOSA 2021.
    """
    return operator_trace(
        hessian_operator(loss, params, data, batch_size=batch_size),
        params,
        key,
        num_probes=num_probes,
        method=method,
        probe_batch_size=probe_batch_size,
    )


def operator_trace(
    matvec: MatVec,
    like: Any,
    key: jax.Array | int,
    *,
    num_probes: int = 99,
    method: Method = "hutch++",
    probe_batch_size: int = 1,
) -> Estimate:
    """Trace of any symmetric operator on a pytree: see `trace`.

    Args:
      matvec: v -> A v on pytrees like ``like``, linear and symmetric (see `lanczos`).
      like: a pytree of float arrays that gives the structure and shapes of v.
      key: an integer seed or a key of ``jax.random.key``.
      num_probes: products to spend. At least 2, and 6 with ``"hutch++"``; default 99.
      method: ``"hutch++"`` (default) or ``"hutchinson"``.
      probe_batch_size: products computed at the same time. Default 1, the least memory.

    Returns:
      An `Estimate`.

    Raises:
      TypeError: ``like`` holds anything but float arrays, or a number is not an integer.
      ValueError: a number is too small, ``method`` is unknown, or ``matvec`` does not answer in
        the shapes of ``like``.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> scale = jnp.arange(100.0)
      >>> estimate = operator_trace(lambda v: scale * v, scale, jax.random.key(0))
      >>> bool(abs(estimate.mean - scale.sum()) < 4 * estimate.std_error)
      True
    """
    if method not in ("hutch++", "hutchinson"):
        raise ValueError(f"method must be 'hutch++' or 'hutchinson', got {method!r}")
    check_integer("num_probes", num_probes, at_least=6 if method == "hutch++" else 2)
    check_integer("probe_batch_size", probe_batch_size, at_least=1)
    check_key(key)
    operator = check_operator(matvec, like)
    estimate = _hutch_plus_plus if method == "hutch++" else _hutchinson
    return estimate(
        operator,
        like,
        fresh_key(key),
        num_probes=int(num_probes),
        probe_batch_size=int(probe_batch_size),
    )


@functools.partial(jax.jit, static_argnames=("num_probes", "probe_batch_size"))
def _hutchinson(
    operator: MatVec, like: Any, key: jax.Array, *, num_probes: int, probe_batch_size: int
) -> Estimate:
    """Mean of v^T A v over random signs."""
    space = vectors_like(like)

    def sample(key: jax.Array) -> jax.Array:
        v = jax.random.rademacher(key, (space.size,), space.dtype)
        return matmul(v, space.flatten(operator(space.unflatten(v))))

    keys = jax.random.split(key, num_probes)
    return mean_over_probes(map_probes(sample, keys, probe_batch_size))


@functools.partial(jax.jit, static_argnames=("num_probes", "probe_batch_size"))
def _hutch_plus_plus(
    operator: MatVec, like: Any, key: jax.Array, *, num_probes: int, probe_batch_size: int
) -> Estimate:
    """The exact trace on a sketch of the range, and Hutchinson's mean on its complement."""
    space = vectors_like(like)
    rank = min(num_probes // 3, space.size)
    sketch_key, sample_key = jax.random.split(key)

    def product(vector: jax.Array) -> jax.Array:
        return space.flatten(operator(space.unflatten(vector)))

    def sketch(key: jax.Array) -> jax.Array:
        return product(jax.random.rademacher(key, (space.size,), space.dtype))

    images = map_probes(sketch, jax.random.split(sketch_key, rank), probe_batch_size)
    q, _ = jnp.linalg.qr(images.T)

    def on_range(column: jax.Array) -> jax.Array:
        return matmul(column, product(column))

    exact = jnp.sum(map_probes(on_range, q.T, probe_batch_size))

    def sample(key: jax.Array) -> jax.Array:
        v = jax.random.rademacher(key, (space.size,), space.dtype)
        v = v - matmul(q, matmul(v, q))
        return matmul(v, product(v))

    keys = jax.random.split(sample_key, num_probes - 2 * rank)
    rest = mean_over_probes(map_probes(sample, keys, probe_batch_size))
    return Estimate(exact + rest.mean, rest.std_error)
