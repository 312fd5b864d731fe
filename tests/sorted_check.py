"""A second, fast opinion at full size: sort in float64, then let exact integers decide the cut.

The oracle (lampfast.reference) compares every element exactly and is slow. Here each layer is
sorted and its suffix sums are taken in float64, whose error is bounded; only the elements whose
score lies within that bound of the cut are ordered by exact arithmetic. The masks are therefore
the exact ones, bit for bit, and it shares no code with the oracle or the engine.
"""

from collections.abc import Iterable, Mapping
from fractions import Fraction
from functools import cmp_to_key
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Layer = torch.Tensor | npt.NDArray[Any]

_LEAST = 1e-290  # below this the float64 scores and their error bound no longer hold


class SortedCheck:
    """The sorted layers of one model, ready to give the masks of any count.

    Args:
        layers: Name to tensor or array. Within a layer no two non-zero magnitudes may be more
            than 1e145 apart, which only float64 could be.
    """

    def __init__(self, layers: Mapping[str, Layer]) -> None:
        self.layers = {name: _SortedLayer(layer) for name, layer in layers.items()}
        self.numel = sum(layer.magnitudes.size for layer in self.layers.values())
        largest = max((layer.magnitudes.size for layer in self.layers.values()), default=0)
        # Three float64 roundings and the n - 1 of the sum, with room to spare.
        self._tolerance = 4 * (largest + 4) * 2.0**-53
        # Layer after layer and ascending inside: the order in which equal scores are pruned.
        self._scores = np.concatenate([np.empty(0), *(x.scores for x in self.layers.values())])
        self._starts = np.cumsum([0, *(x.magnitudes.size for x in self.layers.values())])

    def masks(self, k: int) -> dict[str, torch.Tensor]:
        """Return the bool masks (True = kept) that prune exactly the first k elements."""
        kept = np.ones(self.numel, dtype=np.bool_)
        if k > 0:
            cut = np.partition(self._scores, k - 1)[k - 1]
            below = self._scores < cut * (1 - self._tolerance)
            undecided = np.flatnonzero(~below & (self._scores <= cut * (1 + self._tolerance)))
            kept[below] = False
            kept[self._ranked(undecided)[: k - np.count_nonzero(below)]] = False
        result = {}
        for position, (name, layer) in enumerate(self.layers.items()):
            mask = np.empty(layer.magnitudes.size, dtype=np.bool_)
            mask[layer.order] = kept[self._starts[position] : self._starts[position + 1]]
            result[name] = torch.from_numpy(mask).reshape(layer.shape)
        return result

    def _ranked(self, elements: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Order positions in self._scores by their exact scores."""
        if not np.any(self._scores[elements]):
            return elements
        exact: dict[int, tuple[int, int]] = {}
        for position, layer in enumerate(self.layers.values()):
            start, end = self._starts[position], self._starts[position + 1]
            ranks = elements[(elements >= start) & (elements < end)] - start
            quotients = layer.exact_quotients(ranks.tolist())
            exact.update({int(start) + rank: quotient for rank, quotient in quotients.items()})

        def compare(one: int, other: int) -> int:
            (a, b), (c, d) = exact[one], exact[other]
            return (a * d > c * b) - (a * d < c * b)

        # Python's sort is stable: equal scores stay in layer order.
        return np.array(sorted(elements.tolist(), key=cmp_to_key(compare)), dtype=np.int64)


class _SortedLayer:
    """One layer in ascending order of (|w|, flat index), with float64 scores in that order."""

    def __init__(self, layer: Layer) -> None:
        tensor = torch.from_numpy(np.array(layer)) if isinstance(layer, np.ndarray) else layer
        self.shape = tensor.shape
        # Every dtype fits float64 exactly.
        flat = tensor.detach().to(torch.float64).reshape(-1).abs().numpy()
        self.order = np.argsort(flat, kind="stable")
        # Scaling a layer changes no score; a power of two brings it to where squares fit.
        top = int(np.frexp(flat[self.order[-1]])[1]) if flat.size else 0
        self.magnitudes = np.ldexp(flat[self.order], -top)
        squares = self.magnitudes**2
        sums = np.cumsum(squares[::-1])[::-1]
        self.scores = np.divide(squares, sums, out=np.zeros_like(squares), where=squares > 0)
        tiny = (self.scores < _LEAST) & (flat[self.order] > 0)
        assert not tiny.any(), "too wide a range for float64: compare with the oracle instead"

    def exact_quotients(self, ranks: list[int]) -> dict[int, tuple[int, int]]:
        """Return {rank: (q, S)} in exact integers for some ranks of the ascending order."""
        positive = self.magnitudes[self.magnitudes > 0]
        # All magnitudes are below 1 and multiples of 2^-bits.
        bits = 53 - int(np.frexp(positive[0])[1]) if positive.size else 0
        result: dict[int, tuple[int, int]] = {}
        remaining, end = 0, self.magnitudes.size
        for rank in sorted(ranks, reverse=True):
            numerator, denominator = float(self.magnitudes[rank]).as_integer_ratio()
            square = (numerator * (1 << bits) // denominator) ** 2
            if end - rank > 1:
                remaining += exact_sum_of_squares(self.magnitudes[rank + 1 : end], bits)
            remaining += square
            end = rank
            result[rank] = square, remaining
        return result

    def exact_scores(self, ranks: Iterable[int]) -> dict[int, Fraction]:
        """Return {rank: exact score} for some ranks of the ascending order."""
        quotients = self.exact_quotients(list(ranks))
        return {
            rank: Fraction(q, total) if q else Fraction(0) for rank, (q, total) in quotients.items()
        }


def exact_sum_of_squares(values: npt.NDArray[np.float64], bits: int) -> int:
    """Return the exact sum of v² over multiples v of 2^-bits, in units of 2^(-2 bits)."""
    total = 0
    fractions, exponents = np.frexp(values[values > 0])
    significands = np.ldexp(fractions, 53).astype(np.int64)  # v = significand * 2^(exponent - 53)
    for exponent in np.unique(exponents).tolist():
        part = significands[exponents == exponent]
        high, low = part >> 27, part & (2**27 - 1)
        squares = (_sum(high * high) << 54) + (_sum(high * low) << 28) + _sum(low * low)
        total += squares << 2 * (exponent - 53 + bits)
    return total


def _sum(numbers: npt.NDArray[np.int64]) -> int:
    """The sum of non-negative int64 numbers, whose plain sum could overflow."""
    return (int((numbers >> 27).sum()) << 27) + int((numbers & (2**27 - 1)).sum())
