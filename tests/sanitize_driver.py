"""Calls every entry of the extension, from many threads at once, without torch.

.ci/test_sizes and .ci/threads run it under the sanitizers, in builds to whose sizes its layers are
large. Every thread must get what a single one gets.
"""

import importlib.util
import itertools
import sysconfig
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Machine = tuple[int, tuple[()]]  # how many threads, and no GPUs

CALLERS = 4


def load() -> ModuleType:
    """Loads the installed extension by itself, so that nothing imports torch."""
    (path,) = Path(sysconfig.get_path("platlib"), "lampfast").glob("_core*.so")
    spec = importlib.util.spec_from_file_location("_core", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def layers(dtype: str) -> list[Array]:
    """Layers of a dtype, as the bits that torch would have: large, tiny, strided, tied, zero."""
    random = np.random.default_rng(0)
    if dtype.startswith(("float8", "bfloat")):
        integer, finite = {
            "bfloat16": (np.uint16, 0x7F80),
            "float8_e4m3fn": (np.uint8, 0x7F),
            "float8_e5m2": (np.uint8, 0x7C),
        }[dtype]
        bits = 8 * np.dtype(integer).itemsize

        def make(*shape: int) -> Array:
            sign = random.integers(0, 2, shape) << (bits - 1)
            return (random.integers(0, finite, shape) | sign).astype(integer)
    else:

        def make(*shape: int) -> Array:
            return random.standard_normal(shape).astype(dtype)

    return [
        make(70, 43),
        make(30, 20).T,
        make(64, 3, 9)[::2, :, ::-2],
        np.broadcast_to(make(1, 50), (40, 50)),
        make(5),
        np.zeros((20, 20), make(1).dtype),
        make(0, 3),
        make(1).reshape(()),
    ]


def exercise(core: ModuleType, dtype: str, arrays: list[Array], threads: int) -> list[bytes]:
    """Calls everything once on shared inputs and returns every result as bytes."""
    kind = getattr(core.Dtype, dtype)
    wide = dtype == "float64"

    def views(arrays: list[Array], kind: object) -> list[object]:
        return [
            (
                array.__array_interface__["data"][0],
                kind,
                array.shape,
                tuple(stride // array.itemsize for stride in array.strides),
                -1,  # in host memory
            )
            for array in arrays
        ]

    machine: Machine = (threads, ())
    sources = views(arrays, kind)
    total = sum(array.size for array in arrays)
    results = []
    for ranking, count in itertools.product(
        ("lamp", "magnitude", "per_layer"), (0, 1, total // 3, total * 9 // 10, total)
    ):
        counts = [count]
        if ranking == "per_layer":
            counts = [array.size * count // total for array in arrays]
            count = sum(counts)
        spec = core.SelectionSpec(getattr(core.Ranking, ranking), counts)
        planned = core.thresholds(sources, spec, machine)
        assert sum(threshold.pruned for threshold in planned) == count
        masks = [np.empty(array.shape, bool) for array in arrays]  # written after the read,
        core.masks(sources, views(masks, core.Dtype.boolean), spec, machine)
        assert sum(int(mask.sum()) for mask in masks) == total - count
        on_the_way = [np.empty_like(array, bool) for array in arrays]  # and during it
        core.masks(sources, views(on_the_way, core.Dtype.boolean), spec, machine)
        assert all((mask == other).all() for mask, other in zip(masks, on_the_way, strict=True))
        pruned = [array.copy("K") for array in arrays]
        targets = views(pruned, kind)
        core.prune(targets, targets, spec, machine)
        zeros = core.zero_thresholds(targets, machine)
        assert sum(threshold.pruned for threshold in zeros) >= count
        results += [array.tobytes() for array in masks + pruned]
        results += packed(core, views, arrays, pruned, kind, machine)
    scores = [np.empty(array.shape, "float64" if wide else "float32") for array in arrays]
    score_kind = core.Dtype.float64 if wide else core.Dtype.float32
    core.score(sources, views(scores, score_kind), machine)
    assert core.first_not_finite(sources, machine) is None
    return results + [score.tobytes() for score in scores]


def packed(
    core: ModuleType,
    views: Callable[[list[Array], object], list[object]],
    arrays: list[Array],
    pruned: list[Array],
    kind: object,
    machine: Machine,
) -> list[bytes]:
    """Packs what pruning left, and keeps it in weights that are all there again."""
    masks = [np.empty((array.size + 63) // 64, np.uint64) for array in pruned]
    addresses = [mask.__array_interface__["data"][0] for mask in masks]
    core.pack(views(pruned, kind), addresses, machine)
    trained, again = ([array.copy("K") for array in some] for some in (arrays, pruned))
    core.apply_packed_masks(views(trained, kind), addresses, machine)
    core.apply_packed_masks(views(again, kind), addresses, machine)  # zeros but for the sign of -0
    assert all((one == other).all() for one, other in zip(trained, again, strict=True))
    return [mask.tobytes() for mask in masks]


def refuse(core: ModuleType, threads: int) -> None:
    """A NaN is found wherever it is, and every verb throws."""
    weight = np.ones((50, 30), np.float32)
    weight[32, 12] = np.nan
    view = weight.ctypes.data, core.Dtype.float32, weight.shape, (30, 1), -1
    machine: Machine = (threads, ())
    found = core.first_not_finite([view], machine)
    assert (found.layer, found.index) == (0, 32 * 30 + 12)
    calls: list[Callable[[], object]] = [
        lambda: core.thresholds([view], core.SelectionSpec(core.Ranking.lamp, [5]), machine),
        lambda: core.zero_thresholds([view], machine),
        lambda: core.score([view], [view], machine),
    ]
    for call in calls:
        element = refused_element(core, call)
        assert (element.layer, element.index) == (found.layer, found.index)


def refused_element(core: ModuleType, call: Callable[[], object]) -> Any:
    """Which element a call refuses."""
    try:
        call()
    except core.NotFiniteError as error:
        return error.element
    raise AssertionError("a NaN was not refused")


def together(core: ModuleType, dtype: str, arrays: list[Array]) -> list[list[bytes]]:
    """Exercises the extension from several threads that start at once."""
    barrier = threading.Barrier(CALLERS)

    def call(caller: int) -> list[bytes]:
        barrier.wait()
        refuse(core, caller + 1)
        return exercise(core, dtype, arrays, caller + 1)

    with ThreadPoolExecutor(CALLERS) as pool:
        return list(pool.map(call, range(CALLERS)))


def main() -> None:
    """Runs everything alone, then from several threads at once, and compares."""
    core = load()
    for dtype in ("float32", "float64", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"):
        arrays = layers(dtype)
        alone = exercise(core, dtype, arrays, 1)
        assert all(results == alone for results in together(core, dtype, arrays))
        print(f"{dtype}: {CALLERS} callers at once get what one gets")


if __name__ == "__main__":
    main()
