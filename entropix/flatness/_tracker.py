"""Sharpness while a network trains: a pair of functions for any training loop."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from entropix._canary import warn_if_backend_is_faulty
from entropix._checks import check_float_leaves, check_integer, check_number
from entropix._keys import check_key, fresh_key
from entropix.flatness._chunks import mean_over_chunks
from entropix.flatness._critical_sharpness import critical_step, inner, move, norm
from entropix.flatness._pairs import Pair, rayleigh_ritz, scaled
from entropix.flatness._precision import resolution, widened

Loss = Callable[[Any, Any], jax.Array]
Schedule = Callable[[jax.Array], jax.Array | float]

# The first measurement starts from a random vector, the others from the last eigenvector.
_FIRST_PRODUCTS = 40


class TrackerRecord(NamedTuple):
    """What a `tracker` measured last; scalars for any logger, not a number before the first time.

    Attributes:
      step: the update at which all of this was measured, from 0; -1 before the first.
      is_new: whether that was the present update.
      loss: the loss before the update.
      gradient_norm: the length of the gradient.
      sharpness: the largest eigenvalue of the Hessian.
      residual: length of H v - sharpness v for the unit eigenvector v: a bound on the distance
        from ``sharpness`` to an eigenvalue.
      alignment: the squared cosine of the angle between the gradient and v.
      gradient_curvature: the curvature along the gradient, g . H g / g . g.
      update_curvature: the curvature along the updates.
      critical_step: the multiple of the updates at which the loss is back where it was: below 1
        this very update raises the loss; infinite if none does.
      critical_sharpness: 2 / (learning rate x ``critical_step``), where the rate is given.
      stability_limit: 2 / learning rate, where the rate is given: gradient descent on a quadratic
        diverges if the sharpness is above.
      num_products: Hessian-vector products that were made.
      num_passes: evaluations of the loss that were made besides.
    """

    step: Int[Array, "*batch"]
    is_new: Bool[Array, "*batch"]
    loss: Float[Array, "*batch"]
    gradient_norm: Float[Array, "*batch"]
    sharpness: Float[Array, "*batch"]
    residual: Float[Array, "*batch"]
    alignment: Float[Array, "*batch"]
    gradient_curvature: Float[Array, "*batch"]
    update_curvature: Float[Array, "*batch"]
    critical_step: Float[Array, "*batch"]
    critical_sharpness: Float[Array, "*batch"]
    stability_limit: Float[Array, "*batch"]
    num_products: Int[Array, "*batch"]
    num_passes: Int[Array, "*batch"]


class TrackerState(NamedTuple):
    """State of a `tracker`.

    Attributes:
      step: number of updates seen.
      eigenvector: the last one, of length 1, in float32 at least; a pytree like the parameters.
      record: the last measurement.
    """

    step: Int[Array, "*batch"]
    eigenvector: PyTree
    record: TrackerRecord


class TrackerInit(Protocol):
    """The first function of a `Tracker`."""

    def __call__(self, params: PyTree) -> TrackerState:
        """The state before the first update."""


class TrackerUpdate(Protocol):
    """The second function of a `Tracker`."""

    def __call__(
        self, state: TrackerState, params: PyTree, updates: PyTree, batch: PyTree
    ) -> tuple[TrackerState, TrackerRecord]:
        """The next state and the record, given the parameters before the updates are added."""


class Tracker(NamedTuple):
    """A pair of functions that measure, as an Optax transformation is one that updates.

    Attributes:
      init: params -> state.
      update: (state, params, updates, batch) -> (state, record), once at each update, with the
        parameters to which the updates are yet to be added.
    """

    init: TrackerInit
    update: TrackerUpdate


def tracker(
    loss: Loss,
    *,
    every: int = 100,
    learning_rate: float | Array | Schedule | None = None,
    tolerance: float = 0.05,
    max_products: int = 6,
    batch_size: int | None = None,
    key: jax.Array | int = 0,
) -> Tracker:
    r"""Follows the sharpness of a loss during training, at every so many updates.

    .. math:: \lambda_{max}(H), \quad \frac{g^T H g}{g^T g}, \quad \frac{u^T H u}{u^T u}, \quad
       \cos^2(g, v_{max}), \quad \min \{ s > 0 : f(w + s u) > f(w) \}

    for the Hessian H and the gradient g of the loss on the batch, and the updates u. Trained by
    gradient descent at the learning rate :math:`\eta`, many networks sharpen until
    :math:`\lambda_{max}` is :math:`2 / \eta`, and stay there: at the edge of stability. Three
    products of the Hessian, of the last eigenvector, the gradient, and the updates (two where these
    are a multiple of the gradient), give all curvatures; the largest Ritz value of the vectors is
    the estimate of the eigenvalue.
    Further products along residuals (locally optimal conjugate gradients) follow only if its
    residual is above the tolerance. Between measurements the last record is repeated.

    A measurement takes the operations of about six steps of plain gradient descent on the same
    batch (two products of nearly two gradients each, the gradient that they share, and three
    forward passes), or seven with momentum, whose updates need a third product: at the default
    6 % or 7 % of training, at ``every=300`` 2 % or 2.5 %. The gradient and one product, all that
    the eigenvalue needs, are 2.8 % at the default.

    ``update`` may be called inside the compiled step or outside. Under ``jax.vmap`` give all
    replicas one ``step``, or the measurement is made at every update.

    Args:
      loss: f(params, batch) -> scalar, a mean over the examples of the batch, twice
        differentiable, and the same function of the parameters at each call.
      every: updates from one measurement to the next; the first update is measured. At least 1,
        default 100.
      learning_rate: that of the optimizer, a number or a schedule of the update; it sets
        ``critical_sharpness`` and ``stability_limit``. Default None: they are not a number.
      tolerance: residual, relative to the eigenvalue, at which no further products are made. The
        relative error of the eigenvalue is about its square. Above 0, default 0.05.
      max_products: products of a measurement, at least 3; the first one may take 40. Default 6.
      batch_size: examples evaluated at once. Default all of the batch.
      key: an integer seed or a key of ``jax.random.key``, for the first vector.

    Returns:
      A `Tracker`; its answers are `TrackerState` and `TrackerRecord`.

    Raises:
      TypeError: an argument is not a number, or a parameter (at ``init``) not a float array.
      ValueError: an argument is out of its range, or there are no parameters.

    Examples:
      Gradient descent on a quadratic of curvatures 1 and 9:

      >>> import jax, jax.numpy as jnp
      >>> loss = lambda w, x: jnp.mean(x) * jnp.sum(jnp.array([0.5, 4.5]) * w**2)
      >>> follow = tracker(loss, every=10, learning_rate=0.2)
      >>> params = jnp.ones(2)
      >>> state = follow.init(params)
      >>> for _ in range(11):
      ...     updates = -0.2 * jax.grad(loss)(params, jnp.ones(1))
      ...     state, record = follow.update(state, params, updates, jnp.ones(1))
      ...     params = params + updates
      >>> print(f"{record.sharpness:.2f} of {record.stability_limit:.2f} at {record.step}")
      9.00 of 10.00 at 10

    Reference:
      Cohen, Kaur, Li, Kolter and Talwalkar, `Gradient descent on neural networks typically occurs
      at the edge of stability <https://arxiv.org/abs/2103.00065>`_, ICLR 2021. Knyazev, Toward the
      optimal preconditioned eigensolver, SIAM J. Sci. Comput. 23, 2001.
    """
    if not callable(loss):
        raise TypeError(f"loss must be a function of params and a batch, got {loss!r}")
    check_integer("every", every, at_least=1)
    if learning_rate is not None:
        check_number("learning_rate", learning_rate, above=0)
    check_number("tolerance", tolerance, above=0)
    check_integer("max_products", max_products, at_least=3)
    if batch_size is not None:
        check_integer("batch_size", batch_size, at_least=1)
    check_key(key)

    def init(params: PyTree) -> TrackerState:
        warn_if_backend_is_faulty()
        check_float_leaves("params", params)
        leaves, structure = jax.tree.flatten(params)
        if not leaves:
            raise ValueError(f"params must hold at least one array, got {params!r}")
        keys = jax.random.split(fresh_key(key), len(leaves))
        vector = jax.tree.unflatten(
            structure,
            [
                jax.random.normal(k, jnp.shape(leaf), _wide(leaf))
                for k, leaf in zip(keys, leaves, strict=True)
            ],
        )
        return TrackerState(jnp.zeros([], jnp.int32), scaled(vector), _empty_record(vector))

    @jax.jit
    def update(
        state: TrackerState, params: PyTree, updates: PyTree, batch: PyTree
    ) -> tuple[TrackerState, TrackerRecord]:
        def measured() -> tuple[PyTree, TrackerRecord]:
            rate = learning_rate(state.step) if callable(learning_rate) else learning_rate
            return _measure(
                loss, state, params, updates, batch, rate, tolerance, max_products, batch_size
            )

        def repeated() -> tuple[PyTree, TrackerRecord]:
            return state.eigenvector, state.record._replace(is_new=jnp.zeros([], bool))

        vector, record = jax.lax.cond(state.step % every == 0, measured, repeated)
        return TrackerState(state.step + 1, vector, record), record

    return Tracker(init, update)


def _is_multiple(left: PyTree, right: PyTree) -> Bool[Array, ""]:
    """Whether a tree that is not 0 is a multiple of another, up to rounding."""
    square = inner(right, right)
    factor = inner(left, right) / jnp.where(square > 0, square, 1)
    rest = jax.tree.map(lambda x, y: x - factor.astype(x.dtype) * y, left, right)
    length = norm(left)
    return (length > 0) & (norm(rest) <= 32 * jnp.finfo(length.dtype).eps * length)


def _wide(leaf: Any) -> Any:
    """The dtype of a leaf, at least float32."""
    return jnp.promote_types(jnp.result_type(leaf), jnp.float32)


def _empty_record(vector: PyTree) -> TrackerRecord:
    """The record before the first measurement, in the widest dtype of the vector."""
    dtype = inner(vector, vector).dtype
    known = {"step": jnp.full([], -1, jnp.int32), "is_new": jnp.zeros([], bool)}
    known |= {name: jnp.zeros([], jnp.int32) for name in ("num_products", "num_passes")}
    # A buffer for each: one that is in the state twice cannot be donated.
    unknown = {
        name: jnp.full([], jnp.nan, dtype) for name in TrackerRecord._fields if name not in known
    }
    return TrackerRecord(**known, **unknown)


class _Search(NamedTuple):
    """Where the search for the largest eigenvalue is.

    Attributes:
      top: the Ritz value.
      ritz: its vector.
      rest: the direction in which the vector was last improved.
      along: curvature along the last eigenvector, the gradient, and the updates.
      stage: which vector is next: of these three, or the residual.
      num_products: products made.
    """

    top: Array
    ritz: Pair
    rest: Pair
    along: Array
    stage: Array
    num_products: Array


def _measure(
    loss: Loss,
    state: TrackerState,
    params: PyTree,
    updates: PyTree,
    batch: PyTree,
    learning_rate: Any,
    tolerance: float,
    max_products: int,
    batch_size: int | None,
) -> tuple[PyTree, TrackerRecord]:
    """One measurement: the eigenvector and the record."""
    center = widened(loss, params, batch)
    dtype = state.record.sharpness.dtype

    def like_center(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x, w: x.astype(w.dtype), tree, center)

    def wide(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: x.astype(_wide(x)), tree)

    def value(weights: PyTree) -> Array:
        return mean_over_chunks(lambda chunk: loss(weights, chunk), batch, batch_size)

    def gradient(weights: PyTree) -> tuple[PyTree, Array]:
        base, slopes = mean_over_chunks(
            lambda chunk: jax.value_and_grad(loss)(weights, chunk), batch, batch_size
        )
        return slopes, base

    slopes, curvature, base = jax.linearize(gradient, center, has_aux=True)
    slopes, updates = wide(slopes), wide(updates)

    def residual(top: Array, ritz: Pair) -> PyTree:
        return jax.tree.map(lambda hx, x: hx - top.astype(x.dtype) * x, ritz.product, ritz.vector)

    follows_gradient = _is_multiple(updates, slopes)

    def goes_on(carry: _Search) -> Array:
        limit = jnp.where(state.record.step < 0, _FIRST_PRODUCTS, max_products)
        error = norm(residual(carry.top, carry.ritz))
        is_due = (carry.num_products < limit) & (error > tolerance * jnp.abs(carry.top))
        return (carry.stage < 3) | is_due

    def refine(carry: _Search) -> _Search:
        """One product more: of the last eigenvector, gradient, updates, and then of residuals."""
        stage = carry.stage

        def choose(*choices: Array) -> Array:
            return jax.lax.select_n(jnp.minimum(stage, 3), *choices)

        unit = scaled(
            jax.tree.map(
                choose, state.eigenvector, slopes, updates, residual(carry.top, carry.ritz)
            )
        )
        pair = Pair(unit, wide(curvature(like_center(unit))))
        top, ritz, rest = rayleigh_ritz([carry.ritz, pair, carry.rest])
        seen = inner(unit, pair.product)
        along = carry.along.at[stage].set(seen, mode="drop")
        # Those of plain gradient descent need no product of their own.
        is_last = (stage == 1) & follows_gradient
        along = along.at[2].set(jnp.where(is_last, seen, along[2]))
        return _Search(
            top, ritz, rest, along, stage + 1 + is_last.astype(stage.dtype), carry.num_products + 1
        )

    nothing = jax.tree.map(jnp.zeros_like, state.eigenvector)
    empty = Pair(nothing, nothing)
    none = jnp.int32(0)
    start = _Search(jnp.zeros([], dtype), empty, empty, jnp.zeros(3, dtype), none, none)
    found = jax.lax.while_loop(goes_on, refine, start)
    top, ritz = found.top, found.ritz

    last = state.record.critical_step
    begin = jnp.where((last > 0) & jnp.isfinite(last), last, 1)
    slope = inner(slopes, updates).astype(dtype)
    bracket = critical_step(
        lambda step: (value(move(center, updates, step)) - base).astype(dtype),
        begin.astype(dtype),
        slope,
        noise=resolution(base).astype(dtype),
        tolerance=0.1,
        max_passes=jnp.where(jnp.isfinite(base), 12, 0),
    )
    step = bracket.root()
    rate = jnp.full([], jnp.nan if learning_rate is None else learning_rate, dtype)
    size = norm(slopes)
    cosine = inner(slopes, ritz.vector) / size
    record = TrackerRecord(
        step=state.step,
        is_new=jnp.ones([], bool),
        loss=base.astype(dtype),
        gradient_norm=size.astype(dtype),
        sharpness=top.astype(dtype),
        residual=norm(residual(top, ritz)).astype(dtype),
        alignment=(cosine**2).astype(dtype),
        gradient_curvature=found.along[1],
        update_curvature=found.along[2],
        critical_step=step.astype(dtype),
        critical_sharpness=2 / (rate * step),
        stability_limit=2 / rate,
        num_products=found.num_products,
        num_passes=bracket.num_passes,
    )
    # A loss that overflows for once must not spoil all measurements that follow.
    usable = jnp.isfinite(norm(ritz.vector))
    vector = jax.tree.map(
        lambda new, old: jnp.where(usable, new, old), scaled(ritz.vector), state.eigenvector
    )
    return vector, record
