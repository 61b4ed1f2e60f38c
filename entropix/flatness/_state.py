"""What a trace may read beside arrays: compared by identity, and by what can be set in it."""

import functools
import inspect
import types
import weakref
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import jax
import numpy as np

JIT = type(jax.jit(lambda: None))
# What Python calls by itself when an object is called, or something is taken from it.
_CALLED = ("__call__", "__getattr__", "__getitem__")


class Same:
    """An object compared by identity, and not kept alive where that can be helped."""

    def __init__(self, thing: Any) -> None:
        self._id = id(thing)
        try:
            self._get: Callable[[], Any] = weakref.ref(thing)
        except TypeError:
            self._get = lambda: thing

    def __hash__(self) -> int:
        return self._id

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Same):
            return NotImplemented
        thing = self._get()
        return thing is not None and thing is other._get()


def names_of(code: types.CodeType) -> frozenset[str]:
    """The global names and attributes that a function and the functions inside it may read."""
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return frozenset(code.co_names).union(*(names_of(one) for one in inner))


def global_values(function: types.FunctionType) -> list[Any]:
    """The values of the global names that a function and the functions inside it may read."""
    names = sorted(names_of(function.__code__))
    return [function.__globals__[name] for name in names if name in function.__globals__]


def value_key(thing: Any) -> Hashable:
    """A key of a thing that is no array: its value where it has one, else itself."""
    if thing is None:
        return None
    if callable(thing) or getattr(type(thing), "__hash__", None) is object.__hash__:
        return Same(thing)
    try:
        hash(thing)
    except TypeError:
        return Same(thing)
    return type(thing), thing, repr(thing) if isinstance(thing, float) else ""


def state(
    thing: Any, namespace: dict[str, Any], names: frozenset[str], seen: set[int] | None = None
) -> Hashable:
    """What a trace may read of a thing that can change while the thing stays the same one.

    The items of containers, unless these are told apart by identity, the attributes of objects
    that some code at hand names, and, of functions that share a namespace, their code and all that
    it reaches in turn. Arrays are compared by identity.

    Args:
      thing: what a function reaches.
      namespace: the global names of that function; functions of other modules are not looked into.
      names: those that occur in its code.
      seen: the identities of things that are part of the answer already.

    Returns:
      A key, equal for a thing that has not changed.
    """
    seen = set() if seen is None else seen
    found = None if id(thing) in seen else _parts(thing, namespace, names)
    if found is None:
        return Same(thing) if isinstance(thing, jax.Array) else value_key(thing)
    seen.add(id(thing))
    parts, names = found
    return type(thing), tuple(state(part, namespace, names, seen) for part in parts)


def _parts(
    thing: Any, namespace: dict[str, Any], names: frozenset[str]
) -> tuple[Iterable[Any], frozenset[str]] | None:
    """The things that a thing is made of, and the names of the code at hand; None of a whole."""
    if isinstance(thing, (types.ModuleType, type, jax.Array, np.ndarray)):
        return None
    is_identity = getattr(type(thing), "__hash__", None) is object.__hash__
    if is_identity and isinstance(thing, (dict, list, set)):
        return None
    if isinstance(thing, dict):
        return [part for item in thing.items() for part in item], names
    if isinstance(thing, (list, tuple, set, frozenset)):
        return thing, names
    if isinstance(thing, functools.partial):
        return (thing.func, thing.args, thing.keywords), names
    if isinstance(thing, types.MethodType):
        return (thing.__func__, thing.__self__), names
    if isinstance(thing, JIT):
        return [getattr(thing, "__wrapped__", None)], names
    if isinstance(thing, types.FunctionType):
        if thing.__globals__ is not namespace:
            return None
        return _reached(thing), names | names_of(thing.__code__)
    is_whole = not isinstance(value_key(thing), Same)
    if is_whole or not hasattr(thing, "__dict__"):
        return None
    names |= _names_of_methods(type(thing), names)
    return [value for name, value in vars(thing).items() if name in names], names


def _names_of_methods(kind: type, names: frozenset[str]) -> frozenset[str]:
    """The names in those methods and properties of a class that code with these names may use."""
    found: frozenset[str] = frozenset()
    for name in (*names, *_CALLED):
        method = inspect.getattr_static(kind, name, None)
        method = getattr(method, "fget", method)
        if isinstance(method, types.FunctionType):
            found |= names_of(method.__code__)
    return found


def _reached(function: types.FunctionType) -> list[Any]:
    """A function's code, and the things that it reaches."""
    return [
        function.__code__,
        function.__defaults__,
        function.__kwdefaults__,
        *map(_contents, function.__closure__ or ()),
        *global_values(function),
    ]


def _contents(cell: types.CellType) -> Any:
    """What a closure's variable holds; None before it is set."""
    try:
        return cell.cell_contents
    except ValueError:
        return None
