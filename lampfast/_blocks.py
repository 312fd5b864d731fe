"""Blocks: tiles of weights that go together, of a layer as a matrix of outputs and inputs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from lampfast import _arguments
from lampfast._engine.views import View

if TYPE_CHECKING:
    from lampfast._engine.sharded import Cuts

_Side: TypeAlias = Literal["row", "column"]
Block: TypeAlias = tuple[int, int] | _Side
# The rows and columns of a tile, and the dimension of the layer's inputs.
Shape: TypeAlias = tuple[int, int, int]

_MOST = 2**62
_WAY_OUT = (
    "pass (r, c) for tiles of r outputs by c inputs, as in (16, 16), 'row' for whole outputs, or "
    "'column' for whole inputs"
)


def parse(block: object, pattern: str | None = None) -> Block | None:
    """What is asked for, if it is a block.

    Example:
        >>> parse([16, 1]), parse("row"), parse(None)
        ((16, 1), 'row', None)

    Raises:
        TypeError: It is neither two ints nor a str, or there is a pattern beside it.
        ValueError: It is another str, or has other than two numbers, or one below 1.
    """
    if block is None:
        return None
    if pattern is not None:
        raise TypeError(
            f"block={block!r} and pattern={pattern!r} are both given; pass one of them, as each "
            "says by itself which weights go together"
        )
    if isinstance(block, str):
        for side in get_args(_Side):
            if block == side:
                return side  # type: ignore[no-any-return]
        raise ValueError(f"block={block!r} is not known; {_WAY_OUT}")
    if not isinstance(block, tuple | list):
        raise TypeError(f"block is a {type(block).__name__}; {_WAY_OUT}")
    if len(block) != 2:
        raise ValueError(f"block has {len(block)} numbers; {_WAY_OUT}")
    rows = _arguments.integer("block[0], the rows of a tile,", block[0], least=1, most=_MOST)
    columns = _arguments.integer("block[1], its columns,", block[1], least=1, most=_MOST)
    return rows, columns


def shapes(
    has_inputs_first: Mapping[str, int],
    in_stacks: Collection[str],
    layers: Sequence[View],
    block: Block,
) -> list[Shape]:
    """The tiles of each layer.

    Args:
        has_inputs_first: What `_patterns.first_dims` has found.
        in_stacks: The names of the layers that are slices of a parameter.
        layers: The distinct layers.
        block: What is asked for.

    Raises:
        ValueError: A layer is a row of a matrix that stacked= cuts, in which no such tile can lie.
    """
    result = []
    for layer in layers:
        dimensions = len(layer.shape)
        if layer.name in in_stacks and dimensions < 2 and (block == "row" or block[0] != 1):
            raise ValueError(
                f"layer {layer.name!r} is a single row, as stacked= has cut its matrix, and "
                f"block={block!r} takes more rows or whole ones; pass block=(1, c), or leave "
                "stacked= out"
            )
        axis = min(has_inputs_first.get(layer.name, 1), max(dimensions - 1, 0))
        match block:
            case "row":
                tile = 1, _MOST
            case "column":
                tile = _MOST, max(prod(layer.shape[2:]), 1)
            case _:
                tile = block
        result.append((*tile, axis))
    return result


def check_cuts(tiles: Iterable[Shape], layers: Iterable[View], cuts: Iterable[Cuts]) -> None:
    """Check that every tile of a sharded layer lies in one piece.

    Args:
        tiles: The tiles of each layer.
        layers: The layers.
        cuts: Where they are cut.

    Raises:
        ValueError: One does not.
    """
    for (rows, columns, axis), layer, cut in zip(tiles, layers, cuts, strict=True):
        for dim, positions in enumerate(cut.positions):
            is_row = dim == 1 - axis and len(cut.shape) > 1
            length = rows if is_row else columns
            before = 1 if is_row else prod(cut.shape[it] for it in (axis, *range(2, dim)))
            step = 1 if is_row else prod(cut.shape[max(dim + 1, 2) :])
            for at in positions:
                # A piece has columns that follow each other only if what is cut is their first
                # dimension of more than one index.
                if at * step % length or (dim >= 2 and before > 1):
                    raise ValueError(
                        f"layer {layer.name!r} of shape {cut.shape} with {cut.why} is cut at {at} "
                        f"along dimension {dim}, which divides tiles of {_told(rows, columns)}; "
                        f"{_ways(is_row)}, or prune by blocks before the model is sharded"
                    )


def _told(rows: int, columns: int) -> str:
    """A tile in words.

    Example:
        >>> _told(4, 16), _told(1, _MOST)
        ('4 rows by 16 columns', '1 rows by all columns')
    """
    return (
        f"{rows if rows < _MOST else 'all'} rows by {columns if columns < _MOST else 'all'} columns"
    )


def _ways(is_row: bool) -> str:
    along, other = ("outputs", "inputs") if is_row else ("inputs", "outputs")
    return (
        f"shard it along its {other}, or pass a block whose "
        f"{'rows' if is_row else 'columns'} end where pieces of the {along} do"
    )
