"""Where the parts of a parameter lie that a rank has: boxes of the layers that it holds.

The indices that a rank has along a dimension are *runs* (first index, how many), in the order in
which they lie in its local tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Placement

from lampfast._engine.stacks import Stack
from lampfast._engine.views import Weight

Run = tuple[int, int]
Index = tuple[slice | int, ...]


class Part(NamedTuple):
    """What a layer is of its parameter: a slice of each dimension; the first may be dropped.

    Attributes:
        suffix: What follows the parameter's name in its own.
        ranges: Where it lies in the parameter.
        drops_first: Whether it has one dimension less, being one row of it.
    """

    suffix: str
    ranges: tuple[slice, ...]
    drops_first: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The layer's shape."""
        lengths = tuple(len(range(it.start, it.stop, it.step or 1)) for it in self.ranges)
        return lengths[1:] if self.drops_first else lengths


class Box(NamedTuple):
    """A piece of a layer, that lies in the local tensor of its parameter.

    Attributes:
        first: The row-major index of its first element in the layer.
        shape: Its shape.
        local: Where it lies in the local tensor.
        whole: Where it lies in the parameter.
    """

    first: int
    shape: tuple[int, ...]
    local: Index
    whole: Index


def parts(shape: Sequence[int], stack: Stack | None) -> Iterator[Part]:
    """The layers of a parameter.

    Example:
        >>> [part.suffix for part in parts((2, 6, 5), Stack(2))], next(parts((4, 3), None)).shape
        (['[0]', '[1]'], (4, 3))
    """
    whole = tuple(slice(0, n) for n in shape)
    if stack is None:
        yield Part("", whole)
        return
    rows = shape[0] // stack.slices
    for i in range(stack.slices):
        ranges = (slice(i * rows, (i + 1) * rows), *whole[1:])
        for half, dim, own in stack.halves_of(shape):
            suffix = f"[{i}]{half}"
            if suffix not in stack.without:
                cut = ranges if dim is None else (*ranges[:dim], own, *ranges[dim + 1 :])
                yield Part(suffix, cut, drops_first=shape[0] == stack.slices)


def runs(
    shape: Sequence[int], mesh: DeviceMesh, placements: Sequence[Placement]
) -> list[list[Run]]:
    """The indices along each dimension that this rank's local tensor of a DTensor has."""
    coordinate = mesh.get_coordinate()
    held: list[list[Run]] = [[(0, n)] for n in shape]
    if coordinate is None:
        return [[] for _ in shape]
    for d, placement in enumerate(placements):
        if (dim := getattr(placement, "dim", None)) is None:
            continue
        blocks = _chunks(held[dim], getattr(placement, "split_factor", 1))  # of _StridedShard
        chosen = [_chunk(block, mesh.size(d), coordinate[d]) for block in blocks]
        held[dim] = _merged([run for chunk in chosen for run in chunk])
    return held


def boxes(part: Part, held: Sequence[Sequence[Run]]) -> Iterator[Box]:
    """The pieces of a layer in a local tensor that has these indices."""
    shape = part.shape
    strides = [1] * len(shape)
    for a in range(len(shape) - 1, 0, -1):
        strides[a - 1] = strides[a] * shape[a]
    if part.drops_first:
        strides.insert(0, 0)
    ranges = zip(part.ranges, held, strict=True)
    for segments in product(*[list(_segments(of, along)) for of, along in ranges]):
        first = sum(it.first * stride for it, stride in zip(segments, strides, strict=True))
        local: list[slice | int] = [it.local for it in segments]
        whole: list[slice | int] = [it.whole for it in segments]
        lengths = [it.length for it in segments]
        if part.drops_first:
            local[0], whole[0] = segments[0].local.start, segments[0].whole.start
            del lengths[0]
        yield Box(first, tuple(lengths), tuple(local), tuple(whole))


def layout(weight: Weight) -> list[list[Run]]:
    """The indices along each dimension of a parameter that this rank has; all of a plain one."""
    if isinstance(weight, DTensor):
        return runs(weight.shape, weight.device_mesh, weight.placements)
    return [[(0, n)] for n in weight.shape]


def own(weight: DTensor, whole: torch.Tensor) -> torch.Tensor:
    """What this rank has of a whole tensor, as it has a parameter of that shape."""
    held = layout(weight)
    part = next(parts(weight.shape, None))
    found = whole.new_empty([sum(count for _, count in along) for along in held])
    for box in boxes(part, held):
        found[box.local] = whole[box.whole]
    return like(weight, found)


def like(weight: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """A tensor whose local part is `own`, placed as a parameter is."""
    if not isinstance(weight, DTensor):
        return own
    return DTensor.from_local(
        own,
        weight.device_mesh,
        weight.placements,
        run_check=False,
        shape=weight.shape,
        stride=weight.stride(),
    )


class _Segment(NamedTuple):
    first: int  # in the layer
    length: int
    local: slice
    whole: slice


def _segments(of: slice, held: Sequence[Run]) -> Iterator[_Segment]:
    """What runs have of a range of a dimension."""
    step, before = of.step or 1, 0
    for first, count in held:
        skipped = -(-max(first - of.start, 0) // step)  # elements of the range that come earlier
        start = of.start + skipped * step
        stop = min(first + count, of.stop)
        if start < stop:
            at = before + start - first
            yield _Segment(
                skipped,
                len(range(start, stop, step)),
                slice(at, at + stop - start, step),
                slice(start, stop, step),
            )
        before += count


def _chunks(held: Sequence[Run], parts: int) -> list[list[Run]]:
    return [_chunk(held, parts, i) for i in range(parts)]


def _chunk(held: Sequence[Run], parts: int, which: int) -> list[Run]:
    """One of the parts into which torch.chunk cuts what runs have."""
    total = sum(count for _, count in held)
    size = -(-total // parts)
    begin, end, before = which * size, (which + 1) * size, 0
    chosen = []
    for first, count in held:
        low, high = max(begin - before, 0), min(end - before, count)
        if low < high:
            chosen.append((first + low, high - low))
        before += count
    return chosen


def _merged(held: Sequence[Run]) -> list[Run]:
    """The same runs, those put together that continue each other."""
    merged: list[Run] = []
    for first, count in held:
        if merged and sum(merged[-1]) == first:
            merged[-1] = merged[-1][0], merged[-1][1] + count
        else:
            merged.append((first, count))
    return merged
