"""The engine's stages in order: decide on every layer, then act; and name what stopped it.

`sources` are what is scored in the layers' place: their importances, or the layers themselves.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from lampfast import _core
from lampfast._engine import gpus
from lampfast._engine.views import Pointer, View


def select(layers: Sequence[View], sources: Sequence[View], goal: _core.Goal) -> list[_core.Cut]:
    """The cuts that `prune` would make."""
    with _naming_nonfinite(layers, sources):
        pointers = _pointers(sources)
        with gpus.borrowed(pointers, _core.cuda_needs) as lent:
            return _core.select(pointers, goal, torch.get_num_threads(), lent)


def prune(layers: Sequence[View], sources: Sequence[View], goal: _core.Goal) -> list[_core.Cut]:
    """Zero the weights of `layers` that the goal selects, in place."""
    with _naming_nonfinite(layers, sources):
        targets = _pointers(layers)
        importances = None if sources is layers else _pointers(sources)
        with gpus.borrowed(importances or targets, _core.cuda_needs) as lent:
            return _core.prune(targets, importances, goal, torch.get_num_threads(), lent)


def masks(
    layers: Sequence[View], sources: Sequence[View], outputs: Sequence[View], goal: _core.Goal
) -> None:
    """Write False to `outputs` for the weights that the goal selects, else True."""
    with _naming_nonfinite(layers, sources):
        pointers, targets = _pointers(sources), _pointers(outputs)
        with gpus.borrowed(pointers, _core.cuda_needs) as lent:
            _core.masks(pointers, targets, goal, torch.get_num_threads(), lent)


def scores(layers: Sequence[View], sources: Sequence[View], outputs: Sequence[View]) -> None:
    """Write the score of every weight to `outputs`."""
    with _naming_nonfinite(layers, sources):
        pointers, targets = _pointers(sources), _pointers(outputs)
        with gpus.borrowed(pointers, _core.cuda_needs_of_scores) as lent:
            _core.score(pointers, targets, torch.get_num_threads(), lent)


def census(layers: Sequence[View], sources: Sequence[View]) -> list[_core.Cut]:
    """The cuts that describe what of the sources is zero now."""
    with _naming_nonfinite(layers, sources):
        pointers = _pointers(sources)
        with gpus.borrowed(pointers, _core.cuda_needs) as lent:
            return _core.census(pointers, torch.get_num_threads(), lent)


def pack(layers: Sequence[View], masks: Sequence[torch.Tensor]) -> None:
    """Write the masks, 64 bits a word, of what is not zero in `layers`."""
    pointers, addresses = _pointers(layers), [mask.data_ptr() for mask in masks]
    with gpus.borrowed(pointers, _no_memory) as lent:
        _core.pack(pointers, addresses, torch.get_num_threads(), lent)


def keep(layers: Sequence[View], masks: Sequence[torch.Tensor]) -> None:
    """Zero the weights of `layers` that such masks do not keep."""
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
