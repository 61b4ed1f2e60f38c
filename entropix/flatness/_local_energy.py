"""Local energy: how much a network's loss or error rises when its weights are perturbed."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from entropix._canary import warn_if_backend_is_faulty
from entropix._checks import check_integer, check_number
from entropix._hash_normal import normal_like
from entropix._keys import check_key, fresh_key
from entropix._masks import Mask, full_mask
from entropix.flatness._chunks import mean_over_chunks
from entropix.flatness._estimate import map_probes
from entropix.flatness._problem import check_problem


class LocalEnergy(NamedTuple):
    """Answer of `local_energy`; S is the shape of ``sigma``.

    Attributes:
      sigma: noise levels. # shape=S
      mean: estimated rise of the objective at each noise level. # shape=S
      std_error: standard error of ``mean`` over the draws; the draws are common to all noise
        levels, so the errors of neighboring levels are correlated. # shape=S
      base: the objective at the unperturbed parameters. # shape=()
    """

    sigma: jax.Array
    mean: jax.Array
    std_error: jax.Array
    base: jax.Array


def local_energy(
    objective: Callable[[Any, Any], jax.Array],
    params: Any,
    data: Any,
    key: jax.Array | int,
    *,
    sigma: float | jax.Array,
    num_samples: int = 100,
    kind: Literal["multiplicative", "additive"] = "multiplicative",
    mask: Mask | None = None,
    batch_size: int | None = None,
    sample_batch_size: int = 1,
) -> LocalEnergy:
    r"""Mean rise of an objective under Gaussian perturbations of the weights.

    .. math:: \delta E(w, \sigma) = E_z f(w + \sigma z \odot w) - f(w), \qquad z \sim N(0, I)

    (additive: :math:`w + \sigma z`). The multiplicative kind does not change when a ReLU network's
    layers are rescaled against each other; the additive kind does. The paper's f is the training
    error rate; any scalar function will do, differentiable or not. On a quadratic with Hessian H at
    its minimum the local energy is :math:`\frac{\sigma^2}{2} \sum_i H_{ii} w_i^2`.

    Each draw z is made once and serves every sigma and every chunk of data. The draws come from a
    counter-based hash with the moments of the normal distribution (see
    ``entropix._hash_normal``), whose cost is a few per cent of a forward pass.

    Args:
      objective: f(params, batch) -> scalar, a mean over the examples of the batch. Compiled once
        for each function object: pass the same one each time.
      params: w, a pytree of float arrays.
      data: a pytree of arrays with one leading axis of n examples.
      key: an integer seed or a key of ``jax.random.key``.
      sigma: noise level, a number or an array of them; relative to each weight, or in units of the
        weights with ``kind="additive"``. At least 0.
      num_samples: draws of z. At least 2, default 100.
      kind: ``"multiplicative"`` (default) or ``"additive"``.
      mask: the leaves to perturb: a pytree prefix of ``params`` with boolean leaves, or a function
        of a leaf's path (a tuple of ``jax.tree_util`` keys) to a boolean. Default all.
      batch_size: examples evaluated at once. Default all n.
      sample_batch_size: draws evaluated at once, each with a perturbed copy of the parameters.
        Default 1.

    Returns:
      A `LocalEnergy`.

    Raises:
      TypeError: a parameter is not a float array, or an argument is not a number.
      ValueError: a parameter is not finite, ``data`` is empty or uneven, the objective is not
        scalar, ``sigma`` is negative, ``kind`` is unknown, ``num_samples`` is below 2, or the mask
        does not fit.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> error = lambda w, x: jnp.mean((x @ w) ** 2) / 2
      >>> answer = local_energy(
      ...     error, jnp.ones(2), jnp.eye(2), jax.random.key(0), sigma=jnp.array([0.0, 0.1])
      ... )
      >>> answer.mean.shape, float(answer.mean[0]), float(answer.base)
      ((2,), 0.0, 0.5)

    Reference:
      Pittorino et al., Entropic gradient descent algorithms and wide flat minima, ICLR 2021,
      section 5.
    """
    warn_if_backend_is_faulty()
    check_problem(objective, params, data, batch_size)
    check_key(key)
    check_number("sigma", sigma, at_least=0)
    check_integer("num_samples", num_samples, at_least=2)
    check_integer("sample_batch_size", sample_batch_size, at_least=1)
    if kind not in ("multiplicative", "additive"):
        raise ValueError(f"kind must be 'multiplicative' or 'additive', got {kind!r}")
    perturbed = tuple(jax.tree.leaves(full_mask(mask, params)))
    if not any(perturbed):
        raise ValueError(f"mask must choose at least one leaf of params, got {mask!r}")
    return _local_energy(
        objective,
        params,
        data,
        fresh_key(key),
        jnp.asarray(sigma, jnp.result_type(float)),
        num_samples=num_samples,
        kind=kind,
        perturbed=perturbed,
        batch_size=batch_size,
        sample_batch_size=sample_batch_size,
    )


@functools.partial(
    jax.jit,
    static_argnames=(
        "objective", "num_samples", "kind", "perturbed", "batch_size", "sample_batch_size"
    ),
)  # fmt: skip
def _local_energy(
    objective: Callable[[Any, Any], jax.Array],
    params: Any,
    data: Any,
    key: jax.Array,
    sigma: jax.Array,
    *,
    num_samples: int,
    kind: str,
    perturbed: tuple[bool, ...],
    batch_size: int | None,
    sample_batch_size: int,
) -> LocalEnergy:
    """The compiled part of `local_energy`."""
    leaves, structure = jax.tree.flatten(params)

    def value(leaves: list[jax.Array]) -> jax.Array:
        weights = jax.tree.unflatten(structure, leaves)
        return mean_over_chunks(lambda batch: objective(weights, batch), data, batch_size)

    base = value(leaves)

    def rises(key: jax.Array) -> jax.Array:
        chosen = [leaf for leaf, is_chosen in zip(leaves, perturbed, strict=True) if is_chosen]
        scale = chosen if kind == "multiplicative" else [jnp.ones_like(leaf) for leaf in chosen]
        displacement = jax.tree.map(jnp.multiply, normal_like(key, chosen), scale)

        def rise(level: jax.Array) -> jax.Array:
            moves = iter(displacement)
            return (
                value(
                    [
                        leaf + level.astype(leaf.dtype) * next(moves) if is_chosen else leaf
                        for leaf, is_chosen in zip(leaves, perturbed, strict=True)
                    ]
                )
                - base
            )

        return jax.lax.map(rise, sigma.ravel())

    keys = jax.random.split(key, num_samples)
    sampled = map_probes(rises, keys, sample_batch_size)
    return LocalEnergy(
        sigma=sigma,
        mean=jnp.mean(sampled, 0).reshape(sigma.shape),
        std_error=(jnp.std(sampled, 0, ddof=1) / num_samples**0.5).reshape(sigma.shape),
        base=base,
    )
