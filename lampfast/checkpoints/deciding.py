"""Decides what is pruned: the engine reads the layers where they lie in their files, once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch

from lampfast import _core, methods, pruning
from lampfast._engine import calls, collector, views
from lampfast._engine.views import View
from lampfast.checkpoints.architectures import Place
from lampfast.checkpoints.layers import Choice
from lampfast.checkpoints.reading import Checkpoint
from lampfast.methods import Allocation, Method
from lampfast.reports import Report


class Decision(NamedTuple):
    """What is pruned of a layer, in one place where it lies.

    Attributes:
        layer: Its name.
        place: Where it lies.
        key: The bits of its threshold: elements of a smaller magnitude go.
        ties: How many of the elements that are equal to it go, the first in row-major order.
        pruned: How many go in all.
        magnitude: The threshold itself; infinity if all of it goes.
    """

    layer: str
    place: Place
    key: int
    ties: int
    pruned: int
    magnitude: float


@collector.paused
def decide(
    checkpoint: Checkpoint,
    choice: Choice,
    sparsity: float | None,
    method: Method | Allocation,
    importance: Mapping[str, torch.Tensor] | None,
) -> tuple[Report, list[Decision], list[str]]:
    """Decide what `lampfast.prune` would prune of the layers of a checkpoint.

    Args:
        checkpoint: That they lie in.
        choice: Its layers.
        sparsity: As for `lampfast.prune`; None to find the zeros that there are.
        method: As for `lampfast.prune`.
        importance: The importances that are compared, by layer or parameter, if any.

    Returns:
        What there is or would be, a decision for each place, and what the user should know.

    Raises:
        TypeError: As for `lampfast.prune`.
        ValueError: As for `lampfast.prune`.
    """
    if sparsity is not None or isinstance(method, Mapping):
        methods.check_choice(sparsity, method)
    layers = _layers(checkpoint, choice)
    if sparsity is None and not isinstance(method, Mapping):
        thresholds = _naming_files(choice, lambda: calls.zero_thresholds(layers, layers))
    else:
        targets, scored, spec = _plan(choice, layers, sparsity, method, importance)
        thresholds = _naming_files(choice, lambda: calls.thresholds(targets, scored, spec))
    for source in checkpoint.sources.values():
        source.check_unchanged()
    decisions = [
        Decision(layer.name, choice.places[layer.name], *found)
        for layer, found in zip(layers, thresholds, strict=True)
    ]
    copies, notices = _of_copies(checkpoint, choice, decisions)
    report = pruning.reported(layers, thresholds, choice.left_out)
    return report, decisions + copies, notices


@collector.paused
def masks(
    checkpoint: Checkpoint,
    choice: Choice,
    sparsity: float | None,
    method: Method | Allocation,
    importance: Mapping[str, torch.Tensor] | None,
) -> dict[str, torch.Tensor]:
    """The masks of a checkpoint's layers, by parameter."""
    layers = _layers(checkpoint, choice)
    targets, scored, spec = _plan(choice, layers, sparsity, method, importance)
    names = {layer.name for layer in layers}
    outputs: dict[str, torch.Tensor] = {}
    parts: dict[str, View] = {}
    for name, whole in choice.layers.wholes.items():
        if names.isdisjoint(choice.layers.names(name)):
            continue  # tied to another one
        outputs[name] = torch.ones(tuple(whole.shape), dtype=torch.bool)
        stack = choice.layers.stacks.get(name)
        cut = [(name, outputs[name])] if stack is None else stack.cut(name, outputs[name])
        for part, mask in cut:
            shaped = mask.reshape(choice.places[part].shape)
            parts[part] = views.part(part, shaped, _core.Dtype.boolean)
    ordered = [parts[layer.name] for layer in layers]
    _naming_files(choice, lambda: calls.masks(targets, scored, ordered, spec))
    return outputs


def _layers(checkpoint: Checkpoint, choice: Choice) -> list[View]:
    """The layers as views of their files."""
    view = checkpoint.mapped()
    tensors: dict[str, torch.Tensor] = {}
    weights = {}
    for name, place in choice.places.items():
        tensor = place.tensor
        if tensor.name not in tensors:
            tensors[tensor.name] = view(tensor)
        whole = tensors[tensor.name]
        offset = int(whole.storage_offset()) + place.offset
        weights[name] = whole.as_strided(place.shape, place.strides, offset)
    return views.layers(weights)


def _plan(
    choice: Choice,
    layers: list[View],
    sparsity: float | None,
    method: Method | Allocation,
    importance: Mapping[str, torch.Tensor] | None,
) -> tuple[Sequence[View], Sequence[View], calls.Selection]:
    """What is to be selected of what, as `lampfast.prune` has it."""
    asked = pruning._asked(sparsity, method, None, None)
    sources = pruning._sources(choice.layers, layers, importance)
    return pruning._plan(choice.layers.wholes, choice.layers, layers, sources, asked)


def _naming_files(choice: Choice, call: Any) -> Any:
    """Call the engine; where it finds NaN, say in which file."""
    try:
        return call()
    except ValueError as error:
        text = str(error)
        with suppress(StopIteration):
            name, place = next(
                (name, place) for name, place in choice.places.items() if f"layer {name!r} " in text
            )
            tensor = place.tensor
            where = f"layer {name!r} (tensor {tensor.name!r} in {tensor.file!r}) "
            raise ValueError(text.replace(f"layer {name!r} ", where, 1)) from None
        raise


def _of_copies(
    checkpoint: Checkpoint, choice: Choice, decisions: Sequence[Decision]
) -> tuple[list[Decision], list[str]]:
    """The same decisions for other places that hold the same layers."""
    by_name = {decision.layer: decision for decision in decisions}
    found, notices = [], []
    for name, place in choice.copies:
        decision = by_name.get(name)
        if decision is None:
            continue
        if checkpoint.are_equal(place.tensor, decision.place.tensor):
            found.append(decision._replace(place=place))
        else:
            notices.append(
                f"{place.tensor.name!r} in {place.tensor.file!r} stays as it is: layer {name!r} is "
                f"loaded from {decision.place.tensor.file!r}, which has other values"
            )
    return found, notices
