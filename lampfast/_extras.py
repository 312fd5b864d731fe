"""Names the extra to install where an optional package is missing."""

from collections.abc import Iterator
from contextlib import contextmanager


class MissingExtraError(ModuleNotFoundError):
    """Which package is missing, and which extra brings it."""


@contextmanager
def needed(what: str, extra: str, *packages: str) -> Iterator[None]:
    """Name the extra to install, should an import inside not find one of its packages.

    Args:
        what: What needs them, as the user calls it.
        extra: Brings them.
        packages: Those of the extra; where another one is missing, its own error says so.

    Raises:
        MissingExtraError: One of them is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in packages:
            raise
        raise MissingExtraError(
            f"{what} needs {missing}, which is not installed. Install lampfast with its extra "
            f"'{extra}'; in its source folder: pip install '.[{extra}]'",
            name=missing,
        ) from None
