"""Values that are given for the parameters of a sharded model, and what this rank has of them.

A value is whole on every rank, or a DTensor. Where it is not placed as its parameter, all ranks
together gather it, one parameter at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch

from lampfast._engine import shards
from lampfast._engine.views import Weight


def own(weight: Weight, value: Any) -> Any:
    """What this rank has of a value, as it has the parameter of the same shape that it is for.

    Example:
        >>> own(torch.zeros(2), torch.ones(2))
        tensor([1., 1.])
    """
    if shards.is_sharded(value):
        if _are_alike(weight, value):
            return shards.part(value)
        value = value.detach().full_tensor()
    if not shards.is_sharded(weight):
        return value
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.ascontiguousarray(value))
    return shards.part(cut(weight, value.detach()))


def cut(weight: Weight, value: torch.Tensor) -> torch.Tensor:
    """A whole value as its parameter is: a DTensor of what this rank has, or the value itself."""
    if not shards.is_sharded(weight):
        return value
    from lampfast._engine import pieces

    return pieces.own(cast(Any, weight), value)


def like(weight: torch.Tensor, local: torch.Tensor) -> torch.Tensor:
    """A copy of what a rank has, placed as its parameter; a plain one is row-major, on the CPU.

    Example:
        >>> like(torch.zeros(2, 3), torch.ones(3, 2).T).is_contiguous()
        True
    """
    if not shards.is_sharded(weight):
        return local.to("cpu", copy=True, memory_format=torch.contiguous_format)
    return cast(torch.Tensor, as_is(weight, local.clone()))


def as_is(weight: Any, local: Any) -> Any:
    """A DTensor of what a rank has, placed as its parameter is; of a plain one the value itself."""
    if not shards.is_sharded(weight):
        return local
    from lampfast._engine import pieces

    return pieces.like(weight, local)


def whole(value: Any) -> Any:
    """All of a value, of which other ranks may have other parts; all of them ask for it."""
    return value.detach().full_tensor() if shards.is_sharded(value) else value


def described(given: object) -> object:
    """What must be the same on all ranks of values by name, since it says which are gathered."""
    if not isinstance(given, Mapping):
        return type(given).__name__
    return [(str(name), _kind(value)) for name, value in given.items()]


def _are_alike(weight: Any, value: Any) -> bool:
    return (
        shards.is_sharded(weight)
        and value.device_mesh == weight.device_mesh
        and value.placements == weight.placements
    )


def _kind(value: object) -> object:
    shape = tuple(getattr(value, "shape", ()))
    if not shards.is_sharded(value):
        return type(value).__name__, shape
    sharded = cast(Any, value)
    return str(sharded.placements), sharded.device_mesh.mesh.tolist(), shape
