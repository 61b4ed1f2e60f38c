"""Noise of the mini-batch gradient: its covariance."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from entropix._canary import warn_if_backend_is_faulty
from entropix._checks import check_integer, check_number
from entropix._keys import check_key, fresh_key
from entropix._masks import Mask
from entropix.flatness._chunks import mean_over_chunks, num_examples
from entropix.flatness._lanczos import tridiagonalize
from entropix.flatness._operator import Operator
from entropix.flatness._problem import (
    Point,
    check_forward_rule,
    check_inputs,
    check_scalar,
    examples,
    forward_derivatives,
    split_params,
)
from entropix.flatness._programs import Hoisted, hoist
from entropix.flatness._space import Space

Loss = Callable[[Any, Any], jax.Array]


class GradientNoise(NamedTuple):
    """Answer of `gradient_noise`, of the covariance D of n per-example gradients of length d.

    Attributes:
      eigenvalues: of D, descending: all min(n, d) that can be other than 0, or as many as there
        were Lanczos steps. # shape=(m,)
      residual_norms: each computed eigenvalue is this near to one of D; 0 without Lanczos.
        # shape=(m,)
      threshold: below it an eigenvalue counts as 0. # shape=()
      rank: number of eigenvalues above the threshold; with Lanczos, among those computed.
        # shape=(), dtype=int32
      participation_ratio: (tr D)^2 / tr D^2, the number of directions that share the noise; with
        Lanczos, tr D^2 is that of the eigenvalues computed. # shape=()
      trace: tr D, exact in any case. # shape=()
      gradient: mean over the examples; a pytree like the parameters.
      num_examples: n.
      num_parameters: d.
    """

    eigenvalues: Float[Array, "*batch m"]
    residual_norms: Float[Array, "*batch m"]
    threshold: Float[Array, "*batch"]
    rank: Int[Array, "*batch"]
    participation_ratio: Float[Array, "*batch"]
    trace: Float[Array, "*batch"]
    gradient: PyTree
    num_examples: int
    num_parameters: int

    def batch_variance(self, batch_size: Any, *, replacement: bool) -> jax.Array:
        r"""Total variance of the mean gradient of b examples, :math:`E |g_b - g|^2`.

        .. math:: \frac{\operatorname{tr} D}{b} \text{ with replacement}, \qquad
            \frac{\operatorname{tr} D}{b} \Big( 1 - \frac{b - 1}{n - 1} \Big) \text{ without}

        Args:
          batch_size: b, a number or an array of numbers.
          replacement: whether an example can be drawn twice into a batch. Epochs over shuffled
            data draw without.

        Returns:
          The variance, in the shape of ``batch_size``.

        Raises:
          ValueError: b is below 1, or above n without replacement.
        """
        check_number(
            "batch_size",
            batch_size,
            at_least=1,
            below=None if replacement else self.num_examples + 1,
        )
        b = jnp.asarray(batch_size, self.trace.dtype)
        if replacement:
            return self.trace / b
        return self.trace / b * (1 - (b - 1) / max(self.num_examples - 1, 1))


class _Problem(NamedTuple):
    """The loss of one example at a point; all that a gradient needs."""

    loss: Hoisted
    point: Point
    data: Any

    def losses(self, chosen: PyTree, batch: PyTree) -> Float[Array, " b"]:
        """The losses of b examples, each alone, (b,)."""
        weights = self.point.whole(chosen)
        return jax.vmap(lambda one: self.loss(weights, one))(
            jax.tree.map(lambda x: x[:, None], batch)
        )

    def gradient(self, batch_size: int | None) -> PyTree:
        """The mean gradient over all examples."""

        def mean(chosen: PyTree, batch: PyTree) -> Float[Array, ""]:
            return jnp.mean(self.losses(chosen, batch))

        return mean_over_chunks(
            lambda batch: jax.grad(mean)(self.point.chosen, batch), self.data, batch_size
        )


def _problem(
    loss: Loss, params: Any, data: Any, batch_size: int | None, mask: Mask | None
) -> tuple[_Problem, Space]:
    """The problem, checked, its loss traced for one example; and the space of its gradients."""
    warn_if_backend_is_faulty()
    check_inputs(params, data, batch_size)
    program = hoist(loss, params, examples(data, 1))
    check_scalar(program.program.answer)
    point, space = split_params(params, mask)
    return _Problem(program, point, jax.tree.map(jnp.asarray, data)), space


def _covariance_product(
    batch_size: int | None, problem: _Problem, gradient: Any, tangent: Any
) -> Any:
    """D v, as the mean of g_k (g_k . v - g . v)."""
    slopes = jax.tree.map(
        lambda g, v: jnp.sum(g.astype(_wide(g)) * v.astype(_wide(v))), gradient, tangent
    )
    mean_slope = functools.reduce(jnp.add, jax.tree.leaves(slopes))
    chosen = problem.point.chosen

    def of_batch(batch: Any) -> Any:
        def losses(chosen: Any) -> jax.Array:
            return problem.losses(chosen, batch)

        values, slopes = jax.jvp(losses, (chosen,), (tangent,))
        weights = (slopes - mean_slope.astype(slopes.dtype)) / len(values)
        return jax.vjp(losses, chosen)[1](weights)[0]

    return mean_over_chunks(of_batch, problem.data, batch_size)


def _wide(leaf: jax.Array) -> Any:
    """The leaf's dtype, at least float32."""
    return jnp.promote_types(leaf.dtype, jnp.float32)


@functools.partial(jax.jit, static_argnums=1)
def _mean_gradient(problem: _Problem, batch_size: int | None) -> Any:
    return problem.gradient(batch_size)


def gradient_covariance(
    loss: Loss,
    params: PyTree,
    data: PyTree,
    *,
    batch_size: int | None = None,
    mask: Mask | None = None,
) -> Operator:
    r"""The covariance of the per-example gradients as an operator, never formed.

    .. math:: v \mapsto D v = \frac1n \sum_{k=1}^{n} g_k \, (g_k^T v - g^T v), \qquad
        g = \frac1n \sum_{k=1}^{n} g_k

    A mini-batch of b examples drawn with replacement has a gradient of covariance D / b. A product
    is a forward and a backward pass over the data, and keeps no gradient of an example. Where the
    loss is a negative log-likelihood, D is the empirical Fisher matrix less :math:`g g^T`.

    Args:
      loss: f(params, batch), the mean over the batch; a scalar. The gradient of an example is that
        of a batch of it alone, so batch normalization must use its running averages.
      params: a pytree of floating-point arrays.
      data: a pytree of arrays with one leading axis of n examples.
      batch_size: examples looked at together. Default: all.
      mask: the parameters whose gradients to look at (see `hessian`). Default all.

    Returns:
      An `Operator` on pytrees like ``params``.

    Raises:
      TypeError: an argument or a parameter is of the wrong type, or a custom gradient in the loss
        has no rule for forward differentiation.
      ValueError: an argument is out of its range, ``loss`` is not a scalar, ``data`` is empty or
        its leaves differ in length, ``params`` is not finite, or the mask does not fit.

    Examples:
      >>> import jax.numpy as jnp
      >>> f = lambda w, x: jnp.mean(jnp.sum((w - x) ** 2, 1)) / 2
      >>> x = jnp.array([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
      >>> print(gradient_covariance(f, jnp.zeros(2), x) @ jnp.ones(2))
      [2.  0.5]

    Reference:
      Chaudhari and Soatto, `Stochastic gradient descent performs variational inference, converges
      to limit cycles for deep networks <https://arxiv.org/abs/1710.11029>`_, ICLR 2018.
    """
    problem, space = _problem(loss, params, data, batch_size, mask)
    return _covariance(problem, space, _mean_gradient(problem, batch_size), batch_size)


def _covariance(problem: _Problem, space: Space, gradient: Any, batch_size: int | None) -> Operator:
    """The operator of a problem whose mean gradient is known."""
    matvec = jax.tree_util.Partial(_Covariance(batch_size), problem, gradient)
    with forward_derivatives("jax.custom_jvp gives it one"):
        check_forward_rule(matvec, problem.point.chosen)
    return Operator(matvec, space, max(problem.loss.program.rounding, space.rounding))


class _Covariance(NamedTuple):
    """(problem, mean gradient, v) -> D v; equal, to jit too, by value."""

    batch_size: int | None

    def __call__(self, problem: _Problem, gradient: Any, v: Any) -> Any:
        return _apply(problem, gradient, v, self.batch_size)


@functools.partial(jax.jit, static_argnums=3)
def _apply(problem: _Problem, gradient: Any, v: Any, batch_size: int | None) -> Any:
    return _covariance_product(batch_size, problem, gradient, v)


def gradient_noise(
    loss: Loss,
    params: PyTree,
    data: PyTree,
    *,
    num_steps: int | None = None,
    key: jax.Array | int = 0,
    rank_threshold: float | None = None,
    batch_size: int | None = None,
    mask: Mask | None = None,
) -> GradientNoise:
    r"""Measures the covariance of per-example gradients without forming it.

    .. math:: D = \frac1n \sum_{k=1}^{n} (g_k - g)(g_k - g)^T
        = \frac1n \sum_{k=1}^{n} g_k g_k^T - g g^T, \qquad g = \frac1n \sum_{k=1}^{n} g_k

    A mini-batch of b examples drawn with replacement has a gradient of covariance D / b. By
    default the spectrum is exact, from the smaller of the n x n Gram matrix of the centered
    gradients (memory: 2 n d numbers) and the d x d covariance. With ``num_steps`` it is that of so
    many Lanczos steps, each a forward and a backward pass over the data that keeps no gradients.

    Args:
      loss: f(params, batch), the mean over the batch; a scalar. The gradient of an example is that
        of a batch of it alone, so batch normalization must use its running averages.
      params: a pytree of floating-point arrays, d numbers in all.
      data: a pytree of arrays with one leading axis of n examples.
      num_steps: Lanczos steps, clipped to d. Default None: all eigenvalues.
      key: an integer seed or a key of ``jax.random.key``, for Lanczos' start. Default 0.
      rank_threshold: an eigenvalue counts toward the rank if it is above this share of the
        largest. Default None: d times the rounding unit 2^-23 of float32, as in the paper's code;
        1.6e-3 at d = 13,338, so the rank means little without it.
      batch_size: examples looked at together. Default: all.
      mask: the parameters whose gradients to look at (see `hessian`). Default all.

    Returns:
      A `GradientNoise`.

    Raises:
      TypeError: an argument or a parameter is of the wrong type.
      ValueError: an argument is out of its range, ``loss`` is not a scalar, ``data`` is empty or
        its leaves differ in length, ``params`` is not finite, or the mask does not fit.

    Examples:
      The gradients of |w - x|^2 / 2 are w - x, so D is the covariance of the data:

      >>> import jax.numpy as jnp
      >>> from entropix.flatness import gradient_noise
      >>> f = lambda w, x: jnp.mean(jnp.sum((w - x) ** 2, 1)) / 2
      >>> x = jnp.array([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
      >>> noise = gradient_noise(f, jnp.zeros(2), x)
      >>> print(noise.eigenvalues, noise.rank, noise.trace)
      [2.  0.5] 2 2.5
      >>> print(noise.batch_variance(2, replacement=True))
      1.25

    Reference:
      Chaudhari and Soatto, `Stochastic gradient descent performs variational inference, converges
      to limit cycles for deep networks <https://arxiv.org/abs/1710.11029>`_, ICLR 2018.
    """
    problem, space = _problem(loss, params, data, batch_size, mask)
    check_key(key)
    if num_steps is not None:
        check_integer("num_steps", num_steps, at_least=1)
        num_steps = min(num_steps, space.size)
    if rank_threshold is None:
        rank_threshold = space.size * 2.0**-23
    check_number("rank_threshold", rank_threshold, at_least=0, below=1)
    noise = _gradient_noise(problem, fresh_key(key), rank_threshold, space, num_steps, batch_size)
    return noise._replace(num_examples=num_examples(data), num_parameters=space.size)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _gradient_noise(
    problem: _Problem,
    key: jax.Array,
    rank_threshold: Any,
    space: Space,
    num_steps: int | None,
    batch_size: int | None,
) -> GradientNoise:
    n, d = num_examples(problem.data), space.size
    gradient = problem.gradient(batch_size)
    flat = _flat(space, gradient)

    def centered(batch: PyTree) -> Float[Array, "b d"]:
        """Per-example gradients less their mean, (b, d)."""

        def of_one(one: PyTree) -> Float[Array, " d"]:
            def loss(chosen: Any) -> jax.Array:
                return problem.losses(chosen, jax.tree.map(lambda x: x[None], one))[0]

            return _flat(space, jax.grad(loss)(problem.point.chosen))

        return jax.vmap(of_one)(batch) - flat[None, :]

    if num_steps is not None:
        operator = _covariance(problem, space, gradient, batch_size)
        eigenvalues, residual_norms = _ritz_values(operator, key, num_steps)
        trace = mean_over_chunks(
            lambda batch: jnp.mean(jnp.sum(centered(batch) ** 2, 1)), problem.data, batch_size
        )
    else:
        if n <= d:
            rows = jax.lax.map(
                lambda one: centered(jax.tree.map(lambda x: x[None], one))[0],
                problem.data,
                batch_size=batch_size or n,
            )
            matrix = jnp.matmul(rows, rows.T, precision="highest") / n
        else:
            matrix = mean_over_chunks(
                lambda batch: _second_moment(centered(batch)), problem.data, batch_size
            )
        eigenvalues = jnp.maximum(jnp.linalg.eigvalsh(matrix)[::-1], 0)
        residual_norms = jnp.zeros_like(eigenvalues)
        trace = jnp.trace(matrix)

    # What rounding leaves of gradients that do not differ is no noise of theirs: a product of
    # Lanczos subtracts after it has multiplied.
    rounding = max(problem.loss.program.rounding, space.rounding)
    floor = jnp.sum(flat**2) * (100 * rounding**2 if num_steps is None else 10 * rounding)
    threshold = jnp.maximum(eigenvalues[0] * jnp.asarray(rank_threshold, space.dtype), floor)
    square = jnp.sum(eigenvalues**2)
    return GradientNoise(
        eigenvalues=eigenvalues,
        residual_norms=residual_norms,
        threshold=threshold,
        rank=jnp.sum(eigenvalues > threshold, dtype=jnp.int32),
        participation_ratio=jnp.where(square > 0, trace**2 / jnp.where(square > 0, square, 1), 0),
        trace=trace,
        gradient=gradient,
        num_examples=n,
        num_parameters=d,
    )


def _flat(space: Space, tree: PyTree) -> Float[Array, " d"]:
    """A pytree of the space as one row of numbers."""
    return jnp.concatenate(
        [leaf.astype(space.dtype).ravel() for leaf in space.structure.flatten_up_to(tree)]
    )


def _second_moment(rows: Float[Array, "b d"]) -> Float[Array, "d d"]:
    return jnp.matmul(rows.T, rows, precision="highest") / len(rows)


def _ritz_values(
    operator: Operator, key: jax.Array, num_steps: int
) -> tuple[Float[Array, " m"], Float[Array, " m"]]:
    """Lanczos' eigenvalues of D, descending, and how far each may be from one of D."""
    start = operator.space.draw(jax.random.normal, key)
    result, _ = tridiagonalize(operator, start, num_steps)
    off_diagonal = result.off_diagonal
    tridiagonal = jnp.diag(result.diagonal) + jnp.diag(off_diagonal, 1) + jnp.diag(off_diagonal, -1)
    values, vectors = jnp.linalg.eigh(tridiagonal)
    # The last step taken carries the residual, earlier than the last row if Lanczos stopped.
    residuals = jnp.abs(result.residual_norm * vectors[result.num_steps - 1])
    residuals = residuals + operator.error * jnp.max(jnp.abs(values))
    return jnp.maximum(values[::-1], 0), residuals[::-1]
