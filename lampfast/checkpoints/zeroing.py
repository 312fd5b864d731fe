"""Zeroes what is pruned of a layer, in parts of it that pass by in their order."""

from collections.abc import Iterator, Sequence
from math import inf, prod
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from lampfast._engine import calls, views
from lampfast._engine.scales import Scales

Bits: TypeAlias = npt.NDArray[Any]  # floating-point numbers as integers of their size

_SIGNED: dict[int, Any] = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}
_BLOCK = 1 << 19  # elements: what is read, compared and written stays in the cache
_MAGNITUDES = 128  # of float8 codes, without the sign


class Rule(Protocol):
    """What is pruned of a layer."""

    def zero(self, part: Bits, begin: int = 0) -> None:
        """Zero what is pruned of a part.

        Args:
            part: Elements that follow each other in the layer, row-major, with any strides here.
            begin: The index of the first, row-major. A part begins where the one before it ended.
        """


class Threshold:
    """A layer's threshold, and how many of the elements that are equal to it have still to go.

    A magnitude as an integer, the bits without the sign, orders as the magnitude itself does.

    Example:
        >>> weights = np.array([1.0, -2.0, 2.0, 3.0, 2.0], np.float32)
        >>> Threshold(int(np.float32(2).view(np.int32)), 2).zero(weights.view(np.int32))
        >>> weights
        array([0., 0., 0., 3., 2.], dtype=float32)

    Args:
        key: The threshold's magnitude as an integer: what is below it goes.
        ties: How many of those that are equal go.
        scored: What is compared instead of the weights: importances of all of the layer.
    """

    def __init__(self, key: int, ties: int, scored: Bits | None = None) -> None:
        self._key, self._ties = key, ties
        self._scored = None if scored is None else scored.reshape(-1)

    def zero(self, part: Bits, begin: int = 0) -> None:
        """Zero what is pruned of a part."""
        for weights in pieces_of(part):
            compared = weights
            if self._scored is not None:
                compared = self._scored[begin : begin + weights.size].reshape(weights.shape)
            self._zero(weights, compared)
            begin += weights.size

    def going_ties(self, part: Bits, begin: int = 0) -> Bits:
        """Which of a part's elements are ties that go, as a bool array; as long as some do."""
        if self._scored is not None:
            part = self._scored[begin : begin + part.size].reshape(part.shape)
        kind = _SIGNED[part.itemsize]
        equal = (part.view(kind) & np.iinfo(kind).max) == self._key
        equal, self._ties = _first(equal, self._ties)
        return equal

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


class ScaledThreshold:
    """The threshold of a layer of float8 codes with scales: it is one of their products.

    Products of one scale rise with the codes' magnitudes, so that in each block those of magnitudes
    below a first one go, and those from there to a second one are ties. Products are exact.

    Args:
        key: The bits of the product, a float64: codes of smaller ones go.
        ties: How many of those of equal ones go.
        scales: Of the layer.
        shape: Of the layer.
        dtype: Of the codes.
    """

    def __init__(
        self, key: int, ties: int, scales: Scales, shape: Sequence[int], dtype: torch.dtype
    ) -> None:
        self._ties, self._block = ties, scales.block
        self._shape = tuple(shape) or (1,)
        product = float(np.int64(key).view(np.float64)) if key <= np.iinfo(np.int64).max else inf
        values = scales.values.reshape(scales.values.shape or (1,)).numpy()
        scale = np.abs(values.astype(np.float64))
        codes = torch.arange(_MAGNITUDES, dtype=torch.uint8).view(dtype).double().tolist()
        self._first = np.zeros(scale.shape, np.int8)
        ties_of = np.zeros(scale.shape, np.int8)
        for value in codes:
            if value < inf:  # no layer has others
                products = scale * value
                self._first += products < product
                ties_of += products == product
        self._last = self._first + (ties_of - 1)

    def zero(self, part: Bits, begin: int = 0) -> None:
        """Zero what is pruned of a part."""
        for weights in pieces_of(part):
            self._zero(weights.view(np.int8), begin)
            begin += weights.size

    def going_ties(self, part: Bits, begin: int = 0) -> Bits:
        """Which of a part's elements are ties that go, as a bool array; as long as some do."""
        magnitudes = np.bitwise_and(part.view(np.int8), np.int8(_MAGNITUDES - 1), order="C")
        bounds = (self._spread(it, begin, part.size) for it in (self._first, self._last))
        first, last = (it.reshape(part.shape) for it in bounds)
        equal, self._ties = _first((magnitudes >= first) & (magnitudes <= last), self._ties)
        return equal

    def _zero(self, codes: Bits, begin: int) -> None:
        magnitudes = np.bitwise_and(codes, np.int8(_MAGNITUDES - 1), order="C").reshape(-1)
        first = self._spread(self._first, begin, codes.size)
        kept = magnitudes >= first
        if self._ties:
            last = self._spread(self._last, begin, codes.size)
            ties = np.flatnonzero(kept & (magnitudes <= last))[: self._ties]
            kept[ties] = False
            self._ties -= len(ties)
        np.multiply(codes, kept.reshape(codes.shape), out=codes)

    def _spread(self, bounds: npt.NDArray[np.int8], begin: int, count: int) -> Bits:
        """For each of some elements the value of its block."""
        *lead, length = self._shape
        rows = np.arange(begin // length, -(-(begin + count) // length))
        chosen = tuple(
            at // block if n > 1 else np.zeros_like(at)
            for at, block, n in zip(
                np.unravel_index(rows, lead) if lead else (),
                self._block,
                bounds.shape,
                strict=False,
            )
        )
        of_rows = bounds[chosen] if lead else bounds[None]
        repeats = length if bounds.shape[-1] == 1 else self._block[-1]
        spread = np.repeat(of_rows, repeats, axis=1)[:, :length].reshape(-1)
        return spread[begin % length :][:count]


class GroupRule:
    """n of every m elements along a dimension stay, as the engine finds them.

    Args:
        pattern: n, m and the dimension.
        dense: All of the layer, as it was.
        dtype: Of its elements.
        scored: What is compared instead, if it has importances.
    """

    def __init__(
        self,
        pattern: tuple[int, int, int],
        dense: Bits,
        dtype: torch.dtype,
        scored: torch.Tensor | None,
    ) -> None:
        self._pattern, self._dense, self._dtype = pattern, dense, dtype
        self._scored = scored
        self._unit = pattern[1] if pattern[2] == 0 else 1  # rows that groups may reach over

    def zero(self, part: Bits, begin: int = 0) -> None:
        """Zero what is pruned of a part."""
        for weights in pieces_of(part):
            self._zero(weights, begin)
            begin += weights.size

    def _zero(self, weights: Bits, begin: int) -> None:
        unit, length = self._unit, prod(self._dense.shape[1:])
        first = begin // length // unit * unit
        last = -(-(begin + weights.size) // (length * unit)) * unit
        rows = np.array(self._dense[first:last], order="C")
        targets = views.layers({"layer": torch.from_numpy(rows).view(self._dtype)})
        sources = targets
        if self._scored is not None:
            sources = views.layers({"layer": self._scored[first:last]})
        calls.prune(targets, sources, calls.Groups([self._pattern]), lambda _: None)
        at = begin - first * length
        weights[...] = rows.reshape(-1)[at : at + weights.size].reshape(weights.shape)


def _first(equal: Bits, count: int) -> tuple[Bits, int]:
    """The first so many that are true, in row-major order, and how many are missing to that."""
    found = np.flatnonzero(equal)
    if len(found) <= count:
        return equal, count - len(found)
    flat = np.zeros(equal.size, bool)
    flat[found[:count]] = True
    return flat.reshape(equal.shape), 0


def bits(tensor: torch.Tensor) -> Bits:
    """A tensor as integers of its elements' size, in the same memory."""
    return tensor.view(getattr(torch, f"int{8 * tensor.itemsize}")).numpy()


def pieces_of(array: Bits) -> Iterator[Bits]:
    """The parts of an array that together are all of it, in row-major order, each a small one."""
    if array.size <= _BLOCK:
        yield array
        return
    rows = max(1, _BLOCK * len(array) // array.size)
    for start in range(0, len(array), rows):
        part = array[start : start + rows]
        yield from [part] if part.size <= _BLOCK else pieces_of(part[0])
