"""Zeroes what a threshold prunes, in numbers that pass by in the order of their layer."""

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Bits: TypeAlias = npt.NDArray[Any]  # floating-point numbers as integers of their size

_SIGNED: dict[int, Any] = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}
_BLOCK = 1 << 19  # elements: what is read, compared and written stays in the cache


class Threshold:
    """A layer's threshold, and how many of the elements that are equal to it have still to go.

    A magnitude as an integer, the bits without the sign, orders as the magnitude itself does.

    Example:
        >>> weights = np.array([1.0, -2.0, 2.0, 3.0, 2.0], np.float32)
        >>> Threshold(int(np.float32(2).view(np.int32)), 2).zero(weights.view(np.int32))
        >>> weights
        array([0., 0., 0., 3., 2.], dtype=float32)
    """

    def __init__(self, key: int, ties: int) -> None:
        self._key, self._ties = key, ties

    def zero(self, weights: Bits, scored: Bits | None = None) -> None:
        """Zero the next elements of the layer.

        Args:
            weights: In the order of the layer, of any strides.
            scored: What is compared instead of the weights: importances of the same shape.
        """
        others = _pieces(weights if scored is None else scored)
        for piece, compared in zip(_pieces(weights), others, strict=True):
            self._zero(piece, compared)

    def _zero(self, weights: Bits, compared: Bits) -> None:
        kind = _SIGNED[compared.itemsize]
        highest = np.iinfo(kind).max
        # In row-major order whatever the strides, so that it can be flattened without a copy.
        magnitudes = np.bitwise_and(compared.view(kind), kind(highest), order="C")
        key, ties = self._key, None
        if self._ties:
            equal = magnitudes == kind(key)
            found = int(np.count_nonzero(equal))
            if found <= self._ties:
                key += 1  # so that all of them go
            else:
                ties = np.flatnonzero(equal)[: self._ties]
            self._ties -= min(found, self._ties)
        if key > highest:
            weights[...] = 0
            return
        # key - 1 - magnitude is negative, and all ones once shifted, where an element is kept.
        kept = np.subtract(kind(key - 1), magnitudes, out=magnitudes)
        np.right_shift(kept, kind(8 * kept.itemsize - 1), out=kept)
        if ties is not None:
            kept.reshape(-1)[ties] = 0
        own = _SIGNED[weights.itemsize]
        np.bitwise_and(weights.view(own), kept.astype(own, copy=False), out=weights.view(own))


def _pieces(array: Bits) -> Iterator[Bits]:
    """The parts of an array that together are all of it, in row-major order, each a small one."""
    if array.size <= _BLOCK:
        yield array
        return
    rows = max(1, _BLOCK * len(array) // array.size)
    for start in range(0, len(array), rows):
        part = array[start : start + rows]
        yield from [part] if part.size <= _BLOCK else _pieces(part[0])
