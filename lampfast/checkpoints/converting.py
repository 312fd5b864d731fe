"""Writes a checkpoint of torch as one safetensors file, with what is pruned zeroed."""

import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch

from lampfast.checkpoints import headers, mapped, origins
from lampfast.checkpoints.deciding import Decision
from lampfast.checkpoints.headers import Chunk, Tensor
from lampfast.checkpoints.places import Place
from lampfast.checkpoints.reading import Checkpoint
from lampfast.checkpoints.zeroing import Rule

SUFFIX = ".safetensors"
_ALIGNMENT = 8  # bytes


def size_of(checkpoint: Checkpoint) -> int:
    """How many bytes its tensors take."""
    return sum(_bytes(tensor) for tensor in checkpoint.tensors.values())


def check(checkpoint: Checkpoint, decisions: Sequence[Decision]) -> None:
    """Check that all tensors can be written with what is pruned zeroed, before any is.

    Raises:
        ValueError: A tensor has strides that are not followed, a name that safetensors has for
            something else, or a part of a layer's memory.
    """
    if headers.METADATA in checkpoint.tensors:
        raise ValueError(
            f"a tensor is called {headers.METADATA!r}, and safetensors keeps its metadata under "
            "that name; save it under another one"
        )
    by_region = _by_region(decisions)
    parts = [
        (part, chunk_start, tensor)
        for tensor in checkpoint.tensors.values()
        for chunk_start, part in _chunks(checkpoint, tensor)
        if part.numel
    ]
    parts.sort(key=lambda it: (it[0].file, it[0].start, it[0].stop))
    last: Tensor | None = None
    for part, start, tensor in parts:
        pruned = by_region.get(_region(part), ())
        for decision in pruned:
            _moved(decision.place, part, tensor, start)
        if last is not None and last.file == part.file and part.start < last.stop:
            is_other = _region(last) != _region(part)
            if is_other and (pruned or _region(last) in by_region):
                raise ValueError(
                    f"tensors {last.name!r} and {part.name!r} in {part.file!r} share part of their "
                    "memory, and one of them is pruned; write the output as a file of torch, which "
                    "keeps that"
                )
        if last is None or last.file != part.file or part.stop > last.stop:
            last = part


def write(
    checkpoint: Checkpoint,
    target: Path,
    decisions: Sequence[Decision],
    rule: Callable[[Decision], Rule],
    progress: Callable[[int], None],
) -> None:
    """Write all tensors of a checkpoint, those that share memory each for itself, to the disk.

    Args:
        checkpoint: What is written.
        target: The file.
        decisions: What is pruned.
        rule: What each means for the place that it is for.
        progress: Is told how many more bytes are written.

    Raises:
        OSError: The disk is full, or cannot be read or written.
        ValueError: A tensor has strides that are not followed.
    """
    header, tensors = _header(checkpoint.tensors.values(), target.name)
    end = max((tensor.stop for tensor in tensors.values()), default=len(header))
    with open(target, "wb") as file:
        file.write(header)
        os.posix_fallocate(file.fileno(), 0, end)  # a full disk is an error here, not later
    raw = torch.from_file(str(target), shared=True, size=end, dtype=torch.uint8).numpy()
    files = checkpoint.mapped()
    by_region = _by_region(decisions)
    for name, new in tensors.items():
        for start, part in _chunks(checkpoint, checkpoint.tensors[name]):
            source = files.array(Place(part, 0, part.shape, part.strides))
            mapped.copy(source, mapped.box_of(mapped.array(raw, _whole(new)), start, part.shape))
            for decision in by_region.get(_region(part), ()):
                place = _moved(decision.place, part, new, start)
                rule(decision).zero(mapped.array(raw, place))
        progress(_bytes(new))
    del raw
    with open(target, "rb+") as file:
        os.fsync(file.fileno())


def _header(tensors: Iterable[Tensor], file: str) -> tuple[bytes, dict[str, Tensor]]:
    """The header of a safetensors file, and where the tensors lie in it: the widest first."""
    entries: dict[str, object] = {headers.METADATA: {"format": "pt"}}
    at, placed = 0, {}
    for tensor in sorted(tensors, key=_itemsize, reverse=True):
        stop = at + _bytes(tensor)
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [at, stop],
        }
        placed[tensor.name] = (tensor, at, stop)
        at = stop
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    begin = 8 + len(text)
    found = {
        name: Tensor(
            name,
            tensor.dtype,
            tensor.shape,
            headers.row_major(tensor.shape),
            file,
            begin + start,
            begin + stop,
        )
        for name, (tensor, start, stop) in placed.items()
    }
    return struct.pack("<Q", len(text)) + text, found


def _chunks(checkpoint: Checkpoint, tensor: Tensor) -> Iterator[Chunk]:
    yield from checkpoint.chunks.get(tensor.name, [Chunk((0,) * len(tensor.shape), tensor)])


def _by_region(decisions: Iterable[Decision]) -> dict[tuple[object, ...], list[Decision]]:
    """What is pruned, by where it lies."""
    found: dict[tuple[object, ...], list[Decision]] = {}
    for decision in decisions:
        if decision.pruned:
            found.setdefault(_region(decision.place.tensor), []).append(decision)
    return found


def _region(tensor: Tensor) -> tuple[object, ...]:
    """What tells tensors apart that are not one, under several names or transposed."""
    return tensor.dtype, tensor.file, tensor.start, tensor.stop


def _moved(place: Place, tensor: Tensor, new: Tensor, start: Sequence[int]) -> Place:
    """A view of a tensor's memory as one of a row-major tensor in which that begins at an index."""
    order = sorted(range(len(tensor.shape)), key=lambda dim: -tensor.strides[dim])
    shape = [tensor.shape[dim] for dim in order]
    strides = tuple(tensor.strides[dim] for dim in order)
    selection = origins.selected(shape, place.offset, place.shape, place.strides)
    is_dense = all(
        n == 1 or a == b for n, a, b in zip(shape, strides, headers.row_major(shape), strict=True)
    )
    if selection is None or not is_dense:
        raise ValueError(
            f"tensor {tensor.name!r} has shape {list(tensor.shape)} and strides "
            f"{list(tensor.strides)}, which is not followed to another format; save it contiguous"
        )
    steps = [new.strides[dim] for dim in order]
    begin = sum(at * step for at, step in zip(start, new.strides, strict=True))
    offset = begin + sum(at * step for at, step in zip(selection.first, steps, strict=True))
    moves = [sum(n * step for n, step in zip(move, steps, strict=True)) for move in selection.moves]
    return Place(new, offset, place.shape, tuple(moves))


def _whole(tensor: Tensor) -> Place:
    return Place(tensor, 0, tensor.shape, tensor.strides)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel * _itemsize(tensor)


def _itemsize(tensor: Tensor) -> int:
    dtype = headers.DTYPES[tensor.dtype]
    assert dtype is not None  # torch has no other
    return dtype.itemsize
