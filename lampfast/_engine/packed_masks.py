"""Masks of one bit a weight: which weights are zero, and how to make them zero again.

A layer's mask is a tensor on its device: int64 words for the engine, their bits in the order of the
layer's memory, or a bool tensor of the layer's shape where there is no engine.
"""

from collections.abc import Sequence
from typing import TypeAlias, cast

import numpy as np
import torch

from lampfast._engine import calls, views
from lampfast._engine.views import View

_Pair: TypeAlias = tuple[View, torch.Tensor]


def record(layers: Sequence[View]) -> list[torch.Tensor]:
    """The masks of what is not zero now; -0 is zero, a subnormal or NaN is not."""
    masks = [_empty(layer) for layer in layers]
    near, far = _apart(layers, masks)
    calls.pack([layer for layer, _ in near], [words for _, words in near])
    for layer, mask in far:
        torch.ne(views.as_integers(_tensor(layer)) << 1, 0, out=mask)  # without the sign
    return masks


def keep(layers: Sequence[View], masks: Sequence[torch.Tensor]) -> None:
    """Set to +0 the weights that the masks do not keep, and change nothing else."""
    near, far = _apart(layers, masks)
    calls.keep([layer for layer, _ in near], [words for _, words in near])
    for layer, mask in far:
        views.as_integers(_tensor(layer)).mul_(mask)


def carried(before: View, mask: torch.Tensor, now: View) -> torch.Tensor:
    """A layer's mask for where and how the layer lies in memory now; its shape is the same."""
    fits = _is_words(mask) == (now.far is None) and mask.device == _tensor(now).device
    if fits and before.pointer[3] == now.pointer[3]:
        return mask
    return from_bools(now, _unpacked(before, mask))


def to_bytes(layer: View, mask: torch.Tensor) -> torch.Tensor:
    """A mask in row-major order, on the CPU: bit i % 8 of byte i // 8 is that of weight i."""
    kept = _unpacked(layer, mask).cpu().contiguous().numpy()
    return torch.from_numpy(np.packbits(kept.reshape(-1), bitorder="little"))


def from_bytes(layer: View, packed: torch.Tensor) -> torch.Tensor:
    """The mask that `to_bytes` gave, for a layer of the same shape."""
    bits = np.unpackbits(packed.cpu().numpy(), count=layer.size, bitorder="little")
    return from_bools(layer, torch.from_numpy(bits.astype(bool)).reshape(layer.weight.shape))


def _empty(layer: View) -> torch.Tensor:
    device = _tensor(layer).device
    if layer.far is not None:
        return torch.empty(layer.weight.shape, dtype=torch.bool, device=device)
    return torch.empty((layer.size + 63) // 64, dtype=torch.int64, device=device)


def _unpacked(layer: View, mask: torch.Tensor) -> torch.Tensor:
    """A mask as a bool tensor of the layer's shape."""
    if not _is_words(mask):
        return mask
    bytes_ = _bytes(layer, mask.device)
    kept = bytes_.view(torch.bool).fill_(True)
    calls.keep(views.layers({layer.name: bytes_}), [mask])
    return kept


def from_bools(layer: View, kept: torch.Tensor) -> torch.Tensor:
    """A bool tensor of the layer's shape as its mask."""
    mask = _empty(layer)
    if not _is_words(mask):
        return mask.copy_(kept)
    bytes_ = _bytes(layer, mask.device)
    bytes_.view(torch.bool).copy_(kept)
    calls.pack(views.layers({layer.name: bytes_}), [mask])
    return mask


def _bytes(layer: View, device: torch.device) -> torch.Tensor:
    """A tensor that the engine visits as it does the layer; as floats, True is not zero."""
    _, _, shape, strides, _ = layer.pointer
    return torch.empty_strided(shape, strides, dtype=torch.float8_e5m2, device=device)


def _apart(
    layers: Sequence[View], masks: Sequence[torch.Tensor]
) -> tuple[list[_Pair], list[_Pair]]:
    """The layers with their masks: those that the engine can reach, and the others."""
    near: list[_Pair] = []
    far: list[_Pair] = []
    for pair in zip(layers, masks, strict=True):
        (near if pair[1].dtype == torch.int64 else far).append(pair)
    return near, far


def _is_words(mask: torch.Tensor) -> bool:
    return mask.dtype == torch.int64


def _tensor(layer: View) -> torch.Tensor:
    return cast(torch.Tensor, layer.weight)
