"""Ranks that are threads of this process: their communicator, and pieces of layers for them."""

from __future__ import annotations

import inspect
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple, cast
from unittest import mock

import numpy as np
import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.placement_types import Placement

from lampfast import _core
from lampfast._engine import sharded, views
from lampfast._engine.communicator import Board, Communicator


class Group:
    """A process group of threads. It counts collectives, and the bytes that each rank sends.

    Args:
        size: How many ranks there are.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.collectives = 0
        self.sent = [0] * size
        self.store = distributed.HashStore()  # type: ignore[attr-defined]
        self.boards = [Board(cast(Any, self.store), "virtual") for _ in range(size)]
        self._begun = [0] * size
        self._lock = threading.Lock()
        self._open: dict[int, _Collective] = {}

    def run(self, body: Callable[[Rank], Any]) -> list[Any]:
        """What `body` returns, or raises, on every rank."""

        def attempt(rank: int) -> Any:
            try:
                return body(Rank(self, rank))
            except BaseException as error:
                return error

        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(attempt, range(self.size)))

    def start(self, rank: int, how: str, sent: torch.Tensor, received: torch.Tensor) -> _Collective:
        """Begin a collective; the last rank that comes to it does the work of all."""
        with self._lock:
            number = self._begun[rank]
            self._begun[rank] += 1
            self.sent[rank] += sent.nbytes
            now = time.monotonic()
            this = self._open.setdefault(number, _Collective({}, {}, threading.Event(), [], now))
            this.sent[rank], this.received[rank] = sent.clone(), received
            this.kinds.append((how, sent.numel()))
            if len(this.sent) < self.size:
                return this
            del self._open[number]
            self.collectives += 1
        assert len(set(this.kinds)) == 1, "ranks have come to different collectives"
        given = [this.sent[r] for r in range(self.size)]
        result = torch.cat(given) if how == "gather" else _reduced(how, given)
        for each in this.received.values():
            each.copy_(result)
        this.done.set()
        return this


def _reduced(how: str, given: list[torch.Tensor]) -> torch.Tensor:
    every = np.stack([each.numpy() for each in given])
    return torch.from_numpy((np.add if how == "sum" else np.maximum).reduce(every))


class _Collective(NamedTuple):
    sent: dict[int, torch.Tensor]
    received: dict[int, torch.Tensor]
    done: threading.Event
    kinds: list[tuple[str, int]]

    begun: float

    def is_completed(self) -> bool:
        """Whether it has ended, also by the group's time-out."""
        return self.done.is_set() or time.monotonic() > self.begun + 30

    def wait(self, timeout: timedelta = timedelta(seconds=60)) -> bool:
        if not self.done.wait(timeout.total_seconds()):
            raise RuntimeError("Operation timed out!")
        return True


class Rank(Communicator):
    """The communicator of one rank, as `lampfast._engine` has one for a process group."""

    first_look = 0.02
    most_wait = 20.0

    def __init__(self, group: Group, rank: int) -> None:
        super().__init__(rank, group.size, torch.device("cpu"), group.boards[rank])
        self.group = group

    def _start_reduce(self, numbers: torch.Tensor, how: str) -> _Collective:
        return self.group.start(self.rank, how, numbers, numbers)

    def _start_gather(self, received: torch.Tensor, sent: torch.Tensor) -> _Collective:
        return self.group.start(self.rank, "gather", sent, received)


class Placed(NamedTuple):
    """How a parameter lies on ranks.

    Attributes:
        mesh: The ranks.
        placements: For each dimension of the mesh, what it does to the parameter.
    """

    mesh: torch.Tensor
    placements: tuple[Placement, ...]

    def local(self, rank: int, whole: torch.Tensor) -> torch.Tensor:
        """What torch itself gives a rank of a tensor."""
        found = (self.mesh == rank).nonzero().tolist()
        if not found:
            return whole.new_empty(0)
        [coordinate] = found
        own = whole
        for along, (index, placement) in enumerate(zip(coordinate, self.placements, strict=True)):
            if not isinstance(placement, Replicate):
                cut = cast(Any, placement)._split_tensor(
                    own, self.mesh.size(along), with_padding=False
                )
                own = cut[0][index]
        return own

    def dtensor(self, rank: int, whole: torch.Tensor) -> DTensor:
        """The same as a DTensor, with no process group behind its mesh."""
        return DTensor.from_local(
            self.local(rank, whole).clone(),
            DeviceMesh("cpu", self.mesh, _init_backend=False, _rank=rank),
            self.placements,
            run_check=False,
            shape=whole.shape,
            stride=whole.stride(),
        )


can_place = "_rank" in inspect.signature(DeviceMesh.__init__).parameters  # in new versions of torch


here = threading.local()


@contextmanager
def joined() -> Iterator[None]:
    """A section in which calls of lampfast communicate by `here.rank` of their thread."""
    with mock.patch.object(sharded, "communicator_of", side_effect=lambda *_: here.rank):
        yield


class Box(NamedTuple):
    """A piece of a layer: a range of each dimension, who holds it, and whether it counts there."""

    layer: int
    ranges: tuple[slice, ...]
    rank: int
    is_counted: bool = True


def cut(layers: Sequence[torch.Tensor], dim: int, ranks: int) -> list[Box]:
    """Boxes that give every rank its part of each layer, along a dimension."""
    boxes = []
    for i, layer in enumerate(layers):
        size = -(-layer.shape[dim] // ranks)
        for rank in range(ranks):
            ranges = [slice(0, n) for n in layer.shape]
            ends = min(rank * size, layer.shape[dim]), min((rank + 1) * size, layer.shape[dim])
            ranges[dim] = slice(*ends)
            boxes.append(Box(i, tuple(ranges), rank))
    return boxes


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
