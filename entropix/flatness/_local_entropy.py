"""Local entropy of a deep network: the free entropy of the weights around a point, measured."""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from entropix._canary import warn_if_backend_is_faulty
from entropix._checks import check_integer, check_number
from entropix._keys import check_key, fresh_key
from entropix._masks import Mask
from entropix.flatness import _chains
from entropix.flatness._chunks import mean_over_chunks
from entropix.flatness._excess import excess_of, mixing
from entropix.flatness._ladder import ladder
from entropix.flatness._potential_curvature import largest_curvature, stiff_modes
from entropix.flatness._problem import (
    Chunked,
    Point,
    check_inputs,
    checked_loss,
    split_params,
)
from entropix.flatness._vectors import vectors_like

Loss = Callable[[Any, Any], jax.Array]

# Roberts and Rosenthal's optimum for MALA; unadjusted, a step that Metropolis would nearly always
# have accepted, for the bias falls with the share that it would have rejected.
_TARGET_ACCEPTANCE = {"mala": 0.574, "langevin": 0.99}
_HOTTEST = 64.0
# Chains that cool for each one that is kept: a single one misses the deeper of two basins often.
_COOLED_FOR_ONE = 4


class LocalEntropy(NamedTuple):
    """Answer of `local_entropy`; S couplings asked for (no axis for a scalar), K nodes.

    Attributes:
      gamma: the couplings asked for. # shape=(S,)
      value: F, in nats. # shape=(S,)
      std_error: its standard error, of the chains. # shape=(S,)
      quadrature_error: what the rule on every other node would have changed: a cautious bound on
        the error of the integral over gamma, chains' noise included. # shape=(S,)
      gradient: of -F at the smallest gamma, gamma (x - <x'>); a pytree like the parameters, None
        for those that a mask leaves out.
      gradient_std_error: its standard error; a pytree like the parameters.
      node_gamma: couplings at which chains ran, descending to the smallest asked. # shape=(K,)
      mean_squared_displacement: <|x - x'|^2> at each node. # shape=(K,)
      displacement_std_error: its standard error. # shape=(K,)
      acceptance: mean probability that Metropolis accepts; with ``method="langevin"`` would
        accept. # shape=(K,)
      effective_samples: independent samples of |x - x'|^2 that the chains are worth. # shape=(K,)
      r_hat: Gelman and Rubin's ratio of |x - x'|^2, 1 if the chains agree. # shape=(K,)
      virial_z: how many standard errors the chains are from gamma <|x - x'|^2> + beta <grad f .
        (x' - x)> = d, which holds in equilibrium. # shape=(K,)
      log_volume: -beta f(x), the limit of F at large gamma. # shape=()
    """

    gamma: Float[Array, "*batch S"]
    value: Float[Array, "*batch S"]
    std_error: Float[Array, "*batch S"]
    quadrature_error: Float[Array, "*batch S"]
    gradient: PyTree
    gradient_std_error: PyTree
    node_gamma: Float[Array, "*batch K"]
    mean_squared_displacement: Float[Array, "*batch K"]
    displacement_std_error: Float[Array, "*batch K"]
    acceptance: Float[Array, "*batch K"]
    effective_samples: Float[Array, "*batch K"]
    r_hat: Float[Array, "*batch K"]
    virial_z: Float[Array, "*batch K"]
    log_volume: Float[Array, "*batch"]

    def diagnosis(self) -> str:
        """What is wrong with the chains, a line for each node at fault; empty if nothing is."""
        faults = {
            "acceptance below 0.1": self.acceptance < 0.1,
            "fewer than 50 effective samples": self.effective_samples < 50,
            "r_hat above 1.1": self.r_hat > 1.1,
            "virial off by over 5 standard errors": jnp.abs(self.virial_z) > 5,
        }
        lines = []
        for k, gamma in enumerate(np.asarray(self.node_gamma)):
            found = [name for name, at_fault in faults.items() if bool(at_fault[k])]
            if found:
                lines.append(f"gamma = {gamma:.3g}: {', '.join(found)}")
        return "\n".join(lines)


def local_entropy(
    loss: Loss,
    params: PyTree,
    data: PyTree,
    key: jax.Array | int,
    *,
    gamma: ArrayLike,
    beta: ArrayLike = 1.0,
    method: Literal["mala", "langevin"] = "mala",
    num_nodes: int = 16,
    num_steps: int = 512,
    num_burn_in: int = 256,
    num_chains: int = 4,
    num_modes: int = 16,
    modes: tuple[Float[Array, " k"], PyTree] | None = None,
    mask: Mask | None = None,
    batch_size: int | None = None,
) -> LocalEntropy:
    r"""Measures the free entropy of the weights around a point, by thermodynamic integration.

    .. math:: F(x, \gamma) = \log \int \Big( \frac{\gamma}{2 \pi} \Big)^{d/2}
        e^{-\beta f(x') - \frac{\gamma}{2} |x - x'|^2} \, dx'

    the papers' local entropy relative to that of a flat loss, d parameters in all: the papers' is
    :math:`F + \frac d2 \log \frac{2 \pi}{\gamma}`. It goes to :math:`-\beta f(x)` as gamma grows,
    is higher the wider the minimum, and is for :math:`\beta f = c + g \cdot (x' - x)
    + \frac12 (x' - x)^T H (x' - x)`

    .. math:: F = -c - \tfrac12 \log\det(I + H / \gamma) + \tfrac12 g^T (\gamma I + H)^{-1} g

    From :math:`dF / d\log\gamma = \frac12 (d - \gamma \langle |x - x'|^2 \rangle)`, which chains
    measure at ``num_nodes`` couplings, a substitution that includes infinity gives F at any number
    of gammas. Half of the chains walk down from the largest coupling, each node starting where the
    last ended; the others start apart at the smallest one, as the lowest of several that cooled
    there, and walk up. F is of the basin around x while there are barriers that no chain crosses:
    `LocalEntropy.diagnosis` says where they disagree or have not settled. The steps are exact for a
    flat loss in any dimension.

    Cost: num_chains num_nodes (num_steps + num_burn_in) gradients of all data, and an eighth more
    at the defaults for the chains that cool; memory: about 16 num_chains copies of the parameters,
    and those of a batch's gradient.

    Args:
      loss: f(params, batch), the mean over the batch; a scalar, deterministic.
      params: x, a pytree of floating-point arrays; it need not be a minimum.
      data: a pytree of arrays with one leading example axis.
      key: an integer seed or a key of ``jax.random.key``.
      gamma: coupling, in units of 1 / parameter^2, a number or a vector of S of them. Above 0.
        Chains' results are shared, and dominated in cost by the smallest.
      beta: inverse temperature that multiplies f: 1 (the default) as in the papers; the number of
        training examples for the posterior of a mean negative log-likelihood.
      method: "mala" (the default), exact at equilibrium; or "langevin", which accepts every
        proposal and is biased by its finite step.
      num_nodes: K, even and at least 4. Default 16.
      num_steps: recorded steps of a chain at each node, cut to a multiple of 8. Default 512.
      num_burn_in: steps before them, which also set the step size. At least 2, default 256.
      num_chains: chains run together at each node. At least 2, default 4.
      num_modes: directions of large curvature that are looked for, by as many pairs of gradients,
        to precondition the chains, which else need of the order of (largest curvature / gamma)
        steps to forget. 0 for none. Default 16, or the number of parameters if that is smaller.
      modes: known ones instead: eigenvalues (k,) of the Hessian of f, and its orthonormal
        eigenvectors as a pytree like ``params`` with a leading axis k, None for those that a mask
        leaves out; as `eigenvalues` gives both. Default: none.
      mask: the parameters to integrate over (see `hessian`), d of them; the others stay at x.
        Default all.
      batch_size: examples looked at together. Default: all.

    Returns:
      A `LocalEntropy`.

    Raises:
      TypeError: an argument or a parameter is of the wrong type.
      ValueError: an argument is out of its range, ``loss`` is not a scalar, ``data`` is empty or
        its leaves differ in length, ``params`` is not finite, or the mask does not fit.

    Examples:
      On a quadratic with curvatures 1 and 9, gamma = 1, F is -log(2 * 10) / 2 = -1.498:

      >>> import jax.numpy as jnp
      >>> from entropix.flatness import local_entropy
      >>> f = lambda w, batch: jnp.sum(jnp.array([0.5, 4.5]) * w**2)
      >>> found = local_entropy(f, jnp.zeros(2), jnp.zeros(1), 0, gamma=1.0)
      >>> bool(abs(found.value + 1.498) < 4 * found.std_error + found.quadrature_error)
      True
      >>> found.diagnosis()
      ''

    Reference:
      Chaudhari et al., `Entropy-SGD: biasing gradient descent into wide valleys
      <https://arxiv.org/abs/1611.01838>`_, ICLR 2017, eq. (4). Mira, Solgi and Imparato, Zero
      variance Markov chain Monte Carlo for Bayesian estimators, Statistics and Computing 23, 2013.
    """
    warn_if_backend_is_faulty()
    check_inputs(params, data, batch_size)
    check_key(key)
    check_number("gamma", gamma, above=0)
    if jnp.ndim(gamma) > 1 or jnp.size(gamma) == 0:
        raise ValueError(f"gamma must be a number or a vector, got shape {jnp.shape(gamma)}")
    check_number("beta", beta, above=0)
    if method not in _TARGET_ACCEPTANCE:
        raise ValueError(f"method must be 'mala' or 'langevin', got {method!r}")
    check_integer("num_nodes", num_nodes, at_least=4)
    if num_nodes % 2:
        raise ValueError(f"num_nodes must be even, got {num_nodes}")
    check_integer("num_steps", num_steps, at_least=_chains.BATCHES_PER_CHAIN)
    check_integer("num_burn_in", num_burn_in, at_least=2)
    check_integer("num_chains", num_chains, at_least=2)
    check_integer("num_modes", num_modes, at_least=0)
    traced = checked_loss(loss, params, data, batch_size)
    point, _ = split_params(params, mask)
    _check_modes(modes, point.chosen)
    return _local_entropy(
        traced, point, data, fresh_key(key), gamma, beta, modes,
        method, num_nodes, num_steps, num_burn_in, num_chains, num_modes, batch_size,
    )  # fmt: skip


def _check_modes(modes: tuple[Float[Array, " k"], PyTree] | None, params: PyTree) -> None:
    """Raises unless the eigenvectors are as many as the eigenvalues and shaped like the params."""
    if modes is None:
        return
    eigenvalues, eigenvectors = modes
    found = jax.tree.map(jnp.shape, eigenvectors)
    expected = jax.tree.map(lambda leaf: (len(eigenvalues), *jnp.shape(leaf)), params)
    if found != expected:
        raise ValueError(f"modes must hold eigenvectors of shapes {expected}, got {found}")


@functools.partial(jax.jit, static_argnums=(7, 8, 9, 10, 11, 12, 13))
def _local_entropy(
    loss: Chunked,
    point: Point,
    data: PyTree,
    key: jax.Array,
    gamma: ArrayLike,
    beta: ArrayLike,
    modes: tuple[Float[Array, " k"], PyTree] | None,
    method: str,
    num_nodes: int,
    num_steps: int,
    num_burn_in: int,
    num_chains: int,
    num_modes: int,
    batch_size: int | None,
) -> LocalEntropy:
    space = vectors_like(point.chosen)
    center, dimension, dtype = space.flatten(point.chosen), space.size, space.dtype
    gamma, beta = jnp.asarray(gamma, dtype), jnp.asarray(beta, dtype)
    adjusted = method == "mala"

    def potential(
        displacement: Float[Array, " d"],
    ) -> tuple[Float[Array, ""], Float[Array, " d"]]:
        def mean_loss(displacement: Float[Array, " d"], batch: PyTree) -> Float[Array, ""]:
            weights = point.whole(space.unflatten(center + displacement))
            return loss(weights, batch).astype(dtype)

        energy, gradient = mean_over_chunks(
            lambda batch: jax.value_and_grad(mean_loss)(displacement, batch), data, batch_size
        )
        return beta * energy, beta * gradient

    curvature_key, modes_key, start_key, chain_key = jax.random.split(key, 4)
    at_center, slope = potential(jnp.zeros_like(center))
    slope_size = jnp.linalg.norm(slope)
    direction = slope / jnp.where(slope_size > 0, slope_size, 1)
    kappa = largest_curvature(potential, dimension, curvature_key, jnp.min(gamma))
    rungs, weights, coarse_weights = ladder(jnp.atleast_1d(gamma), kappa, num_nodes)
    if modes is not None:
        stiffness = beta * jnp.maximum(modes[0].astype(dtype), 0)
        vectors = jax.vmap(space.flatten)(modes[1])
    elif num_modes == 0:
        stiffness, vectors = jnp.zeros(0, dtype), jnp.zeros((0, dimension), dtype)
    else:
        stiffness, vectors = stiff_modes(
            potential, dimension, modes_key, kappa, min(num_modes, dimension)
        )

    def place(displacement: Float[Array, "chains d"]) -> _chains.Chain:
        return _chains.Chain(displacement, *jax.vmap(potential)(displacement))

    def visit(carry: Any, rung: tuple[jax.Array, jax.Array, jax.Array]) -> Any:
        """One node: the chains come from another coupling, settle and are measured."""
        displacement, step_size, previous, gradient = carry
        gamma, key, is_smallest = rung
        gaussian = _chains.Gaussian(gamma, stiffness, vectors)
        burn_key, sample_key = jax.random.split(key)
        chains = place(
            jax.vmap(lambda d: gaussian.power(-0.5, previous.power(0.5, d)))(displacement)
        )
        chains, step_size = _chains.burn_in(
            chains, burn_key, potential, gaussian, step_size, adjusted, num_burn_in,
            _TARGET_ACCEPTANCE[method],
        )  # fmt: skip
        chains, moments, seen = _chains.sample(
            chains, sample_key, potential, gaussian, step_size, adjusted, num_steps, direction
        )
        gradient = jax.tree.map(lambda new, old: jnp.where(is_smallest, new, old), seen, gradient)
        return (chains.displacement, step_size, gaussian, gradient), moments

    def cool(carry: Any, stage: tuple[jax.Array, jax.Array]) -> Any:
        """Burn-in at a temperature: the whole energy divided by it, and steps of its length."""
        displacement, step_size = carry
        temperature, key = stage

        def hot(
            displacement: Float[Array, " d"],
        ) -> tuple[Float[Array, ""], Float[Array, " d"]]:
            energy, force = potential(displacement)
            return energy / temperature, force / temperature

        gaussian = _chains.Gaussian(rungs[-1] / temperature, stiffness / temperature, vectors)
        chains = _chains.Chain(displacement, *jax.vmap(hot)(displacement))
        chains, step_size = _chains.burn_in(
            chains, key, hot, gaussian, step_size, adjusted, max(num_burn_in // 2, 2),
            _TARGET_ACCEPTANCE[method],
        )  # fmt: skip
        return (chains.displacement, step_size), None

    num_down = (num_chains + 1) // 2
    white = _chains.Gaussian(jnp.ones_like(kappa), jnp.zeros_like(stiffness), vectors)
    unseen = (jnp.zeros_like(center), jnp.zeros_like(center))
    down_key, up_key, cool_key = jax.random.split(chain_key, 3)
    is_smallest = jnp.arange(num_nodes) == num_nodes - 1

    def walk(start: jax.Array, step_size: jax.Array, place: Any, key: jax.Array, up: bool) -> Any:
        ladder_of = (rungs, jax.random.split(key, num_nodes), is_smallest)
        carry = (start, step_size, place, unseen)
        (*_, gradient), moments = jax.lax.scan(visit, carry, ladder_of, reverse=up)
        return gradient, moments

    down_start_key, up_start_key = jax.random.split(start_key)
    start = jax.random.normal(down_start_key, (num_down, dimension), dtype)
    down = walk(start, jnp.ones_like(start[:, 0]), white, down_key, up=False)

    # Reflections at x in pairs: what lies on one side of x only is met by one of two chains.
    num_up = num_chains - num_down
    first = jax.random.normal(up_start_key, (_COOLED_FOR_ONE // 2 * num_up, dimension), dtype)
    apart = jnp.concatenate([first, -first]) * jnp.sqrt(_HOTTEST / rungs[-1])
    temperatures = _HOTTEST * 0.5 ** jnp.arange(round(math.log2(_HOTTEST)), dtype=dtype)
    stages = (temperatures, jax.random.split(cool_key, len(temperatures)))
    whole_step = jnp.ones_like(apart[:, 0])
    (apart, step_size), _ = jax.lax.scan(cool, (apart, whole_step), stages)
    # Those that came to rest the lowest go on.
    energies = jax.vmap(lambda d: potential(d)[0] + rungs[-1] / 2 * jnp.vdot(d, d))(apart)
    lowest = jnp.argsort(jnp.where(jnp.isnan(energies), jnp.inf, energies))[:num_up]
    apart, step_size = apart[lowest], step_size[lowest]
    loosest = _chains.Gaussian(rungs[-1], stiffness, vectors)
    up = walk(apart, step_size, loosest, up_key, up=True)

    moments = jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), down[1], up[1])
    gradient = (num_down * down[0][0] + num_up * up[0][0]) / num_chains
    gradient_error = jnp.hypot(num_down * down[0][1], num_up * up[0][1]) / num_chains
    apart_by = jnp.abs(down[0][0] - up[0][0]) / 2
    gradient_error = jnp.where(apart_by > 4 * gradient_error, apart_by, gradient_error)

    found = jax.vmap(excess_of)(moments)
    excess = jnp.mean(found.of_chains, 1)
    effective, r_hat = jax.vmap(mixing)(moments)

    def integral(
        weights: Float[Array, " S K"], of: Float[Array, " K *chains"]
    ) -> Float[Array, " S *chains"]:
        return jnp.matmul(weights, of, precision="highest") / 2

    correction, coarse = integral(weights, excess), integral(coarse_weights, excess)
    # A chain keeps its basin from node to node: the errors of the nodes are not independent.
    error = _chains.error_if_chains_disagree(
        integral(weights, found.of_chains),
        integral(weights, found.plain),
        jnp.sqrt(integral(weights**2, found.within**2) / 2),
        jnp.sqrt(integral(weights**2, found.error**2) / 2),
    )
    excess_error = _chains.error_if_chains_disagree(*found[:2], found.within, found.error)
    shape = jnp.shape(gamma)
    return LocalEntropy(
        gamma=gamma,
        value=(-at_center - correction).reshape(shape),
        std_error=error.reshape(shape),
        quadrature_error=jnp.abs(correction - coarse).reshape(shape),
        gradient=space.unflatten(gradient),
        gradient_std_error=space.unflatten(gradient_error),
        node_gamma=rungs,
        mean_squared_displacement=(dimension - excess) / rungs,
        displacement_std_error=excess_error / rungs,
        acceptance=jnp.mean(moments.acceptance, (1, 2)),
        effective_samples=effective,
        r_hat=r_hat,
        virial_z=found.virial_z,
        log_volume=-at_center,
    )
