"""A loss at a point, checked and taken apart, before any estimator works on it."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from entropix._canary import warn_if_backend_is_faulty
from entropix._checks import check_float_leaves, check_integer, holds
from entropix._masks import Mask, full_mask
from entropix.flatness._chunks import num_examples
from entropix.flatness._programs import Hoisted, hoist, primitives
from entropix.flatness._space import Space, space_of

_SPLIT = (
    "a model is to be split: its parameters are params, and the rest is part of the loss (of an "
    "nnx model: graphdef, params, rest = nnx.split(model, nnx.Param, ...))"
)


def check_inputs(params: Any, data: Any, batch_size: int | None) -> None:
    """Raises unless the parameters are finite floats and the data have one example axis.

    Raises:
      TypeError: a parameter is not floating-point, or ``batch_size`` is not an integer.
      ValueError: there are no parameters, one is not finite, the data are refused by
        `num_examples`, or ``batch_size`` is below 1.
    """
    try:
        check_float_leaves("params", params)
    except TypeError as error:
        raise TypeError(f"{error}; {_SPLIT}") from None
    leaves = jax.tree.leaves_with_path(params)
    if not leaves:
        raise ValueError(f"params must hold at least one array, got {params!r}")
    for path, leaf in leaves:
        if not holds(_all_finite, leaf):
            raise ValueError(
                f"params must be finite, got NaN or infinity at params{jax.tree_util.keystr(path)}"
            )
    num_examples(data)
    if batch_size is not None:
        check_integer("batch_size", batch_size, at_least=1)


# Compiled, so that a divided leaf is looked at where it is.
@jax.jit
def _all_finite(leaf: jax.Array) -> jax.Array:
    return jnp.all(jnp.isfinite(leaf))


def check_scalar(answer: Any) -> None:
    """Raises unless a loss answers with a floating-point scalar.

    Raises:
      ValueError: it does not.
    """
    is_scalar = isinstance(answer, jax.ShapeDtypeStruct) and answer.shape == ()
    if not is_scalar or not jnp.issubdtype(answer.dtype, jnp.floating):
        raise ValueError(f"loss(params, batch) must be a floating-point scalar, got {answer}")


@contextlib.contextmanager
def forward_derivatives(cure: str) -> Iterator[None]:
    """Names the cure where a custom gradient has no rule for forward differentiation.

    Raises:
      TypeError: it has none.
    """
    try:
        yield
    except (TypeError, NotImplementedError) as error:
        if "custom" not in str(error):
            raise
        raise TypeError(
            f"forward derivatives are needed here, for which a custom gradient has no rule; {cure} "
            f"({error})"
        ) from error


def check_forward_rule(matvec: Callable[[Any], Any], vector: Any) -> None:
    """Traces a product, for its errors to come before any work.

    Raises:
      TypeError: a custom gradient in it has no rule for forward differentiation.
    """
    if "custom_lin" in primitives(jax.make_jaxpr(matvec)(vector).jaxpr):
        raise TypeError("a custom gradient has no rule for forward differentiation")


class Point(NamedTuple):
    """The parameters of a problem, those that an operator acts on apart from the others.

    Attributes:
      chosen: the parameters that the mask chooses, None in place of the others.
      others: the others, None in place of the chosen.
    """

    chosen: Any
    others: Any

    def whole(self, chosen: Any) -> Any:
        """All parameters, with other values of the chosen."""
        return jax.tree.map(
            lambda a, b: b if a is None else a, chosen, self.others, is_leaf=lambda x: x is None
        )


def split_params(params: Any, mask: Mask | None) -> tuple[Point, Space]:
    """The parameters as a mask splits them, and the space of those it chooses.

    Raises:
      TypeError: the mask holds or answers anything but booleans.
      ValueError: the mask is no prefix of ``params``, or chooses nothing.
    """
    params = jax.tree.map(jnp.asarray, params)
    chosen = full_mask(mask, params)
    if not any(jax.tree.leaves(chosen)):
        raise ValueError(f"mask must choose at least one leaf of params, got {mask!r}")
    point = Point(
        jax.tree.map(lambda leaf, is_chosen: leaf if is_chosen else None, params, chosen),
        jax.tree.map(lambda leaf, is_chosen: None if is_chosen else leaf, params, chosen),
    )
    return point, space_of(point.chosen)


class Chunked(NamedTuple):
    """A function of parameters and a chunk of the data, traced for the two sizes of a chunk.

    Attributes:
      full: for a full chunk.
      last: for what is left over, if anything is.
    """

    full: Hoisted
    last: Hoisted | None

    def __call__(self, params: Any, batch: Any) -> Any:
        """The function's answer."""
        if self.last is not None and self.last.program.fits(params, batch):
            return self.last(params, batch)
        return self.full(params, batch)

    @property
    def rounding(self) -> float:
        """The coarsest unit of rounding of the function's arithmetic."""
        return self.full.program.rounding


def chunked(
    function: Callable[[Any, Any], Any], params: Any, data: Any, batch_size: int | None
) -> Chunked:
    """The function, traced once for each size of a chunk, its arrays arguments."""
    full, last = chunk_shapes(data, batch_size)
    return Chunked(
        hoist(function, params, full), None if last is None else hoist(function, params, last)
    )


def chunk_shapes(data: Any, batch_size: int | None) -> tuple[Any, Any]:
    """The shapes of a full chunk of the data, and of what is left over, None if nothing is."""
    n = num_examples(data)
    size = min(batch_size or n, n)
    return examples(data, size), examples(data, n % size) if n % size else None


def examples(data: Any, count: int) -> Any:
    """The shapes of so many examples."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((count, *jnp.shape(x)[1:]), jnp.result_type(x)), data
    )


def checked_loss(
    loss: Callable[[Any, Any], jax.Array], params: Any, data: Any, batch_size: int | None
) -> Chunked:
    """The loss, traced for its chunks; a warning where it is no mean over its examples.

    Raises:
      TypeError: a parameter is not floating-point, or ``batch_size`` is not an integer.
      ValueError: the problem is refused by `check_inputs`, or the loss is no floating-point scalar.
    """
    warn_if_backend_is_faulty()
    check_inputs(params, data, batch_size)
    try:
        traced = chunked(loss, params, data, batch_size)
    except Exception as error:
        # Flax's, of a model that changes its own state; flatness does not know Flax.
        if type(error).__name__ != "TraceContextError":
            raise
        raise ValueError(
            "loss(params, batch) must be a function of its arguments alone, and this one changes "
            "its model's state, as batch normalization and dropout do in training mode: put the "
            "model in evaluation mode first, model.eval(), and the parameters into it by "
            f"nnx.merge, which makes another one, not by nnx.update ({error})"
        ) from error
    check_scalar(traced.full.program.answer)
    if batch_size is not None and batch_size < num_examples(data):
        _warn_unless_mean(loss, traced, params, data, batch_size)
    return traced


@jax.jit
def _value(loss: Hoisted, params: Any, batch: Any) -> jax.Array:
    return loss(params, batch)


def _warn_unless_mean(
    loss: Callable[[Any, Any], jax.Array], traced: Chunked, params: Any, data: Any, batch_size: int
) -> None:
    """Compares two chunks with their union, once for each loss, where values are known."""
    program = traced.full.program
    leaves = jax.tree.leaves((params, data, traced))
    if program.is_checked or any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return
    program.is_checked = True
    # Halves of a chunk need no more memory than the chunk; a chunk of one needs another.
    whole = max(batch_size, 2)
    half = whole // 2

    def value(start: int, stop: int) -> float:
        with jax.ensure_compile_time_eval():
            part = jax.tree.map(lambda x: x[start:stop], data)
            return float(_value(hoist(loss, params, examples(data, stop - start)), params, part))

    union, first, second = value(0, whole), value(0, half), value(half, whole)
    mean = (half * first + (whole - half) * second) / whole
    tolerance = 300 * max(program.rounding, 1e-7) * max(abs(union), abs(first), abs(second))
    if abs(mean - union) > tolerance:
        warnings.warn(
            "loss(params, batch) is no mean over the examples of its batch: it is "
            f"{union:.6g} for {whole} examples, and {mean:.6g} is the mean of its values for "
            f"their two halves. Every answer then depends on batch_size = {batch_size}. A sum must "
            "be divided by the batch's length; batch normalization must use its running averages.",
            stacklevel=4,
        )
