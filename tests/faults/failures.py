"""Calls whose allocations or threads fail, in a process with failing_calls.cpp preloaded."""

import ctypes
from collections.abc import Callable, Iterator

import numpy as np

EVERY = (1 << 62) - 1  # no call makes so many

_library = ctypes.CDLL(None)


def _number(name: str) -> ctypes.c_long:
    return ctypes.c_long.in_dll(_library, name)


_is_counting = _number("is_counting")
_allocations = _number("allocations")
_first_failing = _number("first_failing")
_last_failing = _number("last_failing")
_threads_before_failure = _number("threads_before_failure")


def disturbed(
    call: Callable[[], object], first: int = EVERY, last: int = EVERY, threads: int = EVERY
) -> Exception | None:
    """Make a call whose allocations from `first` to `last` fail, and whose threads after some do.

    Returns:
        What it raised.
    """
    _first_failing.value, _last_failing.value = first, last
    _threads_before_failure.value = threads
    _allocations.value = 0
    _is_counting.value = 1
    try:
        call()
    except Exception as error:
        return error
    finally:
        _is_counting.value = 0
    return None


def allocations() -> int:
    """How many the last call has made."""
    return _allocations.value


def points(count: int, run: int) -> Iterator[tuple[int, int]]:
    """Which of so many allocations fail, the first and the last of them, in an order of interest.

    One at a time and, in turn with it, a run of them.
    """
    at_the_end = min(20, count)  # where commits are
    others = np.random.default_rng(0).permutation(count - at_the_end)
    for position, n in enumerate([*range(count - 1, count - 1 - at_the_end, -1), *others]):
        yield int(n), min(int(n) + (run - 1 if position % 2 else 0), EVERY)
