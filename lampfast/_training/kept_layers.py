"""Layers with the masks of what was zero in them, through whatever happens to their tensors."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import cast
from weakref import WeakSet

import torch
from torch.optim import Optimizer

from lampfast._engine import changes, packed_masks, views
from lampfast._engine.views import View


class Layer:
    """A layer where and how it was when its mask was last looked at."""

    __slots__ = ("dtype", "mask", "view", "weight")

    def __init__(self, view: View, mask: torch.Tensor) -> None:
        self.place(view, mask)

    def place(self, view: View, mask: torch.Tensor) -> None:
        """Set both at once: the mask's bits are in the order of the view."""
        self.view, self.mask = view, mask
        self.weight = cast(torch.Tensor, view.weight)
        self.dtype = self.weight.dtype

    def has_moved(self) -> bool:
        """Whether the tensor was given other memory, or another layout, dtype or device."""
        weight = self.weight
        address, _, shape, strides, _ = self.view.pointer
        return (
            weight.device != self.mask.device
            or (self.view.space is None and weight.data_ptr() != address)
            or weight.dtype != self.dtype
            or weight.shape != shape
            or weight.stride() != strides
        )

    def now(self) -> View:
        """A view of the tensor as it is now, checked where it has moved."""
        if not self.has_moved():
            return self.view
        return views.layers({self.view.name: self.weight}, write=True)[0]


class Layers:
    """All layers whose zeros are kept together.

    The optimizers call `keep` by hooks of their own; of others, `stepped` is told.
    """

    def __init__(self, layers: Sequence[View], optimizers: Iterable[Optimizer] = ()) -> None:
        self.layers = _recorded(layers)
        self._optimizers = WeakSet(optimizers)

    def update(self) -> None:
        """Record what is zero now in all layers."""
        self.layers = _recorded([layer.now() for layer in self.layers])

    def pruned(self, layers: Sequence[View]) -> None:
        """Record what is zero now in those of the layers that were given new zeros."""
        current: dict[int, View] = {}
        for i, layer in enumerate(self.layers):
            # What can be no layer any more was not pruned; its own next step will tell of it.
            with suppress(TypeError, ValueError):
                current[i] = layer.now()
        positions = list(current)
        touched = [positions[j] for j in views.sharing(list(current.values()), layers)]
        fresh = _recorded([current[i] for i in touched])
        for i, layer in zip(touched, fresh, strict=True):
            self.layers[i] = layer

    def take(self, masks: Mapping[str, torch.Tensor]) -> None:
        """Take bool masks over, by name, and zero what they do not keep."""
        current = [layer.now() for layer in self.layers]
        self._replace(
            current, [packed_masks.from_bools(view, masks[view.name]) for view in current]
        )

    def keep(self, optimizer: Optimizer) -> None:
        """Restore the zeros of the layers that an optimizer trains.

        Raises:
            ValueError: One of them has another shape than its mask.
        """
        trained = memory(optimizer)
        layers = [layer for layer in self.layers if layer.weight.data_ptr() in trained]
        _follow(layers)
        packed_masks.keep([layer.view for layer in layers], [layer.mask for layer in layers])
        # A step moves only what has a gradient; graphs that use the other layers are still good.
        changes.mark(layer.weight for layer in layers if layer.weight.grad is not None)

    def stepped(self, optimizer: Optimizer) -> None:
        """Restore the zeros also where an optimizer was made later than the masks."""
        if optimizer not in self._optimizers:
            self.keep(optimizer)

    def state(self) -> dict[str, torch.Tensor]:
        """The masks as bytes, by name.

        Raises:
            ValueError: A layer has another shape than its mask.
        """
        _follow(self.layers)
        return {
            layer.view.name: packed_masks.to_bytes(layer.view, layer.mask) for layer in self.layers
        }

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take masks over for the layers as they are now, and zero what they do not keep."""
        current = [layer.now() for layer in self.layers]
        self._replace(
            current, [packed_masks.from_bytes(view, state[view.name]) for view in current]
        )

    def _replace(self, current: Sequence[View], masks: Sequence[torch.Tensor]) -> None:
        self.layers = [Layer(view, mask) for view, mask in zip(current, masks, strict=True)]
        packed_masks.keep(current, masks)
        changes.mark(view.weight for view in current)


def memory(optimizer: Optimizer) -> set[int]:
    """What an optimizer trains now, tensors by where they lie: tied ones need not be one object."""
    groups = optimizer.param_groups
    return {w.data_ptr() for group in groups for w in group["params"] if not views.is_wrapper(w)}


def _recorded(layers: Sequence[View]) -> list[Layer]:
    masks = packed_masks.record(layers)
    return [Layer(view, mask) for view, mask in zip(layers, masks, strict=True)]


def _follow(layers: Sequence[Layer]) -> None:
    """Take the masks to where the tensors are now; none of them unless all can be."""
    followed = []
    for layer in layers:
        if not layer.has_moved():
            continue
        now, shape = layer.now(), layer.view.pointer[2]
        if now.weight.shape != shape:
            raise ValueError(
                f"layer {now.name!r} had shape {tuple(shape)} when its zeros were recorded and has "
                f"shape {tuple(now.weight.shape)} now; call update() or remove() on the handle that"
                " keep_zeros returned"
            )
        followed.append((layer, now, packed_masks.carried(layer.view, layer.mask, now)))
    for layer, now, mask in followed:
        layer.place(now, mask)
