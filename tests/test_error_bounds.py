"""Scores that differ by less than the rounding of their sums: exact integers must decide them.

The bounds themselves are derived in csrc/core/error_bounds.h, where assertions hold each of them
from both sides. Here sums are made whose rounding errors all have the same sign, so that a bound
below what they really are gives a wrong mask.
"""

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
import torch
from compare import assert_same_masks

import lampfast
from lampfast import reference

Array = npt.NDArray[np.float64]

SMALL = 0.25  # the magnitude of one element in either layer, whose scores nearly tie
SMALLER = 3000  # elements of one layer that are smaller
BETWEEN = 300  # and somewhat larger, so that the largest ones are added up, not told apart,
LARGEST = 6000  # in a few blocks of the kernels


def _rounding_one_way(bits: int) -> Array:
    """Equal magnitudes whose squares lose the same at every addition to a sum that is large enough.

    The square is a little less than 1 + 2^-bits. Where the last place of a sum is 2^(1 - bits),
    somewhat less than half of it is left over, and rounded away each time. Which `bits` make most
    of that depends on how many terms a kernel adds up in one register.
    """
    return np.full(LARGEST, 1 + 2.0 ** -(bits + 1) - 2.0**-52)


def _near_ties(largest: Array) -> Iterator[tuple[dict[str, torch.Tensor], bool]]:
    """Models of two layers, and whether the first one's element scores less than the second's.

    The second layer has one larger element, whose square nearly is the sum of the first one's.
    """
    larger = np.append(largest, np.geomspace(SMALL * 1.1, 0.9, BETWEEN))
    smaller = np.geomspace(SMALL / 50, SMALL / 1.1, SMALLER)
    first = torch.from_numpy(np.concatenate([larger, smaller, [SMALL]]))
    total = sum(Fraction(value) ** 2 for value in larger.tolist())
    nearest = math.sqrt(total)
    for ulps in range(-48, 49):
        large = nearest + ulps * math.ulp(nearest)
        second = torch.tensor([large, SMALL], dtype=torch.float64)
        yield {"first": first, "second": second}, Fraction(large) ** 2 < total


@pytest.mark.parametrize("order", [("first", "second"), ("second", "first")], ids="-".join)
@pytest.mark.parametrize("bits", [44, 45, 46, 47, 48])
def test_near_ties_of_sums_that_round_one_way(order: tuple[str, str], bits: int) -> None:
    seen = set()
    for model, first_scores_less in _near_ties(_rounding_one_way(bits)):
        named = {name: model[name] for name in order}
        masks = lampfast.masks(named, SMALLER + 1)
        pruned = "first" if first_scores_less else "second"
        assert not masks[pruned][-1], "the other layer's element has the larger score"
        assert sum(int((~mask).sum()) for mask in masks.values()) == SMALLER + 1
        seen.add(pruned)
    assert seen == {"first", "second"}  # so that rounding had something to decide


# --- bfloat16, whose squares are added in float32 where that is exact ---

STRETCH, REGISTERS = 512, 32  # elements after which such sums are moved, and that have sums apart
STRETCHES = 8


def _with_giants(first: bool, value: float) -> Array:
    """Equal magnitudes, and giants before or behind them in whatever sum of a register they share.

    Next to a giant's square, float32 has no place for the last digits of the others. Where giants
    come first, every addition rounds; where they come last, only one does.
    """
    stretch = np.full((STRETCH // REGISTERS, REGISTERS), value)
    stretch[0 if first else -1] = 256.0
    return np.tile(stretch.ravel(), STRETCHES)


@pytest.mark.parametrize("larger", ["first", "second"])
@pytest.mark.parametrize("last_digits", [3, 5, 11, 23])
def test_sums_that_float32_would_round(last_digits: int, larger: str) -> None:
    value = 1 + last_digits / 128
    between = np.geomspace(SMALL * 1.1, 0.9, BETWEEN)
    smaller = np.geomspace(SMALL / 50, SMALL / 1.1, SMALLER)
    model = {}
    for name, giants_first in (("first", True), ("second", False)):
        largest = _with_giants(giants_first, value)
        if name == larger:  # by as little as there is: the sums are the same otherwise
            largest[REGISTERS] += 1 / 128
        layer = np.concatenate([largest, between, smaller, [SMALL]])
        model[name] = torch.from_numpy(layer).to(torch.bfloat16)
    masks = lampfast.masks(model, 2 * SMALLER + 1)
    assert [name for name, mask in masks.items() if not mask[-1]] == [larger]
    assert sum(int((~mask).sum()) for mask in masks.values()) == 2 * SMALLER + 1


def test_the_oracle_says_so_too() -> None:
    *_, (model, first_scores_less) = _near_ties(_rounding_one_way(46)[:40])
    masks = reference.masks(model, SMALLER + 1)
    assert_same_masks(lampfast.masks(model, SMALLER + 1), masks)
    assert masks["second"][-1] == first_scores_less
