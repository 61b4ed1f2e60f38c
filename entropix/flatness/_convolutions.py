"""Convolutions in the layout that XLA's CPU compiler knows inside loops."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

_CALLS = ("jit", "pjit", "closed_call")


def canonical_convolutions(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, with its convolutions written channels-last where they run on CPU.

    XLA's CPU compiler has a fast convolution for one layout, (batch, space, channels) with kernels
    (space, in, out), and brings convolutions to it only outside of loops. The gradients of a
    convolution come in other layouts, so that inside a loop over chunks or Lanczos steps they
    would be computed element by element, 10 to 20 times slower. On other platforms, and
    for functions without convolutions, the function is unchanged.
    """

    def rewritten(*arguments: Any) -> Any:
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
        if jax.default_backend() != "cpu" or not _has_convolution(closed.jaxpr):
            return function(*arguments)
        answer = evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(shape), answer)

    return rewritten


def _has_convolution(jaxpr: Any) -> bool:
    """Whether a convolution is among the equations that `evaluate` rewrites."""
    return any(
        equation.primitive.name == "conv_general_dilated"
        or (equation.primitive.name in _CALLS and _has_convolution(_called(equation).jaxpr))
        for equation in jaxpr.eqns
    )


def _called(equation: Any) -> Any:
    """The program that a call runs."""
    params = equation.params
    return params["call_jaxpr"] if "call_jaxpr" in params else params["jaxpr"]


def evaluate(jaxpr: Any, consts: list[Any], arguments: list[Any]) -> list[Any]:
    """Evaluates a program's equations and those of its calls, convolutions on CPU canonically."""
    values: dict[Any, Any] = {}

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    values.update(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, arguments, strict=True))
    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        if equation.primitive.name == "conv_general_dilated" and jax.default_backend() == "cpu":
            answers = [_canonical(*operands, **equation.params)]
        elif equation.primitive.name in _CALLS:
            inner = _called(equation)
            answers = evaluate(inner.jaxpr, inner.consts, operands)
        else:
            bound = equation.primitive.get_bind_params(equation.params)
            # jax 0.10.1 and before answer with a pair.
            functions, params = bound if isinstance(bound, tuple) else ((), bound)
            answer = equation.primitive.bind(*functions, *operands, **params)
            answers = answer if equation.primitive.multiple_results else [answer]
        values.update(zip(equation.outvars, answers, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _canonical(images: jax.Array, kernel: jax.Array, **params: Any) -> jax.Array:
    """One convolution as transpositions around one in the canonical layout."""
    layout = params.pop("dimension_numbers")
    batch, feature, *space = layout.lhs_spec
    out, into, *window = layout.rhs_spec
    out_batch, out_feature, *out_space = layout.out_spec
    channels_last = tuple(range(1, images.ndim - 1))
    answer = jax.lax.conv_general_dilated_p.bind(
        images.transpose(batch, *space, feature),
        kernel.transpose(*window, into, out),
        dimension_numbers=jax.lax.ConvDimensionNumbers(
            (0, images.ndim - 1, *channels_last),
            (images.ndim - 1, images.ndim - 2, *range(images.ndim - 2)),
            (0, images.ndim - 1, *channels_last),
        ),
        **params,
    )
    order = (out_batch, *out_space, out_feature)
    inverse = sorted(range(images.ndim), key=order.__getitem__)
    return answer.transpose(inverse)
