"""What a call may use of each GPU: torch's current stream, and memory from torch's allocators."""

from __future__ import annotations  # _core.Layer and _core.Gpu exist for type checkers only

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch

from lampfast import _core

HOST = -1  # the device of layers in host memory


def has_engine(tensor: torch.Tensor) -> bool:
    """Whether this build has an engine for the device that a tensor is on."""
    return tensor.is_cuda and _core.cuda_built and _is_usable(tensor.device.index)


@cache
def _is_usable(device: int) -> bool:
    """Whether the engine was built for a GPU, and the driver is new enough for the engine."""
    is_known = torch.version.hip is None and torch.cuda.get_device_capability(device) >= (7, 5)
    return is_known and _core.cuda_usable()


def index(tensor: torch.Tensor) -> int:
    """The engine's number for a tensor's device."""
    return tensor.device.index if has_engine(tensor) else HOST


@contextmanager
def machine(
    layers: Sequence[_core.Layer],
    needs: Callable[[Sequence[_core.Layer], int], _core.Needs] | None = None,
) -> Iterator[_core.Machine]:
    """What a call may use: torch's threads, and the GPUs that layers are on, with their memory.

    Each GPU lends as much as the engine says it needs, or none. The memory goes back to torch's
    allocators at the end. Work that is still queued then is safe, because whatever reuses the
    memory is queued later on the same stream.
    """
    gpus, held = [], []
    for device in sorted({layer[4] for layer in layers} - {HOST}):
        need = needs(layers, device) if needs is not None else None
        size, host_size = (need.bytes, need.host_bytes) if need is not None else (0, 0)
        stream, memory, pinned = _lend(device, size, host_size)
        held.append((memory, pinned))
        gpus.append((device, stream, memory.data_ptr(), size, pinned.data_ptr(), host_size))
    yield torch.get_num_threads(), gpus
    del held


def _lend(device: int, size: int, host_size: int) -> tuple[int, torch.Tensor, torch.Tensor]:
    """The current stream of a device, and memory there and in the host."""
    with torch.cuda.device(device):
        return (
            torch.cuda.current_stream().cuda_stream,
            torch.empty(size, dtype=torch.uint8, device=f"cuda:{device}"),
            torch.empty(host_size, dtype=torch.uint8, device="cpu", pin_memory=True),
        )
