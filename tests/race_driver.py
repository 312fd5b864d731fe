"""Calls the extension while another process changes the weights, without torch.

Answers may then be wrong, or an error; but memory must not be corrupted, and every call must end
soon. What another process writes, another thread could write as well, but it cannot alarm the
thread sanitizer, which then reports only races of the extension with itself. CI runs this under the
address sanitizer (.ci/test_sizes) and the thread sanitizer (.ci/threads).
Usage: race_driver.py SECONDS
"""

import faulthandler
import itertools
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sanitize_driver import load

Array = npt.NDArray[Any]
State = list[Array]  # the values of all layers of a model
Call = Callable[[], object]


class Shape(NamedTuple):
    """How a layer lies in memory: every step-th element of each row, or the transpose."""

    dtype: str
    rows: int
    columns: int
    step: int = 1
    transposed: bool = False


# At these sizes, in a build for tests, weights are compared and stored in different paths: whole
# layers, chunks, gaps, candidates that do not fit the budget.
MODELS = (
    [Shape("float32", 1, 40), Shape("bfloat16", 10, 30), Shape("float64", 1, 300, 2)],
    [
        Shape("float64", 60, 50),
        Shape("float32", 60, 50, 1, True),
        Shape("bfloat16", 50, 60, 2),
        Shape("float32", 1, 3000),
        Shape("float16", 30, 10),
    ],
    [Shape("float64", 1, 3000)],
    [Shape("float32", 3, 10), Shape("float64", 4, 5), Shape("bfloat16", 5, 6)] * 20,
    [Shape("float32", 60, 40), Shape("bfloat16", 40, 30), Shape("float64", 20, 100, 1, True)],
)
STORAGE = {"bfloat16": "uint16"}  # numpy has no such type: its bits are float32's leading ones
MACHINE = (2, ())
CALLS = 4  # in every race

# A call must end within so many times an undisturbed one, whatever the machine does beside it.
MOST_TIMES = 50.0
LEAST_SECONDS = 2.0


class Weights:
    """The layers of a model and their masks, in memory that two processes share."""

    def __init__(self, shapes: list[Shape], name: str | None = None) -> None:
        self.shapes = shapes
        sizes = [shape.rows * shape.columns * shape.step * 8 for shape in shapes]
        total = 2 * sum(sizes)
        self.memory = SharedMemory(name, create=name is None, size=total)
        self.layers: list[Array] = []
        self.masks: list[Array] = []
        offset = 0
        for shape, size in zip(shapes, sizes, strict=True):
            dtype = STORAGE.get(shape.dtype, shape.dtype)
            wide = (shape.rows, shape.columns * shape.step)
            layer: Array = np.ndarray(wide, dtype, self.memory.buf, offset)[:, :: shape.step]
            kept: Array = np.ndarray(layer.shape, bool, self.memory.buf, offset + size)
            self.layers.append(layer.T if shape.transposed else layer)
            self.masks.append(kept.T if shape.transposed else kept)
            offset += 2 * size

    def write(self, state: State) -> None:
        """Give the layers other values, and make every element of the masks undecided."""
        for layer, mask, values in zip(self.layers, self.masks, state, strict=True):
            layer[...] = values
            mask.view(np.uint8)[...] = 2  # csrc/cpu/kernels/kernels.h

    def close(self) -> None:
        """Free the memory."""
        self.layers.clear()
        self.masks.clear()
        self.memory.close()
        self.memory.unlink()


def _encode(values: Array, shape: Shape) -> Array:
    with np.errstate(over="ignore"):
        if shape.dtype == "bfloat16":
            bits = values.astype(np.float32).view(np.uint32)
            return (bits >> 16).astype(np.uint16)
        return values.astype(shape.dtype)


def writers(shapes: list[Shape]) -> list[list[State]]:
    """What training, initialisation, loading and quantisation do, as states that take turns."""
    random = np.random.default_rng(0)

    def state(make: Callable[[Array], Array]) -> State:
        """The layers that `make` makes of Gaussian ones; what is too large becomes the largest."""
        result = []
        for shape in shapes:
            limit = float(np.finfo(np.float32).max)
            if shape.dtype in ("float16", "float64"):
                limit = float(np.finfo(shape.dtype).max)
            size = (shape.rows, shape.columns)
            with np.errstate(over="ignore", invalid="ignore"):
                values = make(random.standard_normal(size))
                values = np.where(np.isinf(values), values, values.clip(-limit / 2, limit / 2))
            encoded = _encode(values, shape)
            result.append(encoded.T if shape.transposed else encoded)
        return result

    normal = state(lambda x: x)
    zero = state(np.zeros_like)
    large, small = state(lambda x: x * 1e3), state(lambda x: x * 1e-3)
    huge, tiny = state(lambda x: x * 1e300), state(lambda x: x * 1e-300)
    few, one = state(lambda x: (x * 2).round() / 2), state(np.ones_like)
    heavy = state(lambda x: x**9)
    not_finite = state(lambda x: np.full_like(x, np.nan))
    some = state(lambda x: np.where(x > 2.5, np.inf, x))
    reverse = [values[::-1, ::-1] for values in normal]
    return [
        [normal, state(lambda x: x), state(lambda x: x)],  # initialise
        [normal, zero],
        [normal, reverse],  # copy
        [normal, large, small],  # scale
        [normal, huge, tiny],
        [few, normal],  # round
        [one, few, zero],
        [normal, not_finite],
        [normal, some],
        [normal, heavy],  # swap states of which either contradicts what the other has shown
        [heavy, one, tiny],
    ]


def keep_writing(commands: Connection, names: list[str]) -> None:
    """The other process: writes as it was told last, until it is told to end."""
    models = [Weights(shapes, name) for shapes, name in zip(MODELS, names, strict=True)]
    states = [writers(shapes) for shapes in MODELS]
    while (command := commands.recv()) is not None:
        model, writer = command
        turns = itertools.cycle(states[model][writer])
        while not commands.poll():
            models[model].write(next(turns))
        commands.recv()  # to pause
        models[model].write(states[model][0][0])
        commands.send(None)


def _view(core: ModuleType, array: Array, dtype: str) -> tuple[object, ...]:
    address = array.__array_interface__["data"][0]
    strides = tuple(stride // array.itemsize for stride in array.strides)
    return address, getattr(core.Dtype, dtype), array.shape, strides, -1


def _counts(shapes: list[Shape], method: str, share: float) -> list[int]:
    sizes = [shape.rows * shape.columns for shape in shapes]
    if method in ("lamp", "magnitude"):
        return [int(sum(sizes) * share)]
    if method == "uniform":
        return [int(size * share) for size in sizes]
    density = [(shape.rows + shape.columns) / shape.rows / shape.columns for shape in shapes]  # erk
    return [
        int(size * (1 - (1 - share) * each / max(density)))
        for size, each in zip(sizes, density, strict=True)
    ]


def calls(core: ModuleType, weights: Weights) -> list[Call]:
    """Every verb, by every method."""
    shapes = weights.shapes
    layers = [
        _view(core, layer, shape.dtype) for layer, shape in zip(weights.layers, shapes, strict=True)
    ]
    masks = [_view(core, mask, "boolean") for mask in weights.masks]
    copies = [layer.copy() for layer in weights.layers]
    targets = [_view(core, copy, s.dtype) for copy, s in zip(copies, shapes, strict=True)]
    wide = ["float64" if shape.dtype == "float64" else "float32" for shape in shapes]
    scores = [np.empty(x.shape, kind) for x, kind in zip(weights.layers, wide, strict=True)]
    outputs = [_view(core, score, kind) for score, kind in zip(scores, wide, strict=True)]
    words = [np.empty((layer.size + 63) // 64, np.uint64) for layer in weights.layers]
    addresses = [word.ctypes.data for word in words]
    KEPT.extend((copies, scores, words))

    def report(spec: object) -> None:
        core.thresholds(layers, spec, MACHINE)
        core.zero_thresholds(layers, MACHINE)

    found: list[Call] = [
        partial(core.score, layers, outputs, MACHINE),
        partial(core.first_not_finite, layers, MACHINE),
        partial(core.pack, layers, addresses, MACHINE),
    ]
    for method, share in itertools.product(("lamp", "magnitude", "uniform", "erk"), (0.3, 0.9)):
        ranking = "per_layer" if method in ("uniform", "erk") else method
        counts = _counts(shapes, method, share)
        spec = core.SelectionSpec(getattr(core.Ranking, ranking), counts)
        found += [
            partial(core.masks, layers, masks, spec, MACHINE),
            partial(core.prune, layers, targets, spec, MACHINE),
            partial(core.prune, layers, layers, spec, MACHINE),
            partial(report, spec),
        ]
    return found


KEPT: list[object] = []  # what the extension has the addresses of


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Ends the process, with all threads' tracebacks, if this takes longer."""
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def refused(core: ModuleType, call: Call) -> bool:
    """Calls, and tells whether that was refused for the weights' sake."""
    try:
        call()
    except core.NotFiniteError:
        return True
    except RuntimeError as error:
        if "keep changing" not in str(error):
            raise
        return True
    return False


def seconds_of(call: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    """Races random calls against random writers for so many seconds."""
    core, end = load(), time.monotonic() + float(sys.argv[1])
    models = [Weights(shapes) for shapes in MODELS]
    context = multiprocessing.get_context("spawn")
    commands, theirs = context.Pipe()
    names = [model.memory.name for model in models]
    other = context.Process(target=keep_writing, args=(theirs, names), daemon=True)
    other.start()
    every_call = [calls(core, model) for model in models]
    states = [writers(shapes) for shapes in MODELS]
    for weights, starts in zip(models, states, strict=True):
        weights.write(starts[0][0])
    quiet: dict[tuple[int, int], float] = {}
    random = np.random.default_rng()
    races, refusals, slowest = 0, 0, 0.0
    while time.monotonic() < end:
        model = int(random.integers(len(models)))
        verb, writer = (int(random.integers(len(x[model]))) for x in (every_call, states))
        call = partial(refused, core, every_call[model][verb])
        if (model, verb) not in quiet:
            quiet[model, verb] = statistics.median(seconds_of(call) for _ in range(3))
        limit = max(MOST_TIMES * quiet[model, verb], LEAST_SECONDS)
        commands.send((model, writer))
        for _ in range(CALLS):
            with deadline(limit):
                start = time.perf_counter()
                refusals += call()
                slowest = max(slowest, time.perf_counter() - start)
        commands.send(None)
        commands.recv()
        races += 1
    commands.send(None)
    other.join()
    for weights in models:
        weights.close()
    print(
        f"{races} races, {refusals} of their {CALLS * races} calls refused, no crash, "
        f"the slowest took {slowest:.2f} s"
    )


if __name__ == "__main__":
    main()
