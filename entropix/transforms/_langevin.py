"""Langevin noise, and stochastic gradient Langevin dynamics made with it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from entropix._checks import check_float_leaves, check_number
from entropix._hash_normal import normal_like
from entropix._keys import check_key, replica_key


class LangevinNoiseState(NamedTuple):
    """State of `langevin_noise`.

    Attributes:
      step: number of updates made.
      key: the key that the noise of every step is derived from.
    """

    step: Int[Array, ""]
    key: Key[Array, ""]


def at(hyperparameter: optax.ScalarOrSchedule, step: jax.Array) -> Any:
    """The value of a hyper-parameter, which may be a schedule, at a step."""
    return hyperparameter(step) if callable(hyperparameter) else hyperparameter


def add_noise(tree: Any, key: jax.Array, std: Any, params: Any = None) -> Any:
    """``tree + std * N(0, I)`` in each leaf's dtype; a ``std`` known to be 0 costs nothing."""
    if isinstance(std, (int, float)) and std == 0:
        return tree
    noise = normal_like(key, tree, params)
    return jax.tree.map(lambda leaf, z: leaf + jnp.asarray(std, leaf.dtype) * z, tree, noise)


def langevin_noise(
    std: optax.ScalarOrSchedule, *, key: jax.Array | int = 0
) -> optax.GradientTransformation:
    r"""Adds Gaussian noise to the updates.

    .. math:: u_t \leftarrow u_t + s_t z_t, \qquad z_t \sim N(0, I)

    Put it last in a chain, after the learning rate and outside every momentum. The noise of step t
    is a function of the key, t and the path of the leaf in the tree, so a resumed run repeats it
    bit for bit, and the groups of ``optax.partition`` draw different numbers from one key. Two of
    these transforms in one chain need two keys. The numbers come from a counter-based hash that
    costs a small fraction of ``jax.random.normal``.

    Replicas draw different noise from one key wherever the transform can tell that they are
    replicas: stacked on an axis of the leaves, under ``vmap`` of ``init`` or ``update``, and under
    ``shard_map`` with ``check_vma`` along the axes along which the parameters vary. Copies of one
    network, along axes along which the parameters do not vary, draw the same. Under ``pmap``, and
    under ``shard_map`` without ``check_vma``, nothing tells the two apart, and all draw the same
    from one key: make the states of replicas by `entropix.replicas.stack_states`, or give each a
    key, ``jax.pmap(lambda key, x: langevin_noise(std, key=key).init(x))(keys, params)``.

    Args:
      std: standard deviation s_t per coordinate, in units of the parameters, or a schedule of the
        number of updates made. At least 0.
      key: an integer seed or a key of ``jax.random.key``. Default 0.

    Returns:
      An ``optax.GradientTransformation`` with state `LangevinNoiseState`.

    Raises:
      TypeError: ``std`` is not a number or schedule, ``key`` is not a key, or a parameter is not a
        float.
      ValueError: ``std`` is negative or not finite.

    Examples:
      >>> import jax.numpy as jnp, optax, entropix
      >>> tx = optax.chain(optax.sgd(0.1), entropix.langevin_noise(0.01, key=1))
      >>> params = {"w": jnp.ones(3)}
      >>> updates, state = tx.update({"w": jnp.zeros(3)}, tx.init(params), params)
      >>> bool(jnp.all(updates["w"] != 0))
      True

    Reference:
      Welling and Teh, Bayesian Learning via Stochastic Gradient Langevin Dynamics, ICML 2011.
    """
    check_number("std", std, at_least=0)
    check_key(key)

    def init_fn(params: optax.Params) -> LangevinNoiseState:
        check_float_leaves("params", params)
        return LangevinNoiseState(step=jnp.zeros([], jnp.int32), key=replica_key(key, params))

    def update_fn(
        updates: optax.Updates, state: LangevinNoiseState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, LangevinNoiseState]:
        step_key = jax.random.fold_in(state.key, state.step)
        noisy = add_noise(updates, step_key, at(std, state.step), params)
        return noisy, LangevinNoiseState(optax.safe_increment(state.step), state.key)

    return optax.GradientTransformation(init_fn, update_fn)


def sgld(
    learning_rate: optax.ScalarOrSchedule,
    *,
    temperature: optax.ScalarOrSchedule = 1e-5,
    key: jax.Array | int = 0,
) -> optax.GradientTransformation:
    r"""Stochastic gradient Langevin dynamics.

    .. math:: x \leftarrow x - \eta \nabla f(x) + \sqrt{2 \eta T} \, z, \qquad z \sim N(0, I)

    With small steps and exact gradients it samples :math:`p(x) \propto e^{-f(x)/T}`. Here f is what
    the gradients passed to ``update`` are the gradients of: with the mean loss over n examples, the
    posterior of Welling and Teh is T = 1/n, and their step size is :math:`\epsilon = 2 \eta / n`.

    Args:
      learning_rate: :math:`\eta`, a number or a schedule of the number of updates made. At least 0.
      temperature: T, a number or a schedule of the number of updates made. At least 0, default
        1e-5, which trains a network on a mean loss to the error of SGD; T = 1 only shakes it. To
        sample the posterior of n examples give 1/n.
      key: an integer seed or a key of ``jax.random.key``. Default 0.

    Returns:
      An ``optax.GradientTransformation``.

    Raises:
      TypeError: an argument is not a number or schedule, or ``key`` is not a key.
      ValueError: ``learning_rate`` or ``temperature`` is negative or not finite.

    Examples:
      Samples of a Gaussian of variance 0.5, from the quadratic f(x) = x**2:

      >>> import jax, jax.numpy as jnp, optax, entropix
      >>> tx = entropix.sgld(0.01, temperature=1.0)
      >>> def step(carry, _):
      ...     x, state = carry
      ...     updates, state = tx.update(2 * x, state)
      ...     return (optax.apply_updates(x, updates), state), x
      >>> x = jnp.zeros(1000)
      >>> _, samples = jax.lax.scan(step, (x, tx.init(x)), length=500)
      >>> print(f"{samples[400:].var():.1f}")
      0.5

    Reference:
      Welling and Teh, Bayesian Learning via Stochastic Gradient Langevin Dynamics, ICML 2011, eq.
      (4).
    """
    check_number("learning_rate", learning_rate, at_least=0)
    check_number("temperature", temperature, at_least=0)

    def std(step: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.asarray(2.0 * at(learning_rate, step) * at(temperature, step)))

    return optax.chain(optax.scale_by_learning_rate(learning_rate), langevin_noise(std, key=key))
