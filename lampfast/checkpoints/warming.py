"""Reads files from end to end, so that the engine finds them in memory, where they fit there.

The engine's first look is a sample from all over the layers: on a cold disk that would be a slow
way to read them.
"""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

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
    buffer = bytearray(_BLOCK)
    for source in sources:
        with open(source.path, "rb", buffering=0) as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            while count := file.readinto(buffer):
                done += count
                if progress is not None:
                    progress("reading", done, total)


def _available() -> int:
    """How many bytes of memory are free or can be freed; none where the system does not tell."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return 0
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
