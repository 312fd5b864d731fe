"""Whether a tensor's memory can be written, where torch did not allocate it itself.

A tensor over a read-only memory map does not know that writing to it ends the process. Linux tells:
it is asked to make a page ready for writing, which changes nothing and fails where it cannot be
written. That takes some microseconds: ask only where memory is from elsewhere, as from numpy, a
buffer or a mapped file. Other systems, and Linux before 5.14, cannot tell.
"""

import ctypes
import errno
import mmap
import sys
from collections.abc import Callable
from functools import cache

import torch

_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE
_CANNOT_BE_WRITTEN = (errno.EINVAL, errno.EFAULT)


def refuses(address: int, tensor: torch.Tensor) -> bool:
    """Whether writing to a tensor at an address is known to end the process.

    Example:
        >>> tensor = torch.zeros(3)
        >>> refuses(tensor.data_ptr(), tensor)
        False
    """
    if not tensor.is_cpu or not tensor.numel():
        return False
    ask = _asker()
    return ask is not None and ask(_page_of(address)) in _CANNOT_BE_WRITTEN


@cache
def _asker() -> Callable[[int], int] | None:
    """Gives the error, or 0, of making a page ready for writing; None where it cannot be asked."""
    if sys.platform != "linux":
        return None
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int

    def ask(page: int) -> int:
        return ctypes.get_errno() if madvise(page, mmap.PAGESIZE, _POPULATE_WRITE) else 0

    known = torch.zeros(1)  # an older system refuses what it does not know
    return ask if ask(_page_of(known.data_ptr())) == 0 else None


def _page_of(address: int) -> int:
    return address - address % mmap.PAGESIZE
