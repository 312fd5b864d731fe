"""Masks that the caller gives, checked, and cut to what this rank has of the layers.

They are bool tensors of the parameters' shapes. Of a sharded parameter they are DTensors, placed in
any way, or whole on every rank. States of earlier versions have one bit a weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, cast

import torch

from lampfast._engine import packed_masks, placed, shards, views
from lampfast._engine.stacks import Layers
from lampfast._engine.views import Weight

_SAME_LAYERS = (
    "choose the same layers with include= and exclude= (of a model that another module wraps, "
    "take the wrapped module both times)"
)


def masks(
    given: Mapping[str, torch.Tensor], wholes: Mapping[str, Weight], *, is_state: bool = False
) -> dict[str, torch.Tensor]:
    """What this rank has of masks; where layers are sharded, all ranks ask for it.

    Args:
        given: By layer name.
        wholes: The layers.
        is_state: Whether they come from a state, and may have one bit a weight.

    Raises:
        TypeError: They are not a mapping of names to bool tensors.
        ValueError: The names or shapes are not those of the layers.
        RuntimeError: On the other ranks, if that is so on one.
    """
    check = _check_state if is_state else _check
    if not shards.are_sharded(wholes.values()):
        check(given, wholes)
        return {name: _own(whole, given[name]) for name, whole in wholes.items()}
    from lampfast._engine.sharded import Sharded

    model = Sharded(Layers(dict(wholes), {}), ("masks", is_state, placed.described(given)))
    with model.together():
        check(given, wholes)
    with model.together():
        own = {name: _own(whole, given[name]) for name, whole in wholes.items()}
    return own


def _own(whole: Any, mask: torch.Tensor) -> torch.Tensor:
    if mask.dtype == torch.uint8:
        mask = packed_masks.unpacked(mask.cpu().numpy(), whole.shape)
    return cast(torch.Tensor, placed.own(whole, mask))


def _check(given: Mapping[str, torch.Tensor], wholes: Mapping[str, Weight]) -> None:
    views.check_names("masks", given, list(wholes), _SAME_LAYERS)
    for name, whole in wholes.items():
        mask = given[name]
        if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool:
            raise TypeError(f"mask of layer {name!r} is {_kind(mask)}; pass a bool tensor")
        if _lacks_values(mask):
            raise TypeError(
                f"mask of layer {name!r} is sparse or has no values; pass a plain tensor"
            )
        views.check_mask_shape(name, mask.shape, whole.shape)


def _check_state(state: Mapping[str, torch.Tensor], wholes: Mapping[str, Weight]) -> None:
    views.check_names("state", state, list(wholes), _SAME_LAYERS)
    for name, whole in wholes.items():
        mask, shape = state[name], tuple(whole.shape)
        is_packed = isinstance(mask, torch.Tensor) and mask.dtype == torch.uint8
        if not is_packed and (not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool):
            raise TypeError(
                f"state of layer {name!r} is {_kind(mask)}, not a bool tensor; pass what "
                "state_dict() returned"
            )
        if _lacks_values(mask):
            raise TypeError(
                f"state of layer {name!r} has no values, as a meta tensor; pass what "
                "state_dict() returned"
            )
        wanted = ((prod(shape) + 7) // 8,) if is_packed else shape
        if tuple(mask.shape) != wanted:
            raise ValueError(
                f"state of layer {name!r} has shape {tuple(mask.shape)}, and {wanted} is needed "
                f"for its shape {shape}; it was saved for another one"
            )


def _kind(value: object) -> object:
    return value.dtype if isinstance(value, torch.Tensor) else type(value).__name__


def _lacks_values(mask: torch.Tensor) -> bool:
    own = shards.part(mask)
    return own.is_meta or views.extent(own) is None
