"""Elastic-averaging SGD: replicas on springs to a center that follows them."""

import jax
import optax

from entropix._checks import check_number
from entropix.transforms._coupling import couple_replicas
from entropix.transforms._exchange import Compression


def elastic_sgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    gamma: optax.ScalarOrSchedule = 0.1,
    center_rate: optax.ScalarOrSchedule = 0.9,
    every: int | jax.Array = 10,
    momentum: float | jax.Array | None = None,
    nesterov: bool = True,
    weight_decay: float | jax.Array = 0.0,
    compression: Compression | None = None,
    axis: int | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> optax.GradientTransformation:
    r"""Elastic-averaging SGD (EASGD), with momentum EAMSGD: `couple_replicas` to a moving center.

    On every step t = 0 mod K, with the velocity v = 0 without momentum,

    .. math:: \tilde x &\leftarrow (1 - \beta) \tilde x + \beta \bar x \\
              x^a &\leftarrow x^a - \eta \, (\nabla f(x^a) + v^a) - \eta K \gamma (x^a - \tilde x)

    and plain SGD on the others. The elastic force stays outside the velocity. The paper's moving
    rate is :math:`\alpha = \eta K \gamma` (`entropix.scoping.from_easgd`), and its choice of beta
    is alpha times the number of replicas. The paper moves weights and center at once, each by the
    other's old value; here the center moves first, so that K = 1, beta = 1 is `replicated_sgd`
    without momentum.

    Evaluate at the mean of the replicas, or at the ``center`` of the state,
    ``optax.tree.get(opt_state, "center")``.

    Args:
      learning_rate: eta, a number or a schedule of the number of updates made.
      gamma: coupling, in units of 1 / parameter^2: rho of the paper over K. A number or a schedule
        of the number of updates made. At least 0, default 0.1, as in `replicated_sgd`.
      center_rate: beta, the weight of the mean in the moving center, a number or a schedule of the
        number of updates made. From 0 to 1, default 0.9.
      every: K, steps between couplings; tau of the paper. Default 10.
      momentum: delta, decay of the velocity (0.99 in the paper's EAMSGD), or None. Default None.
      nesterov: whether the momentum is Nesterov's, the paper's. The weights that the loop holds are
        then the shifted ones, and the force is taken there. Default True.
      weight_decay: lambda, inside the momentum. Default 0.
      compression: how differences to the center travel, as in `couple_replicas`. Default None.
      axis: the axis of every leaf along which the replicas are stacked.
      axis_name: name, or tuple of names, of the mapped axes along which the replicas lie.

    Returns:
      An ``optax.GradientTransformation``.

    Raises:
      TypeError: an argument or a parameter is of the wrong type.
      ValueError: an argument is out of its range; neither ``axis`` nor ``axis_name`` is given; the
        leaves do not share the axis; ``update`` without params.

    Examples:
      Two replicas with different minima stay between them, and so does the center:

      >>> import jax.numpy as jnp, optax, entropix
      >>> data = jnp.array([1.0, 3.0])
      >>> tx = entropix.elastic_sgd(0.1, gamma=2.0, center_rate=0.5, every=1, axis=0)
      >>> x = jnp.zeros(2)
      >>> state = tx.init(x)
      >>> for _ in range(200):
      ...     updates, state = tx.update(2 * (x - data), state, x)
      ...     x = optax.apply_updates(x, updates)
      >>> print(f"{x[0]:.2f} {x[1]:.2f} {optax.tree.get(state, 'center')[0]:.2f}")
      1.50 2.50 2.00

    Reference:
      Zhang, Choromanska and LeCun, `Deep learning with Elastic Averaging SGD
      <https://arxiv.org/abs/1412.6651>`_, NeurIPS 2015.
    """
    check_number("learning_rate", learning_rate, at_least=0)
    check_number("weight_decay", weight_decay, at_least=0)
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.identity() if momentum is None else optax.trace(momentum, nesterov),
        couple_replicas(
            gamma,
            every=every,
            center="moving",
            center_rate=center_rate,
            compression=compression,
            axis=axis,
            axis_name=axis_name,
        ),
        optax.scale_by_learning_rate(learning_rate),
    )
