"""Which tiles of a layer go, found in small parts of it, and zeroes them as the layer passes by.

Inside a layer tiles go in the order of their sums of squares, and of their numbers where these are
equal. So the number of weights that go with them tells which tiles these are, and a layer, or a
piece of one, needs nothing else to be written.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from math import lcm, prod
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from lampfast import _core
from lampfast._blocks import Shape
from lampfast._engine import calls, views
from lampfast._engine.calls import Blocks
from lampfast.checkpoints.zeroing import Bits, pieces_of

_MOST_AT_ONCE = 1 << 22  # weights

Fates: TypeAlias = npt.NDArray[np.bool_]  # which tiles go, by their rows and columns


class Region(NamedTuple):
    """Tiles of a layer whose numbers follow each other.

    Attributes:
        tiles: The tiles' rows and columns.
        box: Their weights, by the first two dimensions of the layer.
    """

    tiles: tuple[slice, slice]
    box: tuple[slice, slice]


class Tiling:
    """How tiles lie in a layer, or in a piece of one, as csrc/core/tiling.h says.

    Attributes:
        shape: Of the layer; of a vector, which is one output, as that of a matrix.
        axis: The dimension of the inputs, 0 or 1; the outputs have the other one.
        outputs: How many there are.
        kernel: How many weights each output has for one input.
        width: How many weights each output has.
        rows: Those of a tile, of which each is an output.
        columns: Those of a tile, of which each is a weight of all outputs.
        grid: How many rows and columns of tiles there are.
    """

    def __init__(self, block: Shape, shape: Sequence[int]) -> None:
        rows, columns, self.axis = block
        self.shape = (*shape, *(1,) * (2 - len(shape)))
        self.outputs, self.kernel = self.shape[1 - self.axis], prod(self.shape[2:])
        self.width = self.shape[self.axis] * self.kernel
        self.rows = min(rows, max(self.outputs, 1))
        self.columns = min(columns, max(self.width, 1))
        self.grid = -(-self.outputs // self.rows), -(-self.width // self.columns)

    def cut_dimension(self, box: Sequence[slice]) -> int | None:
        """The first dimension in which a piece of the layer cuts tiles, if there is one."""
        for dim, (along, extent) in enumerate(zip(box, self.shape, strict=False)):
            if dim == self.axis:
                ends, length = (along.start * self.kernel, along.stop * self.kernel), self.columns
            elif dim == 1 - self.axis:
                ends, length = (along.start, along.stop), self.rows
            else:
                ends, length = (along.start, along.stop), max(extent, 1)
            if ends[0] % length or (ends[1] % length and along.stop != extent):
                return dim
        return None

    def part(self, fates: Fates, box: Sequence[slice]) -> int:
        """How many weights go with the tiles of a piece of the layer, which cuts none."""
        sizes = []
        for extent, length in ((self.outputs, self.rows), (self.width, self.columns)):
            starts = np.arange(0, extent, length)
            sizes.append(np.minimum(length, extent - starts))
        two = [*box, slice(0, 1)][:2]
        outputs, inputs = two[1 - self.axis], two[self.axis]
        rows = slice(outputs.start // self.rows, -(-outputs.stop // self.rows))
        columns = slice(
            inputs.start * self.kernel // self.columns,
            -(-inputs.stop * self.kernel // self.columns),
        )
        return int(sizes[0][rows] @ fates[rows, columns] @ sizes[1][columns])

    def regions(self) -> Iterator[Region]:
        """Parts of the layer that are small, or one tile, in the order of the tiles' numbers."""
        unit = lcm(self.columns, self.kernel)  # where tiles and inputs end together
        high = max(1, _MOST_AT_ONCE // (self.rows * self.width))
        wide = unit * max(1, _MOST_AT_ONCE // (self.rows * unit))
        if self.rows * self.width <= _MOST_AT_ONCE:
            wide = -(-self.width // unit) * unit
        for row in range(0, self.grid[0], high):
            outputs = slice(row * self.rows, min((row + high) * self.rows, self.outputs))
            for start in range(0, self.width, wide):
                stop = min(start + wide, self.width)
                tiles = slice(start // self.columns, -(-stop // self.columns))
                inputs = slice(start // self.kernel, stop // self.kernel)
                box = (outputs, inputs) if self.axis else (inputs, outputs)
                yield Region((slice(row, row + high), tiles), box)

    def matrix(self, array: torch.Tensor) -> torch.Tensor:
        """Something of the layer's dimensions as a matrix of outputs and their weights."""
        turned = array if self.axis else array.transpose(0, 1)
        return turned.reshape(turned.shape[0], -1)


def fates(weight: torch.Tensor, block: Shape, pruned: int) -> Fates:
    """Which tiles go.

    Args:
        weight: The layer, or a piece of one, as the engine can read it.
        block: The rows and columns of a tile, and the dimension of the inputs.
        pruned: How many weights go with them.
    """
    tiling = Tiling(block, weight.shape)
    found = np.zeros(tiling.grid, bool)
    if not pruned:
        return found
    whole = weight.reshape(tiling.shape)
    regions = list(tiling.regions())
    parts = views.layers({f"tiles[{i}]": whole[it.box] for i, it in enumerate(regions)})
    spec = _core.SelectionSpec(_core.Ranking.magnitude, [pruned])
    counts = calls.thresholds(parts, parts, Blocks([block] * len(parts), spec))
    for region, part, count in zip(regions, parts, counts, strict=True):
        if count.pruned in (0, part.size):
            found[region.tiles] = count.pruned > 0
            continue
        kept = torch.empty(part.shape, dtype=torch.bool)
        spec = _core.SelectionSpec(_core.Ranking.per_layer, [count.pruned])
        mask = views.part(part.name, kept, _core.Dtype.boolean)
        calls.masks([part], [part], [mask], Blocks([block], spec))
        firsts = tiling.matrix(kept)[:: tiling.rows, :: tiling.columns]
        found[region.tiles] = ~firsts.numpy()
    return found


class TileRule:
    """Tiles go whole, those that the engine finds to be the first.

    Args:
        block: The rows and columns of a tile, and the dimension of the inputs.
        pruned: How many weights go with them.
        shape: Of the layer, or of the piece of it.
        compared: What is compared, once it is needed: the layer as it was, or importances.
    """

    def __init__(
        self,
        block: Shape,
        pruned: int,
        shape: Sequence[int],
        compared: Callable[[], torch.Tensor],
    ) -> None:
        self._block, self._pruned, self._compared = block, pruned, compared
        self._tiling = Tiling(block, shape)

    @cached_property
    def _fates(self) -> Fates:
        return fates(self._compared(), self._block, self._pruned)

    def zero(self, part: Bits, begin: int = 0) -> None:
        """Zero what is pruned of a part."""
        for weights in pieces_of(part):
            goes = self._spread(begin, weights.size)
            np.copyto(weights, 0, where=goes.reshape(weights.shape))
            begin += weights.size

    def _spread(self, begin: int, count: int) -> Fates:
        """For each of some weights whether it goes."""
        tiling = self._tiling
        length = prod(tiling.shape[1:])
        first, last = begin // length, -(-(begin + count) // length)
        if tiling.axis:
            of_rows = self._fates[np.arange(first, last) // tiling.rows]
            spread = np.repeat(of_rows, tiling.columns, axis=1)[:, : tiling.width]
        else:
            columns = np.arange(first * tiling.kernel, last * tiling.kernel) // tiling.columns
            of_columns = self._fates[:, columns]
            turned = np.repeat(of_columns, tiling.rows, axis=0)[: tiling.outputs]
            spread = turned.reshape(tiling.outputs, -1, tiling.kernel).swapaxes(0, 1)
        return spread.reshape(-1)[begin - first * length :][:count]
