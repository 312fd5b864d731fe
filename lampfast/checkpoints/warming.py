"""Reads files from end to end, so that the engine finds them in memory, where they fit there.

The engine's first look is a sample from all over the layers: on a cold disk that would be a slow
way to read them.
"""

import mmap
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from lampfast.checkpoints.reading import Source

_BLOCK = 1 << 23
_SECONDS = 0.2  # between one look at how much is read and the next
_SHARE = 0.8  # of the memory that is free or can be freed


@contextmanager
def reading(
    sources: Sequence[Source], progress: Callable[[str, int, int], None] | None
) -> Iterator[None]:
    """Read files into the page cache, if they fit there; else tell how much of them is read in it.

    Args:
        sources: The files.
        progress: Is told how much of them is read.
    """
    total = sum(source.identity.size for source in sources)
    if total <= _SHARE * _available():
        _read(sources, total, progress)
        yield
    elif progress is None:
        yield
    else:
        with _watched(total, progress):
            yield


@contextmanager
def _watched(total: int, progress: Callable[[str, int, int], None]) -> Iterator[None]:
    """Tell from time to time how much this process has read from disks."""
    begin, is_done = _read_bytes(), threading.Event()

    def tell() -> None:
        while not is_done.wait(_SECONDS):
            progress("reading", min(_read_bytes() - begin, total), total)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_done.set()
        thread.join()
    progress("reading", total, total)


def _read_bytes() -> int:
    """How many bytes this process has read from disks; none where the system does not tell."""
    return _number(r"^read_bytes: (\d+)$", "/proc/self/io")


def _read(
    sources: Sequence[Source], total: int, progress: Callable[[str, int, int], None] | None
) -> None:
    done = 0
    for source in sources:
        size = source.identity.size
        with (
            open(source.path, "rb") as file,
            mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as mapped,
        ):
            if hasattr(mmap, "MADV_SEQUENTIAL"):
                mapped.madvise(mmap.MADV_SEQUENTIAL)
            for start in range(0, size, _BLOCK):
                stop = min(start + _BLOCK, size)
                _touch(mapped, start, stop)
                done += stop - start
                if progress is not None:
                    progress("reading", done, total)


def _touch(mapped: mmap.mmap, start: int, stop: int) -> None:
    """Look at a byte of each page, which costs less than a copy of all."""
    np.frombuffer(mapped, np.uint8, stop - start, start)[:: mmap.PAGESIZE].max()


def _available() -> int:
    """How many bytes of memory are free or can be freed; none where the system does not tell."""
    return _number(r"^MemAvailable:\s+(\d+) kB$", "/proc/meminfo") * 1024


def _number(pattern: str, file: str) -> int:
    """A number in a file of the system, 0 if it is not there."""
    try:
        text = Path(file).read_text()
    except OSError:
        return 0
    found = re.search(pattern, text, re.MULTILINE)
    return int(found[1]) if found else 0
