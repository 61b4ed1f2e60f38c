"""Curvature of each layer: the diagonal blocks of the Hessian."""

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax

from entropix._keys import check_key, fresh_key
from entropix.flatness._eigenvalues import eigenvalues
from entropix.flatness._hessian import Product, hessian
from entropix.flatness._layer_temperature import layer_of
from entropix.flatness._traces import trace


class LayerCurvature(NamedTuple):
    """Answer of `layer_curvature`, each a dictionary from group to a number.

    Attributes:
      size: parameters of the group.
      trace: estimated trace of the group's block of the Hessian.
      trace_std_error: its standard error.
      top: largest eigenvalue of the block.
      top_bound: it is off by no more than this.
    """

    size: dict[Hashable, int]
    trace: dict[Hashable, jax.Array]
    trace_std_error: dict[Hashable, jax.Array]
    top: dict[Hashable, jax.Array]
    top_bound: dict[Hashable, jax.Array]


def layer_curvature(
    loss: Callable[[Any, Any], jax.Array],
    params: Any,
    data: Any,
    key: jax.Array | int,
    *,
    group: Callable[[tuple[Any, ...]], Hashable | None] = layer_of,
    num_probes: int = 40,
    tol: float = 1e-3,
    max_products: int = 200,
    batch_size: int | None = None,
    product: Product = "forward_over_reverse",
) -> LayerCurvature:
    r"""Trace and largest eigenvalue of each layer's block of the Hessian.

    .. math:: \mathrm{tr}\, H_{II}, \qquad \lambda_{\max}(H_{II}), \qquad
       H_{II} = \frac{\partial^2 f}{\partial w_I \, \partial w_I}

    for each group I of parameters, the others being fixed. No block has a larger eigenvalue than
    the whole Hessian, and the traces add up to its trace. Every block is compiled for itself.

    Args:
      loss: f(params, batch) -> scalar, a mean over the examples of the batch.
      params: w, a pytree of float arrays.
      data: a pytree of arrays with one leading axis of n examples.
      key: an integer seed or a key of ``jax.random.key``.
      group: function of a parameter's path (as of ``jax.tree_util.tree_map_with_path``) to its
        group, or None to leave it out. Default: the path to the module that holds it.
      num_probes: products for each trace, at least 4. Default 40.
      tol: relative residual of the eigenvalues. Default 1e-3.
      max_products: products for each eigenvalue at most. Default 200.
      batch_size: examples in a chunk. Default all n.
      product: the way to a product (see `hessian`).

    Returns:
      A `LayerCurvature`.

    Raises:
      TypeError: an argument is refused by `hessian`, `trace` or `eigenvalues`.
      ValueError: likewise, or no parameter is in a group.

    Examples:
      >>> import jax.numpy as jnp
      >>> f = lambda w, x: jnp.mean((x @ w["a"]["kernel"]) ** 2) / 2 + w["b"]["scale"] ** 2
      >>> w = {"a": {"kernel": jnp.ones(2)}, "b": {"scale": jnp.ones(())}}
      >>> found = layer_curvature(f, w, jnp.array([[2.0, 0.0], [0.0, 4.0]]), 0)
      >>> {name: f"{top:.1f}" for name, top in found.top.items()}
      {"['a']": '8.0', "['b']": '2.0'}
    """
    check_key(key)
    paths = [path for path, _ in jax.tree.leaves_with_path(params)]
    groups = [name for name in dict.fromkeys(group(path) for path in paths) if name is not None]
    if not groups:
        raise ValueError("group must put at least one parameter in a group, got None for all")
    answer = LayerCurvature({}, {}, {}, {}, {})
    for number, name in enumerate(groups):
        block = hessian(
            loss,
            params,
            data,
            batch_size=batch_size,
            mask=lambda path, name=name: group(path) == name,
            product=product,
        )
        trace_key, top_key = jax.random.split(jax.random.fold_in(fresh_key(key), number))
        total = trace(block, trace_key, num_probes=num_probes)
        top = eigenvalues(block, top_key, k=1, tol=tol, max_products=max_products)
        answer.size[name] = block.size
        answer.trace[name], answer.trace_std_error[name] = total.mean, total.std_error
        answer.top[name], answer.top_bound[name] = top.eigenvalues[0], top.residuals[0]
    return answer
