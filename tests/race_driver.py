"""Calls the extension while another thread changes the weights, without torch.

Answers may then be wrong, or an error; but memory must not be corrupted, and every call must end.
CI runs it under AddressSanitizer (.ci/test_sizes). Usage: race_driver.py SECONDS
"""

import itertools
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from sanitize_driver import load

Array = npt.NDArray[Any]

# Sizes at which, in that build, a weight is compared and stored in different paths: whole layers,
# chunks, gaps.
SIZES = (40, 300, 3000)
DTYPES = {"float32": np.float32, "float16": np.float16, "float64": np.float64}
MACHINE = (2, ())
CALLS = 4  # in every race
KEPT: list[tuple[Array, ...]] = []  # what the extension has the addresses of


def writers(weight: Array) -> list[Callable[[], None]]:
    """What training, initialisation, loading and quantisation do to weights, again and again."""
    random = np.random.default_rng(0)
    normal = random.standard_normal(weight.shape).astype(weight.dtype)
    tied = (normal * 2).round() / 2
    mixed = normal.copy()
    mixed[:: max(len(mixed) // 7, 1)] = np.nan

    def become(*values: Array | float) -> Callable[[], None]:
        def write() -> None:
            for value in values:
                weight[...] = value

        return write

    return [
        become(normal, normal[::-1]),
        become(normal, 0.0),
        become(normal, normal * 1e3, normal * 1e-3),
        become(tied, normal),
        become(normal, mixed),
        become(normal, np.inf, 1.0),
        become(normal, normal * (np.finfo(weight.dtype).max / 8), normal * 0.0),
    ]


def calls(core: ModuleType, dtype: str, weight: Array) -> list[Callable[[], object]]:
    """Every verb, of all of the weight and of every other element."""
    found: list[Callable[[], object]] = []
    for layer, strides in ((weight, (1,)), (weight[::2], (2,))):
        view = weight.ctypes.data, getattr(core.Dtype, dtype), layer.shape, strides, -1
        copy = layer.copy()
        target = copy.ctypes.data, getattr(core.Dtype, dtype), copy.shape, (1,), -1
        masks, scores = np.empty(layer.shape, bool), np.empty(layer.shape, np.float64)
        words = np.empty((layer.size + 63) // 64, np.uint64)
        mask = masks.ctypes.data, core.Dtype.boolean, layer.shape, (1,), -1
        kind = core.Dtype.float64 if dtype == "float64" else core.Dtype.float32
        score = scores.ctypes.data, kind, layer.shape, (1,), -1
        for ranking, share in itertools.product(("lamp", "magnitude", "per_layer"), (0.3, 0.9)):
            counts = [int(layer.size * share)]
            spec = core.SelectionSpec(getattr(core.Ranking, ranking), counts)
            found += [
                partial(core.masks, [view], [mask], spec, MACHINE),
                partial(core.prune, [view], [target], spec, MACHINE),
                partial(core.thresholds, [view], spec, MACHINE),
            ]
        found += [
            partial(core.score, [view], [score], MACHINE),
            partial(core.zero_thresholds, [view], MACHINE),
            partial(core.first_not_finite, [view], MACHINE),
            partial(core.pack, [view], [words.ctypes.data], MACHINE),
        ]
        KEPT.append((weight, copy, masks, scores, words))
    return found


def race(core: ModuleType, call: Callable[[], object], write: Callable[[], None]) -> int:
    """Calls for a while as another thread writes; how many of the calls were refused."""
    stop = threading.Event()

    def keep_writing() -> None:
        while not stop.is_set():
            write()

    writer = threading.Thread(target=keep_writing)
    writer.start()
    refused = 0
    try:
        for _ in range(CALLS):
            try:
                call()
            except (core.NotFiniteError, RuntimeError):
                refused += 1
    finally:
        stop.set()
        writer.join()
    return refused


def main() -> None:
    """Goes through all combinations, again and again, for so many seconds."""
    core, end, races, refused = load(), time.monotonic() + float(sys.argv[1]), 0, 0
    random = np.random.default_rng(1)
    contests = []
    for dtype, size in itertools.product(DTYPES, SIZES):
        weight = random.standard_normal(size).astype(DTYPES[dtype])
        contests += list(itertools.product(calls(core, dtype, weight), writers(weight)))
    while time.monotonic() < end:
        refused += race(core, *contests[random.integers(len(contests))])
        races += 1
    print(f"{races} races, {refused} of their {CALLS * races} calls refused, no crash")


if __name__ == "__main__":
    main()
