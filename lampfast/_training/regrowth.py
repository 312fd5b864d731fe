"""Weights that grow again start with nothing of what their optimizer held for them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch.optim import Optimizer

from lampfast._engine import packed_masks, shards
from lampfast._training.kept_layers import KeptLayer

Stale: TypeAlias = list[tuple[torch.Tensor, torch.Tensor]]


def stale(
    layers: Sequence[KeptLayer],
    masks: Mapping[str, torch.Tensor],
    optimizers: Iterable[Optimizer],
    wholes: Mapping[str, torch.Tensor],
) -> Stale:
    """What optimizers hold, one value a weight, of layers of which new masks keep more.

    Args:
        layers: With the masks that they have.
        masks: Those that they are to have, by name.
        optimizers: Whose momentum, second moments and the like it is.
        wholes: The parameters of the layers, by name; this rank may have a part of them only.

    Returns:
        Tensors, and where they are of weights that are kept only by the new masks.
    """
    found = []
    states = [state for optimizer in optimizers if (state := getattr(optimizer, "state", None))]
    for layer in layers:
        whole = wholes[layer.view.name]
        held = [tensor for state in states for tensor in _of_each_weight(state, whole)]
        held = [own for tensor in held if (own := shards.part(tensor)).shape == layer.view.shape]
        if held and layer.view.shape == layer.weight.shape:
            pruned = ~packed_masks.to_bools(layer.view, layer.mask)
            grown = pruned.logical_and_(masks[layer.view.name].to(pruned.device))
            found += [(tensor, grown.to(tensor.device)) for tensor in held]
    return found


def forget(found: Stale) -> None:
    """Set to zero what is stale.

    Momentum and second moments do that as RigL does; averages and copies of the weights, as of
    schedule-free optimizers, begin at the value that the weights have.
    """
    for tensor, grown in found:
        tensor.masked_fill_(grown, 0)


def _of_each_weight(state: object, weight: torch.Tensor) -> list[torch.Tensor]:
    """What an optimizer's state has for a parameter that is of its shape."""
    entries = state.get(weight) if isinstance(state, dict) else None
    if not isinstance(entries, dict):
        return []
    return [
        held
        for name, held in entries.items()
        if name != "step"
        and isinstance(held, torch.Tensor)
        and held.shape == weight.shape
        and held.is_floating_point()
        and held.layout is torch.strided
    ]
