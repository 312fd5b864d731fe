"""Packs and keeps layers of every size up to some words in a process of one instruction set.

`LAMPFAST_ISA=avx2 python tests/packed_check.py avx2` fails where the engine and numpy differ.
"""

import sys

import numpy as np

from lampfast import _core

_DTYPES = {
    "float8_e5m2": np.uint8,
    "float8_e4m3fn": np.uint8,
    "float16": np.uint16,
    "bfloat16": np.uint16,
    "float32": np.uint32,
    "float64": np.uint64,
}
_GUARD = 70  # elements behind a layer that must stay


def check(dtype: str, size: int, share: float, random: np.random.Generator) -> None:
    """Checks one layer of random bits, a share of which are zeros of either sign."""
    integer = np.dtype(_DTYPES[dtype])
    top = np.array(1 << (8 * integer.itemsize - 1), integer)
    bits = random.integers(0, 2**8, (size + _GUARD) * integer.itemsize, np.uint8).view(integer)
    gone = random.random(size) < share
    bits[:size][gone] &= top
    kept = (bits[:size] & ~top) != 0
    words = np.full((size + 63) // 64 + 1, 0x5A5A5A5A5A5A5A5A, np.uint64)
    layer = bits.ctypes.data, getattr(_core.Dtype, dtype), (size,), (1,), -1
    _core.pack([layer], [words.ctypes.data], (1, ()))
    assert words[-1] == 0x5A5A5A5A5A5A5A5A
    packed = np.unpackbits(words.view(np.uint8), bitorder="little")
    assert (packed[:size] == kept).all(), (dtype, size)
    before = bits[:] = ~bits
    expected = before.copy()
    expected[:size][~kept] = 0
    words[size // 64] |= np.array((2**64 - 1) << (size % 64) & (2**64 - 1), np.uint64)
    _core.apply_packed_masks([layer], [words.ctypes.data], (1, ()))
    assert (bits == expected).all(), (dtype, size)


def main() -> None:
    """Checks every dtype at every size."""
    assert _core.instruction_set() == sys.argv[1]
    random = np.random.default_rng(0)
    for dtype in _DTYPES:
        for size in range(330):
            for share in (0.0, 0.9, 1.0) if size % 16 == 0 else (0.5,):
                check(dtype, size, share, random)


if __name__ == "__main__":
    main()
