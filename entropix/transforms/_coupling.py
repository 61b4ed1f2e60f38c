"""Replicated SGD: several copies of a network, pulled toward their mean, and pushed from it."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from entropix._canary import warn_if_backend_is_faulty
from entropix._checks import check_below, check_float_leaves, check_integer, check_number, required
from entropix.transforms._average_updates import checked
from entropix.transforms._branch import apply_when
from entropix.transforms._exchange import Compression, Exchange
from entropix.transforms._langevin import at
from entropix.transforms._replica_axes import replica_axes


class CoupleReplicasState(NamedTuple):
    """State of `couple_replicas`.

    Attributes:
      step: number t of updates made, one count for all stacked replicas.
      center: the moving center, with length 1 on the stacked axis; zeros before the first coupling.
        None when the center is the mean.
      residual: what compression has taken away so far, for error feedback. None without it.
    """

    step: Int[Array, ""]
    center: PyTree | None
    residual: PyTree | None = None


def couple_replicas(
    gamma: optax.ScalarOrSchedule,
    *,
    every: int | jax.Array = 1,
    phase: int | jax.Array = 0,
    center: Literal["mean", "moving"] = "mean",
    center_rate: optax.ScalarOrSchedule = 0.9,
    push: optax.ScalarOrSchedule = 0.0,
    compression: Compression | None = None,
    axis: int | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> optax.GradientTransformation:
    r"""Adds to each replica's gradient the pull toward the mean of all y replicas.

    .. math:: d^a \leftarrow d^a + K \gamma (x^a - \bar x), \qquad \bar x = \frac{1}{y} \sum_a x^a,
              \qquad \text{on every step } t + p \equiv 0 \pmod K

    The mean is that of the weights before the step, of the replicas whose weights are finite. Put
    it first in a chain, so that the pull goes through the momentum like the gradient:
    ``optax.chain(couple_replicas(gamma, axis=0), optax.adam(1e-3))`` is replicated Adam. Wrap it in
    ``optax.masked`` to couple some layers only.

    With ``center="moving"`` the pull is toward a center that follows the mean at each coupling,

    .. math:: \tilde x \leftarrow (1 - \beta) \tilde x + \beta \bar x, \qquad
              d^a \leftarrow d^a + K \gamma (x^a - \tilde x),

    from :math:`\tilde x = \bar x` at the first one. It moves first, so that beta = 1 is the plain
    mean. All replicas share this center, so that with ``compression`` it is the differences to it
    that travel, :math:`\bar x = \tilde x + \overline{x^a - \tilde x}`, in few bits. The first
    coupling, which has no center yet, travels in full.

    With ``push`` the replicas keep a distance from the center, so that they span a valley rather
    than meet at one of its points:

    .. math:: d^a \leftarrow d^a + K \left(\gamma - \frac{\lambda}{|x^a - \bar x|}\right)
              (x^a - \bar x), \qquad |x^a - \bar x| \to \lambda / \gamma

    where the loss is flat. The length is that over all parameters coupled here, and a replica at
    the center is not pushed. This is after DPPF, of which the abstract was read; what follows is
    our derivation. The push descends :math:`-\lambda \sum_a |x^a - \bar x|`, whose gradient has a
    second term: the mean :math:`\bar u` of the unit vectors from the center. It is left out, as it
    would have to travel between devices, as many bytes again. The gaps of a step are the same
    without it, and the center drifts by :math:`K \lambda \bar u` times the learning rate. Under
    plain SGD with learning rate :math:`\eta` on a flat loss each coupling multiplies what a gap
    lacks of :math:`\lambda / \gamma` by :math:`1 - \eta K \gamma` where :math:`\bar u = 0`, as it
    is for two replicas. More of them come to :math:`\bar u = 0` by themselves; not so an odd number
    on a line, whose center drifts on.

    Say where the replicas are by ``axis``, by ``axis_name``, or by both when some of them are
    stacked here and the rest is elsewhere. On the K - 1 uncoupled steps nothing is averaged and
    nothing travels between devices.

    Args:
      gamma: coupling of the paper, in units of 1 / parameter^2, or a schedule of the number of
        updates made. At least 0. `entropix.scoping` has schedules, the units of other papers,
        and the largest gamma that is stable.
      every: K, steps between couplings. At least 1, default 1.
      phase: p, how far into a period the count of steps starts, 0 <= p < K, so that groups of
        parameters with other phases (`fragments`) meet at other steps. Default 0: at step 0.
      center: ``"mean"`` (default) or ``"moving"``.
      center_rate: beta, the weight of the mean in the moving center, or a schedule of the number of
        updates made. From 0 to 1, default 0.9.
      push: lambda, the push away from the center, in units of 1 / parameter, or a schedule of the
        number of updates made. At least 0. Default 0: none, at no cost. ``push / gamma`` is the
        distance from the center to aim at.
      compression: how differences to the moving center travel, a `Compression`, or None (default)
        for the weights in full.
      axis: the axis of every leaf along which the replicas are stacked.
      axis_name: name, or tuple of names, of the mapped axes (``vmap``, ``pmap``, ``shard_map``)
        along which the step, written for one replica, is mapped.

    Returns:
      An ``optax.GradientTransformation`` with state `CoupleReplicasState`.

    Raises:
      TypeError: an argument or a parameter is of the wrong type.
      ValueError: an argument is out of its range; ``compression`` without a moving center; neither
        ``axis`` nor ``axis_name`` is given; a leaf lacks the axis; the leaves disagree on its
        length; there is one replica only; the name is of no mapped axis; ``update`` without params.

    Examples:
      Two replicas of one weight, without a gradient, meet at their mean:

      >>> import jax.numpy as jnp, optax, entropix
      >>> tx = optax.chain(entropix.couple_replicas(0.5, axis=0), optax.sgd(1.0))
      >>> x = jnp.array([0.0, 4.0])
      >>> updates, state = tx.update(jnp.zeros(2), tx.init(x), x)
      >>> optax.apply_updates(x, updates)
      Array([1., 3.], dtype=float32)

      With a push they stay where they are at a distance of ``push / gamma``:

      >>> tx = optax.chain(entropix.couple_replicas(0.5, push=1.0, axis=0), optax.sgd(1.0))
      >>> updates, state = tx.update(jnp.zeros(2), tx.init(x), x)
      >>> optax.apply_updates(x, updates)
      Array([0., 4.], dtype=float32)

    Reference:
      Pittorino et al., `Entropic gradient descent algorithms and wide flat minima
      <https://arxiv.org/abs/2006.07897>`_, ICLR 2021, Algorithm 2; Dimlioglu and Choromanska,
      `DPPF <https://arxiv.org/abs/2507.20424>`_, 2025, for ``push``.
    """
    check_number("gamma", gamma, at_least=0)
    check_number("push", push, at_least=0)
    check_integer("every", every, at_least=1)
    check_below("phase", phase, "every", every)
    check_number("center_rate", center_rate, at_least=0, at_most=1)
    if center not in ("mean", "moving"):
        raise ValueError(f"center must be 'mean' or 'moving', got {center!r}")
    moving = center == "moving"
    if checked(compression) is not None and not moving:
        raise ValueError(
            f"compression must be None with center='mean', got {compression!r}: "
            "only differences to what replicas share, center='moving', may lose bits"
        )
    replicas = replica_axes(axis, axis_name)
    exchange = Exchange(replicas, compression)

    def init_fn(params: optax.Params) -> CoupleReplicasState:
        warn_if_backend_is_faulty()
        check_float_leaves("params", params)
        replicas.check_stack(params, at_least=2)
        return CoupleReplicasState(
            step=jnp.zeros([], jnp.int32),
            center=jax.tree.map(replicas.zeros_like_mean, params) if moving else None,
            residual=exchange.init(params),
        )

    def update_fn(
        updates: optax.Updates, state: CoupleReplicasState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, CoupleReplicasState]:
        params = required(params)
        replicas.check_stack(params, at_least=2)
        replicas.check_names(at_least=2)
        coupling = at(gamma, state.step) * every

        def strengths(gaps: PyTree) -> Any:
            """What multiplies the gap of each replica: the pull, less the push over its length."""
            if isinstance(push, (int, float)) and push == 0:
                return coupling
            lengths = replicas.norm(gaps)
            pushes = jnp.asarray(at(push, state.step) * every, lengths.dtype)
            apart = lengths > 0
            pushes = jnp.where(apart, pushes / jnp.where(apart, lengths, 1), 0)
            return jnp.asarray(coupling, lengths.dtype) - pushes

        def small_mean(center: optax.Params, residual: PyTree) -> tuple[optax.Params, PyTree]:
            def by_differences(carry: PyTree) -> PyTree:
                center, residual = carry
                away = jax.tree.map(jnp.subtract, params, center)
                mean, residual = exchange.mean(away, residual)
                return jax.tree.map(jnp.add, center, mean), residual

            # A center that is not there yet, or was lost with all replicas, has no differences.
            lost = [jnp.any(~jnp.isfinite(c)) for c in jax.tree.leaves(center)]
            return jax.lax.cond(
                jnp.any(jnp.stack([state.step < every, *lost])),
                lambda carry: Exchange(replicas).mean(params, carry[1]),
                by_differences,
                (center, residual),
            )

        def moved(center: optax.Params, residual: PyTree) -> tuple[optax.Params, PyTree]:
            if compression is None:
                mean = replicas.mean(params)
            else:
                mean, residual = small_mean(center, residual)
            if not moving:
                return mean, residual
            # The first K steps hold one coupling, which sets the center.
            rate = jnp.where(state.step < every, 1.0, at(center_rate, state.step))

            def moved_leaf(c: jax.Array, m: jax.Array) -> jax.Array:
                share = rate.astype(c.dtype)
                # A center that was lost with all replicas starts again from their mean.
                return jnp.where(jnp.isfinite(c), (1 - share) * c + share * m, m)

            return jax.tree.map(moved_leaf, center, mean), residual

        def pulled(carry: PyTree) -> PyTree:
            updates, center, residual = carry
            # Without the barrier XLA on CPU computes the mean again for each replica that uses it.
            center, residual = jax.lax.optimization_barrier(moved(center, residual))
            gaps = jax.tree.map(jnp.subtract, params, center)
            strength = strengths(gaps)

            def pulled_leaf(g: jax.Array, gap: jax.Array) -> jax.Array:
                factor = jnp.asarray(strength, g.dtype)
                factor = replicas.expanded(factor, gap) if factor.ndim else factor
                return g + factor * gap.astype(g.dtype)

            updates = jax.tree.map(pulled_leaf, updates, gaps)
            return updates, center if moving else None, residual

        meets = (state.step + phase) % every == 0
        updates, center, residual = apply_when(
            meets, pulled, (updates, state.center, state.residual), in_place=False
        )
        return updates, CoupleReplicasState(optax.safe_increment(state.step), center, residual)

    return optax.GradientTransformation(init_fn, update_fn)


def replicated_sgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    gamma: optax.ScalarOrSchedule = 0.1,
    every: int | jax.Array = 10,
    momentum: float | jax.Array | None = 0.9,
    nesterov: bool = True,
    weight_decay: float | jax.Array = 0.0,
    axis: int | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> optax.GradientTransformation:
    r"""Replicated SGD: y copies of a network on their own mini-batches, coupled every K steps.

    .. math:: d^a &= \nabla f(x^a) + K \gamma (x^a - \bar x) [t \equiv 0 \bmod K] + \lambda x^a \\
              x^a &\leftarrow \mathrm{SGD}(x^a, d^a)

    The robust network to evaluate is the center :math:`\bar x`: the mean over ``axis``, with batch
    statistics recomputed by `entropix.nn.recompute_batch_stats`.

    Args:
      learning_rate: step size, a number or a schedule of the number of updates made.
      gamma: coupling, a number or a schedule of the number of updates made. At least 0. Default
        0.1, at which replicas from different initializations meet in one valley within a few
        hundred steps; it is stable for learning rates up to 0.37
        (`entropix.scoping.largest_stable_gamma`).
      every: K, steps between couplings. Default 10.
      momentum: decay of the momentum that gradient, pull and weight decay go through, or None.
        Default 0.9.
      nesterov: whether the momentum is Nesterov's. Default True.
      weight_decay: lambda, in units of 1 / parameter^2, the same for one replica as for plain SGD.
        Default 0.
      axis: the axis of every leaf along which the replicas are stacked.
      axis_name: name, or tuple of names, of the mapped axes along which the replicas lie.

    Returns:
      An ``optax.GradientTransformation``.

    Raises:
      TypeError: an argument or a parameter is of the wrong type.
      ValueError: an argument is out of its range; neither ``axis`` nor ``axis_name`` is given; the
        leaves do not share the axis; ``update`` without params.

    Examples:
      Four replicas with different data meet between their minima:

      >>> import jax, jax.numpy as jnp, optax, entropix
      >>> data = jnp.array([0.0, 1.0, 2.0, 5.0])
      >>> tx = entropix.replicated_sgd(0.1, gamma=10.0, every=1, momentum=None, axis=0)
      >>> x = jnp.zeros(4)
      >>> state = tx.init(x)
      >>> for _ in range(100):
      ...     updates, state = tx.update(2 * (x - data), state, x)
      ...     x = optax.apply_updates(x, updates)
      >>> print(f"{x.mean():.3f} {jnp.ptp(x):.2f}")
      2.000 0.83

    Reference:
      Pittorino et al., `Entropic gradient descent algorithms and wide flat minima
      <https://arxiv.org/abs/2006.07897>`_, ICLR 2021, Algorithm 2. Their released code multiplies
      the effective weight decay by y and counts gamma in half units
      (`entropix.scoping.from_sacreddnn`).
    """
    check_number("learning_rate", learning_rate, at_least=0)
    check_number("weight_decay", weight_decay, at_least=0)
    return optax.chain(
        couple_replicas(gamma, every=every, axis=axis, axis_name=axis_name),
        optax.add_decayed_weights(weight_decay),
        optax.sgd(learning_rate, momentum=momentum, nesterov=nesterov),
    )
