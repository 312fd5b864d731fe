"""Layers with the masks of their zeros, which follow them to other devices, dtypes and memory."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TypeAlias, cast
from weakref import WeakSet

import torch
from torch.optim import Optimizer

from lampfast._engine import changes, packed_masks, stacks, views
from lampfast._engine.stacks import Stack
from lampfast._engine.views import View
from lampfast._training.gradients import MaskedGradients
from lampfast._training.trained import TrainedLayers


class KeptLayer:
    """A layer with its mask, and how it lay in memory when the mask was last used."""

    __slots__ = ("dtype", "mask", "view", "weight")

    def __init__(self, view: View, mask: torch.Tensor) -> None:
        self.set(view, mask)

    def set(self, view: View, mask: torch.Tensor) -> None:
        """Set both together, since the mask's bits are in the order of the view's memory."""
        # Memory that the tensor is no longer in is not kept alive.
        self.view, self.mask = view.holding(None), mask
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

    def is_all_zero(self) -> bool:
        """Whether the mask keeps nothing of the layer, which has something."""
        return bool(self.view.size) and not self.mask.any()

    def now(self) -> View:
        """A view of the tensor as it is now, checked where it has moved."""
        storage = self.weight.untyped_storage()  # first, as another thread may move the tensor
        if not self.has_moved():
            return self.view.holding(storage)
        return views.layers({self.view.name: self.weight}, write=True)[0]


# A copy of a layer, a view of it as it is now, and the mask that it is to have.
_Fresh: TypeAlias = tuple[KeptLayer, View, torch.Tensor]


class KeptLayers:
    """All layers whose zeros are kept together; a listener of `changes`.

    A hook on each of the given optimizers calls `restore` after its steps. What other optimizers do
    comes through `stepped`, and what `lampfast.prune` does through `pruned`. Copies of layers have
    their masks, and get their zeros whenever the layers do.
    """

    def __init__(
        self,
        layers: Sequence[View],
        optimizers: Iterable[Optimizer] = (),
        trained: TrainedLayers | None = None,
        partial: Mapping[str, Stack] | None = None,
        copies: Sequence[Sequence[View]] = (),
    ) -> None:
        self._partial = partial or {}  # stacks of which only some slices are layers
        self.layers = self._recorded(layers)
        self._copies = [
            [KeptLayer(view, packed_masks.carried(layer.view, layer.mask, view)) for view in views]
            for layer, views in zip(self.layers, copies, strict=bool(copies))
        ]
        self.all_zero = [i for i, layer in enumerate(self.layers) if layer.is_all_zero()]
        self._optimizers = WeakSet(optimizers)
        self._trained = trained or TrainedLayers(layers)
        self.gradients: MaskedGradients | None = None
        self._free: set[int] = set()  # positions of layers that are all zero and not held at it
        self._unpruned: set[str] = set()
        # By identity: layers with unrecorded zeros, and those that were all zero before already.
        self._behind: dict[int, tuple[Sequence[View], set[str]]] = {}

    def _recorded(self, layers: Sequence[View]) -> list[KeptLayer]:
        """Layers with the masks of what is not zero now."""
        masks = packed_masks.record(layers)
        return [self._kept(view, mask) for view, mask in zip(layers, masks, strict=True)]

    def _kept(self, view: View, mask: torch.Tensor) -> KeptLayer:
        """A layer with its mask, which holds nothing of what is no layer."""
        if (stack := self._partial.get(view.name)) is not None:
            free = stacks.uncovered(stack, cast(torch.Tensor, view.weight))
            mask = mask | packed_masks.from_bools(view, free)
        return KeptLayer(view, mask)

    def let_go(self, position: int, remaining: torch.Tensor | None) -> None:
        """Hold of a layer that is all zero only what does not remain; None holds nothing."""
        view, weight = self.layers[position].view, self.layers[position].weight
        if remaining is None:
            remaining = torch.ones(view.shape, dtype=torch.bool, device=weight.device)
        layer = KeptLayer(view, packed_masks.from_bools(view, remaining))
        copies = self._copies_for([position], [layer])
        self.layers[position] = layer
        _set(copies)
        self._free.add(position)

    def mask_gradients(self, optimizers: Iterable[Optimizer]) -> None:
        """Set the gradients of pruned weights to zero as they come, and those that there are."""
        self.gradients = MaskedGradients(self)
        for optimizer in optimizers:
            self.gradients.watch(self._trained.of(optimizer).tensors)

    def dense_gradients(self) -> AbstractContextManager[None]:
        """Leave the gradients that come meanwhile as they are."""
        return nullcontext() if self.gradients is None else self.gradients.dense()

    def positions_in(self, tensor: torch.Tensor) -> list[int]:
        """Positions of the layers in the memory of what an optimizer trains."""
        return self._trained.within(tensor)

    def update(self) -> None:
        """Record what is zero now in all layers."""
        layers = self._recorded([layer.now() for layer in self.layers])
        copies = self._copies_for(range(len(layers)), layers)
        self.layers = layers
        _zero(copies)
        self._free.clear()
        self._behind.clear()
        self._masks_have_changed()

    @contextmanager
    def leaving(self, names: Iterable[str]) -> Iterator[None]:
        """Keep the masks of layers that are pruned meanwhile, being all zero before it."""
        self._unpruned = set(names)
        try:
            yield
        finally:
            self._unpruned = set()

    def pruning(self, layers: Sequence[View]) -> None:
        """Note that the layers are given new zeros, which may be all that can be done."""
        self._behind[id(layers)] = layers, self._unpruned

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
        layers = [layer for pruned, _ in noted.values() for layer in pruned]
        unpruned = {name for _, names in noted.values() for name in names}
        current: dict[int, View] = {}
        for i, layer in enumerate(self.layers):
            # What is no longer a layer was not pruned. The next step of its optimizer raises this.
            with suppress(TypeError, ValueError):
                current[i] = layer.now()
        positions = list(current)
        touched = [positions[j] for j in views.sharing(list(current.values()), layers)]
        fresh = dict(zip(touched, self._recorded([current[i] for i in touched]), strict=True))
        for i, layer in list(fresh.items()):
            is_unpruned = layer.view.name in unpruned or i in self._free
            if is_unpruned and layer.is_all_zero():
                del fresh[i]
        copies = self._copies_for(list(fresh), list(fresh.values()))
        for i, layer in fresh.items():
            self.layers[i] = layer
        _zero(copies)
        for each in noted:
            self._behind.pop(each, None)  # another thread may have done the same
        self._masks_have_changed()

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
        trained = self._trained.of(optimizer)
        # A step changes only what has a gradient, so backward through the others stays valid.
        changed = [tensor for tensor in trained.tensors if tensor.grad is not None]
        layers = [self.layers[i] for i in trained.positions]
        copies = self._copies_at(trained.positions)
        _restore([*layers, *copies], [*changed, *(copy.weight for copy in copies)])
        if self.gradients is not None:
            self.gradients.watch(trained.tensors)  # some may be trained only since now
        if self._free:
            self._free -= {i for i in self._free if not is_zero(self.layers[i].weight)}

    def restore_all(self) -> None:
        """Restore the zeros of all layers and of their copies, whoever has written to them."""
        layers = [*self.layers, *self._copies_at(range(len(self.layers)))]
        _restore(layers, [layer.weight for layer in layers])

    def restore_copies(self) -> None:
        """Restore the zeros of the copies of all layers."""
        copies = self._copies_at(range(len(self.layers)))
        _restore(copies, [copy.weight for copy in copies])

    def copied(self) -> list[torch.Tensor]:
        """The copies of all layers."""
        return [copy.weight for copy in self._copies_at(range(len(self.layers)))]

    def _copies_at(self, positions: Iterable[int]) -> list[KeptLayer]:
        """The copies of the layers at some positions."""
        return [copy for i in positions for copy in self._copies[i]] if self._copies else []

    def _copies_for(self, positions: Sequence[int], layers: Sequence[KeptLayer]) -> list[_Fresh]:
        """What the copies of layers are to have when layers get new masks; nothing is changed."""
        if not self._copies:
            return []
        return [
            (copy, now := _alike(copy, layer), packed_masks.carried(layer.view, layer.mask, now))
            for i, layer in zip(positions, layers, strict=True)
            for copy in self._copies[i]
        ]

    def stepped(self, optimizer: Optimizer) -> None:
        """Restore the zeros that an optimizer without the hook, made later, has changed."""
        if optimizer not in self._optimizers:
            self.restore(optimizer)

    def masks(self) -> dict[str, torch.Tensor]:
        """The masks as bools, by name, where the layers are.

        Raises:
            ValueError: A layer has another shape than its mask.
        """
        self._catch_up()
        _held = _follow(self.layers)
        return {
            layer.view.name: packed_masks.to_bools(layer.view, layer.mask) for layer in self.layers
        }

    def _replace(self, current: Sequence[View], masks: Sequence[torch.Tensor]) -> None:
        layers = [self._kept(view, mask) for view, mask in zip(current, masks, strict=True)]
        copies = self._copies_for(range(len(layers)), layers)
        changes.mark(view.weight for view in current)
        packed_masks.apply(current, [layer.mask for layer in layers])
        self.layers = layers
        _zero(copies)
        self._free.clear()
        self._behind.clear()
        self._masks_have_changed()

    def _masks_have_changed(self) -> None:
        if self.gradients is not None:
            self.gradients.mask_all()


def is_zero(weight: torch.Tensor) -> bool:
    """Whether all of a tensor's values are zero."""
    return not (views.as_integers(weight) << 1).any()


def _set(copies: Sequence[_Fresh]) -> None:
    """Give copies of layers their new masks."""
    for copy, now, mask in copies:
        copy.set(now, mask)


def _zero(copies: Sequence[_Fresh]) -> None:
    """Give copies of layers their new masks, and zero what these do not keep."""
    if copies:
        changes.mark(now.weight for _, now, _ in copies)
        packed_masks.apply([now for _, now, _ in copies], [mask for _, _, mask in copies])
        _set(copies)


def _alike(copy: KeptLayer, layer: KeptLayer) -> View:
    """A view of a copy as it is now, if it has the shape of its layer."""
    now, shape = copy.now(), layer.view.shape
    if now.weight.shape != shape:
        raise ValueError(
            f"{now.name} has shape {tuple(now.weight.shape)} now, and layer {layer.view.name!r} "
            f"has shape {tuple(shape)}; remove() the handle that keep_zeros returned, and pass it "
            "copies of the model as it is"
        )
    return now


def _restore(layers: Sequence[KeptLayer], changed: Iterable[torch.Tensor]) -> None:
    """Restore the zeros of layers, and count new versions of what that changes."""
    _held = _follow(layers)
    changes.mark(changed)
    packed_masks.apply([layer.view for layer in layers], [layer.mask for layer in layers])


def _follow(layers: Sequence[KeptLayer]) -> list[object]:
    """Bring the masks to where the tensors are now: all of them, or none if one cannot follow.

    Returns:
        What keeps their memory while it is held, even if another thread moves them again.
    """
    held: list[object] = [layer.weight.untyped_storage() for layer in layers]
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
        held.append(now.storage)
        layer.set(now, mask)
    return held
