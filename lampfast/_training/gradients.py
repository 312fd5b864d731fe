"""Sets the gradients of pruned weights to zero where a backward pass accumulates them.

A hook of the parameter runs once its gradient is in `.grad`, before anything can read it there: a
gradient scaler, clipping, the optimizer. DistributedDataParallel averages after it, and the average
of zeros is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from weakref import finalize, ref

import torch
from torch.utils.hooks import RemovableHandle

from lampfast._engine import changes, packed_masks, shards, views

if TYPE_CHECKING:
    from lampfast._training.kept_layers import KeptLayer, KeptLayers


class _Part(NamedTuple):
    """Where a layer lies in what is trained.

    Attributes:
        position: The layer's, among all whose zeros are kept.
        offset: How many elements after the first of what is trained; None where it is the whole.
    """

    position: int
    offset: int | None


class _Hooked(NamedTuple):
    """Something trained, with the layers in it, and the handle of its hook."""

    tensor: torch.Tensor
    parts: list[_Part]
    handle: RemovableHandle


class MaskedGradients:
    """Masks the gradients of what optimizers train by the masks that its layers have at that time.

    Hooks hold on to nothing: they go with this object.
    """

    def __init__(self, kept: KeptLayers) -> None:
        self._kept = ref(kept)
        self._hooked: dict[int, _Hooked] = {}  # by id, as tensors compare element by element
        self._dense = 0
        finalize(self, _remove, self._hooked).atexit = False

    def watch(self, tensors: Iterable[torch.Tensor]) -> None:
        """Mask the gradients of tensors from now on, and those that they have.

        Raises:
            ValueError: One has part of a layer only.
        """
        for tensor in tensors:
            if id(tensor) not in self._hooked and tensor.requires_grad and tensor.is_leaf:
                parts = list(self._parts(tensor))
                handle = _register(tensor, partial(_hook, ref(self)))
                self._hooked[id(tensor)] = _Hooked(tensor, parts, handle)
                self.mask(tensor)

    def mask_all(self) -> None:
        """Mask all gradients that there are, since masks have changed."""
        for hooked in list(self._hooked.values()):
            self.mask(hooked.tensor)

    def mask(self, tensor: torch.Tensor) -> None:
        """Set to zero what a tensor's gradient has for weights that its layers' masks do not keep.

        Values that are NaN or infinite there become zero, too.
        """
        grad, kept, hooked = tensor.grad, self._kept(), self._hooked.get(id(tensor))
        if self._dense or grad is None or kept is None or hooked is None:
            return
        if shards.is_sharded(tensor):
            _check_placed_alike(tensor, grad)
            tensor, grad = shards.part(tensor), shards.part(grad)
        found = [(kept.layers[position], offset) for position, offset in hooked.parts]
        if any(offset is None and grad.shape != layer.view.shape for layer, offset in found):
            return  # the optimizer's step says that the layer has another shape than its mask
        is_plain = type(grad) is torch.Tensor and grad.layout is torch.strided
        if is_plain and views.lacks_memory(grad):
            return
        if is_plain and not grad.requires_grad and _fits(grad, tensor, found):
            _mask_in_place(grad, found)
        else:
            _mask_by_bools(tensor, grad, found)

    @contextmanager
    def dense(self) -> Iterator[None]:
        """Leave the gradients that are accumulated meanwhile as they are."""
        self._dense += 1
        try:
            yield
        finally:
            self._dense -= 1

    def remove(self) -> None:
        """Mask no more."""
        _remove(self._hooked)

    def _parts(self, tensor: torch.Tensor) -> Iterator[_Part]:
        """The layers that lie in a tensor, and where."""
        kept, tensor = self._kept(), shards.part(tensor)
        assert kept is not None
        for position in kept.positions_in(tensor):
            layer = kept.layers[position]
            if layer.weight is tensor or _is_same(layer.weight, tensor):
                yield _Part(position, None)
                continue
            extent, now = views.extent(tensor), layer.now()
            if extent is not None and views.overlap(extent, now):
                (start, stop), (first, last) = extent.span, now.span
                is_dense = stop - start == tensor.numel() * tensor.itemsize
                if tensor.dtype != layer.dtype or not is_dense or first < start or last > stop:
                    raise ValueError(
                        f"layer {layer.view.name!r} and a parameter of shape "
                        f"{tuple(tensor.shape)} share part of their memory only, so that the "
                        "gradients of its weights cannot be told; pass the parameters themselves "
                        "as layers, or leave out mask_gradients="
                    )
                offset = (layer.weight.data_ptr() - tensor.data_ptr()) // tensor.itemsize
                yield _Part(position, offset)


def _check_placed_alike(tensor: Any, grad: Any) -> None:
    """Check that a rank has the gradients of those weights that it has."""
    dims = [
        [getattr(placement, "dim", None) for placement in it.placements]
        if shards.is_sharded(it)
        else None
        for it in (tensor, grad)
    ]
    if dims[0] != dims[1]:
        placed = grad.placements if shards.is_sharded(grad) else "not a DTensor"
        raise ValueError(
            f"the gradient of a DTensor with placements {tensor.placements} is {placed}, so that "
            "a rank's masks do not fit it; leave out mask_gradients="
        )


def _register(tensor: torch.Tensor, hook: Callable[[torch.Tensor], None]) -> RemovableHandle:
    # torch.compile of a training step must not trace it, as it passes addresses to the engine.
    untraced = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]
    return tensor.register_post_accumulate_grad_hook(untraced)  # type: ignore[no-any-return, no-untyped-call]


def _hook(gradients: ref[MaskedGradients], tensor: torch.Tensor) -> None:
    if (found := gradients()) is not None:
        found.mask(tensor)


def _remove(hooked: dict[int, _Hooked]) -> None:
    while hooked:
        _, (_, _, handle) = hooked.popitem()
        handle.remove()


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are the same elements."""
    return (one.data_ptr(), one.dtype, one.shape, one.stride()) == (
        other.data_ptr(),
        other.dtype,
        other.shape,
        other.stride(),
    )


def _fits(
    grad: torch.Tensor, tensor: torch.Tensor, found: list[tuple[KeptLayer, int | None]]
) -> bool:
    """Whether layers lie in a gradient as they do in what it is of."""
    return all(offset is None for _, offset in found) or grad.stride() == tensor.stride()


def _mask_in_place(grad: torch.Tensor, found: list[tuple[KeptLayer, int | None]]) -> None:
    """Have the engine do it, in one pass."""
    parts, masks = [], []
    for layer, offset in found:
        before, part = layer.view, _part(grad, layer, offset)
        if grad.dtype is layer.dtype:
            view = views.part(before.name, part, before.dtype)
        else:
            view = views.layers({before.name: part}, write=True)[0]
        parts.append(view)
        masks.append(packed_masks.carried(before, layer.mask, view))
    changes.mark([grad])
    packed_masks.apply(parts, masks)


def _mask_by_bools(
    tensor: torch.Tensor, grad: torch.Tensor, found: list[tuple[KeptLayer, int | None]]
) -> None:
    """Have torch do it, where the gradient is sparse, has a graph, or lies otherwise in memory."""
    pruned = torch.zeros_like(tensor, dtype=torch.bool)
    for layer, offset in found:
        part = _part(pruned, layer, offset)
        part.logical_or_(~packed_masks.to_bools(layer.view, layer.mask).to(part.device))
    if grad.layout is torch.sparse_coo:
        with torch.no_grad():
            grad._values().masked_fill_(pruned[tuple(grad._indices())], 0)
    elif grad.requires_grad:  # backward was called with create_graph=True
        tensor.grad = grad.masked_fill(pruned, 0)
    else:
        grad.masked_fill_(pruned, 0)


def _part(tensor: torch.Tensor, layer: KeptLayer, offset: int | None) -> torch.Tensor:
    """Where a layer lies in something that lies in memory as what is trained does."""
    if offset is None:
        return tensor
    start = cast(int, tensor.storage_offset()) + offset
    return tensor.as_strided(layer.view.shape, layer.view.strides, start)
