"""Layers with the masks of their zeros, which follow them to other devices, dtypes and memory."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import cast
from weakref import WeakSet

import torch
from torch.optim import Optimizer

from lampfast._engine import changes, packed_masks, views
from lampfast._engine.views import View


class KeptLayer:
    """A layer with its mask, and how it lay in memory when the mask was last used."""

    __slots__ = ("dtype", "mask", "view", "weight")

    def __init__(self, view: View, mask: torch.Tensor) -> None:
        self.set(view, mask)

    def set(self, view: View, mask: torch.Tensor) -> None:
        """Set both together, since the mask's bits are in the order of the view's memory."""
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


class KeptLayers:
    """All layers whose zeros are kept together; a listener of `changes`.

    A hook on each of the given optimizers calls `restore` after its steps. What other optimizers do
    comes through `stepped`, and what `lampfast.prune` does through `pruned`.
    """

    def __init__(self, layers: Sequence[View], optimizers: Iterable[Optimizer] = ()) -> None:
        self.layers = _recorded(layers)
        self._optimizers = WeakSet(optimizers)
        self._behind: dict[int, Sequence[View]] = {}  # by identity: layers with unrecorded zeros

    def update(self) -> None:
        """Record what is zero now in all layers."""
        self.layers = _recorded([layer.now() for layer in self.layers])
        self._behind.clear()

    def pruning(self, layers: Sequence[View]) -> None:
        """Note that the layers are given new zeros, which may be all that can be done."""
        self._behind[id(layers)] = layers

    def pruned(self, layers: Sequence[View]) -> None:
        """Record what is zero now in those of the layers that were given new zeros."""
        self._catch_up()

    def stepping(self, optimizer: Optimizer) -> None:
        """Record zeros before a step if `pruned` could not."""
        self._catch_up()

    def _catch_up(self) -> None:
        if not self._behind:
            return
        noted = dict(self._behind)
        layers = [layer for pruned in noted.values() for layer in pruned]
        current: dict[int, View] = {}
        for i, layer in enumerate(self.layers):
            # What is no longer a layer was not pruned. The next step of its optimizer raises this.
            with suppress(TypeError, ValueError):
                current[i] = layer.now()
        positions = list(current)
        touched = [positions[j] for j in views.sharing(list(current.values()), layers)]
        fresh = _recorded([current[i] for i in touched])
        for i, layer in zip(touched, fresh, strict=True):
            self.layers[i] = layer
        for each in noted:
            self._behind.pop(each, None)  # another thread may have done the same

    def set_masks(self, masks: Mapping[str, torch.Tensor]) -> None:
        """Take bool masks over, by name, and zero what they do not keep."""
        current = [layer.now() for layer in self.layers]
        self._replace(
            current, [packed_masks.from_bools(view, masks[view.name]) for view in current]
        )

    def restore(self, optimizer: Optimizer) -> None:
        """Restore the zeros of the layers that an optimizer trains.

        Raises:
            ValueError: One of them has another shape than its mask.
        """
        trained = trained_addresses(optimizer)
        layers = [layer for layer in self.layers if layer.weight.data_ptr() in trained]
        _follow(layers)
        # A step changes only what has a gradient, so backward through the others stays valid.
        changes.mark(layer.weight for layer in layers if layer.weight.grad is not None)
        packed_masks.apply([layer.view for layer in layers], [layer.mask for layer in layers])

    def stepped(self, optimizer: Optimizer) -> None:
        """Restore the zeros that an optimizer without the hook, made later, has changed."""
        if optimizer not in self._optimizers:
            self.restore(optimizer)

    def state(self) -> dict[str, torch.Tensor]:
        """The masks as bytes, by name.

        Raises:
            ValueError: A layer has another shape than its mask.
        """
        self._catch_up()
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
        layers = [KeptLayer(view, mask) for view, mask in zip(current, masks, strict=True)]
        changes.mark(view.weight for view in current)
        packed_masks.apply(current, masks)
        self.layers = layers
        self._behind.clear()


def trained_addresses(optimizer: Optimizer) -> set[int]:
    """Addresses of the tensors that an optimizer trains: tied ones need not be one object."""
    groups = optimizer.param_groups
    return {w.data_ptr() for group in groups for w in group["params"] if not views.is_wrapper(w)}


def _recorded(layers: Sequence[View]) -> list[KeptLayer]:
    masks = packed_masks.record(layers)
    return [KeptLayer(view, mask) for view, mask in zip(layers, masks, strict=True)]


def _follow(layers: Sequence[KeptLayer]) -> None:
    """Bring the masks to where the tensors are now: all of them, or none if one cannot follow."""
    followed = []
    for layer in layers:
        if not layer.has_moved():
            continue
        now, shape = layer.now(), layer.view.shape
        if now.weight.shape != shape:
            raise ValueError(
                f"layer {now.name!r} had shape {tuple(shape)} when its zeros were recorded and has "
                f"shape {tuple(now.weight.shape)} now; call update() or remove() on the handle that"
                " keep_zeros returned"
            )
        followed.append((layer, now, packed_masks.carried(layer.view, layer.mask, now)))
    for layer, now, mask in followed:
        layer.set(now, mask)
