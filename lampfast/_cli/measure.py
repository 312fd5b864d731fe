"""How long a call takes and how much memory it needs, for the demo and the benchmarks."""

import ctypes
import gc
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

Call = Callable[[], object]


def median_seconds(prepare: Sequence[Callable[[], Call]], rounds: int) -> list[float]:
    """Times several calls in turns, so that a busy moment of the machine meets all of them.

    >>> slow, fast = median_seconds([lambda: lambda: time.sleep(0.01), lambda: lambda: None], 3)
    >>> slow > fast
    True

    Args:
        prepare: For each call a function that sets it up, untimed, and returns it.
        rounds: How often each is called; one more call before them warms up.

    Returns:
        For each call the median time in seconds.
    """
    seconds: list[list[float]] = [[] for _ in prepare]
    for _ in range(rounds + 1):
        for times, setup in zip(seconds, prepare, strict=True):
            call = setup()
            start = time.perf_counter()
            result = call()
            times.append(time.perf_counter() - start)
            del result  # only now, as freeing it is no part of the call
    return [statistics.median(times[1:]) for times in seconds]


def peak_bytes(prepare: Callable[[], Call]) -> int | None:
    """Measures the memory that one call needs at its peak, beyond what is resident before it.

    A fresh process sets the call up, asks the kernel to forget the peak so far, calls, and compares
    the peak resident set with the one before. What the call returns counts as well.

    Args:
        prepare: Sets the call up and returns it. Must be importable by name, or a
            `functools.partial` of such a function, as it runs in the new process. What the call
            needs should be run there once on `warm_up()`, so that loading code is not counted.

    Returns:
        The number of bytes, or None where the system cannot tell (not Linux).
    """
    if not Path("/proc/self/clear_refs").exists():
        return None
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=spawn) as process:
        return process.submit(_peak_bytes_here, prepare).result()


def warm_up() -> dict[str, torch.Tensor]:
    """Makes layers, small beside real ones, that take a pruning through all of its code."""
    return {"small": torch.arange(100.0), "large": torch.arange(2.0**18)}


def _peak_bytes_here(prepare: Callable[[], Call]) -> int:
    call = prepare()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # else the call could use what the set-up freed, uncounted
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, see proc(5)
    before = _status("VmRSS")
    result = call()
    peak = _status("VmHWM")
    del result
    return max(0, peak - before)


def _status(field: str) -> int:
    found = re.search(
        rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE
    )
    assert found, f"/proc/self/status has no {field}"
    return int(found[1]) * 1024
