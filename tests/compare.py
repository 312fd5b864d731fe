"""What equal means: masks to the bit, memory to the byte, scores to a unit in the last place."""

import math
from collections.abc import Mapping
from fractions import Fraction

import torch

BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def assert_same_masks(
    got: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> None:
    """Require the same names in the same order, and bool tensors of the same shapes and values."""
    assert list(got) == list(expected)
    for name, mask in expected.items():
        assert got[name].dtype == torch.bool, name
        assert got[name].shape == mask.shape, name
        if not torch.equal(got[name], mask):
            different = torch.nonzero(got[name] != mask)
            message = f"{name}: {len(different)} elements differ, first at {different[0].tolist()}"
            raise AssertionError(f"{message}\n{got[name]}\ninstead of\n{mask}")


def assert_one_ulp(
    name: str, index: int, value: float, exact: Fraction, dtype: torch.dtype
) -> None:
    """Require a score within one unit in the last place of its exact value; 0 and 1 are hit."""
    if exact in (0, 1):
        assert value == exact, f"{name}[{index}]: {value!r} instead of {exact}"
    else:
        error = abs(Fraction(value) - exact)
        assert error <= _ulp(exact, dtype), f"{name}[{index}]: {value!r} for {float(exact)!r}"
        assert 0 <= value <= 1, f"{name}[{index}]: {value!r}"


def _ulp(score: Fraction, dtype: torch.dtype) -> Fraction:
    """The spacing of the dtype's numbers around a score in (0, 1)."""
    info = torch.finfo(dtype)
    exponent = score.numerator.bit_length() - score.denominator.bit_length()
    if score < Fraction(2) ** exponent:
        exponent -= 1
    lowest = round(math.log2(info.smallest_normal))
    return Fraction(2) ** max(exponent, lowest) * Fraction(info.eps)


def memory(layer: torch.Tensor) -> torch.Tensor:
    """Return all the bytes behind a tensor, the gaps of a slice included, without a copy."""
    return torch.empty(0, dtype=torch.uint8, device=layer.device).set_(layer.untyped_storage())


def moved(layer: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Return a tensor with a copy of the memory on a device (the same one if it is there)."""
    storage = memory(layer).to(device).untyped_storage()
    return _laid_out_as(layer, storage)


def pruned_copy(layer: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return a tensor with a copy of the memory and the same strides, +0 where mask is False."""
    twin = _laid_out_as(layer, memory(layer).clone().untyped_storage())
    twin.view(BITS[twin.itemsize]).masked_fill_(~mask, 0)
    return twin


def _laid_out_as(layer: torch.Tensor, storage: torch.UntypedStorage) -> torch.Tensor:
    """Return a tensor in a storage, of a layer's dtype and at the same places."""
    twin = torch.empty(0, dtype=layer.dtype, device=storage.device)
    return twin.set_(storage, layer.storage_offset(), layer.shape, layer.stride())


def assert_same_memory(
    got: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> None:
    """Require every byte to be the same, the gaps of slices included."""
    for name, layer in got.items():
        same = torch.equal(memory(layer), memory(expected[name]))
        assert same, f"{name}:\n{layer}\ninstead of\n{expected[name]}"
