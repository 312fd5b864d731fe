"""The only place that calls the compiled engine on layers, and names what it refused.

`layers` and `sources` are views that the engine can reach. The sources are what is scored: the
layers' importances, or, as the very same list, the layers themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeAlias

import numpy as np
import torch

from lampfast import _core
from lampfast._engine import gpus, ways_out
from lampfast._engine.in_place import BeforeWriting
from lampfast._engine.views import Pointer, View, Views, are_none


class Groups(NamedTuple):
    """What the engine is to keep where groups of weights have a pattern.

    Attributes:
        patterns: For each layer n, m and the dimension along which a group lies.
    """

    patterns: Sequence[tuple[int, int, int]]


class Blocks(NamedTuple):
    """What the engine is to prune where blocks of weights go together.

    Attributes:
        shapes: For each layer the rows and columns of a tile, and the dimension of its inputs.
        spec: How tiles are ranked, and how many weights they may have.
    """

    shapes: Sequence[tuple[int, int, int]]
    spec: _core.SelectionSpec


Selection: TypeAlias = _core.SelectionSpec | Groups | Blocks
Machine: TypeAlias = "_core.Machine | _core.ShardedMachine"


def thresholds(
    layers: Sequence[View], sources: Sequence[View], spec: Selection
) -> list[_core.LayerThreshold]:
    """The thresholds by which `prune` would prune."""
    with _naming_not_finite(layers, sources):
        pointers = _ranked(sources)
        with gpus.machine(pointers, _core.cuda_needs) as machine:
            return thresholds_by(pointers, spec, machine)


def thresholds_by(
    pointers: Sequence[_core.Layer], spec: Selection, machine: Machine
) -> list[_core.LayerThreshold]:
    """The same for who has pointers to what is ranked, and a machine."""
    if isinstance(spec, Groups):
        return _core.group_thresholds(pointers, spec.patterns, machine)
    if isinstance(spec, Blocks):
        return _core.block_thresholds(pointers, spec.shapes, spec.spec, machine)
    return _core.thresholds(pointers, spec, machine)


def prune(
    layers: Sequence[View],
    sources: Sequence[View],
    spec: Selection,
    before_writing: BeforeWriting,
) -> None:
    """Zero the weights of `layers` that the spec selects, in place.

    Everything that may fail comes first, and last of it `before_writing`, which gets the
    thresholds. Where it raises, or something before it, nothing is written.
    """
    with _naming_not_finite(layers, sources):
        targets, pointers = _pointers(layers), _ranked(sources)
        with gpus.machine(pointers, _core.cuda_needs) as machine:
            prune_by(pointers, targets, spec, machine, before_writing)


def prune_by(
    pointers: Sequence[_core.Layer],
    targets: Sequence[Pointer],
    spec: Selection,
    machine: Machine,
    before_writing: BeforeWriting,
) -> None:
    """The same for who has pointers to what is ranked and what is zeroed, and a machine."""
    if isinstance(spec, Groups):
        _core.prune_groups(pointers, targets, spec.patterns, machine, before_writing)
    elif isinstance(spec, Blocks):
        _core.prune_blocks(pointers, targets, spec.shapes, spec.spec, machine, before_writing)
    else:
        others = None if targets == pointers else targets  # converting them takes time
        _core.prune(pointers, others, spec, machine, None, before_writing)


def masks(
    layers: Sequence[View],
    sources: Sequence[View],
    outputs: Sequence[View],
    spec: Selection,
) -> None:
    """Write False to `outputs` for the weights that the spec selects, else True."""
    with _naming_not_finite(layers, sources):
        pointers = _ranked(sources)
        with gpus.machine(pointers, _core.cuda_needs) as machine:
            masks_by(pointers, _pointers(outputs), spec, machine)


def masks_by(
    pointers: Sequence[_core.Layer],
    outputs: Sequence[Pointer],
    spec: Selection,
    machine: Machine,
) -> None:
    """The same for who has pointers to what is ranked and to the masks, and a machine."""
    if isinstance(spec, Groups):
        _core.mask_groups(pointers, outputs, spec.patterns, machine)
    elif isinstance(spec, Blocks):
        _core.mask_blocks(pointers, outputs, spec.shapes, spec.spec, machine)
    else:
        _core.masks(pointers, outputs, spec, machine)


def sizes_of_zero_blocks(
    layers: Sequence[View], sources: Sequence[View], shapes: Sequence[tuple[int, int, int]]
) -> list[int]:
    """How many weights of each layer are in blocks that are zero throughout."""
    with _naming_not_finite(layers, sources):
        pointers = _ranked(sources)
        with gpus.machine(pointers) as machine:
            return _core.sizes_of_zero_blocks(pointers, shapes, machine)


def scores(layers: Sequence[View], sources: Sequence[View], outputs: Sequence[View]) -> None:
    """Write the score of every weight to `outputs`."""
    with _naming_not_finite(layers, sources):
        pointers = _ranked(sources)
        with gpus.machine(pointers, _core.cuda_needs_of_scores) as machine:
            _core.score(pointers, _pointers(outputs), machine)


def zero_thresholds(layers: Sequence[View], sources: Sequence[View]) -> list[_core.LayerThreshold]:
    """The thresholds that prune what is zero already, with the number of these zeros."""
    with _naming_not_finite(layers, sources):
        pointers = _ranked(sources)
        with gpus.machine(pointers, _core.cuda_needs) as machine:
            return _core.zero_thresholds(pointers, machine)


def prune_zeros(
    layers: Sequence[View],
    masks: Sequence[View],
    before_writing: BeforeWriting,
) -> None:
    """Zero the weights of `layers` whose masks are False, in place; NaN may stay.

    `before_writing` is called as by `prune`.
    """
    pointers = _pointers(masks)
    try:
        with gpus.machine(pointers, _core.cuda_needs) as machine:
            _core.prune_zeros(pointers, _pointers(layers), machine, before_writing)
    except _core.NotFiniteError as error:  # of the bytes as float8
        position = 0 if error.element is None else error.element.layer
        raise no_mask(masks[position].name) from None


def no_mask(name: str) -> ValueError:
    """What is raised where a mask's bytes are no bools."""
    return ValueError(
        f"mask of layer {name!r} has bytes that are neither 0 nor 1, as a bool view of integers "
        "may have; pass (integers != 0) instead"
    )


def pack_masks(layers: Sequence[View], masks: Sequence[torch.Tensor]) -> None:
    """Write masks of one bit a weight, set where a weight of `layers` is not zero."""
    pointers, addresses = _pointers(layers), [mask.data_ptr() for mask in masks]
    with gpus.machine(pointers) as machine:
        _core.pack(pointers, addresses, machine)


def apply_packed_masks(layers: Sequence[View], masks: Sequence[torch.Tensor]) -> None:
    """Zero the weights of `layers` whose bit in such a mask is not set."""
    pointers, addresses = _pointers(layers), [mask.data_ptr() for mask in masks]
    with gpus.machine(pointers) as machine:
        _core.apply_packed_masks(pointers, addresses, machine)


@contextmanager
def _naming_not_finite(layers: Sequence[View], sources: Sequence[View]) -> Iterator[None]:
    """Check what the engine does not read, and name the NaN or infinity that it meets.

    The engine reads the sources only, but NaN in a layer that has an importance is an error too.
    """
    if sources is not layers:
        _check_finite(layers)
    try:
        yield
    except _core.NotFiniteError as error:
        if error.element is None:
            raise
        what = "layer" if sources is layers else "importance of layer"
        raise _not_finite(what, sources, error.element) from None


def _check_finite(layers: Sequence[View]) -> None:
    pointers = _pointers(layers)
    with gpus.machine(pointers, _core.cuda_needs) as machine:
        element = _core.first_not_finite(pointers, machine)
    if element is not None:
        raise _not_finite("layer", layers, element)


def _not_finite(what: str, views: Sequence[View], element: _core.ElementIndex) -> ValueError:
    view = views[element.layer]
    index = tuple(map(int, np.unravel_index(element.index, view.weight.shape)))
    return ValueError(
        f"{what} {view.name!r} has {view.weight[index].item()} at index {index}, and only "
        f"finite values can be ordered; repair it first, or {ways_out.leaving_out('the layer')}"
    )


def _pointers(views: Sequence[View]) -> Sequence[Pointer]:
    return Views.of(views).pointers


def _ranked(views: Sequence[View]) -> Sequence[_core.Layer]:
    """Pointers of what is ranked: with scales, where a view has them."""
    pointers, scales = _pointers(views), Views.of(views).scales
    if are_none(scales):
        return pointers
    return [
        pointer if scale is None else (*pointer, scale.pointer())
        for pointer, scale in zip(pointers, scales, strict=True)
    ]
