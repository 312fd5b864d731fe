"""What a call may use of each GPU: torch's current stream, and memory from torch's allocators."""

from __future__ import annotations  # _core.Layer and _core.Gpu exist for type checkers only

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from operator import attrgetter

import torch

from lampfast import _core

HOST = -1  # the device of layers in host memory

_is_in_host = attrgetter("is_cpu")


def has_engine(tensor: torch.Tensor) -> bool:
    """Whether this build has an engine for the device that a tensor is on."""
    return tensor.is_cuda and _core.cuda_built and _is_usable(tensor.device.index)


@cache
def _is_usable(device: int) -> bool:
    """Whether the engine has code for a GPU, and the driver is new enough for the engine."""
    is_known = torch.version.hip is None and torch.cuda.get_device_capability(device) >= (7, 5)
    return is_known and _core.cuda_runs_on(device)


def are_in_host(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether all tensors are in host memory; of thousands this is told fast."""
    return all(map(_is_in_host, tensors))


def index(tensor: torch.Tensor) -> int:
    """The engine's number for a tensor's device."""
    return tensor.device.index if has_engine(tensor) else HOST


def refuse_capture(device: int) -> None:
    """Check that no CUDA graph is being captured on a GPU's current stream.

    Raises:
        RuntimeError: One is. It could not record what the host decides between two launches.
    """
    with torch.cuda.device(device):
        is_capturing = torch.cuda.is_current_stream_capturing()
    if is_capturing:
        raise RuntimeError(
            f"layers are on cuda:{device}, whose current stream is being captured into a CUDA "
            "graph, which cannot record what is decided on the host; call outside of the capture: "
            "a graph that reads masks sees, when it is replayed, what masks(..., out=) has written "
            "to them since"
        )


@contextmanager
def machine(
    layers: Sequence[_core.Layer],
    needs: Callable[[Sequence[_core.Layer], int], _core.Needs] | None = None,
) -> Iterator[_core.Machine]:
    """What a call may use: torch's threads, and the GPUs that layers are on, with their memory.

    Each GPU lends as much as the engine says it needs, or none. The memory goes back to torch's
    allocators at the end. Work that is still queued then is safe, because whatever reuses the
    memory is queued later on the same stream.

    Raises:
        RuntimeError: There are needs, so that the host waits for GPUs, and a stream is being
            captured into a CUDA graph.
    """
    gpus, held = [], []
    devices = sorted({layer[4] for layer in layers} - {HOST})
    if needs is not None:
        for device in devices:
            refuse_capture(device)
    for device in devices:
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
