"""Where in its files a layer lies: as a view of a tensor, or in pieces of several."""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple, TypeAlias

from lampfast.checkpoints import headers
from lampfast.checkpoints.headers import Tensor


class Place(NamedTuple):
    """Where a layer lies, or a piece of one: a view of a tensor of the checkpoint.

    Attributes:
        tensor: That it is, or is a part of.
        offset: Of its first element from the tensor's, in elements.
        shape: Of the view.
        strides: In elements.
    """

    tensor: Tensor
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def numel(self) -> int:
        """How many elements it has."""
        return prod(self.shape)

    @property
    def itemsize(self) -> int:
        """How many bytes an element has."""
        dtype = headers.DTYPES[self.tensor.dtype]
        assert dtype is not None  # only such are layers
        return dtype.itemsize

    @property
    def is_aligned(self) -> bool:
        """Whether its file has it at a multiple of an element's bytes, as memory needs it."""
        return self.tensor.start % self.itemsize == 0

    def is_row_major(self) -> bool:
        """Whether its elements lie one after the other, in the order of their indices."""
        dense = headers.row_major(self.shape)
        pairs = zip(self.shape, self.strides, dense, strict=True)
        return all(n == 1 or stride == step for n, stride, step in pairs)


class Piece(NamedTuple):
    """A box of a layer, and where it lies.

    Attributes:
        place: Where it lies.
        start: The index in the layer of its first element.
    """

    place: Place
    start: tuple[int, ...]

    @property
    def box(self) -> tuple[slice, ...]:
        """Where it is in the layer."""
        sizes = zip(self.start, self.place.shape, strict=True)
        return tuple(slice(start, start + n) for start, n in sizes)


Pieces: TypeAlias = tuple[Piece, ...]


def whole(place: Place) -> Pieces:
    """A layer that lies in one place."""
    return (Piece(place, (0,) * len(place.shape)),)


def shape_of(pieces: Sequence[Piece]) -> tuple[int, ...]:
    """The shape of a layer that lies in pieces."""
    ends = [[part.stop for part in piece.box] for piece in pieces]
    return tuple(map(max, zip(*ends, strict=True)))
