"""Curvature of a loss as an operator: the Hessian and the generalized Gauss-Newton matrix."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from entropix._canary import warn_if_backend_is_faulty
from entropix._masks import Mask
from entropix.flatness._chunks import mean_over_chunks, num_examples
from entropix.flatness._convolutions import canonical_convolutions
from entropix.flatness._operator import Operator
from entropix.flatness._problem import (
    Chunked,
    Point,
    check_forward_rule,
    check_inputs,
    check_scalar,
    checked_loss,
    chunk_shapes,
    chunked,
    forward_derivatives,
    split_params,
)
from entropix.flatness._programs import hoist

Product = Literal["forward_over_reverse", "reverse_over_reverse", "finite_difference"]
_PRODUCTS = ("forward_over_reverse", "reverse_over_reverse", "finite_difference")

_NO_JVP_RULE = (
    "the loss cannot be differentiated forward over reverse; product='reverse_over_reverse' needs "
    "no JVP rule of a custom gradient, and product='finite_difference' needs gradients alone"
)


@dataclass(frozen=True)
class _HessianProduct:
    """(loss, point, data, v) -> H v, the examples in chunks; equal, to jit too, by value."""

    kind: str
    batch_size: int | None
    remat: bool

    def __call__(self, loss: Chunked, point: Point, data: Any, v: Any) -> Any:
        return _apply(self, loss, point, data, v)

    def gradient(self, loss: Chunked, point: Point, batch: Any) -> Callable[[Any], Any]:
        """The gradient of the loss on a batch, a function of the chosen parameters."""

        def value(chosen: PyTree) -> Float[Array, ""]:
            return loss(point.whole(chosen), batch)

        return jax.grad(jax.checkpoint(value) if self.remat else value)

    def linear(self, loss: Chunked, point: Point, batch: Any) -> Callable[[Any], Any]:
        """v -> H v on a batch, with all that does not depend on v computed."""
        gradient = self.gradient(loss, point, batch)
        if self.kind == "forward_over_reverse":
            return jax.linearize(gradient, point.chosen)[1]
        # H is symmetric: its transpose does as well.
        return jax.tree_util.Partial(_first, jax.vjp(gradient, point.chosen)[1])

    def on_chunk(self, loss: Chunked, point: Point, batch: Any, v: Any) -> Any:
        """H v on a batch."""
        gradient = self.gradient(loss, point, batch)
        if self.kind == "forward_over_reverse":
            return jax.jvp(gradient, (point.chosen,), (v,))[1]
        if self.kind == "reverse_over_reverse":
            return jax.vjp(gradient, point.chosen)[1](v)[0]
        return _central_difference(gradient, point.chosen, v)


def _first(function: Callable[[Any], tuple[Any, ...]], v: Any) -> Any:
    return function(v)[0]


def _central_difference(gradient: Callable[[Any], Any], w: Any, v: Any) -> Any:
    """(g(w + h v) - g(w - h v)) / 2 h, with the h that balances rounding and curvature."""
    epsilon = max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(w))
    length = _norm(v)
    count = sum(leaf.size for leaf in jax.tree.leaves(w))
    h = epsilon ** (1 / 3) * (1 + _norm(w) / count**0.5) / jnp.where(length > 0, length, 1)

    def at(step: jax.Array) -> Any:
        return gradient(jax.tree.map(lambda a, b: a + step.astype(a.dtype) * b, w, v))

    return jax.tree.map(lambda a, b: (a - b) / (2 * h).astype(a.dtype), at(h), at(-h))


def _norm(tree: PyTree) -> Float[Array, ""]:
    """The Euclidean norm of a pytree; no leaf is gathered."""
    widest = jnp.result_type(*jax.tree.leaves(tree))
    squares = [jnp.sum(jnp.square(leaf.astype(widest))) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(functools.reduce(jnp.add, squares))


@dataclass(frozen=True)
class _GaussNewtonProduct:
    """(functions, point, data, v) -> G v, the examples in chunks; equal, to jit too, by value."""

    batch_size: int | None
    remat: bool

    def __call__(self, functions: Any, point: Point, data: Any, v: Any) -> Any:
        return _apply(self, functions, point, data, v)

    def linear(self, functions: Any, point: Point, batch: Any) -> jax.tree_util.Partial:
        """v -> G v on a batch, with all that does not depend on v computed."""
        outputs, output_loss = functions

        def predict(chosen: Any) -> Any:
            return outputs(point.whole(chosen), batch)

        z, jacobian = jax.linearize(
            jax.checkpoint(predict) if self.remat else predict, point.chosen
        )
        output_hessian = jax.linearize(jax.grad(lambda z: output_loss(z, batch)), z)[1]
        return jax.tree_util.Partial(_gauss_newton_apply, jacobian, output_hessian, point.chosen)

    def on_chunk(self, functions: Any, point: Point, batch: Any, v: Any) -> Any:
        """G v on a batch."""
        return self.linear(functions, point, batch)(v)


def _gauss_newton_apply(
    jacobian: Callable[[Any], Any], output_hessian: Callable[[Any], Any], like: Any, v: Any
) -> Any:
    """J^T (output Hessian) J v."""
    return jax.linear_transpose(jacobian, like)(output_hessian(jacobian(v)))[0]


@functools.partial(jax.jit, static_argnums=0)
def _apply(product: Any, functions: Any, point: Point, data: Any, v: Any) -> Any:
    """The mean of a product over chunks."""

    def on_chunk(batch: Any) -> Any:
        return canonical_convolutions(
            lambda chosen, v: product.on_chunk(functions, point._replace(chosen=chosen), batch, v)
        )(point.chosen, v)

    return mean_over_chunks(on_chunk, data, product.batch_size)


@functools.partial(jax.jit, static_argnums=0)
def _factor(product: Any, functions: Any, point: Point, data: Any) -> jax.tree_util.Partial:
    """v -> A v on all the data at once, a Partial of arrays."""
    return jax.tree_util.Partial(_apply_factor, product.linear(functions, point, data))


@jax.jit
def _apply_factor(factor: Callable[[Any], Any], v: Any) -> Any:
    """A v from `_factor`."""
    return canonical_convolutions(factor)(v)


def hessian(
    loss: Callable[[Any, Any], jax.Array],
    params: PyTree,
    data: PyTree,
    *,
    batch_size: int | None = None,
    mask: Mask | None = None,
    product: Product = "forward_over_reverse",
    remat: bool = False,
    dtype: Any = None,
) -> Operator:
    r"""The Hessian of a loss as an operator, never formed.

    .. math:: v \mapsto H v = \frac{d}{d\epsilon} \nabla f(w + \epsilon v) \Big|_{\epsilon = 0}

    With all examples at once the gradient is linearized here, and a product then costs about as
    much as a gradient; the intermediate values of the whole data stay in memory. With a
    ``batch_size`` a product linearizes each chunk anew, costs about 1.3 gradients, and needs
    memory for one chunk.

    Three ways lead to a product. ``"forward_over_reverse"`` is the cheapest, and exact up to the
    rounding of the arithmetic. ``"reverse_over_reverse"`` is as exact, and works where a custom
    gradient has no rule for forward differentiation, as those of attention kernels.
    ``"finite_difference"`` takes two gradients, at points :math:`w \pm h v`; it works with any
    gradient and needs no more memory than one, and its relative error is about the rounding
    unit to the power 2/3: 1e-4 to 1e-3 in float32, 1e-10 in float64.

    Args:
      loss: f(params, batch) -> scalar, a mean over the examples of the batch. It may be a pytree
        that can be called, or a closure over arrays: these are arguments of the compiled
        programs, and another one of the same code and shapes compiles nothing.
      params: w, a pytree of float arrays. They may be sharded over devices: vectors are then
        sharded as they are.
      data: a pytree of arrays with one leading axis of n examples. It may be sharded over devices
        along that axis.
      batch_size: examples in a chunk. Default all n.
      mask: the parameters to differentiate in, the others being fixed: a pytree prefix of
        ``params`` with boolean leaves, or a function of a leaf's path (a tuple of
        ``jax.tree_util`` keys) to a boolean. Default all. The answer is a diagonal block of the
        full Hessian.
      product: the way to a product, see above. Default ``"forward_over_reverse"``.
      remat: compute intermediate values of the loss again in each product, instead of keeping
        them: less memory for about one more forward pass. Default False.
      dtype: a float type that parameters and float data of fewer bits are cast to first.
        Default None. With bfloat16 parameters, ``jax.numpy.float32`` gives products without
        bfloat16's rounding, of which every bound has to leave room for 2^-7 otherwise.

    Returns:
      An `Operator` on pytrees like ``params``.

    Raises:
      TypeError: a parameter is not a float array, ``batch_size`` is not an integer, or the loss
        cannot be differentiated in the way asked for; the message then names another.
      ValueError: a parameter is not finite, ``data`` is empty or uneven, the loss is not scalar,
        ``batch_size`` is below 1, the mask does not fit, ``product`` is unknown, or finite
        differences are asked for in fewer than 32 bits.

    Examples:
      >>> import jax.numpy as jnp
      >>> loss = lambda w, x: jnp.mean((x @ w) ** 2) / 2
      >>> H = hessian(loss, jnp.ones(2), jnp.array([[2.0, 0.0], [0.0, 4.0]]))
      >>> print(H @ jnp.ones(2))
      [2. 8.]

    Reference:
      Pearlmutter, Fast exact multiplication by the Hessian, Neural Computation 6 (1994).
    """
    if product not in _PRODUCTS:
        raise ValueError(f"product must be one of {_PRODUCTS}, got {product!r}")
    params, data = _cast(params, dtype), _cast(data, dtype)
    traced = checked_loss(loss, params, data, batch_size)
    point, space = split_params(params, mask)
    rounding = max(traced.rounding, space.rounding)
    if product == "finite_difference":
        if space.rounding > jnp.finfo(jnp.float32).eps:
            raise ValueError(
                "product='finite_difference' needs parameters of at least 32 bits, got "
                f"{sorted({str(leaf.dtype) for leaf in space.leaves})}; dtype=jnp.float32 casts"
            )
        rounding = 10 * rounding ** (2 / 3)
    way = _HessianProduct(product, _chunk(data, batch_size), remat)
    try:
        matvec = _matvec(way, traced, point, data, linear=product != "finite_difference")
    except (TypeError, NotImplementedError) as error:
        if product != "forward_over_reverse":
            raise
        raise TypeError(f"{_NO_JVP_RULE} ({error})") from error
    return Operator(matvec, space, rounding)


def gauss_newton(
    outputs: Callable[[Any, Any], Any],
    output_loss: Callable[[Any, Any], jax.Array],
    params: PyTree,
    data: PyTree,
    *,
    batch_size: int | None = None,
    mask: Mask | None = None,
    remat: bool = False,
    dtype: Any = None,
) -> Operator:
    r"""The generalized Gauss-Newton matrix of a loss as an operator, never formed.

    .. math:: v \mapsto G v = J^T \, \nabla_z^2 \ell(z) \, J v, \qquad z = z(w), \quad
       J = \frac{\partial z}{\partial w}

    It is the Hessian of :math:`f(w) = \ell(z(w))` without the curvature of z: positive
    semi-definite where :math:`\ell` is convex, equal to the Fisher matrix for cross entropy on
    logits, and to the Hessian where z is linear in w.

    Args:
      outputs: z(params, batch) -> a pytree of arrays, such as the logits of a batch. As a loss of
        `hessian`, it may hold arrays of its own.
      output_loss: l(z, batch) -> scalar, a mean over the examples of the batch.
      params: w, a pytree of float arrays.
      data: a pytree of arrays with one leading axis of n examples.
      batch_size: examples in a chunk. Default all n.
      mask: the parameters to differentiate in (see `hessian`). Default all.
      remat: compute intermediate values again in each product (see `hessian`). Default False.
      dtype: a float type that parameters and data of fewer bits are cast to. Default None.

    Returns:
      An `Operator` on pytrees like ``params``.

    Raises:
      TypeError: a parameter is not a float array, ``batch_size`` is not an integer, or the outputs
        have no forward derivatives.
      ValueError: a parameter is not finite, ``data`` is empty or uneven, the loss is not scalar,
        ``batch_size`` is below 1, or the mask does not fit.

    Examples:
      >>> import jax.numpy as jnp
      >>> predict = lambda w, x: jnp.tanh(x @ w)
      >>> square = lambda z, x: jnp.mean(z**2) / 2
      >>> G = gauss_newton(predict, square, jnp.zeros(2), jnp.eye(2))
      >>> print(G @ jnp.ones(2))
      [0.5 0.5]

    Reference:
      Schraudolph, Fast curvature matrix-vector products for second-order gradient descent, Neural
      Computation 14 (2002).
    """
    params, data = _cast(params, dtype), _cast(data, dtype)
    warn_if_backend_is_faulty()
    check_inputs(params, data, batch_size)
    predict = chunked(outputs, params, data, batch_size)
    measure = _output_loss(output_loss, predict, data, batch_size)
    check_scalar(measure.full.program.answer)
    point, space = split_params(params, mask)
    way = _GaussNewtonProduct(_chunk(data, batch_size), remat)
    with forward_derivatives("jax.custom_jvp gives it one, or take hessian's other products"):
        matvec = _matvec(way, (predict, measure), point, data, linear=True)
    return Operator(matvec, space, max(predict.rounding, measure.rounding, space.rounding))


def _output_loss(
    output_loss: Callable[[Any, Any], jax.Array],
    predict: Chunked,
    data: Any,
    batch_size: int | None,
) -> Chunked:
    """The loss of the outputs, traced for the outputs of each size of a chunk."""
    full, last = chunk_shapes(data, batch_size)
    return Chunked(
        hoist(output_loss, predict.full.program.answer, full),
        None if predict.last is None else hoist(output_loss, predict.last.program.answer, last),
    )


def _cast(tree: Any, dtype: Any) -> Any:
    """The float leaves of fewer bits than a dtype, cast to it."""
    if dtype is None:
        return tree

    def cast(leaf: Any) -> Any:
        found = jnp.result_type(leaf)
        is_narrower = jnp.issubdtype(found, jnp.floating) and (
            found.itemsize < jnp.dtype(dtype).itemsize
        )
        return jnp.asarray(leaf, dtype) if is_narrower else leaf

    return jax.tree.map(cast, tree)


def _chunk(data: Any, batch_size: int | None) -> int | None:
    """The examples in a chunk, None where one chunk holds all."""
    return None if batch_size is None or batch_size >= num_examples(data) else batch_size


def _matvec(
    way: Any, functions: Any, point: Point, data: Any, *, linear: bool
) -> jax.tree_util.Partial:
    """The operator's function: linearized where the data are one chunk."""
    data = jax.tree.map(jnp.asarray, data)
    if way.batch_size is None and linear:
        matvec = _factor(way, functions, point, data)
    else:
        matvec = jax.tree_util.Partial(way, functions, point, data)
    check_forward_rule(matvec, point.chosen)
    return matvec
