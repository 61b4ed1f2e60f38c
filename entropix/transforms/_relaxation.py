"""The steps of the Deep Relaxation paper, as choices of average in `entropy_descent`."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from entropix._checks import check_number
from entropix.transforms._entropy_descent import descent
from entropix.transforms._entropy_sgd import sgd_loop


def plain_average(inner_step: Any) -> jax.Array:
    r"""The ``ema_decay`` that makes mu the plain average of the start and all inner iterates.

    .. math:: \alpha_l = \frac{l + 1}{l + 2}, \qquad
              \mu_L = \frac{1}{L + 1} \Big( x + \sum_{l=1}^{L} x'_l \Big)

    Args:
      inner_step: l, counted from 0.

    Returns:
      The weight of the old average.

    Examples:
      >>> print(plain_average(0), plain_average(2))
      0.5 0.75

    Reference:
      Chaudhari et al., Deep relaxation, 2017, released code.
    """
    inner_step = jnp.asarray(inner_step, float)
    return (inner_step + 1) / (inner_step + 2)


def heat_sgd(
    learning_rate: optax.ScalarOrSchedule = 1.0,
    *,
    gamma: optax.ScalarOrSchedule = 1e-4,
    inner_learning_rate: optax.ScalarOrSchedule = 0.1,
    inner_steps: int | jax.Array = 20,
    noise: optax.ScalarOrSchedule = 0.0,
    momentum: float | jax.Array | None = None,
    inner_momentum: float | jax.Array | None = 0.9,
    nesterov: bool = True,
    weight_decay: float | jax.Array = 0.0,
    opaque: bool = False,
    key: jax.Array | int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""HEAT of the Deep Relaxation code: Entropy-SGD with a plain average of the iterates.

    .. math:: \mu = \frac{1}{L + 1} \Big( x + \sum_{l=1}^{L} x'_l \Big), \qquad
              x \leftarrow x - \eta \, \mathrm{momentum}(x - \mu)

    with the inner loop of `entropy_sgd`. `entropix.losses.gaussian_smoothed_loss` is the loss
    convolved with a Gaussian, the solution of the heat equation itself.

    Args:
      learning_rate: eta, step size of x, a number or a schedule of the outer step. Default 1.
      gamma: coupling, in units of 1 / parameter^2; one over the smoothing time of the paper
        (`entropix.scoping.from_deep_relaxation`). At least 0, default 1e-4, that of `entropy_sgd`.
      inner_learning_rate: eta', step size of x', a number or a schedule of the outer step. Default
        0.1.
      inner_steps: L, gradients per outer step. Default 20.
      noise: epsilon, thermal noise: each inner step adds noise of standard deviation sqrt(eta')
        epsilon. A number or a schedule of the outer step. At least 0, default 0.
      momentum: decay of the outer momentum, or None. Default None.
      inner_momentum: decay of the inner momentum, or None. Default 0.9.
      nesterov: whether both momenta are Nesterov's. Default True.
      weight_decay: lambda, inside the inner momentum. Default 0.
      opaque: whether one ``update`` is a whole outer step, as in `entropy_descent_with_grad_fn`.
        Default False.
      key: an integer seed or a key of ``jax.random.key``, for the noise. Default 0.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with state `EntropyDescentState`.

    Raises:
      TypeError: an argument or a parameter is of the wrong type.
      ValueError: an argument is out of its range; ``update`` without params.

    Examples:
      One outer step of two inner ones, from 1 through 0.5 to 0.25, ends at their mean:

      >>> import jax.numpy as jnp, optax, entropix
      >>> tx = entropix.heat_sgd(
      ...     gamma=0.0, inner_learning_rate=0.5, inner_steps=2, inner_momentum=None
      ... )
      >>> x = jnp.ones(1)
      >>> state = tx.init(x)
      >>> for _ in range(2):
      ...     updates, state = tx.update(x, state, x)
      ...     x = optax.apply_updates(x, updates)
      >>> print(x)
      [0.5833334]

    Reference:
      Chaudhari et al., `Deep relaxation: partial differential equations for optimizing deep neural
      networks <https://arxiv.org/abs/1704.04932>`_, 2017, and its released code.
    """
    check_number("learning_rate", learning_rate, at_least=0)
    loop = sgd_loop(
        inner_learning_rate,
        inner_steps=inner_steps,
        gamma=gamma,
        noise=noise,
        ema_decay=plain_average,
        momentum=inner_momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        key=key,
    )
    outer = optax.sgd(learning_rate, momentum=momentum, nesterov=nesterov)
    return descent(outer, loop, opaque=opaque)


def hopf_lax_sgd(
    learning_rate: optax.ScalarOrSchedule = 1.0,
    *,
    gamma: optax.ScalarOrSchedule = 1e-4,
    inner_learning_rate: optax.ScalarOrSchedule = 0.25,
    inner_steps: int | jax.Array = 20,
    momentum: float | jax.Array | None = None,
    inner_momentum: float | jax.Array | None = None,
    nesterov: bool = True,
    weight_decay: float | jax.Array = 0.0,
    opaque: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""The Hopf-Lax (proximal) step: down the loss relaxed by the Hamilton-Jacobi equation.

    .. math:: u(x) = \min_{x'} f(x') + \frac{\gamma}{2} |x - x'|^2, \qquad
              \nabla u(x) = \gamma (x - x'^*), \qquad x \leftarrow x - \eta (x - x'_L)

    L inner steps of SGD without noise look for that minimum, and their last iterate stands for
    it; the weight decay and the pull are part of what they minimize. At eta = 1 it is the proximal
    point method.

    Args:
      learning_rate: eta, step size of x, a number or a schedule of the outer step. Default 1.
      gamma: coupling, in units of 1 / parameter^2; one over the time of the paper
        (`entropix.scoping.from_deep_relaxation`). At least 0, default 1e-4, that of `entropy_sgd`.
      inner_learning_rate: eta' of the inner loop, a number or a schedule of the outer step. Default
        0.25, that of the released code.
      inner_steps: L, gradients per outer step. Default 20.
      momentum: decay of the outer momentum, or None. Default None.
      inner_momentum: decay of the inner momentum, or None. Default None.
      nesterov: whether both momenta are Nesterov's. Default True.
      weight_decay: lambda, inside the inner momentum. Default 0.
      opaque: whether one ``update`` is a whole outer step, as in `entropy_descent_with_grad_fn`.
        Default False.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with state `EntropyDescentState`.

    Raises:
      TypeError: an argument or a parameter is of the wrong type.
      ValueError: an argument is out of its range; ``update`` without params.

    Examples:
      The proximal point of x'^2 / 2 from x = 1 with gamma = 1 is 1 / 2:

      >>> import jax.numpy as jnp, optax, entropix
      >>> tx = entropix.hopf_lax_sgd(gamma=1.0, inner_steps=20)
      >>> x = jnp.ones(1)
      >>> state = tx.init(x)
      >>> for _ in range(20):
      ...     updates, state = tx.update(x, state, x)
      ...     x = optax.apply_updates(x, updates)
      >>> print(x.round(5))
      [0.5]

    Reference:
      Chaudhari et al., `Deep relaxation: partial differential equations for optimizing deep neural
      networks <https://arxiv.org/abs/1704.04932>`_, 2017, and its released code (HJB).
    """
    check_number("learning_rate", learning_rate, at_least=0)
    loop = sgd_loop(
        inner_learning_rate,
        inner_steps=inner_steps,
        gamma=gamma,
        noise=0.0,
        ema_decay=0.0,
        momentum=inner_momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
    )
    outer = optax.sgd(learning_rate, momentum=momentum, nesterov=nesterov)
    return descent(outer, loop, opaque=opaque)
