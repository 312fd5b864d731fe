"""Makes each allocation of the engine's calls fail in turn, and says what came of it.

Runs with the library of failing_calls.cpp preloaded, and Python's objects allocated by malloc.
Usage: allocation_driver.py SECONDS
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).parents[1]))

import failures
from sanitize_driver import load

Array = npt.NDArray[Any]
Call = Callable[[], object]

core = load()


class Layer(NamedTuple):
    """An array of bits with the dtype that the engine takes it for."""

    dtype: str
    bits: Array

    def pointer(self) -> tuple[Any, ...]:
        """What the engine is passed."""
        address = self.bits.__array_interface__["data"][0]
        strides = tuple(step // self.bits.itemsize for step in self.bits.strides)
        return address, getattr(core.Dtype, self.dtype), self.bits.shape, strides, -1


def _bits(dtype: str, values: Array) -> Array:
    """Values as elements of a dtype; those of narrow dtypes are only alike in their ranks."""
    match dtype:
        case "bfloat16":
            whole = np.asarray(values, np.float32).view(np.uint32)
            return np.asarray(whole >> 16, np.uint16)
        case "float8_e4m3fn" | "float8_e5m2":
            return np.asarray(np.minimum(np.abs(values) * 16, 100.0), np.uint8)
        case _:
            return np.asarray(values, dtype)


def models() -> dict[str, list[Layer]]:
    """The models of the sweep, which reach the engine's different ways of storing and deciding."""
    random = np.random.default_rng(0)

    def gaussian(*shape: int) -> Array:
        return random.standard_normal(shape)

    mixed = [
        Layer(dtype, _bits(dtype, gaussian(60, 43)))
        for dtype in ("float32", "float16", "bfloat16", "float64", "float8_e4m3fn", "float8_e5m2")
    ]
    mixed += [Layer(layer.dtype, layer.bits.T) for layer in mixed[:3]]
    mixed += [
        Layer("float32", gaussian(40, 9, 30).astype(np.float32)[::2, :, ::-3]),
        Layer("float64", gaussian(8, 5, 6, 7).transpose(0, 3, 1, 2)),
    ]
    mixed = [Layer(layer.dtype, layer.bits.copy("K")) for layer in mixed]
    few = random.integers(-3, 4, (8, 600))
    near = np.rint(gaussian(2000) * 50) * (1 + 2.0**-40)
    return {
        "mixed": mixed,
        "ties": [Layer("float32", each.astype(np.float32)) for each in few[:4]]
        + [
            Layer("float16", np.asfortranarray(each.reshape(20, 30).astype(np.float16)))
            for each in few[4:]
        ],
        "near ties": [Layer("float64", near * scale) for scale in (1.0, 3.0, 7.0)]
        + [Layer("float32", np.rint(near).astype(np.float32))],
        "small": [Layer("float32", gaussian(37).astype(np.float32)) for _ in range(300)],
        "large": [
            Layer("float32", gaussian(300_000).astype(np.float32)),
            Layer("float32", np.asfortranarray(gaussian(200, 300).astype(np.float32))),
            Layer("bfloat16", _bits("bfloat16", gaussian(150_000))),
        ],
    }


class Sweep:
    """All calls on one model; each of them is made with the same bits."""

    def __init__(self, layers: Sequence[Layer], threads: int) -> None:
        self.layers, self.machine = layers, (threads, ())
        self.before = [layer.bits.tobytes() for layer in layers]
        self.pointers = [layer.pointer() for layer in layers]
        self.masks = [np.empty_like(layer.bits, bool) for layer in layers]
        self.scores = [
            np.empty(layer.bits.shape, np.float64 if layer.dtype == "float64" else np.float32)
            for layer in layers
        ]
        random = np.random.default_rng(1)
        sizes = [layer.bits.size // 64 + 1 for layer in layers]
        self.packed = [random.integers(-(1 << 62), 1 << 62, size) for size in sizes]
        self.total = sum(layer.bits.size for layer in layers)

    def _specs(self) -> dict[str, Any]:
        ranking = core.Ranking
        halves = [layer.bits.size // 2 for layer in self.layers]
        return {
            "lamp": core.SelectionSpec(ranking.lamp, [self.total // 2]),
            "global": core.SelectionSpec(ranking.magnitude, [self.total * 9 // 10]),
            "uniform": core.SelectionSpec(ranking.per_layer, halves),
        }

    def calls(self) -> Iterator[tuple[str, Call]]:
        """Every entry of the engine, by name."""
        masks = [Layer("boolean", mask).pointer() for mask in self.masks]
        scores = [
            Layer("float64" if s.itemsize == 8 else "float32", s).pointer() for s in self.scores
        ]
        words = [mask.__array_interface__["data"][0] for mask in self.packed]
        of, machine = self.pointers, self.machine
        for name, spec in self._specs().items():
            yield f"prune {name}", partial(core.prune, of, of, spec, machine)
            yield f"masks {name}", partial(core.masks, of, masks, spec, machine)
            yield f"thresholds {name}", partial(core.thresholds, of, spec, machine)
        yield "zero thresholds", partial(core.zero_thresholds, of, machine)
        yield "scores", partial(core.score, of, scores, machine)
        yield "not finite", partial(core.first_not_finite, of, machine)
        yield "apply", partial(core.apply_packed_masks, of, words, machine)
        yield "pack", partial(core.pack, of, words, machine)

    def is_as_before(self) -> bool:
        """Whether no weight has changed."""
        return all(
            layer.bits.tobytes() == bits
            for layer, bits in zip(self.layers, self.before, strict=True)
        )

    def restore(self) -> None:
        """Give the layers their weights again."""
        for layer, bits in zip(self.layers, self.before, strict=True):
            layer.bits[...] = np.frombuffer(bits, layer.bits.dtype).reshape(layer.bits.shape)

    def outcome(self, call: Call) -> str:
        """Everything that an undisturbed call writes and returns."""
        for array in (*self.masks, *self.scores):
            array.view(np.uint8).fill(0)
        digest = blake2b(repr(call()).encode(), digest_size=16)
        bits = [layer.bits for layer in self.layers]
        for array in (*bits, *self.masks, *self.scores, *self.packed):
            digest.update(array.tobytes())
        self.restore()
        return digest.hexdigest()


def main(seconds: float) -> None:
    done = errors = 0
    wrong: list[str] = []
    jobs = [
        (f"{model}, {threads} threads, {name}", sweep, call)
        for model, layers in models().items()
        for threads in ((1, 4) if model == "large" else (1,))
        for sweep in [Sweep(layers, threads)]
        for name, call in sweep.calls()
    ]
    ends = time.monotonic() + seconds
    for position, (name, sweep, call) in enumerate(jobs):
        until = time.monotonic() + (ends - time.monotonic()) / (len(jobs) - position)
        expected = sweep.outcome(call)
        for threads in (*range(sweep.machine[0]), failures.EVERY):
            if failures.disturbed(call, threads=threads):
                wrong.append(f"{name}: raises with {threads} helpers")
            sweep.restore()
        for first, last in failures.points(failures.allocations(), run=failures.EVERY):
            raised = failures.disturbed(call, first, last)
            done += 1
            errors += raised is not None
            if raised and not isinstance(raised, MemoryError):
                wrong.append(f"{name}: {raised!r}, allocations {first} to {last} failed")
            if raised and not sweep.is_as_before():
                wrong.append(f"{name}: weights have changed, allocations {first} to {last} failed")
            sweep.restore()
            if sweep.outcome(call) != expected:
                wrong.append(
                    f"{name}: the next call is wrong, allocations {first} to {last} failed"
                )
            if time.monotonic() > until:
                break
    print(json.dumps({"points": done, "errors": errors, "wrong": wrong}))


if __name__ == "__main__":
    main(float(sys.argv[1]))
