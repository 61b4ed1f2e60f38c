"""Parle: replicas of Entropy-SGD that meet once per outer step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from entropix._checks import check_number
from entropix.transforms._entropy_descent import descent
from entropix.transforms._entropy_sgd import sgd_loop
from entropix.transforms._langevin import at
from entropix.transforms._replica_axes import replica_axes


class CoupleAveragesState(NamedTuple):
    """State of the coupling of `parle`'s outer step.

    Attributes:
      step: number t of outer steps made. # shape=(), dtype=int32
    """

    step: jax.Array


def _couple_averages(
    rho: optax.ScalarOrSchedule, axis: int | None, axis_name: str | tuple[str, ...] | None
) -> optax.GradientTransformation:
    """Adds rho (x - r) to the direction x - mu, with r the mean of mu over the replicas."""
    check_number("rho", rho, at_least=0)
    replicas = replica_axes(axis, axis_name)

    def init_fn(params: optax.Params) -> CoupleAveragesState:
        replicas.check_stack(params, at_least=1)
        return CoupleAveragesState(step=jnp.zeros([], jnp.int32))

    def update_fn(
        updates: optax.Updates, state: CoupleAveragesState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, CoupleAveragesState]:
        replicas.check_stack(params, at_least=1)
        replicas.check_names(at_least=1)
        mu = jax.tree.map(lambda x, d: x - d.astype(x.dtype), params, updates)
        r = jax.lax.optimization_barrier(replicas.mean(mu))
        strength = at(rho, state.step)
        updates = jax.tree.map(
            lambda d, x, c: d + jnp.asarray(strength, d.dtype) * (x - c).astype(d.dtype),
            updates, params, r,
        )  # fmt: skip
        return updates, CoupleAveragesState(optax.safe_increment(state.step))

    return optax.GradientTransformation(init_fn, update_fn)


def parle(
    learning_rate: optax.ScalarOrSchedule = 1.0,
    *,
    gamma: optax.ScalarOrSchedule = 1e-2,
    rho: optax.ScalarOrSchedule = 0.3,
    inner_learning_rate: optax.ScalarOrSchedule = 0.1,
    inner_steps: int | jax.Array = 25,
    noise: optax.ScalarOrSchedule = 0.0,
    ema_decay: optax.ScalarOrSchedule = 0.75,
    momentum: float | jax.Array | None = None,
    inner_momentum: float | jax.Array | None = 0.9,
    nesterov: bool = True,
    weight_decay: float | jax.Array = 0.0,
    debias: bool = False,
    reset_inner: bool = False,
    opaque: bool = False,
    key: jax.Array | int = 0,
    accumulator_dtype: Any = None,
    axis: int | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Parle: y replicas of Entropy-SGD whose outer steps pull them toward each other.

    `entropy_descent` with the inner loop of `entropy_sgd`, which gives each replica its own running
    average :math:`\mu^a`, and then

    .. math:: r &= \frac{1}{y} \sum_a \mu^a \\ d^a &= (x^a - \mu^a) + \rho_t (x^a - r) \\
              x^a &\leftarrow x^a - \eta \, \mathrm{momentum}(d^a)

    Replicas meet once in L gradients, and nothing travels between devices otherwise. Evaluate at
    the mean over the replicas of ``eval_params(opt_state, params)``. With rho = 0 and one replica
    it is `entropy_sgd`.

    `entropix.scoping.parle_schedules` has the growth of gamma and rho in the released code. That
    code has an outer momentum of 0.9, and in its last version the last iterate for the average,
    ``ema_decay=0``; an earlier one has 0.75.

    Args:
      learning_rate: eta, step size of x, a number or a schedule of the outer step. Default 1.
      gamma: coupling of x' to x, in units of 1 / parameter^2 (the inverse of the paper's gamma), a
        number or a schedule of the outer step. At least 0. Default 1e-2, the first value of the
        released code.
      rho: pull toward the other replicas relative to that toward the own average, without unit
        (the inverse of the paper's rho), a number or a schedule of the outer step. At least 0,
        default 0.3. Above 2 over the learning rate the replicas overshoot each other and diverge,
        with momentum earlier (`entropix.scoping.largest_stable_gamma`).
      inner_learning_rate: eta', step size of x', a number or a schedule of the outer step. Default
        0.1.
      inner_steps: L, gradients per outer step and between couplings. Default 25.
      noise: epsilon, thermal noise: each inner step adds noise of standard deviation sqrt(eta')
        epsilon. A number or a schedule of the outer step. At least 0, default 0.
      ema_decay: alpha, the weight of the old average, 0 <= alpha < 1, a number or a schedule of the
        inner step. Default 0.75.
      momentum: decay of the outer momentum, or None. Default None, for which `entropy_sgd` gives
        the reason.
      inner_momentum: decay of the inner momentum, or None. Default 0.9.
      nesterov: whether both momenta are Nesterov's. Default True.
      weight_decay: lambda, inside the inner momentum. Default 0.
      debias: whether to divide x - mu by 1 - alpha^L, which takes the start x out of the average.
        Default False.
      reset_inner: whether the inner momentum starts from 0 at every outer step. Default False: it
        goes on.
      opaque: whether one ``update`` is a whole outer step, as in `entropy_descent_with_grad_fn`.
        Default False.
      key: an integer seed or a key of ``jax.random.key``, for the noise. Default 0.
      accumulator_dtype: dtype of the running average; None (the default) means that of the
        parameters.
      axis: the axis of every leaf along which the replicas are stacked. One replica is accepted.
      axis_name: name, or tuple of names, of the mapped axes along which the replicas lie. One
        replica is accepted.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with state `EntropyDescentState`.

    Raises:
      TypeError: an argument or a parameter is of the wrong type.
      ValueError: an argument is out of its range; neither ``axis`` nor ``axis_name`` is given; the
        leaves do not share the axis; ``update`` without params.

    Examples:
      Two replicas with different minima meet between them:

      >>> import jax, jax.numpy as jnp, optax, entropix
      >>> data = jnp.array([1.0, 3.0])
      >>> tx = entropix.parle(gamma=0.1, rho=1.0, inner_steps=5, momentum=None, axis=0)
      >>> x = jnp.zeros(2)
      >>> state = tx.init(x)
      >>> step = jax.jit(tx.update)
      >>> for _ in range(500):
      ...     updates, state = step(0.1 * (x - data), state, x)
      ...     x = optax.apply_updates(x, updates)
      >>> print(f"{entropix.eval_params(state, x).mean():.3f}")
      2.000

    Reference:
      Chaudhari et al., `Parle: parallelizing stochastic gradient descent
      <https://arxiv.org/abs/1707.00424>`_, SysML 2018, and the released code.
    """
    check_number("learning_rate", learning_rate, at_least=0)
    loop = sgd_loop(
        inner_learning_rate,
        inner_steps=inner_steps,
        gamma=gamma,
        noise=noise,
        ema_decay=ema_decay,
        momentum=inner_momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        debias=debias,
        reset_inner=reset_inner,
        key=key,
        accumulator_dtype=accumulator_dtype,
        replicas=replica_axes(axis, axis_name),
    )
    outer = optax.chain(
        _couple_averages(rho, axis, axis_name),
        optax.sgd(learning_rate, momentum=momentum, nesterov=nesterov),
    )
    return descent(outer, loop, opaque=opaque)
