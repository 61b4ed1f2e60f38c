"""The training signal of each layer at fixed weights, and its temperature."""

import functools
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from entropix._canary import warn_if_backend_is_faulty
from entropix._checks import check_integer
from entropix.flatness._chunks import num_examples
from entropix.flatness._problem import check_inputs, check_scalar, examples
from entropix.flatness._programs import hoist
from entropix.flatness._vectors import vectors_like

Loss = Callable[[Any, Any], jax.Array]


class LayerTemperature(NamedTuple):
    """Answer of `layer_temperature`, each a dictionary from group to a number.

    Attributes:
      signal: mean over the mini-batches of the training signal s_I.
      signal_std_error: its standard error.
      temperature: standard deviation of s_I over the mini-batches.
      temperature_std_error: its standard error.
    """

    signal: dict[Hashable, jax.Array]
    signal_std_error: dict[Hashable, jax.Array]
    temperature: dict[Hashable, jax.Array]
    temperature_std_error: dict[Hashable, jax.Array]


def layer_of(path: tuple[Any, ...]) -> str:
    """The default group of a parameter: the path to the module that holds it."""
    return jax.tree_util.keystr(path[:-1] or path)


def layer_temperature(
    loss: Loss,
    params: Any,
    data: Any,
    *,
    minibatch_size: int,
    group: Callable[[tuple[Any, ...]], Hashable | None] = layer_of,
    minibatches_at_once: int = 1,
) -> LayerTemperature:
    r"""Measures the training signal of each layer and its temperature, at fixed weights.

    .. math:: s_I(B) = \frac{1}{N_I} \sum_{i \in I} |\partial_i f(w; B)|, \qquad
        \text{signal}_I = \langle s_I \rangle_B, \qquad
        T_I = \sqrt{\langle s_I^2 \rangle_B - \langle s_I \rangle_B^2}

    over mini-batches B of consecutive examples, N_I parameters i in the group I. The paper takes
    the batches of an epoch of training, while the weights move; near the end of training, when
    they move little, the two agree.

    Args:
      loss: f(params, batch), the mean over the batch; a scalar.
      params: w, a pytree of floating-point arrays.
      data: a pytree of arrays with one leading axis of n examples, in random order.
      minibatch_size: b, examples in a mini-batch. At most n / 2; n mod b examples are left over.
      group: function of a parameter's path (as of ``jax.tree_util.tree_map_with_path``) to its
        group, a string if groups are to be mixed with others, or None to leave it out. Default:
        the path to the module that holds it, so kernel and bias make one layer. The paper leaves
        the biases out.
      minibatches_at_once: mini-batches looked at together. Default 1, the least memory.

    Returns:
      A `LayerTemperature`; T with the unbiased variance.

    Raises:
      TypeError: an argument or a parameter is of the wrong type.
      ValueError: an argument is out of its range, ``loss`` is not a scalar, ``data`` is empty or
        its leaves differ in length, ``params`` is not finite, or no parameter is in a group.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from entropix.flatness import layer_temperature
      >>> params = {"dense": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}}
      >>> x = jax.random.normal(jax.random.key(0), (100, 3))
      >>> def f(params, x):
      ...     return jnp.mean((x @ params["dense"]["kernel"] + params["dense"]["bias"]) ** 2)
      >>> found = layer_temperature(f, params, x, minibatch_size=10)
      >>> list(found.temperature)
      ["['dense']"]

    Reference:
      Musso, `Partial local entropy and anisotropy in deep weight spaces
      <https://arxiv.org/abs/2007.09091>`_, Phys. Rev. E 103, 2021, eq. (2).
    """
    warn_if_backend_is_faulty()
    check_inputs(params, data, None)
    check_integer("minibatch_size", minibatch_size, at_least=1)
    check_integer("minibatches_at_once", minibatches_at_once, at_least=1)
    if num_examples(data) < 2 * minibatch_size:
        raise ValueError(
            f"minibatch_size must be at most half of the {num_examples(data)} examples, "
            f"got {minibatch_size}"
        )
    program = hoist(loss, params, examples(data, minibatch_size))
    check_scalar(program.program.answer)
    groups = tuple(group(path) for path, _ in jax.tree.leaves_with_path(params))
    if all(name is None for name in groups):
        raise ValueError("group must put at least one parameter in a group, got None for all")
    return _layer_temperature(program, params, data, groups, minibatch_size, minibatches_at_once)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _layer_temperature(
    loss: Loss,
    params: Any,
    data: Any,
    groups: tuple[Hashable | None, ...],
    minibatch_size: int,
    minibatches_at_once: int,
) -> LayerTemperature:
    num_batches = num_examples(data) // minibatch_size
    batches = jax.tree.map(
        lambda x: jnp.asarray(x)[: num_batches * minibatch_size].reshape(
            num_batches, minibatch_size, *x.shape[1:]
        ),
        data,
    )
    dtype = vectors_like(params).dtype

    def signals(batch: Any) -> dict[Hashable, jax.Array]:
        totals: dict[Hashable, jax.Array] = {}
        sizes: dict[Hashable, int] = {}
        leaves = jax.tree.leaves(jax.grad(loss)(params, batch))
        for name, leaf in zip(groups, leaves, strict=True):
            if name is not None:
                size = jnp.sum(jnp.abs(leaf.astype(dtype)))
                totals[name] = totals.get(name, jnp.zeros_like(size)) + size
                sizes[name] = sizes.get(name, 0) + leaf.size
        return {name: total / sizes[name] for name, total in totals.items()}

    seen = jax.lax.map(signals, batches, batch_size=minibatches_at_once)
    signal = jax.tree.map(jnp.mean, seen)
    temperature = jax.tree.map(lambda s: jnp.std(s, ddof=1), seen)

    def temperature_error(s: jax.Array, std: jax.Array) -> jax.Array:
        """That of a standard deviation, from the spread of the squared deviations."""
        spread = jnp.std((s - jnp.mean(s)) ** 2, ddof=1) / num_batches**0.5
        return spread / jnp.where(std > 0, 2 * std, 1)

    return LayerTemperature(
        signal,
        jax.tree.map(lambda std: std / num_batches**0.5, temperature),
        temperature,
        jax.tree.map(temperature_error, seen, temperature),
    )
