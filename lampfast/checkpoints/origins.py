"""What the storages of meta tensors are: tensors of a checkpoint, or what was made of some."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

from lampfast.checkpoints import headers
from lampfast.checkpoints.headers import Chunk, Tensor
from lampfast.checkpoints.places import Piece, Pieces, Place


class _Part(NamedTuple):
    """A box of a tensor that was made of others, and where it came from.

    Attributes:
        start: The index of its first element in what was made.
        shape: Its shape.
        storage: What it is a view of.
        offset: Of its first element there, in elements.
        strides: In elements.
    """

    start: tuple[int, ...]
    shape: tuple[int, ...]
    storage: int
    offset: int
    strides: tuple[int, ...]


class _Made(NamedTuple):
    """A row-major tensor that was made of others.

    Attributes:
        shape: Its shape.
        parts: Boxes that it consists of.
        dim: The dimension in which they follow each other, if it is one only.
        alive: Keeps its storage, and those of its parts, from being taken by others.
    """

    shape: tuple[int, ...]
    parts: list[_Part]
    dim: int | None
    alive: Sequence[torch.Tensor]


class _Selection(NamedTuple):
    """A strided view of a row-major tensor.

    Attributes:
        sizes: Its shape.
        first: The index of its first element.
        moves: How a step along each of its dimensions moves that index.
    """

    sizes: tuple[int, ...]
    first: list[int]
    moves: list[list[int]]

    def reach(self, dim: int) -> int:
        """The last index along a dimension of the tensor."""
        steps = zip(self.sizes, self.moves, strict=True)
        return self.first[dim] + sum((n - 1) * move[dim] for n, move in steps)


class Origins:
    """Follows meta tensors back to a checkpoint's tensors.

    Attributes:
        state: A meta tensor for each tensor of the checkpoint, by name.

    Args:
        tensors: Of the checkpoint, by name.
        floats: What floating-point tensors become; without it they keep their dtypes.
    """

    def __init__(self, tensors: Mapping[str, Tensor], floats: torch.dtype | None = None) -> None:
        self.state: dict[str, torch.Tensor] = {}
        self._tensors: dict[int, Tensor] = {}
        self._made: dict[int, _Made] = {}
        self._used: set[str] = set()  # tensors that others were made of
        for name, tensor in tensors.items():
            dtype = floats if tensor.dtype in headers.FLOATS else None
            dtype = dtype or headers.DTYPES[tensor.dtype] or torch.uint8
            meta = torch.empty_strided(tensor.shape, tensor.strides, dtype=dtype, device="meta")
            self.state[name] = meta
            self._tensors[_storage(meta)] = tensor

    def note(self, made: torch.Tensor, parts: Sequence[torch.Tensor], dim: int, new: bool) -> None:
        """Note what a tensor was stacked (along a new dimension) or concatenated from."""
        dim, at = dim % made.ndim, 0
        noted = []
        for part in parts:
            sizes, strides, start = list(part.shape), list(part.stride()), [0] * made.ndim
            if new:
                sizes.insert(dim, 1)
                strides.insert(dim, 0)
            start[dim] = at
            at += sizes[dim]
            noted.append(
                _Part(
                    tuple(start),
                    tuple(sizes),
                    _storage(part),
                    int(part.storage_offset()),
                    tuple(strides),
                )
            )
        self._note(made, parts, noted, dim)

    def note_copy(self, made: torch.Tensor, part: torch.Tensor) -> None:
        """Note that a tensor is a row-major copy of another one."""
        if _storage(made) == _storage(part) or not made.is_contiguous():
            return
        start, shape = (0,) * made.ndim, tuple(part.shape)
        offset = int(part.storage_offset())
        only = _Part(start, shape, _storage(part), offset, tuple(part.stride()))
        self._note(made, [part], [only], None)

    def _note(
        self,
        made: torch.Tensor,
        parts: Sequence[torch.Tensor],
        noted: list[_Part],
        dim: int | None,
    ) -> None:
        self._made[_storage(made)] = _Made(tuple(made.shape), noted, dim, (made, *parts))
        found = (self._tensors.get(_storage(part)) for part in parts)
        self._used |= {tensor.name for tensor in found if tensor is not None}

    def unused(self, module: nn.Module) -> list[Tensor]:
        """The tensors of the checkpoint that no parameter or buffer of a module comes from."""
        every = [*module.parameters(), *module.buffers()]
        found = (self._tensors.get(_storage(tensor)) for tensor in every)
        used = self._used | {tensor.name for tensor in found if tensor is not None}
        return [tensor for tensor in self._tensors.values() if tensor.name not in used]

    def pieces(self, view: torch.Tensor) -> Pieces:
        """Where a parameter, or a slice of one, lies; nowhere if it was computed otherwise."""
        sizes = tuple(view.shape)
        steps = tuple(step if n > 1 else 0 for n, step in zip(sizes, view.stride(), strict=True))
        offset, start = int(view.storage_offset()), (0,) * len(sizes)
        return tuple(self._pieces(_storage(view), offset, sizes, steps, start) or ())

    def _pieces(
        self,
        storage: int,
        offset: int,
        sizes: tuple[int, ...],
        steps: tuple[int, ...],
        start: tuple[int, ...],
    ) -> list[Piece] | None:
        if (tensor := self._tensors.get(storage)) is not None:
            return [Piece(Place(tensor, offset, sizes, steps), start)]
        if (made := self._made.get(storage)) is None:
            return None
        if (selection := selected(made.shape, offset, sizes, steps)) is None:
            return None
        found: list[Piece] = []
        for part in _reached(made, selection):
            if (meeting := _meeting(part.start, part.shape, selection)) is None:
                return None
            if not (view := meeting.view(part.offset, part.strides)):
                continue
            begin = tuple(at + n for at, n in zip(start, meeting.start, strict=True))
            if (further := self._pieces(part.storage, *view, begin)) is None:
                return None
            found += further
        return found


def located(chunks: Mapping[str, Sequence[Chunk]], pieces: Pieces) -> Pieces:
    """Where pieces lie that are views of tensors of which some are divided into chunks.

    Args:
        chunks: By the names of tensors that do not lie in one file as a whole, which are row-major.
        pieces: Of a layer.
    """
    return tuple(
        it for piece in pieces for it in _located(chunks.get(piece.place.tensor.name), piece)
    )


def _located(chunks: Sequence[Chunk] | None, piece: Piece) -> Iterator[Piece]:
    if chunks is None:
        yield piece
        return
    tensor, offset, sizes, steps = piece.place
    selection = selected(tensor.shape, offset, sizes, steps)
    for start, part in chunks:
        meeting = selection and _meeting(start, part.shape, selection)
        if meeting is None:
            raise ValueError(
                f"tensor {tensor.name!r} of shape {list(tensor.shape)} is divided into chunks in a "
                f"way that its view of shape {list(sizes)} is not followed through; leave its "
                "layers out with exclude="
            )
        if view := meeting.view(0, part.strides):
            begin = tuple(at + n for at, n in zip(piece.start, meeting.start, strict=True))
            yield Piece(Place(part, *view), begin)


def selected(
    shape: Sequence[int], offset: int, sizes: Sequence[int], steps: Sequence[int]
) -> _Selection | None:
    """Which elements of a row-major tensor a view has.

    None if a step of the view is not a step along the dimensions of the tensor.
    """
    moves = [_indices(shape, step) for step in steps]
    found = _Selection(tuple(sizes), _indices(shape, offset), moves)
    if all(sizes) and any(found.reach(dim) >= length for dim, length in enumerate(shape)):
        return None
    return found


def _reached(made: _Made, selection: _Selection) -> Iterable[_Part]:
    """The parts that a view may meet."""
    if (dim := made.dim) is None:
        return made.parts
    first, last = selection.first[dim], selection.reach(dim)
    low = bisect_right(made.parts, first, key=lambda part: part.start[dim]) - 1
    return made.parts[max(low, 0) : bisect_left(made.parts, last + 1, key=lambda p: p.start[dim])]


class _Meeting(NamedTuple):
    """What of a view lies in a box.

    Attributes:
        selection: The view.
        ranges: Which of its indices, along each of its dimensions.
        box: Where the box begins.
    """

    selection: _Selection
    ranges: list[range]
    box: tuple[int, ...]

    @property
    def start(self) -> tuple[int, ...]:
        """The first index of the view that does."""
        return tuple(it.start for it in self.ranges)

    def view(
        self, offset: int, strides: Sequence[int]
    ) -> tuple[int, tuple[int, ...], tuple[int, ...]] | tuple[()]:
        """Offset, shape and strides of that in the box's own memory; nothing if it is empty."""
        if not all(self.ranges):
            return ()
        moves = self.selection.moves
        inside = [
            at - begin + _dot([it.start for it in self.ranges], [move[d] for move in moves])
            for d, (at, begin) in enumerate(zip(self.selection.first, self.box, strict=True))
        ]
        steps = tuple(_dot(move, strides) for move in moves)
        return offset + _dot(inside, strides), tuple(map(len, self.ranges)), steps


def _meeting(
    start: tuple[int, ...], shape: Sequence[int], selection: _Selection
) -> _Meeting | None:
    """What of a view lies in a box of its tensor.

    None if that is no box of the view, as two of its dimensions move along one that is cut.
    """
    ranges = [range(n) for n in selection.sizes]
    for dim, (begin, extent) in enumerate(zip(start, shape, strict=True)):
        first, last, end = selection.first[dim], selection.reach(dim), begin + extent
        if begin <= first and last < end:
            continue
        if last < begin or first >= end:
            return _Meeting(selection, [range(0)] * max(len(ranges), 1), start)
        along = [v for v, move in enumerate(selection.moves) if move[dim] and len(ranges[v]) > 1]
        if len(along) != 1:
            return None
        step, known = selection.moves[along[0]][dim], ranges[along[0]]
        low, high = -((first - begin) // step), -((first - end) // step)
        ranges[along[0]] = range(max(known.start, low), min(known.stop, high))
    return _Meeting(selection, ranges, start)


def _indices(shape: Sequence[int], offset: int) -> list[int]:
    found = []
    for stride in headers.row_major(shape):
        index, offset = divmod(offset, stride)
        found.append(index)
    return found


def _dot(left: Sequence[int], right: Sequence[int]) -> int:
    return sum(a * b for a, b in zip(left, right, strict=True))


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
