"""Options of the command line: what several experiments ask for, and bounds declared with each."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

# What may differ between a run and the one that goes on with it, as a mark on an option.
FREE = object()


class UsageError(Exception):
    """A request that cannot be met; its message is the one line shown before exit status 2."""


@dataclass(frozen=True)
class Within:
    """Numbers that an option accepts, each of them where it takes several.

    Attributes:
      low: the smallest, or the bound that must be exceeded.
      high: the bound to stay below.
      above: whether ``low`` itself is refused.
    """

    low: float
    high: float = math.inf
    above: bool = False

    def check(self, option: str, value: Any) -> None:
        """Raises a `UsageError` that names the option, its value and what is accepted."""
        numbers = value if isinstance(value, tuple) else (value,)
        if numbers and all(self._holds(number) for number in numbers):
            return
        bounds = f"{'above' if self.above else 'at least'} {self.low:g}"
        if self.high < math.inf:
            bounds += f" and below {self.high:g}"
        takes = "must be"
        if isinstance(value, tuple):
            takes = "takes numbers" if self.above else "takes numbers of"
        raise UsageError(f"{option} {takes} {bounds}, got {value}")

    def _holds(self, number: float) -> bool:
        return (number > self.low if self.above else number >= self.low) and number < self.high


@dataclass(frozen=True)
class Among:
    """Names that an option accepts; each once where it takes several.

    Attributes:
      kind: what is named, in the singular.
      names: what is accepted.
    """

    kind: str
    names: Callable[[], Iterable[str]]

    def check(self, option: str, value: Any) -> None:
        """Raises a `UsageError` that lists what is accepted."""
        chosen = value if isinstance(value, tuple) else (value,)
        for name in chosen:
            check_known(self.kind, name, self.names())
        if not chosen or len(set(chosen)) < len(chosen):
            raise UsageError(f"{option} must name each {self.kind} once, got {' '.join(chosen)!r}")


POSITIVE = Within(1)
ABOVE_ZERO = Within(0, above=True)
NOT_NEGATIVE = Within(0)
SHARE = Within(0, 1)


def check_options(options: Any) -> None:
    """Raises a `UsageError` for the first option outside the bounds declared with it.

    An option that is None was not given, and is not checked.
    """
    for name, hint in get_type_hints(type(options), include_extras=True).items():
        value = getattr(options, name)
        if get_origin(hint) is not Annotated or value is None:
            continue
        for mark in get_args(hint)[1:]:
            if isinstance(mark, Within | Among):
                mark.check(f"--{name.replace('_', '-')}", value)


def check_known(kind: str, name: str, accepted: Iterable[str]) -> None:
    """Raises a `UsageError` that lists what is accepted unless ``name`` is among it."""
    accepted = tuple(accepted)
    if name not in accepted:
        raise UsageError(f"{kind} {name!r} is unknown; accepted: {', '.join(accepted)}")


def configuration(options: Any) -> dict[str, Any]:
    """What a result depends on, as JSON keeps it."""
    hints = get_type_hints(type(options), include_extras=True)
    return {
        field.name: as_json(getattr(options, field.name))
        for field in dataclasses.fields(options)
        if FREE not in get_args(hints[field.name])[1:]
    }


def as_json(value: Any) -> Any:
    """A value of an option as it comes back from JSON."""
    if isinstance(value, tuple):
        return [as_json(one) for one in value]
    return str(value) if isinstance(value, Path) else value


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Where images and texts are."""

    data_dir: Annotated[Path | None, FREE] = None
    """Where TFDS keeps its sets; by default $TFDS_DATA_DIR, else TFDS's own."""
    cache_dir: Annotated[Path | None, FREE] = None
    """Where decoded images are kept; by default entropix in $XDG_CACHE_HOME or ~/.cache."""


@dataclass(frozen=True, kw_only=True)
class ImageOptions(DataOptions):
    """Which images or text, and where they are."""

    dataset: str = "digits"
    """Images: digits (built in), or a TFDS set such as mnist, fashion_mnist, cifar10, cifar100; for
    a model of language a text: tiny_shakespeare, wikitext2."""


@dataclass(frozen=True, kw_only=True)
class FolderOptions:
    """Where a run writes."""

    output: Annotated[Path | None, FREE] = None
    """Folder to write; by default one under runs/, named after the experiment and the time."""


@dataclass(frozen=True, kw_only=True)
class ResumeOptions(FolderOptions):
    """Where a run writes, and whether it goes on with an interrupted one."""

    resume: Annotated[bool, FREE] = False
    """Go on with the interrupted run in --output."""
