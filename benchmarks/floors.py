"""The floor below `lampfast.masks`: writing the masks when every threshold is already known."""

import ctypes
import os
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

_SOURCE = Path(__file__).with_name("known_thresholds.cpp")


class _Layer(ctypes.Structure):
    _fields_ = (
        ("weights", ctypes.c_void_p),
        ("bytes", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("key", ctypes.c_uint64),
        ("mask", ctypes.c_void_p),
    )


def write_masks(
    weights: Sequence[torch.Tensor], keys: Sequence[int], masks: Sequence[torch.Tensor]
) -> None:
    """Write True where a weight's magnitude is at least that of its layer's key.

    Args:
        weights: Contiguous tensors.
        keys: Those of `_core.LayerThreshold`, one for each.
        masks: Contiguous bool tensors of the same shapes.
    """
    rows = [
        _Layer(weight.data_ptr(), weight.itemsize, weight.numel(), key, mask.data_ptr())
        for weight, key, mask in zip(weights, keys, masks, strict=True)
    ]
    layers = (_Layer * len(rows))(*rows)
    threads, library = torch.get_num_threads(), _compiled()
    parts = range(threads)  # calls by ctypes let other threads run
    write = library.write_masks
    list(_pool(threads).map(lambda part: write(layers, len(layers), part, threads), parts))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


@cache
def _compiled() -> ctypes.CDLL:
    """The kernel, compiled for this machine's processor."""
    library = os.path.join(tempfile.mkdtemp(prefix="lampfast-floor-"), "known_thresholds.so")
    flags = ["-O3", "-march=native", "-shared", "-fPIC"]
    compiler = os.environ.get("CXX", "c++")
    subprocess.run([compiler, *flags, str(_SOURCE), "-o", library], check=True)
    compiled = ctypes.CDLL(library)
    integers = [ctypes.c_int64] * 3
    compiled.write_masks.argtypes = [ctypes.POINTER(_Layer), *integers]
    compiled.write_masks.restype = None
    return compiled
