"""A GPU that is not there: tensors in host memory, for a build with LAMPFAST_CUDA=EMULATED.

Its kernels run on the CPU (tests/emulator), so every address is good for them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch

from lampfast._engine import gpus

_FIRST_STREAM = 0x5700  # each GPU's own, as tests/emulator/cuda_runtime.h tells them apart


@contextmanager
def emulated() -> Iterator[None]:
    """Let tensors in host memory pass for ones on GPU 0."""
    with mock.patch.multiple(
        gpus, index=lambda tensor: 0, _lend=_lend, refuse_capture=lambda device: None
    ):
        yield


def _lend(device: int, size: int, host_size: int) -> tuple[int, torch.Tensor, torch.Tensor]:
    """Memory as an allocator gives it: what was there before is no zeros."""
    sizes = (size, host_size)
    memory, host = (torch.full((n,), 0xA5, dtype=torch.uint8, device="cpu") for n in sizes)
    return _FIRST_STREAM + device, memory, host
