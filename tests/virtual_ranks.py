"""Ranks that are threads of this process: their communicator, and pieces of layers for them."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch

from lampfast import _core
from lampfast._engine import views


class Group:
    """A process group of threads. It counts collectives, and the bytes that each rank sends."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.collectives = 0
        self.sent = [0] * size
        self._barrier = threading.Barrier(size)
        self._slots: list[Any] = [None] * size

    def run(self, body: Callable[[Rank], Any]) -> list[Any]:
        """What `body` returns, or raises, on every rank."""

        def attempt(rank: int) -> Any:
            try:
                return body(Rank(self, rank))
            except Exception as error:
                return error

        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(attempt, range(self.size)))

    def exchange(self, rank: int, what: Any, size: int) -> list[Any]:
        """What every rank gives."""
        self.sent[rank] += size
        self._slots[rank] = what
        self._barrier.wait(60)
        everything = list(self._slots)
        if rank == 0:
            self.collectives += 1
        self._barrier.wait(60)
        return everything


class Rank:
    """The communicator of one rank, as `lampfast._engine` has one for a process group."""

    def __init__(self, group: Group, rank: int) -> None:
        self.group, self.rank, self.size = group, rank, group.size

    def sum(self, numbers: memoryview) -> None:
        """Add up numbers."""
        self._reduce(np.add, numbers)

    def max(self, numbers: memoryview) -> None:
        """Take the largest of numbers."""
        self._reduce(np.maximum, numbers)

    def gather(self, own: bytes, expected: int) -> list[bytes]:
        """The bytes of all ranks."""
        everything = self.group.exchange(self.rank, own, 8 + expected)
        longest = max(map(len, everything))
        if longest > expected:
            self.group.exchange(self.rank, None, longest - expected)
        return everything

    def _reduce(self, how: np.ufunc, numbers: memoryview) -> None:
        own = np.frombuffer(numbers, np.int64)
        everything = self.group.exchange(self.rank, own.copy(), own.nbytes)
        assert len({len(each) for each in everything}) == 1
        own[:] = how.reduce(everything)


class Box(NamedTuple):
    """A piece of a layer: a range of each dimension, who holds it, and whether it counts there."""

    layer: int
    ranges: tuple[slice, ...]
    rank: int
    is_counted: bool = True


def split(
    rng: np.random.Generator, layer: int, shape: Sequence[int], ranks: int, most: int = 4
) -> list[Box]:
    """Boxes that make up a layer, cut at random along its dimensions, with replicas of some."""
    boxes: list[tuple[slice, ...]] = [tuple(slice(0, n) for n in shape)]
    for _ in range(int(rng.integers(0, most))):
        if not shape:
            break
        dim = int(rng.integers(0, len(shape)))
        parts = int(rng.integers(1, ranks + 2))
        boxes = [cut for box in boxes for cut in _cut(rng, box, dim, parts)]
        if len(boxes) > 24:
            break
    found = []
    for box in boxes:
        rank = int(rng.integers(0, ranks))
        found.append(Box(layer, box, rank))
        if rng.random() < 0.3:
            found.append(Box(layer, box, (rank + 1) % ranks, False))
    return found


def _cut(
    rng: np.random.Generator, box: tuple[slice, ...], dim: int, parts: int
) -> list[tuple[slice, ...]]:
    begin, end = box[dim].start, box[dim].stop
    inner = rng.integers(begin, end + 1, parts - 1)
    edges = [begin, *sorted(inner.tolist()), end]
    ranges = [slice(a, b) for a, b in itertools.pairwise(edges)]
    return [(*box[:dim], each, *box[dim + 1 :]) for each in ranges]


def sharding(rank: Rank, layers: Sequence[torch.Tensor], boxes: Sequence[Box]) -> tuple[Any, ...]:
    """What the engine is told of the pieces of a rank."""
    pieces = []
    begins: list[list[tuple[int, int]]] = [[] for _ in layers]
    for box in boxes:
        shape = layers[box.layer].shape
        steps = [int(np.prod(shape[a + 1 :], dtype=np.int64)) for a in range(len(shape))]
        first = sum(each.start * step for each, step in zip(box.ranges, steps, strict=True))
        last = sum((each.stop - 1) * step for each, step in zip(box.ranges, steps, strict=True))
        if any(each.stop == each.start for each in box.ranges):
            continue
        begins[box.layer].append((first, last))
        if box.rank == rank.rank:
            pieces.append((box.layer, box.is_counted, first, steps))
    dtypes = [(views.part("", layer, _dtype(layer)).dtype, list(layer.shape)) for layer in layers]
    return rank, dtypes, pieces, [in_order(each) for each in begins]


def in_order(extents: list[tuple[int, int]]) -> list[int]:
    """Where pieces begin, if each ends before the next one begins."""
    distinct = sorted(set(extents))
    follow = all(a[1] < b[0] for a, b in itertools.pairwise(distinct))
    return [first for first, _ in distinct] if follow else []


def held(rank: int, tensors: Sequence[torch.Tensor], boxes: Sequence[Box]) -> list[torch.Tensor]:
    """The parts of tensors, one for each layer, that a rank has."""
    return [
        part
        for box in boxes
        if box.rank == rank and (part := tensors[box.layer][box.ranges]).numel() > 0
    ]


def pointers(tensors: Sequence[torch.Tensor]) -> list[views.Pointer]:
    return [views.part("", each, _dtype(each)).pointer for each in tensors]


def _dtype(tensor: torch.Tensor) -> _core.Dtype:
    if tensor.dtype is torch.bool:
        return _core.Dtype.boolean
    found: _core.Dtype = getattr(_core.Dtype, str(tensor.dtype).removeprefix("torch."))
    return found
