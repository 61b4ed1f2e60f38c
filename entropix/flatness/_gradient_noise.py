"""Noise of the mini-batch gradient: its covariance, and its size layer by layer."""

import functools
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from entropix._canary import warn_if_backend_is_faulty
from entropix._checks import check_integer, check_number
from entropix._keys import check_key, fresh_key
from entropix.flatness._chunks import mean_over_chunks, num_examples
from entropix.flatness._lanczos import tridiagonalize
from entropix.flatness._problem import check_problem
from entropix.flatness._vectors import Vectors, vectors_like

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

    eigenvalues: jax.Array
    residual_norms: jax.Array
    threshold: jax.Array
    rank: jax.Array
    participation_ratio: jax.Array
    trace: jax.Array
    gradient: Any
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


class LayerTemperature(NamedTuple):
    """Answer of `layer_temperature`, each a dictionary from group to a number.

    Attributes:
      signal: mean over the mini-batches of the training signal s_I.
      signal_std_error: its standard error.
      temperature: standard deviation of s_I over the mini-batches.
      temperature_std_error: its standard error.
    """

    signal: dict[Hashable, jax.Array]
    signal_std_error: dict[Hashable, jax.Array]
    temperature: dict[Hashable, jax.Array]
    temperature_std_error: dict[Hashable, jax.Array]


def _each(batch: Any) -> Any:
    """A batch of b examples as b batches of one."""
    return jax.tree.map(lambda x: jnp.asarray(x)[:, None], batch)


def _gradients(loss: Loss, params: Any, space: Vectors, batch: Any) -> jax.Array:
    """Per-example gradients, (b, d)."""
    return jax.vmap(lambda one: space.flatten(jax.grad(loss)(params, one)))(_each(batch))


def gradient_noise(
    loss: Loss,
    params: Any,
    data: Any,
    *,
    num_steps: int | None = None,
    key: jax.Array | int = 0,
    rank_threshold: float | None = None,
    batch_size: int | None = None,
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

    Returns:
      A `GradientNoise`.

    Raises:
      TypeError: an argument or a parameter is of the wrong type.
      ValueError: an argument is out of its range, ``loss`` is not a scalar, ``data`` is empty or
        its leaves differ in length, or ``params`` is not finite.

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
    warn_if_backend_is_faulty()
    check_problem(loss, params, data, batch_size)
    check_key(key)
    space = vectors_like(params)
    if num_steps is not None:
        check_integer("num_steps", num_steps, at_least=1)
        num_steps = min(num_steps, space.size)
    if rank_threshold is None:
        rank_threshold = space.size * 2.0**-23
    check_number("rank_threshold", rank_threshold, at_least=0, below=1)
    noise = _gradient_noise(
        loss, params, data, fresh_key(key), rank_threshold, num_steps, batch_size
    )
    return noise._replace(num_examples=num_examples(data), num_parameters=space.size)


@functools.partial(jax.jit, static_argnums=(0, 5, 6))
def _gradient_noise(
    loss: Loss,
    params: Any,
    data: Any,
    key: jax.Array,
    rank_threshold: Any,
    num_steps: int | None,
    batch_size: int | None,
) -> GradientNoise:
    space = vectors_like(params)
    n, d = num_examples(data), space.size
    gradient = mean_over_chunks(
        lambda batch: space.flatten(jax.grad(loss)(params, batch)), data, batch_size
    )

    def centered(batch: Any) -> jax.Array:
        return _gradients(loss, params, space, batch) - gradient[None, :]

    if num_steps is not None:
        start = jax.random.normal(key, (d,), space.dtype)
        eigenvalues, residual_norms = _ritz_values(
            loss, params, data, gradient, start, num_steps, batch_size
        )
        trace = mean_over_chunks(
            lambda batch: jnp.mean(jnp.sum(centered(batch) ** 2, 1)), data, batch_size
        )
    else:
        if n <= d:
            rows = jax.lax.map(
                lambda one: centered(jax.tree.map(lambda x: x[None], one))[0],
                jax.tree.map(jnp.asarray, data),
                batch_size=batch_size or n,
            )
            matrix = jnp.matmul(rows, rows.T, precision="highest") / n
        else:
            matrix = mean_over_chunks(
                lambda batch: _second_moment(centered(batch)), data, batch_size
            )
        eigenvalues = jnp.maximum(jnp.linalg.eigvalsh(matrix)[::-1], 0)
        residual_norms = jnp.zeros_like(eigenvalues)
        trace = jnp.trace(matrix)

    threshold = eigenvalues[0] * jnp.asarray(rank_threshold, space.dtype)
    square = jnp.sum(eigenvalues**2)
    return GradientNoise(
        eigenvalues=eigenvalues,
        residual_norms=residual_norms,
        threshold=threshold,
        rank=jnp.sum(eigenvalues > threshold, dtype=jnp.int32),
        participation_ratio=jnp.where(square > 0, trace**2 / jnp.where(square > 0, square, 1), 0),
        trace=trace,
        gradient=space.unflatten(gradient),
        num_examples=n,
        num_parameters=d,
    )


def _second_moment(rows: jax.Array) -> jax.Array:
    return jnp.matmul(rows.T, rows, precision="highest") / len(rows)


def _ritz_values(
    loss: Loss,
    params: Any,
    data: Any,
    gradient: jax.Array,
    start: jax.Array,
    num_steps: int,
    batch_size: int | None,
) -> tuple[jax.Array, jax.Array]:
    """Lanczos' eigenvalues of D, descending, and how far each may be from one of D."""
    space = vectors_like(params)

    def product(tangent: Any) -> Any:
        """D v, as the mean of g_k (g_k . v - g . v)."""
        mean_slope = jnp.vdot(gradient, space.flatten(tangent))

        def of_batch(batch: Any) -> Any:
            def losses(params: Any) -> jax.Array:
                return jax.vmap(lambda one: loss(params, one))(_each(batch))

            values, slopes = jax.jvp(losses, (params,), (tangent,))
            weights = (slopes - mean_slope.astype(slopes.dtype)) / len(values)
            return jax.vjp(losses, params)[1](weights)[0]

        return mean_over_chunks(of_batch, data, batch_size)

    result, _ = tridiagonalize(product, start, params, num_steps)
    off_diagonal = result.off_diagonal
    tridiagonal = jnp.diag(result.diagonal) + jnp.diag(off_diagonal, 1) + jnp.diag(off_diagonal, -1)
    values, vectors = jnp.linalg.eigh(tridiagonal)
    # The last step taken carries the residual, earlier than the last row if Lanczos stopped.
    residuals = jnp.abs(result.residual_norm * vectors[result.num_steps - 1])
    return jnp.maximum(values[::-1], 0), residuals[::-1]


def layer_of(path: tuple[Any, ...]) -> str:
    """The default group of a parameter: the path to the module that holds it."""
    return jax.tree_util.keystr(path[:-1] or path)


def layer_temperature(
    loss: Loss,
    params: Any,
    data: Any,
    *,
    minibatch_size: int,
    group: Callable[[tuple[Any, ...]], Hashable | None] = layer_of,
    minibatches_at_once: int = 1,
) -> LayerTemperature:
    r"""Measures the training signal of each layer and its temperature, at fixed weights.

    .. math:: s_I(B) = \frac{1}{N_I} \sum_{i \in I} |\partial_i f(w; B)|, \qquad
        \text{signal}_I = \langle s_I \rangle_B, \qquad
        T_I = \sqrt{\langle s_I^2 \rangle_B - \langle s_I \rangle_B^2}

    over mini-batches B of consecutive examples, N_I parameters i in the group I. The paper takes
    the batches of an epoch of training, while the weights move; near the end of training, when
    they move little, the two agree.

    Args:
      loss: f(params, batch), the mean over the batch; a scalar.
      params: w, a pytree of floating-point arrays.
      data: a pytree of arrays with one leading axis of n examples, in random order.
      minibatch_size: b, examples in a mini-batch. At most n / 2; n mod b examples are left over.
      group: function of a parameter's path (as of ``jax.tree_util.tree_map_with_path``) to its
        group, a string if groups are to be mixed with others, or None to leave it out. Default:
        the path to the module that holds it, so kernel and bias make one layer. The paper leaves
        the biases out.
      minibatches_at_once: mini-batches looked at together. Default 1, the least memory.

    Returns:
      A `LayerTemperature`; T with the unbiased variance.

    Raises:
      TypeError: an argument or a parameter is of the wrong type.
      ValueError: an argument is out of its range, ``loss`` is not a scalar, ``data`` is empty or
        its leaves differ in length, ``params`` is not finite, or no parameter is in a group.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from entropix.flatness import layer_temperature
      >>> params = {"dense": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}}
      >>> x = jax.random.normal(jax.random.key(0), (100, 3))
      >>> def f(params, x):
      ...     return jnp.mean((x @ params["dense"]["kernel"] + params["dense"]["bias"]) ** 2)
      >>> found = layer_temperature(f, params, x, minibatch_size=10)
      >>> list(found.temperature)
      ["['dense']"]

    Reference:
      Musso, `Partial local entropy and anisotropy in deep weight spaces
      <https://arxiv.org/abs/2007.09091>`_, Phys. Rev. E 103, 2021, eq. (2).
    """
    warn_if_backend_is_faulty()
    check_problem(loss, params, data, None)
    check_integer("minibatch_size", minibatch_size, at_least=1)
    check_integer("minibatches_at_once", minibatches_at_once, at_least=1)
    if num_examples(data) < 2 * minibatch_size:
        raise ValueError(
            f"minibatch_size must be at most half of the {num_examples(data)} examples, "
            f"got {minibatch_size}"
        )
    groups = tuple(group(path) for path, _ in jax.tree.leaves_with_path(params))
    if all(name is None for name in groups):
        raise ValueError("group must put at least one parameter in a group, got None for all")
    return _layer_temperature(loss, params, data, groups, minibatch_size, minibatches_at_once)


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5))
def _layer_temperature(
    loss: Loss,
    params: Any,
    data: Any,
    groups: tuple[Hashable | None, ...],
    minibatch_size: int,
    minibatches_at_once: int,
) -> LayerTemperature:
    num_batches = num_examples(data) // minibatch_size
    batches = jax.tree.map(
        lambda x: jnp.asarray(x)[: num_batches * minibatch_size].reshape(
            num_batches, minibatch_size, *x.shape[1:]
        ),
        data,
    )
    dtype = vectors_like(params).dtype

    def signals(batch: Any) -> dict[Hashable, jax.Array]:
        totals: dict[Hashable, jax.Array] = {}
        sizes: dict[Hashable, int] = {}
        leaves = jax.tree.leaves(jax.grad(loss)(params, batch))
        for name, leaf in zip(groups, leaves, strict=True):
            if name is not None:
                size = jnp.sum(jnp.abs(leaf.astype(dtype)))
                totals[name] = totals.get(name, jnp.zeros_like(size)) + size
                sizes[name] = sizes.get(name, 0) + leaf.size
        return {name: total / sizes[name] for name, total in totals.items()}

    seen = jax.lax.map(signals, batches, batch_size=minibatches_at_once)
    signal = jax.tree.map(jnp.mean, seen)
    temperature = jax.tree.map(lambda s: jnp.std(s, ddof=1), seen)

    def temperature_error(s: jax.Array, std: jax.Array) -> jax.Array:
        """That of a standard deviation, from the spread of the squared deviations."""
        spread = jnp.std((s - jnp.mean(s)) ** 2, ddof=1) / num_batches**0.5
        return spread / jnp.where(std > 0, 2 * std, 1)

    return LayerTemperature(
        signal,
        jax.tree.map(lambda std: std / num_batches**0.5, temperature),
        temperature,
        jax.tree.map(temperature_error, seen, temperature),
    )
