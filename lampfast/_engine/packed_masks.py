"""Masks of one bit a weight: which weights are zero, and how to make them zero again.

A layer's mask is a tensor on its device: int64 words for the engine, their bits in the order of the
layer's memory, or a bool tensor of the layer's shape where there is no engine.
"""

from collections.abc import Sequence
from math import prod
from typing import TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch

from lampfast._engine import calls, views
from lampfast._engine.views import View

_Pair: TypeAlias = tuple[View, torch.Tensor]


def record(layers: Sequence[View]) -> list[torch.Tensor]:
    """The masks of what is not zero now; -0 is zero, a subnormal or NaN is not."""
    masks = [_empty(layer) for layer in layers]
    local, remote = _split(layers, masks)
    calls.pack_masks([layer for layer, _ in local], [words for _, words in local])
    for layer, mask in remote:
        torch.ne(views.as_integers(_tensor(layer)) << 1, 0, out=mask)  # the shift drops the sign
    return masks


def apply(layers: Sequence[View], masks: Sequence[torch.Tensor]) -> None:
    """Set to +0 the weights that the masks do not keep, and change nothing else."""
    local, remote = _split(layers, masks)
    calls.apply_packed_masks([layer for layer, _ in local], [words for _, words in local])
    for layer, mask in remote:
        views.as_integers(_tensor(layer)).mul_(mask)


def carried(before: View, mask: torch.Tensor, now: View) -> torch.Tensor:
    """The same mask for a layer of the same shape that has moved or changed its strides."""
    fits = _is_words(mask) == (now.remote is None) and mask.device == _tensor(now).device
    if fits and (before.strides == now.strides or _steps(before) == _steps(now)):
        return mask
    return from_bools(now, to_bools(before, mask))


def packed(kept: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Bools as bits in row-major order: bit i % 8 of byte i // 8 is the i-th one."""
    return np.packbits(kept.reshape(-1), bitorder="little")


def unpacked(bits: npt.NDArray[np.uint8], shape: Sequence[int]) -> torch.Tensor:
    """The bools of a shape of which `packed` has made bits."""
    kept = np.unpackbits(bits, count=prod(shape), bitorder="little")
    return torch.from_numpy(kept.view(np.bool_).reshape(shape))


def _empty(layer: View) -> torch.Tensor:
    device = _tensor(layer).device
    if layer.remote is not None:
        return torch.empty(layer.weight.shape, dtype=torch.bool, device=device)
    return torch.empty((layer.size + 63) // 64, dtype=torch.int64, device=device)


def to_bools(layer: View, mask: torch.Tensor) -> torch.Tensor:
    """A mask as a bool tensor of the layer's shape."""
    if not _is_words(mask):
        return mask
    bytes_ = _bytes(layer, mask.device)
    kept = bytes_.view(torch.bool).fill_(True)
    calls.apply_packed_masks(views.layers({layer.name: bytes_}), [mask])
    return kept


def from_bools(layer: View, kept: torch.Tensor) -> torch.Tensor:
    """A bool tensor of the layer's shape as its mask."""
    mask = _empty(layer)
    if not _is_words(mask):
        return mask.copy_(kept)
    bytes_ = _bytes(layer, mask.device)
    bytes_.view(torch.bool).copy_(kept)
    calls.pack_masks(views.layers({layer.name: bytes_}), [mask])
    return mask


def _bytes(layer: View, device: torch.device) -> torch.Tensor:
    """A tensor with the layer's strides and one byte an element, which serves as two dtypes.

    As float8 the engine takes it for a layer; as bool it is a mask. True is not zero as a float.
    """
    _, _, shape, strides, _ = layer.pointer
    return torch.empty_strided(shape, strides, dtype=torch.float8_e5m2, device=device)


def _split(
    layers: Sequence[View], masks: Sequence[torch.Tensor]
) -> tuple[list[_Pair], list[_Pair]]:
    """The layers with their masks: first the local ones, then the remote ones."""
    local: list[_Pair] = []
    remote: list[_Pair] = []
    for pair in zip(layers, masks, strict=True):
        (local if _is_words(pair[1]) else remote).append(pair)
    return local, remote


def _steps(layer: View) -> list[int]:
    """The strides that lead somewhere: that of a dimension of size 1 may be any."""
    return [step for n, step in zip(layer.shape, layer.strides, strict=True) if n > 1]


def _is_words(mask: torch.Tensor) -> bool:
    return mask.dtype == torch.int64


def _tensor(layer: View) -> torch.Tensor:
    return cast(torch.Tensor, layer.weight)
