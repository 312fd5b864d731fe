"""A checkpoint's files as memory, of which nothing is read before it is looked at."""

import mmap
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lampfast.checkpoints import headers, zeroing
from lampfast.checkpoints.headers import Chunk, Tensor
from lampfast.checkpoints.places import Pieces, Place, shape_of
from lampfast.checkpoints.zeroing import Bits

_CACHE_LINE = 64  # bytes


class Mapped:
    """Files that are mapped when something of them is asked for.

    Args:
        files: How many bytes each has, by path.
    """

    def __init__(self, files: Mapping[str, tuple[Path, int]]) -> None:
        self._files = files
        self._mapped: dict[str, torch.Tensor] = {}

    def bytes(self, name: str) -> torch.Tensor:
        """A file's bytes, by its name in the checkpoint."""
        if name not in self._mapped:
            path, size = self._files[name]
            self._mapped[name] = torch.from_file(
                str(path), shared=False, size=size, dtype=torch.uint8
            )
        return self._mapped[name]

    def array(self, place: Place) -> Bits:
        """What lies in a place, as integers of its elements' size; aligned in memory or not."""
        return array(self.bytes(place.tensor.file).numpy(), place)

    def view(self, place: Place) -> torch.Tensor:
        """What lies in an aligned place.

        Raises:
            ValueError: It is not aligned, or torch has no such dtype.
        """
        tensor = place.tensor
        dtype = headers.DTYPES[tensor.dtype]
        if dtype is None:
            raise ValueError(f"tensor {tensor.name!r} has dtype {tensor.dtype}, which is not read")
        if not place.numel:
            return torch.empty(place.shape, dtype=dtype)
        if not place.is_aligned:
            raise ValueError(
                f"tensor {tensor.name!r} begins at byte {tensor.start} of {tensor.file!r}, which "
                f"is no multiple of its {dtype.itemsize} bytes a value; save the file once more "
                "with safetensors, which aligns them"
            )
        raw = self.bytes(tensor.file)[tensor.start : tensor.stop].view(dtype)
        offset = int(raw.storage_offset()) + place.offset
        return raw.as_strided(place.shape, place.strides, offset)


class Assembly:
    """Layers as tensors: mapped where they lie, or put together in a file that nobody sees.

    The latter are those that lie in several pieces, or at addresses that no element may have.

    Args:
        mapped: The checkpoint's files.
        layers: Where each layer lies.
        folder: On whose disk the file is; without it, where the system keeps such.
    """

    def __init__(self, mapped: Mapped, layers: Iterable[Pieces], folder: Path | None) -> None:
        self._mapped = mapped
        self._made: dict[Pieces, torch.Tensor] = {}
        sizes = {pieces: _bytes(pieces) for pieces in layers if not is_direct(pieces)}
        self._free = _scratch(sum(sizes.values()), folder) if sizes else torch.empty(0)

    def layer(self, pieces: Pieces) -> torch.Tensor:
        """A layer."""
        if is_direct(pieces):
            return self._mapped.view(pieces[0].place)
        if pieces not in self._made:
            self._made[pieces] = self._put_together(pieces)
        return self._made[pieces]

    def _put_together(self, pieces: Pieces) -> torch.Tensor:
        first, size = pieces[0].place, _bytes(pieces)
        dtype = headers.DTYPES[first.tensor.dtype]
        assert dtype is not None  # only such are layers
        raw, self._free = self._free[:size], self._free[size:]
        numel = sum(piece.place.numel for piece in pieces)
        whole = raw[: numel * first.itemsize].view(dtype).reshape(shape_of(pieces))
        target = zeroing.bits(whole)
        for piece in pieces:
            part = box_of(target, piece.start, piece.place.shape)
            copy(self._mapped.array(piece.place), part)
        return whole


def is_direct(pieces: Pieces) -> bool:
    """Whether a layer can be read where it lies."""
    return len(pieces) == 1 and pieces[0].place.is_aligned


def array(raw: Bits, place: Place) -> Bits:
    """A place in the bytes of its file, as integers of its elements' size."""
    size = place.itemsize
    start = place.tensor.start + place.offset * size
    if not place.numel:
        return np.empty(place.shape, f"i{size}")
    return np.ndarray(
        place.shape, f"i{size}", raw.data, start, [step * size for step in place.strides]
    )


def box_of(whole: Bits, start: Sequence[int], shape: Sequence[int]) -> Bits:
    """A box of an array, as a view also of one without dimensions."""
    box: list[Any] = [slice(at, at + n) for at, n in zip(start, shape, strict=True)]
    found: Bits = whole[(*box, ...)]
    return found


def copy(source: Bits, target: Bits) -> None:
    """Copy elements, so that no more than some of them are in memory twice."""
    parts = zip(zeroing.pieces_of(source), zeroing.pieces_of(target), strict=True)
    for ours, theirs in parts:
        theirs[...] = ours


def whole_of(mapped: Mapped, tensor: Tensor, chunks: Iterable[Chunk]) -> torch.Tensor:
    """A small tensor of a checkpoint in memory, put together if it lies in chunks."""
    dtype = headers.DTYPES[tensor.dtype]
    if dtype is None:
        raise ValueError(f"tensor {tensor.name!r} has dtype {tensor.dtype}, which is not read")
    found = torch.empty(tensor.shape, dtype=dtype)
    target = zeroing.bits(found)
    for start, part in chunks:
        source = mapped.array(Place(part, 0, part.shape, part.strides))
        copy(source, box_of(target, start, part.shape))
    return found


def _bytes(pieces: Pieces) -> int:
    """How much room a layer takes."""
    size = sum(piece.place.numel for piece in pieces) * pieces[0].place.itemsize
    return -(-size // _CACHE_LINE) * _CACHE_LINE


def _scratch(size: int, folder: Path | None) -> torch.Tensor:
    """Memory that the system may write to a disk, in a file without a name."""
    if not size:
        return torch.empty(0, dtype=torch.uint8)
    home = folder or Path(tempfile.gettempdir())
    with tempfile.TemporaryFile(dir=home) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error here, not later
        except OSError as error:
            problem = f"{error.strerror}, and {size:,} bytes are needed to put layers together"
            raise OSError(error.errno, problem, str(home)) from None
        return torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=torch.uint8)
