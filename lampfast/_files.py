"""What files need so that they are whole after a kill or a power failure, or not there at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def keep_entries(folder: Path) -> None:
    """Have a folder's entries on the disk too, where the system can open folders."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def temporary(final: Path) -> Path:
    """The name under which a file of a checkpoint is written, which a killed run may have left."""
    return final.with_name(f".{final.name}.lampfast-tmp")


@contextmanager
def replacing(final: Path) -> Iterator[Path]:
    """A temporary name beside a file's final one; what is left there after an error is removed."""
    beside = temporary(final)
    try:
        yield beside
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise
