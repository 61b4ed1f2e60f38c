"""A function of the user's as a program whose arrays are arguments.

Compiled functions keep what they close over: as constants of the program, in memory as long as
their cache lives. Here a function is taken apart into what it computes and the arrays that it
reaches, whether these sit in a closure, a default argument, a ``partial``, or a pytree that can be
called. The first part is traced once and remembered without any array; the second is passed along.
"""

import collections
import functools
import types
import weakref
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from entropix.flatness._convolutions import evaluate
from entropix.flatness._state import JIT, Same, global_values, names_of, state, value_key

_Build: TypeAlias = Callable[[Iterator[Any]], Any]
_REMEMBERED = 512
# Those of jax.config that change what a trace records.
_SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_numpy_dtype_promotion",
    "jax_disable_jit",
)


class Program:
    """A traced function without its arrays; jit takes two for equal only if they are one.

    Attributes:
      answer: the structure of what it returns, with shapes and dtypes.
      rounding: the coarsest unit of rounding that its arithmetic passes through.
      is_checked: whether a check that need be made only once has been made.
    """

    def __init__(self, jaxpr: Any, shapes: tuple[Any, ...], answer: Any) -> None:
        self._jaxpr = jaxpr
        self._shapes = shapes
        self.answer = answer
        self.rounding = coarsest_rounding(jaxpr)
        self.is_checked = False

    def fits(self, *arguments: Any) -> bool:
        """Whether the program was traced for arguments of these shapes."""
        return self._shapes == tuple(jnp.shape(leaf) for leaf in jax.tree.leaves(arguments))

    def is_of(self, jaxpr: Any) -> bool:
        """Whether a second trace computes the same, apart from the values of its constants."""
        return str(self._jaxpr) == str(jaxpr)

    def __call__(self, arrays: tuple[list[Any], list[Any]], *arguments: Any) -> Any:
        """The function's answer, the arrays that it reaches given beside its arguments."""
        hidden, reached = arrays
        closed = core.ClosedJaxpr(self._jaxpr, hidden)
        answers = core.jaxpr_as_fun(closed)(*reached, *jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(self.answer), answers)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("arrays",), meta_fields=("program",)
)
@dataclass(frozen=True)
class Hoisted:
    """A function as a pytree.

    Attributes:
      program: what it computes; static.
      arrays: what it reaches beside its arguments.
    """

    program: Program
    arrays: tuple[list[Any], list[Any]]

    def __call__(self, *arguments: Any) -> Any:
        """The function's answer."""
        return self.program(self.arrays, *arguments)


@dataclass(frozen=True)
class _Reached:
    """What a function reaches.

    Attributes:
      arrays: those that its program takes as arguments.
      things: all else that a trace of it may read, each with the global names of its function.
      names: those in the code of all functions.
    """

    arrays: list[Any] = field(default_factory=list)
    things: list[tuple[Any, dict[str, Any]]] = field(default_factory=list)
    names: set[str] = field(default_factory=set)

    def state(self) -> list[Hashable]:
        """Keys of the things, which change where a trace may read something else in them."""
        names = frozenset(self.names)
        return [state(thing, namespace, names) for thing, namespace in self.things]


_Remembered: TypeAlias = tuple[Program, list[Any], list[Hashable]]
_memory: collections.OrderedDict[Hashable, _Remembered] = collections.OrderedDict()


def hoist(function: Callable[..., Any], *arguments: Any) -> Hoisted:
    """The function as a pytree: its program, and the arrays that it reaches as leaves.

    Functions of the same code that reach arrays of the same shapes share one program: a second
    one is neither traced nor compiled. No array is kept alive by it.

    Args:
      function: any function of pytrees of arrays; one that can be traced.
      *arguments: examples of its arguments, arrays or their shapes.

    Returns:
      A function of arguments of these shapes and dtypes.
    """
    reached = _Reached()
    about = _about(arguments)
    key, build = _apart(function, reached, ())
    arrays, now = reached.arrays, reached.state()
    try:
        return _traced((key, _about(arrays), about), build, arrays, now, arguments)
    except (TypeError, IndexError):
        # It may need an array's value while it is traced, and then is traced as it stands.
        now += map(Same, arrays)
        return _traced((Same(function), about), lambda _: function, [], now, arguments)


def _traced(
    key: Hashable,
    build: _Build,
    leaves: list[Any],
    now: list[Hashable],
    arguments: tuple[Any, ...],
) -> Hoisted:
    """The program remembered for a key and what it may read now, or a new one, with its arrays."""
    found = _memory.get(key)
    if found is not None:
        program, references, before = found
        hidden = [reference() for reference in references]
        if before == now and all(array is not None for array in hidden):
            _memory.move_to_end(key)
            return Hoisted(program, (hidden, leaves))

    def whole(leaves: list[Any], *arguments: Any) -> Any:
        return build(iter(leaves))(*arguments)

    closed, answer = jax.make_jaxpr(whole, return_shape=True)(leaves, *arguments)
    if any(inner.consts for inner in _inner(closed.jaxpr) if isinstance(inner, core.ClosedJaxpr)):
        flat = jax.tree.leaves((leaves, *arguments))
        opened = functools.partial(_evaluate_flat, closed)
        closed = jax.make_jaxpr(opened)(*flat)
    shapes = tuple(jnp.shape(leaf) for leaf in jax.tree.leaves(arguments))
    # Constants that the trace itself made, of NumPy arrays for one, live no longer than their last
    # user; what is computed with them is the same, and compiled already.
    if found is not None and found[0].is_of(closed.jaxpr):
        program = found[0]
    else:
        program = Program(closed.jaxpr, shapes, answer)
    hidden = list(closed.consts)
    if not any(isinstance(array, jax.core.Tracer) for array in hidden):
        _memory[key] = program, [_reference(array) for array in hidden], now
        if len(_memory) > _REMEMBERED:
            _memory.popitem(last=False)
    return Hoisted(program, (hidden, leaves))


def _reference(array: Any) -> Callable[[], Any]:
    """A weak reference; a strong one to what allows none, such as a NumPy scalar."""
    try:
        return weakref.ref(array)
    except TypeError:
        return lambda: array


def _evaluate_flat(closed: Any, *leaves: Any) -> list[Any]:
    return evaluate(closed.jaxpr, closed.consts, list(leaves))


def _about(tree: Any) -> Hashable:
    """What tracing depends on beside the function: shapes, dtypes, and JAX's settings."""
    leaves, structure = jax.tree.flatten(tree)
    types_ = tuple(
        (leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else jax.typeof(leaf)
        for leaf in leaves
    )
    settings = tuple(getattr(jax.config, name) for name in _SETTINGS)
    return structure, types_, settings, jax.sharding.get_abstract_mesh()


def _apart(thing: Any, reached: _Reached, above: tuple[int, ...]) -> tuple[Hashable, _Build]:
    """Takes a thing apart: its arrays go to ``reached``; a key of the rest, and how to build it."""
    if isinstance(thing, (jax.Array, np.ndarray)):
        reached.arrays.append(thing)
        return "array", next
    if id(thing) in above:
        return Same(thing), lambda _: thing
    above = (*above, id(thing))
    before = len(reached.arrays)
    key, build = _inside(thing, reached, above)
    # What holds no array need not be built again.
    return key, build if len(reached.arrays) > before else lambda _: thing


def _inside(thing: Any, reached: _Reached, above: tuple[int, ...]) -> tuple[Hashable, _Build]:
    """`_apart` for what is no array."""
    if isinstance(thing, JIT) and hasattr(thing, "__wrapped__"):
        return _apart(thing.__wrapped__, reached, above)
    if isinstance(thing, types.FunctionType):
        return _function_apart(thing, reached, above)
    if isinstance(thing, types.MethodType):
        key, build = _apart((thing.__func__, thing.__self__), reached, above)
        return ("method", key), lambda found: types.MethodType(*build(found))
    if isinstance(thing, functools.partial):
        parts = (thing.func, thing.args, thing.keywords)
        key, build = _apart(parts, reached, above)

        def rebuild(found: Iterator[Any]) -> Any:
            function, args, keywords = build(found)
            return functools.partial(function, *args, **keywords)

        return ("partial", key), rebuild
    try:
        children, structure = jax.tree.flatten(thing)
        hash(structure)
    except (TypeError, ValueError):
        reached.things.append((thing, {}))
        return Same(thing), lambda _: thing
    if jax.tree_util.treedef_is_leaf(structure):
        reached.things.append((thing, {}))
        return value_key(thing), lambda _: thing
    pairs = [_apart(child, reached, above) for child in children]

    def unflatten(found: Iterator[Any]) -> Any:
        return jax.tree.unflatten(structure, [build(found) for _, build in pairs])

    return (structure, tuple(key for key, _ in pairs)), unflatten


def _function_apart(
    function: types.FunctionType, reached: _Reached, above: tuple[int, ...]
) -> tuple[Hashable, _Build]:
    """A Python function as its code and what the code reaches."""
    cells = function.__closure__ or ()
    try:
        contents = tuple(cell.cell_contents for cell in cells)
    except ValueError:
        return Same(function), lambda _: function
    parts = (contents, function.__defaults__, function.__kwdefaults__)
    key, build = _apart(parts, reached, above)

    def rebuild(found: Iterator[Any]) -> Any:
        contents, defaults, keyword_defaults = build(found)
        again = types.FunctionType(
            function.__code__,
            function.__globals__,
            function.__name__,
            defaults,
            tuple(types.CellType(content) for content in contents),
        )
        again.__kwdefaults__ = keyword_defaults
        return again

    values = global_values(function)
    reached.things.extend((value, function.__globals__) for value in values)
    reached.names.update(names_of(function.__code__))
    return (function.__code__, tuple(value_key(value) for value in values), key), rebuild


def _inner(jaxpr: Any) -> Iterator[Any]:
    """The programs inside a program, at every depth."""
    for equation in jaxpr.eqns:
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: isinstance(x, core.ClosedJaxpr)
        ):
            if isinstance(value, (core.Jaxpr, core.ClosedJaxpr)):
                yield value
                yield from _inner(getattr(value, "jaxpr", value))


def primitives(jaxpr: Any) -> set[str]:
    """The names of all operations of a program, at every depth."""
    return {
        equation.primitive.name
        for program in (jaxpr, *_inner(jaxpr))
        for equation in getattr(program, "jaxpr", program).eqns
    }


def coarsest_rounding(jaxpr: Any) -> float:
    """The largest distance from 1 to the next number, of all floats that a program computes."""
    units = [
        float(jnp.finfo(variable.aval.dtype).eps)
        for program in (jaxpr, *_inner(jaxpr))
        for equation in getattr(program, "jaxpr", program).eqns
        for variable in equation.outvars
        if jnp.issubdtype(getattr(variable.aval, "dtype", np.int32), jnp.floating)
    ]
    return max(units, default=0.0)
