"""A GPU that is not there: tensors in host memory, for a build with LAMPFAST_CUDA=EMULATED.

Its kernels run on the CPU (tests/emulator), so every address is good for them.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple
from unittest import mock

import torch

from lampfast import _core
from lampfast._engine import gpus

_FIRST_STREAM = 0x5700  # each GPU's own, as tests/emulator/cuda_runtime.h tells them apart


@contextmanager
def emulated() -> Iterator[None]:
    """Let tensors in host memory pass for ones on GPU 0."""
    with mock.patch.multiple(
        gpus,
        index=lambda tensor: 0,
        are_in_host=lambda tensors: False,
        _lend=_lend,
        refuse_capture=lambda device: None,
    ):
        yield


def _lend(device: int, size: int, host_size: int) -> tuple[int, torch.Tensor, torch.Tensor]:
    """Memory as an allocator gives it: what was there before is no zeros."""
    sizes = (size, host_size)
    memory, host = (torch.full((n,), 0xA5, dtype=torch.uint8, device="cpu") for n in sizes)
    return _FIRST_STREAM + device, memory, host


class Costs(NamedTuple):
    """What a GPU would have been asked for."""

    waits: int
    launches: int
    copies: int
    bytes_to_device: int
    bytes_to_host: int
    nanoseconds: int  # that emulating them took


def take_costs() -> Costs:
    """What the emulated GPUs have been asked for since the last call of this."""
    costs = (ctypes.c_longlong * len(Costs._fields))()
    ctypes.CDLL(_core.__file__).lampfast_emulator_costs(costs)
    return Costs(*costs)


@contextmanager
def played_again() -> Iterator[Callable[[], None]]:
    """Record what the first call receives of GPUs, and play it again without kernels and copies.

    Yields:
        A function that starts each of the calls to play, which must be the same as the first.
    """
    tape = ctypes.CDLL(_core.__file__).lampfast_emulator_tape
    off, records, plays = range(3)
    tape(records)
    try:
        yield lambda: tape(plays)
    finally:
        tape(off)
