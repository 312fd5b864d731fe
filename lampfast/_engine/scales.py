"""Scales of quantised parameters: what is ranked there is each code's product with its scale.

A parameter is cut into blocks of equal size, the last ones of a dimension possibly smaller, and
has one scale for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch

from lampfast._engine.views import Weight, is_wrapper

if TYPE_CHECKING:
    from lampfast._engine.stacks import Stack

# Address, extents of a block, and strides from the scale of one block to the next.
ScalePointer: TypeAlias = tuple[int, tuple[int, ...], tuple[int, ...]]

_USUAL_BLOCK = 128
_SMALL_BLOCKS = (16, 32, 64, 256)  # other powers of two that are in use

_WAY_OUT = (
    "give the scale one value for each row or element (scale.repeat_interleave(block, dim)[:n]), "
    "set block_size=(rows, columns) on the layer's module, or pass importance= for all layers"
)


class Scales(NamedTuple):
    """The scales of a parameter, or of a slice of one.

    Attributes:
        values: float32 in host memory, one for each block; size 1 in dimensions that they do not
            depend on.
        block: The extents of a block.
    """

    values: torch.Tensor
    block: tuple[int, ...]

    def pointer(self) -> ScalePointer:
        """What the engine sees of them."""
        values = self.values
        strides = zip(values.shape, values.stride(), strict=True)
        return values.data_ptr(), self.block, tuple(step if n > 1 else 0 for n, step in strides)

    def cut(self, stack: Stack, shape: Sequence[int]) -> Iterator[tuple[str, Scales]]:
        """The scales of the layers of a parameter of this shape, by what follows its name."""
        values, block, halves = self.values, list(self.block), stack.halves
        for dim in {0} if halves is None else {0, halves.dim}:
            is_whole = dim > 0 and halves is not None and halves.order == "concatenated"
            if is_whole and values.shape[dim] > 1 and shape[dim] // 2 % block[dim] == 0:
                continue  # each half begins with a block
            if values.shape[dim] > 1:
                values = values.repeat_interleave(block[dim], dim).narrow(dim, 0, shape[dim])
            sizes = [-1] * values.ndim
            sizes[dim], block[dim] = shape[dim], 1
            values = values.expand(sizes)
        first = 1 if shape[0] == stack.slices else 0
        for suffix, part in stack.cut("", values):
            assert isinstance(part, torch.Tensor)
            yield suffix, Scales(part, tuple(block[first:]))


def same_scales(one: Scales | None, other: Scales | None) -> bool:
    """Whether two layers are scaled alike."""
    if one is None or other is None:
        return one is other
    return one.block == other.block and torch.equal(one.values, other.values)


class Quantised(NamedTuple):
    """A parameter of float8 codes and what there is beside it.

    Attributes:
        name: Its name.
        weight: The codes.
        scales: What is known to scale it, by name.
        unknown: The names of what seems to, in a way that is not known.
        block_size: The extents of a block in the last dimensions, where its module or model tells
            them; () where its module tells that there are no blocks.
        by_row: Whether scales of shape (1, rows) are known to be of rows.
    """

    name: str
    weight: Weight
    scales: dict[str, Weight]
    unknown: Sequence[str]
    block_size: tuple[int, ...] | None
    by_row: bool

    def resolved(self) -> Scales | None:
        """The scales, or None where there are none and the codes are the values.

        Raises:
            TypeError: They are not a tensor or array of floats in memory.
            ValueError: They are of a kind that is not known, not finite, or more precise than
                float32, or their shape does not tell the blocks.
        """
        if self.unknown or len(self.scales) > 1:
            raise ValueError(
                f"layer {self.name!r} is float8 and has {[*self.scales, *self.unknown]} beside it, "
                "of which it is not known how they scale it; keep one, named "
                f"{self.name + '_scale'!r} (value = code * scale), or pass importance= for all "
                "layers, or leave the layer out with exclude="
            )
        for name, scale in self.scales.items():
            shape = tuple(self.weight.shape)
            values = self._as_blocks(name, _values(f"scale {name!r} of layer {self.name!r}", scale))
            if values.numel() == 1:
                return Scales(values.reshape([1] * len(shape)), tuple(shape))
            blocks = [self._block(name, scale, values, dim) for dim in range(len(shape))]
            return Scales(values, tuple(max(block, 1) for block in blocks))
        return None

    def _as_blocks(self, name: str, values: torch.Tensor) -> torch.Tensor:
        """The scales with as many dimensions as the weight."""
        shape, found = tuple(self.weight.shape), tuple(values.shape)
        if values.numel() == 1 or len(found) > len(shape):
            return values
        if len(shape) == 2 and found == (1, shape[0]) and shape[0] > 1:
            if self.by_row or shape[0] != shape[1]:  # as transformers' compressed-tensors layers
                return values.reshape(-1, 1)
            raise self._unclear(name, found)  # or one for each column?
        if len(found) < len(shape) and found != shape[: len(found)]:
            raise self._unclear(name, found)
        return values.reshape(*found, *[1] * (len(shape) - len(found)))

    def _block(self, name: str, scale: Weight, values: torch.Tensor, dim: int) -> int:
        """The extent of a block in a dimension."""
        shape = self.weight.shape
        if values.ndim != len(shape):
            raise self._unclear(name, scale.shape)
        size, count = shape[dim], values.shape[dim]
        if count in (1, size):
            return int(size) // int(count) if count else 1
        told = dict(zip(range(len(shape))[::-1], (self.block_size or ())[::-1], strict=False))
        if dim in told and _fits(size, told[dim], count):
            return told[dim]
        equal = [size // count] if count and size % count == 0 else []
        if self.block_size == ():
            fitting = equal
        elif _fits(size, _USUAL_BLOCK, count):
            fitting = [_USUAL_BLOCK]
        else:
            small = [block for block in _SMALL_BLOCKS if _fits(size, block, count)]
            fitting = list({*small, *equal})
        if len(fitting) != 1:
            raise self._unclear(name, scale.shape)
        return int(fitting[0])

    def _unclear(self, name: str, shape: Sequence[int]) -> ValueError:
        return ValueError(
            f"layer {self.name!r} of shape {tuple(self.weight.shape)} has the scale {name!r} of "
            f"shape {tuple(shape)}, which does not tell what block each value is for; {_WAY_OUT}"
        )


def _fits(size: int, block: int, count: int) -> bool:
    return -(-size // block) == count


def _values(what: str, scale: Weight) -> torch.Tensor:
    """Scales as float32 in host memory; not copied if they are."""
    if isinstance(scale, np.ndarray):
        if scale.dtype.kind not in "fV" or scale.dtype.itemsize > 8:
            raise TypeError(f"{what} has dtype {scale.dtype}; {_FLOATS}")
        values = torch.from_numpy(scale.astype(np.float32))
        exact: Any = scale.dtype != np.float64 or (scale == scale.astype(np.float32)).all()
    else:
        if is_wrapper(scale) or scale.is_meta or scale.layout is not torch.strided:
            raise TypeError(f"{what} is no plain tensor in memory; load it, or pass plain tensors")
        if not scale.is_floating_point():
            raise TypeError(f"{what} has dtype {scale.dtype}; {_FLOATS}")
        values = scale.detach().to("cpu", torch.float32)
        exact = scale.dtype != torch.float64 or bool((values.double() == scale.cpu()).all())
    if not values.isfinite().all():
        place = values.isfinite().logical_not().nonzero()[0].tolist()
        raise ValueError(
            f"{what} has {values[tuple(place)].item()} at index {tuple(place)}; repair it first, "
            "or leave the layer out with exclude="
        )
    if not exact:
        raise ValueError(
            f"{what} is float64 and has values that are not float32, so that products would be "
            "rounded; convert it to float32 first"
        )
    return values


_FLOATS = (
    "pass a float tensor, bytes of powers of two as scale.view(torch.float8_e8m0fnu), or leave the "
    "layer out with exclude="
)
