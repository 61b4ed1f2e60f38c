"""The one error a user of the command line can cause."""

from collections.abc import Iterable


class UsageError(Exception):
    """A request that cannot be met; its message is the one line shown before exit status 2."""


def check_known(kind: str, name: str, accepted: Iterable[str]) -> None:
    """Raises a `UsageError` that lists what is accepted unless ``name`` is among it."""
    accepted = tuple(accepted)
    if name not in accepted:
        raise UsageError(f"{kind} {name!r} is unknown; accepted: {', '.join(accepted)}")
