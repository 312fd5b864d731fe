"""What errors advise: to leave a layer out with exclude=, unless callers have no such argument."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_are_patterns: ContextVar[bool] = ContextVar("are_patterns", default=True)


def leaving_out(what: str = "it") -> str:
    """The advice to leave something out.

    Example:
        >>> leaving_out()
        'leave it out with exclude='
        >>> with without_patterns():
        ...     leaving_out("the layer")
        'leave the layer out'
    """
    return f"leave {what} out" + (" with exclude=" if _are_patterns.get() else "")


def with_patterns(advice: str, otherwise: str = "") -> str:
    """An advice that is of use where include= and exclude= are arguments, or another one."""
    return advice if _are_patterns.get() else otherwise


@contextmanager
def without_patterns() -> Iterator[None]:
    """A section in the place of a caller who has neither include= nor exclude=."""
    token = _are_patterns.set(False)
    try:
        yield
    finally:
        _are_patterns.reset(token)
