"""Copies layers on devices that have no engine to host memory, and back.

Memory that the engine can reach is called local here, any other remote.
"""

import sys
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lampfast import _core
from lampfast._engine import gpus

# Types of devices that share one space of addresses with the host.
_UNIFIED = frozenset({"cpu", "cuda", "xpu"})

_HINTS = {  # for types of devices that another build could prune on
    "cuda": "; its engine for NVIDIA GPUs needs compute capability 7.5, a driver that is new "
    "enough, and code for this GPU (CMAKE_CUDA_ARCHITECTURES, when it was built)"
    if _core.cuda_built
    else "; for an engine on NVIDIA GPUs install lampfast where CUDA's compiler, nvcc, is, with "
    "pip install --config-settings=cmake.define.LAMPFAST_CUDA=ON"
}

_PACKAGE = __name__.partition(".")[0]

_warned: set[str] = set()  # types of devices, and of those with an engine that lacks something


def is_local(tensor: torch.Tensor) -> bool:
    """Whether the engine can reach a tensor's memory."""
    return tensor.is_cpu or gpus.has_engine(tensor)


def has_address(tensor: torch.Tensor) -> bool:
    """Whether a tensor's data_ptr is an address, and not its device's handle for a storage."""
    return tensor.is_cpu or tensor.device.type in _UNIFIED


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in host memory; warns once for each type of device that it is made."""
    kind = tensor.device.type
    what, why = f"layers on {tensor.device}", f"this build has no engine for {kind} devices"
    hint = _HINTS.get(kind, "")
    if tensor.is_cuda:
        gpus.refuse_capture(tensor.device.index)
    if is_local(tensor):  # a layer with scales, or of tiles
        kind, hint = f"{kind} with scales or block=", ""
        why = "the engine for GPUs does not multiply by scales, nor prune by block="
    if kind not in _warned:
        warnings.warn(
            f"{what} are copied to host memory and back, since {why}; the result is the same, but "
            f"it takes longer, and host memory for the copies{hint}",
            stacklevel=frames_to_the_caller(),
        )
        _warned.add(kind)
    return tensor.detach().to("cpu", copy=True)


def to_device(weight: torch.Tensor | npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """A weight's values as a tensor on a device that the engine can reach."""
    if isinstance(weight, np.ndarray):
        weight = torch.from_numpy(np.ascontiguousarray(weight))
    if device.type == "cuda":
        gpus.refuse_capture(device.index)
    return weight.detach().to(device)


def write_back(tensor: torch.Tensor, copy: torch.Tensor) -> None:
    """Give a tensor the values of its changed copy."""
    with torch.inference_mode():  # allows both leaves and inference tensors to be written
        tensor.copy_(copy)


def frames_to_the_caller() -> int:
    """The `stacklevel` with which the caller of this function warns at the user's line."""
    level, frame = 0, sys._getframe()
    while frame.f_back and frame.f_globals["__name__"].partition(".")[0] == _PACKAGE:
        level, frame = level + 1, frame.f_back
    return level
