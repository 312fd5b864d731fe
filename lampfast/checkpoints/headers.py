"""What a safetensors file says of itself: its tensors and where they lie, checked."""

import hashlib
import json
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lampfast import _extras

# As safetensors names them. None: torch has no such dtype, or several elements share a byte.
DTYPES: dict[str, torch.dtype | None] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": getattr(torch, "float8_e8m0fnu", None),
    "F6_E2M3": None,
    "F6_E3M2": None,
    "F4": None,
    "C64": torch.complex64,
    "BOOL": torch.bool,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
}
FLOATS = frozenset(name for name in DTYPES if name.startswith(("F64", "F32", "F16", "BF16", "F8_")))
_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}

METADATA = "__metadata__"  # what safetensors calls the metadata among the tensors
_SHARDED = "DCP_SHARDING_INFO"  # in it torch says which part of a tensor a file has
MOST_HEADER_BYTES = 100_000_000  # what safetensors itself reads


class Tensor(NamedTuple):
    """A tensor as it lies in a file.

    Attributes:
        name: What the file calls it.
        dtype: As safetensors names it.
        shape: Its shape.
        strides: Its strides in elements; row-major in safetensors.
        file: The name of its file in the checkpoint.
        start: The position of its first byte in the file.
        stop: The position behind its last byte.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    file: str
    start: int
    stop: int

    @property
    def numel(self) -> int:
        """How many elements it has."""
        return prod(self.shape)


class Chunk(NamedTuple):
    """A part of a tensor that does not lie in one file as a whole.

    Attributes:
        start: The index of its first element in the tensor.
        tensor: The part.
    """

    start: tuple[int, ...]
    tensor: Tensor


class Header(NamedTuple):
    """What a file says of its tensors.

    Attributes:
        tensors: In the order of the file.
        digest: Of the bytes that say so, as hexadecimal SHA-256.
    """

    tensors: tuple[Tensor, ...]
    digest: str


def read(path: Path, name: str) -> Header:
    """Read the header of a safetensors file, and check it against the file.

    Args:
        path: Of the file.
        name: What the checkpoint calls it.

    Raises:
        ValueError: It is truncated, or its header lies.
        ModuleNotFoundError: safetensors (the extra `safetensors`) is not installed.
    """
    with _extras.needed("Reading a checkpoint", "safetensors", "safetensors"):
        import safetensors
    try:
        with safetensors.safe_open(path, framework="numpy"):
            pass  # safetensors has checked that the tensors fill the file, each with its size
    except safetensors.SafetensorError as error:
        raise ValueError(_problem(path, str(error))) from None
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(min(length, MOST_HEADER_BYTES))
        size = file.seek(0, 2)
    try:
        entries: dict[str, Any] = json.loads(text)
        tensors = [
            _tensor(entry, info, name, 8 + length)
            for entry, info in entries.items()
            if entry != METADATA
        ]
    except (ValueError, TypeError, KeyError, RecursionError, AttributeError) as error:
        raise ValueError(_problem(path, f"its header cannot be read: {error}")) from None
    if _SHARDED in entries.get(METADATA, {}):
        raise ValueError(
            f"{str(path)!r} has parts of tensors, as torch.distributed.checkpoint writes for "
            "Hugging Face before they are consolidated; do that first, with torch's "
            "consolidate_safetensors_files"
        )
    tensors.sort(key=lambda tensor: (tensor.start, tensor.stop))
    end = 8 + length
    for tensor in tensors:  # once more: what follows trusts these numbers with a mapping's bounds
        bits = tensor.numel * _bits(tensor.dtype)
        if tensor.start != end or (tensor.stop - tensor.start) * 8 != bits:
            raise ValueError(_problem(path, f"tensor {tensor.name!r} does not lie where it says"))
        end = tensor.stop
    if end != size:
        raise ValueError(_problem(path, f"its tensors end at byte {end}, the file at {size}"))
    return Header(tuple(tensors), hashlib.sha256(text).hexdigest())


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of a tensor whose elements lie in the order of its indices."""
    strides, step = [], 1
    for length in reversed(shape):
        strides.append(step)
        step *= max(length, 1)
    return tuple(reversed(strides))


def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    known = DTYPES[dtype]
    return 8 if known is None else known.itemsize * 8


def _tensor(entry: str, info: dict[str, Any], file: str, begin: int) -> Tensor:
    shape = tuple(map(int, info["shape"]))
    start, stop = info["data_offsets"]
    if info["dtype"] not in DTYPES:
        raise ValueError(f"tensor {entry!r} has the unknown dtype {info['dtype']!r}")
    strides = row_major(shape)
    return Tensor(entry, info["dtype"], shape, strides, file, begin + start, begin + stop)


def _problem(path: Path, found: str) -> str:
    return f"{str(path)!r} is no whole safetensors file: {found}; download it or save it once more"
