r"""Smoothed losses: the loss averaged over a neighborhood of all or some of the weights.

Each function takes a loss ``f(params, batch) -> scalar`` and returns another one,
``g(params, batch, key)``, to train on with any optimizer. ``grad``, ``jit`` and ``vmap`` go through
it; a fresh key at every step makes its gradient that of a fresh sample of the neighborhood.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from entropix._checks import check_float_leaves, check_integer, check_number
from entropix._keys import check_key, fresh_key
from entropix._masks import Mask, full_mask

__all__ = [
    "gaussian_smoothed_loss",
    "local_average_loss",
    "local_entropy_loss",
]

Loss = Callable[[Any, Any], jax.Array]
SmoothedLoss = Callable[[Any, Any, jax.Array | int], jax.Array]
# From a key and the leaves to displace, to their displacement.
Displace = Callable[[jax.Array, list[jax.Array]], list[jax.Array]]


def local_average_loss(
    loss: Loss,
    *,
    radius: float | jax.Array,
    samples: int,
    mask: Mask | None = None,
    sharpness: float | jax.Array = math.inf,
    chunk: int | None = None,
) -> SmoothedLoss:
    r"""Partial local average (PLA): the mean loss over a cube around some of the weights.

    .. math:: g(w) = \frac{1}{1 + y} \Big( f(w) + \sum_{a=1}^{y} f(w + \Delta^a) \Big), \qquad
              \Delta^a_i \sim U(-R, R)

    on the weights that the mask chooses, and 0 on the others. At finite sharpness k the cube has
    soft faces: the density of each coordinate is that of the kernel

    .. math:: p(\Delta_i) \propto \sigma(k (R - \Delta_i)) \, \sigma(k (R + \Delta_i)), \qquad
              \sigma(x) = \frac{1}{1 + e^{-x}},

    which is that of a uniform plus a logistic number of scale 1 / k, and is sampled as such.

    Args:
      loss: f(params, batch), the mean over the batch; a scalar.
      radius: R, half the side of the cube, in units of the parameters. At least 0; 0.01 for the
        paper's convolutional network.
      samples: y, displaced copies of the weights, each a loss evaluation. At least 1; 4 in the
        paper.
      mask: the leaves to displace: a pytree prefix of ``params`` with boolean leaves, or a function
        of a leaf's path (a tuple of ``jax.tree_util`` keys) to a boolean. Default None: all. With
        an empty one g is f.
      sharpness: k, in units of 1 / parameter. Above 0; default infinite, the hard cube.
      chunk: copies of the weights evaluated at once, for memory; the loss of each is then computed
        again in the backward pass. Default None: all at once.

    Returns:
      ``g(params, batch, key)``, whose key is an integer seed or a key of ``jax.random.key``.

    Raises:
      TypeError: an argument is of the wrong type; from g, a parameter is not a float array.
      ValueError: an argument is out of its range; from g, the mask does not fit.

    Examples:
      The mean of a parabola over [-0.3, 0.3] is 0.03 above its minimum:

      >>> import jax, jax.numpy as jnp, entropix
      >>> parabola = lambda w, batch: jnp.sum(w**2)
      >>> smooth = entropix.losses.local_average_loss(parabola, radius=0.3, samples=10_000)
      >>> print(f"{smooth(jnp.zeros(1), None, jax.random.key(0)):.3f}")
      0.030

    Reference:
      Musso, `Partial local entropy and anisotropy in deep weight spaces
      <https://arxiv.org/abs/2007.09091>`_, 2020.
    """
    return _smoothed(loss, _cube(radius, sharpness), _with_center(samples), mask, chunk, jnp.mean)


def local_entropy_loss(
    loss: Loss,
    *,
    radius: float | jax.Array,
    samples: int,
    mask: Mask | None = None,
    sharpness: float | jax.Array = math.inf,
    chunk: int | None = None,
) -> SmoothedLoss:
    r"""Partial local entropy (PLEA): minus the log of the mean Boltzmann weight over a cube.

    .. math:: g(w) = -\log \frac{1}{1 + y} \Big( e^{-f(w)} + \sum_{a=1}^{y} e^{-f(w + \Delta^a)}
              \Big)

    with the displacements of `local_average_loss`, which it never exceeds: low losses in the
    neighborhood count for more.

    Args:
      loss: f(params, batch), the mean over the batch; a scalar.
      radius: R, see `local_average_loss`.
      samples: y, see `local_average_loss`.
      mask: see `local_average_loss`. Default None: all leaves.
      sharpness: k, see `local_average_loss`. Default infinite.
      chunk: see `local_average_loss`. Default None.

    Returns:
      ``g(params, batch, key)``, whose key is an integer seed or a key of ``jax.random.key``.

    Raises:
      TypeError: see `local_average_loss`.
      ValueError: see `local_average_loss`.

    Examples:
      Smooth the last layer alone:

      >>> import jax, jax.numpy as jnp, entropix
      >>> loss = lambda params, x: jnp.mean((jnp.tanh(x * params["in"]) * params["out"] - 1.0) ** 2)
      >>> smooth = entropix.losses.local_entropy_loss(
      ...     loss, radius=0.1, samples=4, mask={"in": False, "out": True}
      ... )
      >>> params = {"in": jnp.ones(()), "out": jnp.ones(())}
      >>> print(f"{loss(params, jnp.ones(5)):.3f} {smooth(params, jnp.ones(5), 0):.3f}")
      0.057 0.047

    Reference:
      Musso, `Partial local entropy and anisotropy in deep weight spaces
      <https://arxiv.org/abs/2007.09091>`_, 2020.
    """

    def free_energy(values: jax.Array) -> jax.Array:
        return jnp.log(jnp.asarray(values.size, values.dtype)) - jax.nn.logsumexp(-values)

    return _smoothed(
        loss, _cube(radius, sharpness), _with_center(samples), mask, chunk, free_energy
    )


def gaussian_smoothed_loss(
    loss: Loss,
    *,
    std: float | jax.Array,
    samples: int,
    antithetic: bool = True,
    mask: Mask | None = None,
    chunk: int | None = None,
) -> SmoothedLoss:
    r"""The loss convolved with a Gaussian: the solution of the heat equation that starts at f.

    .. math:: g(w) = \frac{1}{n} \sum_{a=1}^{n} f(w + s z^a) \approx E_z f(w + s z), \qquad
              z \sim N(0, I)

    Args:
      loss: f(params, batch), the mean over the batch; a scalar.
      std: s, in units of the parameters: the square root of the time of the heat equation
        :math:`u_t = \frac12 \Delta u`. At least 0.
      samples: n, loss evaluations. At least 1; even when antithetic.
      antithetic: whether the samples are pairs z, -z, which takes all odd orders of f's expansion
        out of the error. Default True.
      mask: see `local_average_loss`. Default None: all leaves.
      chunk: see `local_average_loss`. Default None.

    Returns:
      ``g(params, batch, key)``, whose key is an integer seed or a key of ``jax.random.key``.

    Raises:
      TypeError: see `local_average_loss`.
      ValueError: see `local_average_loss`; or ``samples`` is odd with ``antithetic``.

    Examples:
      The mean of a cubic over pairs is exact at its center:

      >>> import jax, jax.numpy as jnp, entropix
      >>> cubic = lambda w, batch: jnp.sum(w**3)
      >>> smooth = entropix.losses.gaussian_smoothed_loss(cubic, std=0.5, samples=2)
      >>> print(smooth(jnp.zeros(3), None, jax.random.key(0)))
      0.0

    Reference:
      Chaudhari et al., `Deep relaxation: partial differential equations for optimizing deep neural
      networks <https://arxiv.org/abs/1704.04932>`_, 2017.
    """
    check_number("std", std, at_least=0)
    check_integer("samples", samples, at_least=1)
    if antithetic and samples % 2:
        raise ValueError(f"samples must be even when antithetic, got {samples}")
    signs = [1.0, -1.0] * (samples // 2) if antithetic else [1.0] * samples

    def displace(key: jax.Array, leaves: list[jax.Array]) -> list[jax.Array]:
        return [jnp.asarray(std, z.dtype) * z for z in _draws(jax.random.normal, key, leaves)]

    # Both of a pair see the noise of one index.
    return _smoothed(loss, displace, signs, mask, chunk, jnp.mean, paired=antithetic)


def _with_center(samples: int) -> list[float]:
    """Factors of the displacements: 0 for the weights themselves, then 1 for each sample."""
    check_integer("samples", samples, at_least=1)
    return [0.0] + [1.0] * samples


def _cube(radius: float | jax.Array, sharpness: float | jax.Array) -> Displace:
    """Draws from the cube of half-side ``radius`` with faces as soft as ``sharpness`` says."""
    check_number("radius", radius, at_least=0)
    hard = isinstance(sharpness, (int, float)) and sharpness == math.inf
    if not hard:
        check_number("sharpness", sharpness, above=0)

    def displace(key: jax.Array, leaves: list[jax.Array]) -> list[jax.Array]:
        flat_key, edge_key = jax.random.split(key)
        flat = _draws(functools.partial(jax.random.uniform, minval=-1), flat_key, leaves)
        flat = [jnp.asarray(radius, u.dtype) * u for u in flat]
        if hard:
            return flat
        edge = _draws(jax.random.logistic, edge_key, leaves)
        return [f + e / jnp.asarray(sharpness, e.dtype) for f, e in zip(flat, edge, strict=True)]

    return displace


def _draws(sampler: Callable[..., Any], key: jax.Array, leaves: list[jax.Array]) -> list[jax.Array]:
    """One sample for each element of the leaves, in float32 where they have fewer bits."""
    keys = jax.random.split(key, len(leaves))
    wide = [jnp.float32 if jnp.finfo(leaf.dtype).bits < 32 else leaf.dtype for leaf in leaves]
    return [
        sampler(*args) for args in zip(keys, [leaf.shape for leaf in leaves], wide, strict=True)
    ]


def _smoothed(
    loss: Loss,
    displace: Displace,
    factors: list[float],
    mask: Mask | None,
    chunk: int | None,
    reduce: Callable[[jax.Array], jax.Array],
    *,
    paired: bool = False,
) -> SmoothedLoss:
    """``reduce`` of the losses at weights displaced by each factor times a draw of its own."""
    if not callable(loss):
        raise TypeError(f"loss must be a function of (params, batch), got {loss!r}")
    if chunk is not None:
        check_integer("chunk", chunk, at_least=1)

    def smoothed_loss(params: Any, batch: Any, key: jax.Array | int) -> jax.Array:
        check_key(key)
        check_float_leaves("params", params)
        leaves, structure = jax.tree.flatten(params)
        displaced = jax.tree.leaves(full_mask(mask, params))
        if not any(displaced):
            return loss(params, batch)
        draws = jnp.arange(len(factors), dtype=jnp.uint32) // (2 if paired else 1)

        def value(draw: tuple[jax.Array, jax.Array]) -> jax.Array:
            index, factor = draw
            chosen = [leaf for leaf, moves in zip(leaves, displaced, strict=True) if moves]
            steps = displace(jax.random.fold_in(fresh_key(key), index), chosen)
            scaled = iter([factor.astype(step.dtype) * step for step in steps])
            moved = [
                leaf + next(scaled).astype(leaf.dtype) if moves else leaf
                for leaf, moves in zip(leaves, displaced, strict=True)
            ]
            return loss(jax.tree.unflatten(structure, moved), batch)

        inputs = (draws, jnp.asarray(factors, jnp.float32))
        if chunk is None:
            return reduce(jax.vmap(value)(inputs))
        batch_size = min(chunk, len(factors))
        return reduce(jax.lax.map(jax.checkpoint(value), inputs, batch_size=batch_size))

    return smoothed_loss
