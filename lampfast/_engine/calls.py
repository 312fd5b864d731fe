"""The only place that calls the compiled engine on layers, and names what it refused.

`layers` and `sources` are views that the engine can reach. The sources are what is scored: the
layers' importances, or, as the very same list, the layers themselves.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from lampfast import _core
from lampfast._engine import gpus
from lampfast._engine.views import Pointer, View


def select(layers: Sequence[View], sources: Sequence[View], spec: _core.Goal) -> list[_core.Cut]:
    """Where `prune` would cut each layer."""
    with _naming_nonfinite(layers, sources):
        pointers = _pointers(sources)
        with gpus.borrowed(pointers, _core.cuda_needs) as lent:
            return _core.select(pointers, spec, torch.get_num_threads(), lent)


def prune(layers: Sequence[View], sources: Sequence[View], spec: _core.Goal) -> list[_core.Cut]:
    """Zero the weights of `layers` that the spec selects, in place."""
    with _naming_nonfinite(layers, sources):
        targets = _pointers(layers)
        importances = None if sources is layers else _pointers(sources)
        with gpus.borrowed(importances or targets, _core.cuda_needs) as lent:
            return _core.prune(targets, importances, spec, torch.get_num_threads(), lent)


def masks(
    layers: Sequence[View], sources: Sequence[View], outputs: Sequence[View], spec: _core.Goal
) -> None:
    """Write False to `outputs` for the weights that the spec selects, else True."""
    with _naming_nonfinite(layers, sources):
        pointers, targets = _pointers(sources), _pointers(outputs)
        with gpus.borrowed(pointers, _core.cuda_needs) as lent:
            _core.masks(pointers, targets, spec, torch.get_num_threads(), lent)


def scores(layers: Sequence[View], sources: Sequence[View], outputs: Sequence[View]) -> None:
    """Write the score of every weight to `outputs`."""
    with _naming_nonfinite(layers, sources):
        pointers, targets = _pointers(sources), _pointers(outputs)
        with gpus.borrowed(pointers, _core.cuda_needs_of_scores) as lent:
            _core.score(pointers, targets, torch.get_num_threads(), lent)


def census(layers: Sequence[View], sources: Sequence[View]) -> list[_core.Cut]:
    """Where cuts that prune only what is zero now would be, with the number of these zeros."""
    with _naming_nonfinite(layers, sources):
        pointers = _pointers(sources)
        with gpus.borrowed(pointers, _core.cuda_needs) as lent:
            return _core.census(pointers, torch.get_num_threads(), lent)


def pack_masks(layers: Sequence[View], masks: Sequence[torch.Tensor]) -> None:
    """Write masks of one bit a weight, set where a weight of `layers` is not zero."""
    pointers, addresses = _pointers(layers), [mask.data_ptr() for mask in masks]
    with gpus.borrowed(pointers, _no_memory) as lent:
        _core.pack(pointers, addresses, torch.get_num_threads(), lent)


def apply_packed_masks(layers: Sequence[View], masks: Sequence[torch.Tensor]) -> None:
    """Zero the weights of `layers` whose bit in such a mask is not set."""
    pointers, addresses = _pointers(layers), [mask.data_ptr() for mask in masks]
    with gpus.borrowed(pointers, _no_memory) as lent:
        _core.keep(pointers, addresses, torch.get_num_threads(), lent)


def _no_memory(layers: Sequence[Pointer], device: int) -> tuple[int, int]:
    return 0, 0


@contextmanager
def _naming_nonfinite(layers: Sequence[View], sources: Sequence[View]) -> Iterator[None]:
    """Check what the engine does not read, and say where it found a NaN or an infinity."""
    if sources is not layers and (error := _nonfinite("layer", layers)):
        raise error
    try:
        yield
    except ValueError as error:
        what = "layer" if sources is layers else "importance of layer"
        raise _nonfinite(what, sources) or error from None


def _nonfinite(what: str, views: Sequence[View]) -> ValueError | None:
    pointers = _pointers(views)
    with gpus.borrowed(pointers, _core.cuda_needs) as lent:
        found = _core.first_nonfinite(pointers, torch.get_num_threads(), lent)
    if found is None:
        return None
    view, flat = views[found[0]], found[1]
    index = tuple(map(int, np.unravel_index(flat, view.weight.shape)))
    return ValueError(
        f"{what} {view.name!r} has {view.weight[index].item()} at index {index}, and only "
        "finite values can be ordered; repair it first, or leave the layer out with exclude="
    )


def _pointers(views: Sequence[View]) -> list[Pointer]:
    return [view.pointer for view in views]
