"""Spectral density of a symmetric operator by stochastic Lanczos quadrature."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from entropix._checks import check_integer, check_number
from entropix.flatness._estimate import (
    Bounded,
    Estimate,
    map_probes,
    mean_over_probes,
    probe_keys,
    with_rounding,
)
from entropix.flatness._lanczos import tridiagonalize
from entropix.flatness._operator import Operator, check_operator

# Numbers of a basis (16 MB in float32) up to which keeping it costs next to nothing.
_SMALL_BASIS = 2**22


class Spectrum(NamedTuple):
    r"""Gauss quadratures of the spectrum of a symmetric N x N operator, one for each probe.

    For any function g, :math:`\frac1N \mathrm{tr}\, g(A) \approx
    \frac1P \sum_p \sum_j \omega_{pj} \, g(\lambda_{pj})`, without bias for polynomials g of a
    degree below twice the steps taken. Every method is such a mean over probes, with the standard
    error over the P - 1 degrees of freedom that the probes leave.

    Attributes:
      nodes: Ritz values, in ascending order; 0 beyond the steps taken. # shape=(P, m)
      weights: of the nodes, summing to 1 for each probe; 0 beyond the steps taken. # shape=(P, m)
      residuals: bound on the distance of each node to an eigenvalue; it includes the rounding of
        the products. # shape=(P, m)
      num_steps: Lanczos steps taken by each probe: those asked for, unless they exceed the
        dimension or the probe's Krylov space was exhausted before. # shape=(P,), dtype=int32
      dimension: N, as a floating-point number. # shape=()
      rounding: the unit of rounding of the products, relative to their size. # shape=()
    """

    nodes: Float[Array, "*batch P m"]
    weights: Float[Array, "*batch P m"]
    residuals: Float[Array, "*batch P m"]
    num_steps: jax.Array
    dimension: Float[Array, "*batch"]
    rounding: Float[Array, "*batch"]

    def moment(self, order: int) -> Estimate:
        """Trace of the operator's power: the sum of all eigenvalues to that power."""
        powers = self.dimension * self.nodes**order
        size = order * jnp.mean(jnp.sum(self.weights * jnp.abs(powers), axis=-1))
        return with_rounding(self._mean(powers), size, self.rounding)

    @property
    def trace(self) -> Estimate:
        """Sum of all eigenvalues; the function `trace` is more exact for the same products."""
        return self.moment(1)

    def fraction_below(self, threshold: float | Float[ArrayLike, ""]) -> Estimate:
        """Fraction of eigenvalues with absolute value below ``threshold``, a number > 0."""
        return self._mean((jnp.abs(self.nodes) < threshold).astype(self.nodes.dtype))

    def density(
        self, grid: Float[ArrayLike, " G"], width: float | Float[ArrayLike, ""]
    ) -> Estimate:
        r"""Density of eigenvalues, each broadened to a normal distribution; integrates to 1.

        Args:
          grid: G values of the eigenvalue to give the density at. # shape=(G,)
          width: standard deviation of the broadening, in units of the eigenvalues: structure
            finer than it is smeared out, and where it is finer than the spacing of the nodes the
            density shows the nodes themselves. The usual choice is 1/100 of the grid's range.

        Returns:
          The density with its error bar, each of shape (G,).

        Raises:
          TypeError: ``width`` is not a number.
          ValueError: ``width`` is not above 0, or ``grid`` has not one axis.
        """
        check_number("width", width, above=0)
        if jnp.ndim(grid) != 1:
            raise ValueError(f"grid must have shape (G,), got {jnp.shape(grid)}")
        distance = (jnp.asarray(grid)[:, None, None] - self.nodes[None]) / width
        kernel = jnp.exp(-(distance**2) / 2) / (width * (2 * jnp.pi) ** 0.5)
        return mean_over_probes(jnp.sum(self.weights[None] * kernel, axis=-1), axis=1)

    @property
    def top(self) -> Bounded:
        """Largest node of all probes, and the bound on its distance to an eigenvalue."""
        return self._extreme(jnp.argmax(jnp.where(self._taken, self.nodes, -jnp.inf)))

    @property
    def bottom(self) -> Bounded:
        """Smallest node of all probes, and the bound on its distance to an eigenvalue."""
        return self._extreme(jnp.argmin(jnp.where(self._taken, self.nodes, jnp.inf)))

    @property
    def _taken(self) -> jax.Array:
        """Which nodes belong to steps taken, shape (P, m)."""
        steps = jnp.arange(self.nodes.shape[1], dtype=jnp.int32)
        return steps[None] < self.num_steps[:, None]

    def _extreme(self, index: jax.Array) -> Bounded:
        return Bounded(self.nodes.ravel()[index], self.residuals.ravel()[index])

    def _mean(self, values: jax.Array) -> Estimate:
        return mean_over_probes(jnp.sum(self.weights * values, axis=-1))


def spectrum(
    operator: Operator,
    key: jax.Array | int,
    *,
    num_steps: int = 80,
    num_probes: int = 10,
    probe_batch_size: int = 1,
    reorthogonalize: bool | None = None,
) -> Spectrum:
    r"""Spectrum of a symmetric operator by stochastic Lanczos quadrature.

    .. math:: \frac1N \mathrm{tr}\, g(A) = E_v [v^T g(A) v] \approx
       \frac1P \sum_{p=1}^P \sum_{j=1}^m \omega_{pj} \, g(\lambda_{pj}), \qquad
       v_i = \pm N^{-1/2}

    with nodes and weights from m Lanczos steps that start at v. Costs P m products.

    A quadrature needs no orthogonal basis. Without one, memory is three vectors and nothing but
    the products takes time; an eigenvalue that has converged then comes back as another node, a
    ghost, but all copies together have the weight of the one, so that every mean over the spectrum
    stays right (Greenbaum 1989), as do the bounds of the nodes. Do not count nodes, then.

    Args:
      operator: A, an `Operator`, such as the answer of `hessian`.
      key: an integer seed or a key of ``jax.random.key``; or one key for each probe, an array of
        ``num_probes`` keys, which may be sharded over devices: with
        ``probe_batch_size=num_probes`` each device then runs its own probes.
      num_steps: m, Lanczos steps; at most N (clipped to it). Default 80.
      num_probes: P, at least 2 for an error bar. Default 10.
      probe_batch_size: probes run at the same time. Default 1, the least memory.
      reorthogonalize: whether to keep all m vectors and each new one orthogonal to them: no
        ghosts. Default: where these are small, at most 4 million numbers.

    Returns:
      A `Spectrum`.

    Raises:
      TypeError: ``operator`` is no `Operator`, or a number is not an integer.
      ValueError: a number is too small.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from entropix.flatness import hessian
      >>> loss = lambda w, x: jnp.mean((x @ w) ** 2) / 2
      >>> H = hessian(loss, jnp.zeros(3), jnp.diag(jnp.array([1.0, 2.0, 3.0])))
      >>> found = spectrum(H, jax.random.key(0), num_steps=10)
      >>> print(f"{found.trace.mean:.3f} {found.top.value:.3f} {found.num_steps[0]}")
      4.667 3.000 3

    Reference:
      Ubaru, Chen and Saad, Fast estimation of tr(f(A)) via stochastic Lanczos quadrature, SIAM J.
      Matrix Anal. Appl. 38 (2017); Ghorbani, Krishnan and Xiao, An investigation into neural net
      optimization via Hessian eigenvalue density, ICML 2019; Greenbaum, Behavior of slightly
      perturbed Lanczos and conjugate-gradient recurrences, Linear Algebra Appl. 113 (1989).
    """
    check_integer("num_steps", num_steps, at_least=1)
    check_integer("probe_batch_size", probe_batch_size, at_least=1)
    keys = probe_keys(key, num_probes)
    check_operator(operator)
    num_steps = min(int(num_steps), operator.size)
    if reorthogonalize is None:
        reorthogonalize = num_steps * operator.size <= _SMALL_BASIS
    return _spectrum(
        operator,
        keys,
        num_steps=num_steps,
        probe_batch_size=int(probe_batch_size),
        reorthogonalize=bool(reorthogonalize),
    )


@functools.partial(jax.jit, static_argnames=("num_steps", "probe_batch_size", "reorthogonalize"))
def _spectrum(
    operator: Operator,
    keys: jax.Array,
    *,
    num_steps: int,
    probe_batch_size: int,
    reorthogonalize: bool,
) -> Spectrum:
    """The compiled part of `spectrum`."""
    space = operator.space

    def quadrature(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        start = space.draw(jax.random.rademacher, key)
        process, _ = tridiagonalize(operator, start, num_steps, reorthogonalize=reorthogonalize)
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
        nodes = jnp.where(taken, nodes, 0)
        rounding = operator.error * jnp.max(jnp.abs(nodes))
        return (
            nodes,
            jnp.where(taken, vectors[0] ** 2, 0),
            jnp.where(taken, process.residual_norm * jnp.abs(last) + rounding, 0),
            process.num_steps,
        )

    nodes, weights, residuals, taken = map_probes(quadrature, keys, probe_batch_size)
    dimension, rounding = (
        jnp.asarray(number, space.dtype) for number in (space.size, operator.rounding)
    )
    return Spectrum(nodes, weights, residuals, taken, dimension, rounding)
