"""What Flax users need: statistics of averaged weights, an nnx model's anchor and its loss."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PyTree

from entropix.transforms import eval_params

__all__ = [
    "eval_model",
    "loss_of_params",
    "recompute_batch_stats",
]

# Far above any batch statistic, so that the statistic's own size does not round the momentum.
_PROBE = 2.0**40


def recompute_batch_stats(
    apply: Callable[[PyTree, PyTree], PyTree], batch_stats: PyTree, batches: Iterable[PyTree]
) -> PyTree:
    r"""Batch statistics of weights that were averaged, over a stream of batches.

    The running statistics of training follow the weights that the training loop holds, and fit
    neither the anchor of Entropy-SGD nor the center of replicas. This takes the plain average of
    what each batch shows,

    .. math:: s = \frac{1}{\sum_k n_k} \sum_k n_k s_k, \qquad
              \mathrm{apply}(s', \mathrm{batch}_k) = m s' + (1 - m) s_k,

    whatever the model's momentum m, which is read off by a probe, leaf by leaf (to float32
    rounding: m = 0.99 leaves a relative error of about 1e-5).

    Args:
      apply: ``apply(batch_stats, batch)`` runs the model once on a batch, in training mode at the
        weights to evaluate, and returns the new statistics. Pass it jitted.
      batch_stats: the statistics of training, any pytree; only shapes and dtypes are used.
      batches: an iterable of batches, pytrees of arrays with the examples on the first axis.

    Returns:
      Statistics like ``batch_stats``.

    Raises:
      ValueError: ``batches`` is empty; the statistics are not finite, as of weights that diverged;
        ``apply`` does not average: m is not in [0, 1).

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from flax import linen
      >>> model = linen.BatchNorm(use_running_average=False, momentum=0.9)
      >>> batches = jnp.array([[[1.0], [3.0]], [[5.0], [7.0]]])
      >>> variables = model.init(jax.random.key(0), batches[0])
      >>> @jax.jit
      ... def apply(batch_stats, batch):
      ...     collections = {"params": variables["params"], "batch_stats": batch_stats}
      ...     return model.apply(collections, batch, mutable="batch_stats")[1]["batch_stats"]
      >>> stats = recompute_batch_stats(apply, variables["batch_stats"], batches)
      >>> print(stats["mean"].round(3), stats["var"].round(3))
      [4.] [1.]

    Reference:
      Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization, UAI 2018,
      section 3.2.
    """
    nothing = jax.tree.map(jnp.zeros_like, batch_stats)
    total, examples, kept = nothing, 0, None
    for batch in batches:
        shown = apply(nothing, batch)
        if kept is None:
            probed = apply(jax.tree.map(lambda s: jnp.full_like(s, _PROBE), batch_stats), batch)
            kept = jax.tree.map(lambda p, s: (p - s) / _PROBE, probed, shown)
        size = jax.tree.leaves(batch)[0].shape[0]
        total = jax.tree.map(lambda t, s, size=size: t + size * s, total, shown)
        examples += size
    if kept is None:
        raise ValueError(
            "batches must yield at least one batch, to recompute batch statistics on, got none"
        )
    for path, statistics in jax.tree.leaves_with_path(total):
        if not bool(jnp.all(jnp.isfinite(statistics))):
            where = jax.tree_util.keystr(path)
            raise ValueError(
                f"batch statistics must be finite, got {statistics} at {where}: the weights, which "
                "may have diverged, or the batches are not"
            )
    for path, momentum in jax.tree.leaves_with_path(kept):
        if not bool(jnp.all((momentum >= 0) & (momentum < 1))):
            where = jax.tree_util.keystr(path)
            raise ValueError(
                "apply must return m * batch_stats + (1 - m) * batch with 0 <= m < 1, "
                f"got m = {momentum} at {where}"
            )
    return jax.tree.map(lambda t, m: t / (examples * (1 - m)), total, kept)


def eval_model(
    model: nnx.Module, optimizer: nnx.Optimizer[Any], batches: Iterable[PyTree] = ()
) -> nnx.Module:
    """A copy of an nnx model to evaluate, with the anchor's weights and their batch statistics.

    Called again with a model of the same structure and batches of the same shape, nothing is
    compiled anew.

    Args:
      model: the model that is being trained; it is not changed.
      optimizer: its ``nnx.Optimizer``, around any transformation. Without an anchor, such as that
        of `entropix.entropy_descent`, the weights are those of the model.
      batches: an iterable of inputs of the model, to recompute the batch statistics on; not needed
        without batch normalization.

    Returns:
      A new model in eval mode.

    Raises:
      ValueError: the model has batch statistics, and ``batches`` is empty or the weights have
        diverged.

    Examples:
      >>> import jax.numpy as jnp, entropix
      >>> from flax import nnx
      >>> model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
      >>> optimizer = nnx.Optimizer(model, entropix.entropy_sgd(inner_steps=5), wrt=nnx.Param)
      >>> start = model.kernel[...]
      >>> grads = nnx.grad(lambda model: jnp.sum(model(jnp.ones((1, 2))) ** 2))(model)
      >>> _ = optimizer.update(model, grads)
      >>> bool(jnp.all(eval_model(model, optimizer).kernel[...] == start))
      True

    Reference:
      Chaudhari et al., Entropy-SGD, ICLR 2017, Algorithm 1.
    """
    graphdef, *states = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    params, batch_stats, rest = states
    params = eval_params(nnx.as_pure(optimizer.opt_state), nnx.as_pure(params))

    if jax.tree.leaves(batch_stats):
        apply = functools.partial(_new_batch_stats, graphdef, params, rest)
        batch_stats = recompute_batch_stats(apply, nnx.as_pure(batch_stats), batches)
    evaluated = nnx.merge(graphdef, params, batch_stats, rest, copy=True)
    evaluated.eval()
    return evaluated


# Of the whole module, so that a model evaluated again and again is compiled once.
@functools.partial(jax.jit, static_argnums=0)
def _new_batch_stats(
    graphdef: nnx.GraphDef[nnx.Module],
    params: PyTree,
    rest: PyTree,
    batch_stats: PyTree,
    batch: PyTree,
) -> PyTree:
    """The running statistics after one batch in training mode."""
    running = nnx.merge(graphdef, params, batch_stats, rest, copy=True)
    running.train()
    running(batch)
    return nnx.as_pure(nnx.state(running, nnx.BatchStat))


def loss_of_params(
    model: nnx.Module, loss: Callable[[nnx.Module, Any], jax.Array]
) -> tuple[Callable[[Any, Any], jax.Array], Any]:
    r"""A loss of an nnx model as a function of its parameters, as `entropix.flatness` takes it.

    .. math:: f(w, \mathrm{batch}) = \mathrm{loss}(\mathrm{model}_w, \mathrm{batch})

    in evaluation mode: batch normalization uses its running averages and dropout is off, so that
    f is one function. The rest of the model's state is held by f as its own arrays.

    Args:
      model: an nnx model; it is not changed.
      loss: function of a model and a batch to a scalar, a mean over the examples.

    Returns:
      f, and the parameters w of the model as a pytree.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from entropix import flatness
      >>> model = nnx.Linear(2, 1, use_bias=False, rngs=nnx.Rngs(0))
      >>> f, w = loss_of_params(model, lambda model, x: jnp.mean(model(x) ** 2) / 2)
      >>> H = flatness.hessian(f, w, jnp.array([[2.0, 0.0], [0.0, 4.0]]))
      >>> print(flatness.dense(H))
      [[2. 0.]
       [0. 8.]]
    """
    graphdef, *states = nnx.split(model)
    copy = nnx.merge(graphdef, *states, copy=True)
    copy.eval()
    graphdef, *states = nnx.split(copy, nnx.Param, ...)
    params, rest = (nnx.as_pure(state) for state in states)

    def of_params(params: Any, batch: Any) -> jax.Array:
        return loss(nnx.merge(graphdef, params, rest, copy=True), batch)

    return of_params, params
