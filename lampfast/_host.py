"""Weights on devices that have no engine: copied to host memory, and back."""

import warnings

import torch

_warned: set[str] = set()  # types of devices


def is_here(tensor: torch.Tensor) -> bool:
    """Whether the engine can reach a tensor's memory."""
    return tensor.is_cpu


def copied(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that the engine can reach; says so once for each type of device."""
    kind = tensor.device.type
    if kind not in _warned:
        _warned.add(kind)
        warnings.warn(
            f"layers on {tensor.device} are copied to host memory and back, since this version "
            f"has no engine for {kind} devices; the result is the same, but it takes longer, and "
            "host memory for the copies",
            stacklevel=2,
        )
    return tensor.detach().to("cpu", copy=True)


def write_back(tensor: torch.Tensor, copy: object) -> None:
    """Give a tensor the values of its changed copy."""
    with torch.inference_mode():  # in which it may be a leaf, or an inference tensor itself
        tensor.copy_(torch.as_tensor(copy))


def address(tensor: torch.Tensor) -> int:
    """Where a tensor's elements begin: on devices, in a space of its storage's own.

    What a device calls an address may be a handle, or mean something else on another device; no
    such space overlaps another or host memory.
    """
    if is_here(tensor):
        return tensor.data_ptr()
    space: int = tensor.untyped_storage()._cdata
    return (space << 64) + _SPACE_BEGIN + int(tensor.storage_offset()) * tensor.itemsize


_SPACE_BEGIN = 1 << 32  # numpy takes no array at 0
