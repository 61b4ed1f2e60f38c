"""Spectral density of a symmetric operator by stochastic Lanczos quadrature."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from entropix._checks import check_integer
from entropix.flatness._estimate import Estimate, map_probes, mean_over_probes, probe_keys
from entropix.flatness._hessian import hessian_operator
from entropix.flatness._lanczos import tridiagonalize
from entropix.flatness._vectors import MatVec, check_operator, vectors_like


class Spectrum(NamedTuple):
    r"""Gauss quadratures of the spectrum of a symmetric N x N operator, one for each probe.

    For any function g, :math:`\frac1N \mathrm{tr}\, g(A) \approx
    \frac1P \sum_p \sum_j \omega_{pj} \, g(\lambda_{pj})`, without bias for polynomials g of a
    degree below twice the steps taken. Every method is such a mean over probes, with the standard
    error over the P - 1 degrees of freedom that the probes leave.

    Attributes:
      nodes: Ritz values, in ascending order; 0 beyond the steps taken. # shape=(P, m)
      weights: of the nodes, summing to 1 for each probe; 0 beyond the steps taken. # shape=(P, m)
      residuals: bound on the distance of each node to an eigenvalue. # shape=(P, m)
      num_steps: Lanczos steps taken by each probe: those asked for, unless they exceed the
        dimension or the probe's Krylov space was exhausted before. # shape=(P,), dtype=int32
      dimension: N, as a floating-point number. # shape=()
    """

    nodes: jax.Array
    weights: jax.Array
    residuals: jax.Array
    num_steps: jax.Array
    dimension: jax.Array

    def moment(self, order: int) -> Estimate:
        """Trace of the operator's power: the sum of all eigenvalues to that power."""
        return self._mean(self.dimension * self.nodes**order)

    @property
    def trace(self) -> Estimate:
        """Sum of all eigenvalues; the function `trace` is more exact for the same products."""
        return self.moment(1)

    def fraction_below(self, threshold: float | jax.Array) -> Estimate:
        """Fraction of eigenvalues with absolute value below ``threshold``, a number > 0."""
        return self._mean((jnp.abs(self.nodes) < threshold).astype(self.nodes.dtype))

    def density(self, grid: jax.Array, width: float | jax.Array) -> Estimate:
        r"""Density of eigenvalues, each broadened to a normal distribution; integrates to 1.

        Args:
          grid: G values of the eigenvalue to give the density at. # shape=(G,)
          width: standard deviation of the broadening, in units of the eigenvalues: structure
            finer than it is smeared out, and where it is finer than the spacing of the nodes the
            density shows the nodes themselves. The usual choice is 1/100 of the grid's range.

        Returns:
          The density with its error bar, each of shape (G,).
        """
        distance = (grid[:, None, None] - self.nodes[None]) / width
        kernel = jnp.exp(-(distance**2) / 2) / (width * (2 * jnp.pi) ** 0.5)
        return mean_over_probes(jnp.sum(self.weights[None] * kernel, axis=-1), axis=1)

    @property
    def top(self) -> Estimate:
        """Largest node of all probes; its ``std_error`` is the bound on its distance."""
        return self._extreme(jnp.argmax(jnp.where(self._taken, self.nodes, -jnp.inf)))

    @property
    def bottom(self) -> Estimate:
        """Smallest node of all probes; its ``std_error`` is the bound on its distance."""
        return self._extreme(jnp.argmin(jnp.where(self._taken, self.nodes, jnp.inf)))

    @property
    def _taken(self) -> jax.Array:
        """Which nodes belong to steps taken, shape (P, m)."""
        steps = jnp.arange(self.nodes.shape[1], dtype=jnp.int32)
        return steps[None] < self.num_steps[:, None]

    def _extreme(self, index: jax.Array) -> Estimate:
        return Estimate(self.nodes.ravel()[index], self.residuals.ravel()[index])

    def _mean(self, values: jax.Array) -> Estimate:
        return mean_over_probes(jnp.sum(self.weights * values, axis=-1))


def hessian_spectrum(
    loss: Callable[[Any, Any], jax.Array],
    params: Any,
    data: Any,
    key: jax.Array | int,
    *,
    num_steps: int = 80,
    num_probes: int = 10,
    batch_size: int | None = None,
    probe_batch_size: int = 1,
) -> Spectrum:
    r"""Spectrum of the Hessian of a loss by stochastic Lanczos quadrature.

    .. math:: \frac1N \mathrm{tr}\, g(H) = E_v [v^T g(H) v] \approx
       \frac1P \sum_{p=1}^P \sum_{j=1}^m \omega_{pj} \, g(\lambda_{pj}), \qquad
       v_i = \pm N^{-1/2}

    with nodes and weights from m Lanczos steps that start at v. Costs P m Hessian-vector products
    and the memory of m vectors for each probe that runs at the same time.

    Args:
      loss: f(params, batch) -> scalar, a mean over the examples of the batch. Compiled once for
        each function object: pass the same one each time.
      params: w, a pytree of N float numbers.
      data: a pytree of arrays with one leading axis of n examples. It may be sharded over devices
        along that axis.
      key: an integer seed or a key of ``jax.random.key``; or one key for each probe, an array of
        ``num_probes`` keys, which may be sharded over devices: with
        ``probe_batch_size=num_probes`` each device then runs its own probes.
      num_steps: m, Lanczos steps; at most N (clipped to it). Default 80.
      num_probes: P, at least 2 for an error bar. Default 10.
      batch_size: examples in a chunk. Default all n at once (see `hessian_operator`).
      probe_batch_size: probes run at the same time. Default 1, the least memory.

    Returns:
      A `Spectrum`.

    Raises:
      TypeError: a parameter is not a float array, or a number of steps, probes or examples is not
        an integer.
      ValueError: a parameter is not finite, ``data`` is empty or uneven, the loss is not scalar,
        or a number of steps, probes or examples is too small.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> loss = lambda w, x: jnp.mean((x @ w) ** 2) / 2
      >>> data = jnp.diag(jnp.array([1.0, 2.0, 3.0]))
      >>> spectrum = hessian_spectrum(loss, jnp.zeros(3), data, jax.random.key(0), num_steps=10)
      >>> print(f"{spectrum.trace.mean:.3f} {spectrum.top.mean:.3f} {spectrum.num_steps[0]}")
      4.667 3.000 3

    Reference:
      Ubaru, Chen and Saad, Fast estimation of tr(f(A)) via stochastic Lanczos quadrature, SIAM J.
      Matrix Anal. Appl. 38 (2017); Ghorbani, Krishnan and Xiao, An investigation into neural net
      optimization via Hessian eigenvalue density, ICML 2019.
    """
    return operator_spectrum(
        hessian_operator(loss, params, data, batch_size=batch_size),
        params,
        key,
        num_steps=num_steps,
        num_probes=num_probes,
        probe_batch_size=probe_batch_size,
    )


def operator_spectrum(
    matvec: MatVec,
    like: Any,
    key: jax.Array | int,
    *,
    num_steps: int = 80,
    num_probes: int = 10,
    probe_batch_size: int = 1,
) -> Spectrum:
    """Spectrum of any symmetric operator on a pytree: see `hessian_spectrum`.

    Args:
      matvec: v -> A v on pytrees like ``like``, linear and symmetric (see `lanczos`).
      like: a pytree of float arrays that gives the structure and shapes of v.
      key: an integer seed or a key of ``jax.random.key``, or an array of ``num_probes`` of them.
      num_steps: m, Lanczos steps; at most the dimension (clipped to it). Default 80.
      num_probes: P, at least 2 for an error bar. Default 10.
      probe_batch_size: probes run at the same time. Default 1, the least memory.

    Returns:
      A `Spectrum`.

    Raises:
      TypeError: ``like`` holds anything but float arrays, or a number is not an integer.
      ValueError: a number is too small, or ``matvec`` does not answer in the shapes of ``like``.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> scale = {"a": jnp.ones(3), "b": jnp.zeros(2)}
      >>> matvec = lambda v: jax.tree.map(jnp.multiply, scale, v)
      >>> spectrum = operator_spectrum(matvec, scale, jax.random.key(0))
      >>> print(f"{spectrum.trace.mean:.1f} {spectrum.fraction_below(1e-3).mean:.1f}")
      3.0 0.4
    """
    check_integer("num_steps", num_steps, at_least=1)
    check_integer("probe_batch_size", probe_batch_size, at_least=1)
    keys = probe_keys(key, num_probes)
    operator = check_operator(matvec, like)
    return _spectrum(
        operator,
        like,
        keys,
        num_steps=min(int(num_steps), vectors_like(like).size),
        probe_batch_size=probe_batch_size,
    )


@functools.partial(jax.jit, static_argnames=("num_steps", "probe_batch_size"))
def _spectrum(
    operator: MatVec, like: Any, keys: jax.Array, *, num_steps: int, probe_batch_size: int
) -> Spectrum:
    """The compiled part of `operator_spectrum`."""
    space = vectors_like(like)

    def quadrature(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        start = jax.random.rademacher(key, (space.size,), space.dtype)
        process, _ = tridiagonalize(operator, start, like, num_steps)
        taken = jnp.arange(num_steps, dtype=jnp.int32) < process.num_steps
        # Steps not taken become eigenvalues beyond all others, of which no part is in the start.
        beyond = 1 + 4 * (
            jnp.max(jnp.abs(process.diagonal)) + jnp.max(process.off_diagonal, initial=0)
        )
        tridiagonal = (
            jnp.diag(jnp.where(taken, process.diagonal, beyond))
            + jnp.diag(process.off_diagonal, 1)
            + jnp.diag(process.off_diagonal, -1)
        )
        nodes, vectors = jnp.linalg.eigh(tridiagonal)
        last = jnp.take(vectors, process.num_steps - 1, axis=0)
        return (
            jnp.where(taken, nodes, 0),
            jnp.where(taken, vectors[0] ** 2, 0),
            jnp.where(taken, process.residual_norm * jnp.abs(last), 0),
            process.num_steps,
        )

    nodes, weights, residuals, taken = map_probes(quadrature, keys, probe_batch_size)
    dimension = jnp.asarray(space.size, space.dtype)
    return Spectrum(nodes, weights, residuals, taken, dimension)
