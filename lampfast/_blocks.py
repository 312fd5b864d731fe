"""Blocks: tiles of weights that go together, of a layer as a matrix of outputs and inputs."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Literal, TypeAlias, get_args

from lampfast import _arguments, _patterns
from lampfast._engine.stacks import Layers
from lampfast._engine.views import View

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


def shapes(model: object, found: Layers, layers: Sequence[View], block: Block) -> list[Shape]:
    """The tiles of each layer.

    Raises:
        ValueError: A layer is a row of a matrix that stacked= cuts, in which no such tile can lie.
    """
    has_inputs_first = _patterns.first_dims(model, found)
    in_stacks = {name for stack in found.stacks for name in found.names(stack)}
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
