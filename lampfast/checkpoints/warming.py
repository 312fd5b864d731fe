"""Reads files from end to end, so that the engine finds them in memory, where they fit there.

The engine's first look is a sample from all over the layers: on a cold disk that would be a slow
way to read them.
"""

import mmap
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from lampfast.checkpoints.reading import Source

_BLOCK = 1 << 23
_SHARE = 0.8  # of the memory that is free or can be freed


def read(sources: Sequence[Source], progress: Callable[[str, int, int], None] | None) -> None:
    """Read files into the page cache, if they fit there.

    Args:
        sources: The files.
        progress: Is told how much of them is read.
    """
    total = sum(source.identity.size for source in sources)
    done = 0
    if total > _SHARE * _available():
        return
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
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return 0
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
