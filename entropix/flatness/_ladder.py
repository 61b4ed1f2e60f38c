r"""The integral over the coupling gamma, from where it is wanted to infinity.

With E(gamma) the excess of `entropix.flatness.local_entropy` and kappa the largest curvature,

.. math:: u = \frac{\log(1 + \kappa / \gamma)}{L}, \quad L = \log(1 + \kappa / \gamma_1), \qquad
    \int_{\gamma}^\infty E(\gamma') \frac{d\gamma'}{\gamma'}
    = \int_0^{u(\gamma)} E(\gamma'(v)) \frac{L}{1 - e^{-L v}} \, dv

turns the half line above the smallest gamma_1 into [0, 1]. A mode of curvature h contributes
h / (gamma + h) to E, hence a logistic function of L v to the integrand, a constant if h = kappa: it
is smooth up to both ends, and one polynomial through Chebyshev nodes carries the whole integral.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def _nodes(num_nodes: int) -> Float[np.ndarray, " K"]:
    """The Chebyshev extrema of [-1, 1] without -1, which is gamma = infinity; ascending."""
    return -np.cos(np.pi * np.arange(1, num_nodes + 1) / num_nodes)


def _polynomials(z: Float[Array, " S"], degree: int) -> list[Float[Array, " S"]]:
    """The Chebyshev polynomials T_0, ..., T_degree at z."""
    angle = jnp.arccos(jnp.clip(z, -1, 1))
    return [jnp.cos(k * angle) for k in range(degree + 1)]


def _primitives(z: Float[Array, " S"], num_nodes: int) -> Float[Array, "S K"]:
    """Indefinite integrals of T_0, ..., T_{num_nodes - 1} at z; (len(z), num_nodes)."""
    t = _polynomials(z, num_nodes)
    higher = [(t[k + 1] / (k + 1) - t[k - 1] / (k - 1)) / 2 for k in range(2, num_nodes)]
    return jnp.stack([z, z**2 / 2, *higher], 1)


def _weights(z: Float[Array, " S"], nodes: Float[np.ndarray, " K"]) -> Float[Array, "S K"]:
    """Weights of the integral from -1 to z of the polynomial through the nodes; (len(z), K)."""
    inverse = np.linalg.inv(np.polynomial.chebyshev.chebvander(nodes, len(nodes) - 1))
    whole = _primitives(z, len(nodes)) - _primitives(-jnp.ones_like(z), len(nodes))
    return jnp.matmul(whole, jnp.asarray(inverse, z.dtype), precision="highest")


def ladder(
    gamma: Float[Array, " S"], curvature: Float[Array, ""], num_nodes: int
) -> tuple[Float[Array, " K"], Float[Array, "S K"], Float[Array, "S K"]]:
    r"""Nodes in gamma and the weights that integrate E dgamma / gamma from each gamma to infinity.

    Args:
      gamma: lower limits. Shape (S,).
      curvature: kappa, a scale of the integrand.
      num_nodes: K, even.

    Returns:
      The nodes, descending to the smallest gamma, shape (K,); the weights, shape (S, K); and those
      of the rule on every other node, shape (S, K), whose answer tells the error.
    """
    nodes = _nodes(num_nodes)
    span = jnp.log1p(curvature / jnp.min(gamma))
    position = (1 + jnp.asarray(nodes, gamma.dtype)) / 2
    stretch = span / -jnp.expm1(-span * position)
    ends = jnp.clip(2 * jnp.log1p(curvature / gamma) / span - 1, -1, 1)
    full = _weights(ends, nodes)
    half = jnp.zeros_like(full).at[:, 1::2].set(_weights(ends, nodes[1::2]))
    rungs = curvature / jnp.expm1(span * position)
    return rungs, full * stretch[None, :] / 2, half * stretch[None, :] / 2
