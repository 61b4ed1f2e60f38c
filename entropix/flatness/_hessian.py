"""Curvature of a loss as an operator: the Hessian and the generalized Gauss-Newton matrix."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from entropix._canary import warn_if_backend_is_faulty
from entropix.flatness._chunks import mean_over_chunks
from entropix.flatness._convolutions import canonical_convolutions
from entropix.flatness._problem import check_problem
from entropix.flatness._vectors import MatVec, vectors_like

_DENSE_AT_MOST = 8192


@dataclass(frozen=True)
class _HessianProduct:
    """(params, data, v) -> H v, the examples in chunks; equal, to jit too, for equal fields."""

    loss: Callable[[Any, Any], jax.Array]
    batch_size: int | None

    def __call__(self, params: Any, data: Any, v: Any) -> Any:
        return _apply(self, params, data, v)

    def on_chunk(self, params: Any, batch: Any, v: Any) -> Any:
        """H v of one chunk."""
        gradient = jax.grad(lambda weights: self.loss(weights, batch))
        return jax.jvp(gradient, (params,), (v,))[1]


@dataclass(frozen=True)
class _GaussNewtonProduct:
    """(params, data, v) -> G v, the examples in chunks; equal, to jit too, for equal fields."""

    outputs: Callable[[Any, Any], Any]
    output_loss: Callable[[Any, Any], jax.Array]
    batch_size: int | None

    def __call__(self, params: Any, data: Any, v: Any) -> Any:
        return _apply(self, params, data, v)

    def on_chunk(self, params: Any, batch: Any, v: Any) -> Any:
        """G v of one chunk."""
        factors = _gauss_newton_factors(self.outputs, self.output_loss, params, batch)
        return _gauss_newton_product(*factors, v)


@functools.partial(jax.jit, static_argnames="product")
def _apply(product: _HessianProduct | _GaussNewtonProduct, params: Any, data: Any, v: Any) -> Any:
    """The mean of a product over chunks."""

    def on_chunk(batch: Any) -> Any:
        return canonical_convolutions(lambda w, v: product.on_chunk(w, batch, v))(params, v)

    return mean_over_chunks(on_chunk, data, product.batch_size)


@functools.partial(jax.jit, static_argnames="loss")
def _hessian_factor(loss: Callable[[Any, Any], jax.Array], params: Any, data: Any) -> MatVec:
    """The map v -> H v, with all that does not depend on v computed: a Partial of arrays."""
    return jax.linearize(jax.grad(lambda weights: loss(weights, data)), params)[1]


@jax.jit
def _hessian_product(factor: MatVec, v: Any) -> Any:
    """H v from `_hessian_factor`."""
    return canonical_convolutions(factor)(v)


@functools.partial(jax.jit, static_argnames=("outputs", "output_loss"))
def _gauss_newton_factors(
    outputs: Callable[[Any, Any], Any],
    output_loss: Callable[[Any, Any], jax.Array],
    params: Any,
    data: Any,
) -> tuple[MatVec, MatVec, Any]:
    """The map v -> J v, the output Hessian's product, and the parameters (J^T needs them)."""
    z, jacobian = jax.linearize(lambda weights: outputs(weights, data), params)
    output_hessian = jax.linearize(jax.grad(lambda z: output_loss(z, data)), z)[1]
    return jacobian, output_hessian, params


@jax.jit
def _gauss_newton_product(jacobian: MatVec, output_hessian: MatVec, params: Any, v: Any) -> Any:
    """G v from `_gauss_newton_factors`."""

    def product(v: Any) -> Any:
        return jax.linear_transpose(jacobian, params)(output_hessian(jacobian(v)))[0]

    return canonical_convolutions(product)(v)


def hessian_operator(
    loss: Callable[[Any, Any], jax.Array],
    params: Any,
    data: Any,
    *,
    batch_size: int | None = None,
) -> jax.tree_util.Partial:
    r"""The Hessian of a loss as a function of a vector, never formed (Pearlmutter's trick).

    .. math:: v \mapsto H v = \frac{d}{d\epsilon} \nabla f(w + \epsilon v) \Big|_{\epsilon = 0}

    With all examples at once the gradient is linearized here, and a product then costs about as
    much as a gradient; the intermediate values of the whole data stay in memory. With a
    ``batch_size`` a product linearizes each chunk anew, costs about 1.3 gradients, and needs
    memory for one chunk.

    Args:
      loss: f(params, batch) -> scalar, a mean over the examples of the batch. Compiled once for
        each function object: pass the same one each time.
      params: w, a pytree of float arrays.
      data: a pytree of arrays with one leading axis of n examples. It may be sharded over devices
        along that axis.
      batch_size: examples in a chunk. Default all n.

    Returns:
      A function of a pytree like ``params`` to another; it is a pytree itself
      (``jax.tree_util.Partial``), so it goes into jitted functions as an argument.

    Raises:
      TypeError: a parameter is not a float array, or ``batch_size`` is not an integer.
      ValueError: a parameter is not finite, ``data`` is empty or uneven, the loss is not scalar,
        or ``batch_size`` is below 1.

    Examples:
      >>> import jax.numpy as jnp
      >>> loss = lambda w, x: jnp.mean((x @ w) ** 2) / 2
      >>> hessian = hessian_operator(loss, jnp.ones(2), jnp.array([[2.0, 0.0], [0.0, 4.0]]))
      >>> print(hessian(jnp.ones(2)))
      [2. 8.]

    Reference:
      Pearlmutter, Fast exact multiplication by the Hessian, Neural Computation 6 (1994).
    """
    warn_if_backend_is_faulty()
    check_problem(loss, params, data, batch_size)
    if batch_size is None:
        return jax.tree_util.Partial(_hessian_product, _hessian_factor(loss, params, data))
    return jax.tree_util.Partial(_HessianProduct(loss, batch_size), params, data)


def gauss_newton_operator(
    outputs: Callable[[Any, Any], Any],
    output_loss: Callable[[Any, Any], jax.Array],
    params: Any,
    data: Any,
    *,
    batch_size: int | None = None,
) -> jax.tree_util.Partial:
    r"""The generalized Gauss-Newton matrix of a loss as a function of a vector, never formed.

    .. math:: v \mapsto G v = J^T \, \nabla_z^2 \ell(z) \, J v, \qquad z = z(w), \quad
       J = \frac{\partial z}{\partial w}

    It is the Hessian of :math:`f(w) = \ell(z(w))` without the curvature of z: positive
    semi-definite where :math:`\ell` is convex, equal to the Fisher matrix for cross entropy on
    logits, and to the Hessian where z is linear in w.

    Args:
      outputs: z(params, batch) -> a pytree of arrays, such as the logits of a batch. Compiled once
        for each function object.
      output_loss: l(z, batch) -> scalar, a mean over the examples of the batch.
      params: w, a pytree of float arrays.
      data: a pytree of arrays with one leading axis of n examples.
      batch_size: examples in a chunk. Default all n.

    Returns:
      A function of a pytree like ``params`` to another, as `hessian_operator` gives.

    Raises:
      TypeError: a parameter is not a float array, or ``batch_size`` is not an integer.
      ValueError: a parameter is not finite, ``data`` is empty or uneven, the loss is not scalar,
        or ``batch_size`` is below 1.

    Examples:
      >>> import jax.numpy as jnp
      >>> predict = lambda w, x: jnp.tanh(x @ w)
      >>> square = lambda z, x: jnp.mean(z**2) / 2
      >>> product = gauss_newton_operator(predict, square, jnp.zeros(2), jnp.eye(2))
      >>> print(product(jnp.ones(2)))
      [0.5 0.5]

    Reference:
      Schraudolph, Fast curvature matrix-vector products for second-order gradient descent, Neural
      Computation 14 (2002).
    """
    warn_if_backend_is_faulty()
    check_problem(
        lambda params, batch: output_loss(outputs(params, batch), batch), params, data, batch_size
    )
    if batch_size is None:
        factors = _gauss_newton_factors(outputs, output_loss, params, data)
        return jax.tree_util.Partial(_gauss_newton_product, *factors)
    product = _GaussNewtonProduct(outputs, output_loss, batch_size)
    return jax.tree_util.Partial(product, params, data)


def exact_hessian(
    loss: Callable[[Any, Any], jax.Array],
    params: Any,
    data: Any,
    *,
    batch_size: int | None = None,
) -> jax.Array:
    r"""The Hessian of a loss as a dense symmetric matrix, for up to 8,192 parameters.

    .. math:: H_{ij} = \frac{\partial^2 f}{\partial w_i \partial w_j}

    Args:
      loss: f(params, batch) -> scalar, a mean over the examples of the batch.
      params: w, a pytree of N <= 8192 float numbers.
      data: a pytree of arrays with one leading axis of n examples.
      batch_size: examples in a chunk. Default all n.

    Returns:
      The matrix, rows and columns in the order of ``jax.flatten_util.ravel_pytree``, symmetric to
      the last bit. # shape=(N, N)

    Raises:
      TypeError: a parameter is not a float array, or ``batch_size`` is not an integer.
      ValueError: there are more than 8,192 parameters, or the arguments are refused by
        `hessian_operator`.

    Examples:
      >>> import jax.numpy as jnp
      >>> loss = lambda w, x: jnp.mean((x @ w) ** 2) / 2
      >>> print(exact_hessian(loss, jnp.ones(2), jnp.array([[2.0, 0.0], [0.0, 4.0]])))
      [[2. 0.]
       [0. 8.]]
    """
    operator = hessian_operator(loss, params, data, batch_size=batch_size)
    size = vectors_like(params).size
    if size > _DENSE_AT_MOST:
        raise ValueError(
            f"exact_hessian forms an N x N matrix: params must hold N <= {_DENSE_AT_MOST} numbers, "
            f"got {size}; hessian_spectrum and top_eigenvalues form none"
        )
    return _dense(operator, params)


@jax.jit
def _dense(operator: MatVec, like: Any) -> jax.Array:
    """The symmetric matrix of an operator, column by column."""
    space = vectors_like(like)
    columns = jax.lax.map(
        lambda unit: space.flatten(operator(space.unflatten(unit))),
        jnp.eye(space.size, dtype=space.dtype),
        batch_size=16,
    )
    return (columns + columns.T) / 2
