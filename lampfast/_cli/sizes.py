"""How large pruned weights are where zeros take less room: estimates, and what they rest on."""

from bisect import bisect_left
from collections.abc import Mapping
from typing import NamedTuple

from lampfast.reports import LayerReport

_GRID = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)  # sparsities
# What zstd -1 leaves of pruned Gaussian weights of as many bytes each: docs/sparse_weights.md.
_ZSTD = {
    1: (0.81, 0.60, 0.48, 0.35, 0.28, 0.18, 0.10, 0.025, 0.0),
    2: (0.78, 0.62, 0.50, 0.345, 0.25, 0.136, 0.073, 0.018, 0.0),
    4: (0.92, 0.73, 0.57, 0.36, 0.25, 0.13, 0.07, 0.016, 0.0),
    8: (0.94, 0.72, 0.54, 0.33, 0.23, 0.12, 0.06, 0.014, 0.0),
}


class Sizes(NamedTuple):
    """How many bytes layers take: as they are, under zstd, and as bitmask and the values kept."""

    dense: int
    zstd: int
    bitmask: int

    def __add__(self, other: object) -> "Sizes":
        """The sizes of both together."""
        if not isinstance(other, Sizes):
            return NotImplemented
        return Sizes(self.dense + other.dense, self.zstd + other.zstd, self.bitmask + other.bitmask)


def of_layer(layer: LayerReport, itemsize: int) -> Sizes:
    """The sizes of a layer.

    Example:
        >>> of_layer(LayerReport("fc", (100, 100), 10_000, 1_000, None), 2)
        Sizes(dense=20000, zstd=2720, bitmask=3250)
    """
    dense = layer.numel * itemsize
    share = _interpolated(_ZSTD[itemsize], layer.sparsity)
    return Sizes(dense, round(dense * share), (layer.numel + 7) // 8 + layer.kept * itemsize)


def of_all(layers: tuple[LayerReport, ...], itemsizes: Mapping[str, int]) -> Sizes:
    """The sizes of all layers together."""
    total = Sizes(0, 0, 0)
    for layer in layers:
        total += of_layer(layer, itemsizes[layer.name])
    return total


def _interpolated(shares: tuple[float, ...], sparsity: float) -> float:
    right = max(1, bisect_left(_GRID, sparsity))
    (a, b), (low, high) = _GRID[right - 1 : right + 1], shares[right - 1 : right + 1]
    return low + (high - low) * (sparsity - a) / (b - a)
