"""Names the extra to install where optional packages are missing."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec


class MissingExtraError(ModuleNotFoundError):
    """Which packages are missing, and which extra brings them."""


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
        first = (error.name or "").partition(".")[0]
        if first not in packages:
            raise
        missing = [name for name in packages if name == first or find_spec(name) is None]
        which = "which is" if len(missing) == 1 else "which are"
        raise MissingExtraError(
            f"{what} needs {' and '.join(missing)}, {which} not installed. Install lampfast with "
            f"its extra '{extra}'; in its source folder: pip install '.[{extra}]'",
            name=first,
        ) from None
