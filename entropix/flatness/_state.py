"""What a trace may read beside arrays: compared by identity, and by what can be set in it."""

import functools
import types
import weakref
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import jax
import numpy as np

JIT = type(jax.jit(lambda: None))


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


def global_names(code: types.CodeType) -> list[str]:
    """The global names that a function and the functions inside it may read."""
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return sorted({*code.co_names}.union(*(global_names(one) for one in inner)))


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


def state(thing: Any, namespace: dict[str, Any], seen: set[int] | None = None) -> Hashable:
    """What a trace may read of a thing that can change while the thing stays the same one.

    The items of containers, unless these are told apart by identity, the attributes of objects,
    and, of functions that share a namespace, their code and all that it reaches in turn. Arrays
    are compared by identity.

    Args:
      thing: what a function reaches.
      namespace: the global names of that function; functions of other modules are not looked into.
      seen: the identities of things that are part of the answer already.

    Returns:
      A key, equal for a thing that has not changed.
    """
    seen = set() if seen is None else seen
    parts = None if id(thing) in seen else _parts(thing, namespace)
    if parts is None:
        return Same(thing) if isinstance(thing, jax.Array) else value_key(thing)
    seen.add(id(thing))
    return type(thing), tuple(state(part, namespace, seen) for part in parts)


def _parts(thing: Any, namespace: dict[str, Any]) -> Iterable[Any] | None:
    """The things that a thing is made of; None of one that is whole."""
    if isinstance(thing, (types.ModuleType, type, jax.Array, np.ndarray)):
        return None
    is_identity = getattr(type(thing), "__hash__", None) is object.__hash__
    if is_identity and isinstance(thing, (dict, list, set)):
        return None
    if isinstance(thing, dict):
        return [part for item in thing.items() for part in item]
    if isinstance(thing, (list, tuple, set, frozenset)):
        return thing
    if isinstance(thing, functools.partial):
        return thing.func, thing.args, thing.keywords
    if isinstance(thing, types.MethodType):
        return thing.__func__, thing.__self__
    if isinstance(thing, JIT):
        return [getattr(thing, "__wrapped__", None)]
    if isinstance(thing, types.FunctionType):
        return _reached(thing) if thing.__globals__ is namespace else None
    is_whole = not isinstance(value_key(thing), Same)
    return None if is_whole or not hasattr(thing, "__dict__") else [vars(thing)]


def _reached(function: types.FunctionType) -> list[Any]:
    """A function's code, and the things that it reaches."""
    cells = [getattr(cell, "cell_contents", None) for cell in function.__closure__ or ()]
    return [
        function.__code__,
        function.__defaults__,
        function.__kwdefaults__,
        *cells,
        *global_values(function),
    ]


def global_values(function: types.FunctionType) -> list[Any]:
    """The values of the global names that a function and the functions inside it may read."""
    names = global_names(function.__code__)
    return [function.__globals__[name] for name in names if name in function.__globals__]
