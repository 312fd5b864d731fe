"""Decides what is pruned: the engine reads the layers where they lie in their files, once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch

from lampfast import _core, pruning
from lampfast._blocks import Block, Shape
from lampfast._engine import calls, collector, views
from lampfast._engine.calls import Blocks, Groups
from lampfast._engine.scales import Scales
from lampfast._engine.views import View
from lampfast.checkpoints import headers, places, scaling, tiles, zeroing
from lampfast.checkpoints.headers import Tensor
from lampfast.checkpoints.layers import Choice
from lampfast.checkpoints.mapped import Assembly, Mapped
from lampfast.checkpoints.places import Piece, Pieces, Place
from lampfast.checkpoints.reading import Checkpoint
from lampfast.checkpoints.tiles import TileRule, Tiling
from lampfast.methods import Allocation, Method
from lampfast.reports import Report

_MOST_AT_ONCE = 1 << 22  # weights


class Decision(NamedTuple):
    """What is pruned of a layer, in one place where it lies.

    Attributes:
        layer: Its name.
        place: Where it lies.
        key: The bits of its threshold: elements of a smaller magnitude go.
        ties: How many of the elements that are equal to it go, the first in row-major order.
        pruned: How many of the layer go in all; where blocks go, how many do here.
        magnitude: The threshold itself; infinity if all of it goes.
        start: The index in the layer of the first element here.
        pattern: n, m and the dimension, if n of every m elements stay whatever the threshold.
        block: The rows and columns of a tile and the dimension of the inputs, if tiles go whole.
    """

    layer: str
    place: Place
    key: int
    ties: int
    pruned: int
    magnitude: float
    start: tuple[int, ...]
    pattern: tuple[int, int, int] | None = None
    block: Shape | None = None


class Asked(NamedTuple):
    """What is asked for, as for `lampfast.prune`."""

    sparsity: float | None = None
    method: Method | Allocation = "lamp"
    pattern: str | None = None
    dim: int | None = None
    block: Block | None = None

    @property
    def is_nothing(self) -> bool:
        """Whether it is only what zeros there are."""
        amounts = (self.sparsity, self.pattern, self.block)
        return all(it is None for it in amounts) and not isinstance(self.method, Mapping)


Importance: TypeAlias = Mapping[str, torch.Tensor] | None


@collector.paused
def decide(
    checkpoint: Checkpoint,
    choice: Choice,
    asked: Asked,
    importance: Importance,
    folder: Path | None = None,
) -> tuple[Report, list[Decision], list[str]]:
    """Decide what `lampfast.prune` would prune of the layers of a checkpoint.

    Args:
        checkpoint: That they lie in.
        choice: Its layers.
        asked: How much; nothing to find the zeros that there are.
        importance: The importances that are compared, by layer or parameter, if any.
        folder: Where layers are put together that do not lie in one place.

    Returns:
        What there is or would be, a decision for each place, and what the user should know.

    Raises:
        TypeError: As for `lampfast.prune`.
        ValueError: As for `lampfast.prune`.
    """
    is_pruned = not asked.is_nothing
    layers = _layers(checkpoint, choice, importance, folder, write=is_pruned)
    sources: Sequence[View] = layers
    spec: calls.Selection | None = None
    if not is_pruned:
        thresholds = _naming_files(choice, lambda: calls.zero_thresholds(layers, layers))
    else:
        targets, sources, spec = _selected(choice, layers, asked, importance)
        _check_whole(choice, layers, spec)
        thresholds = _naming_files(choice, lambda: calls.thresholds(targets, sources, spec))
    for source in checkpoint.sources.values():
        source.check_unchanged()
    decisions = _decisions(choice, layers, sources, thresholds, spec)
    copies, notices = _of_copies(checkpoint, choice, decisions)
    report = pruning.reported(layers, thresholds, choice.left_out)
    return report, decisions + copies, notices


@collector.paused
def masks(
    checkpoint: Checkpoint, choice: Choice, asked: Asked, importance: Importance
) -> dict[str, torch.Tensor]:
    """The masks of a checkpoint's layers, by parameter."""
    layers = _layers(checkpoint, choice, importance, None)
    targets, sources, spec = _selected(choice, layers, asked, importance)
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
            shaped = mask.reshape(places.shape_of(choice.pieces[part]))
            parts[part] = views.part(part, shaped, _core.Dtype.boolean)
    ordered = [parts[layer.name] for layer in layers]
    _naming_files(choice, lambda: calls.masks(targets, sources, ordered, spec))
    return outputs


def _layers(
    checkpoint: Checkpoint,
    choice: Choice,
    importance: Importance,
    folder: Path | None,
    *,
    write: bool = False,
) -> list[View]:
    """The layers as views of their files, with their scales unless importances are ranked."""
    scales = scaling.of_layers(checkpoint, choice.views) if importance is None else {}
    assembly = Assembly(checkpoint.mapped(), choice.pieces.values(), folder)
    weights = {name: assembly.layer(it) for name, it in choice.pieces.items()}
    found = views.layers(weights, write=write)
    return [view.scaled(scales[view.name]) if view.name in scales else view for view in found]


def _selected(
    choice: Choice, layers: list[View], asked: Asked, importance: Importance
) -> tuple[Sequence[View], Sequence[View], calls.Selection]:
    """What is to be selected of what, as `lampfast.prune` has it."""
    return pruning.selected(
        choice.model,
        choice.layers,
        layers,
        asked.sparsity,
        method=asked.method,
        pattern=asked.pattern,
        dim=asked.dim,
        block=asked.block,
        importance=importance,
    )


def _decisions(
    choice: Choice,
    layers: Sequence[View],
    sources: Sequence[View],
    thresholds: Sequence[_core.LayerThreshold],
    spec: calls.Selection | None,
) -> list[Decision]:
    """What goes of every piece of every layer."""
    patterns: Sequence[tuple[int, int, int] | None] = [None] * len(layers)
    blocks: Sequence[Shape | None] = [None] * len(layers)
    if isinstance(spec, Groups):
        patterns = spec.patterns
    elif isinstance(spec, Blocks):
        blocks = spec.shapes
    decisions = []
    rows = zip(layers, sources, thresholds, patterns, blocks, strict=True)
    for layer, compared, found, pattern, block in rows:
        pieces = choice.pieces[layer.name]
        ties = _ties(pieces, layer, compared, found)
        counts = _pruned(pieces, compared, found, block)
        decisions += [
            Decision(
                layer.name,
                piece.place,
                found.key,
                equal,
                count,
                found.magnitude,
                piece.start,
                pattern,
                block,
            )
            for piece, equal, count in zip(pieces, ties, counts, strict=True)
        ]
    return decisions


def _ties(pieces: Pieces, layer: View, source: View, found: _core.LayerThreshold) -> Sequence[int]:
    """How many ties go of each piece, when the first of the layer do.

    With this, each piece is pruned by itself, in whatever order files are written.
    """
    if len(pieces) == 1 or not found.ties:
        return [found.ties] * len(pieces)
    weight = torch.as_tensor(source.weight)
    compared = zeroing.bits(weight)
    rule: zeroing.Threshold | zeroing.ScaledThreshold
    if source.scales is None:
        rule = zeroing.Threshold(found.key, found.ties)
    else:
        shape = source.shape
        rule = zeroing.ScaledThreshold(found.key, found.ties, source.scales, shape, weight.dtype)
    counts, row = [0] * len(pieces), max(1, layer.size // layer.shape[0])
    step = max(1, _MOST_AT_ONCE // row)
    for first in range(0, layer.shape[0], step):
        gone = rule.going_ties(compared[first : first + step], first * row)
        for i, piece in enumerate(pieces):
            rows, *others = piece.box
            near = slice(max(rows.start - first, 0), max(rows.stop - first, 0))
            counts[i] += int(np.count_nonzero(gone[(near, *others)]))
    return counts


def _pruned(
    pieces: Pieces, source: View, found: _core.LayerThreshold, block: Shape | None
) -> Sequence[int]:
    """How many weights each piece's decision counts as pruned."""
    if block is None or len(pieces) == 1:
        return [found.pruned] * len(pieces)
    weight = torch.as_tensor(source.weight)
    fates, tiling = tiles.fates(weight, block, found.pruned), Tiling(block, weight.shape)
    return [tiling.part(fates, piece.box) for piece in pieces]


def _check_whole(choice: Choice, layers: Sequence[View], spec: calls.Selection) -> None:
    """Check that weights that go together lie together."""
    if isinstance(spec, Groups):
        _check_groups(choice, layers, spec.patterns)
    elif isinstance(spec, Blocks):
        _check_tiles(choice, layers, spec.shapes)


def _check_groups(
    choice: Choice, layers: Sequence[View], patterns: Sequence[tuple[int, int, int]]
) -> None:
    """Check that no group of weights lies in two pieces of its layer, which are written apart."""
    for layer, (_, m, dim) in zip(layers, patterns, strict=True):
        for piece in choice.pieces[layer.name]:
            along = piece.box[dim] if piece.box else slice(0, 0)
            if along.start % m or (along.stop % m and along.stop != layer.shape[dim]):
                raise ValueError(
                    f"layer {layer.name!r} lies in pieces, of which one has the indices "
                    f"{along.start} to {along.stop} of dimension {dim}, so that groups of {m} "
                    "weights are cut; choose another pattern or dim=, or leave it out with exclude="
                )


def _check_tiles(choice: Choice, layers: Sequence[View], blocks: Sequence[Shape]) -> None:
    """Check that no tile lies in two pieces of its layer, which are written apart."""
    for layer, block in zip(layers, blocks, strict=True):
        tiling = Tiling(block, layer.shape)
        for piece in choice.pieces[layer.name]:
            dim = tiling.cut_dimension(piece.box)
            if dim is not None:
                along = piece.box[dim]
                raise ValueError(
                    f"layer {layer.name!r} lies in pieces, of which one has the indices "
                    f"{along.start} to {along.stop} of dimension {dim}, so that tiles of "
                    f"{tiling.rows} x {tiling.columns} weights are cut; choose another block=, or "
                    "leave it out with exclude="
                )


def rules(
    files: Mapped,
    importances: Mapping[str, torch.Tensor],
    scales: Mapping[str, Scales],
    folder: Path,
) -> Callable[[Decision], zeroing.Rule]:
    """What decisions mean for the places that they are for.

    Args:
        files: The checkpoint's.
        importances: What was compared instead of the weights, by layer, if anything.
        scales: By layer, of those that have some.
        folder: Where layers are put that cannot be compared where they lie.
    """

    def rule(decision: Decision) -> zeroing.Rule:
        layer, place, key, ties, pruned, _, start, pattern, block = decision
        dtype = headers.DTYPES[place.tensor.dtype]
        assert dtype is not None  # only such are layers
        scored = importances.get(layer)
        if scored is not None:
            scored = scored[Piece(place, start).box]
        if pattern is not None:
            return zeroing.GroupRule(pattern, files.array(place), dtype, scored)
        if block is not None:
            lying = places.whole(place)
            return TileRule(
                block,
                pruned,
                place.shape,
                lambda: Assembly(files, [lying], folder).layer(lying) if scored is None else scored,
            )
        if layer in scales:
            own = scaling.of_piece(scales[layer], start, place.shape)
            return zeroing.ScaledThreshold(key, ties, own, place.shape, dtype)
        return zeroing.Threshold(key, ties, None if scored is None else zeroing.bits(scored))

    return rule


def _naming_files(choice: Choice, call: Any) -> Any:
    """Call the engine; where it finds NaN, say in which file."""
    try:
        return call()
    except ValueError as error:
        text = str(error)
        with suppress(StopIteration):
            name, pieces = next(
                (name, pieces)
                for name, pieces in choice.pieces.items()
                if f"layer {name!r} " in text
            )
            files = dict.fromkeys(piece.place.tensor.file for piece in pieces)
            tensors = dict.fromkeys(piece.place.tensor.name for piece in pieces)
            where = f"(tensor {', '.join(map(repr, tensors))} in {', '.join(map(repr, files))})"
            text = text.replace(f"layer {name!r} ", f"layer {name!r} {where} ", 1)
            raise ValueError(text) from None
        raise


def _of_copies(
    checkpoint: Checkpoint, choice: Choice, decisions: Sequence[Decision]
) -> tuple[list[Decision], list[str]]:
    """The same decisions for other places that hold the same layers."""
    by_tensor: dict[Tensor, list[Decision]] = {}
    for decision in decisions:
        by_tensor.setdefault(decision.place.tensor, []).append(decision)
    found, notices = [], []
    for tensor, copy in choice.copies:
        concerned = by_tensor.get(tensor, [])
        if not concerned:
            continue
        if checkpoint.hold_the_same(*map(_whole, (tensor, copy))):
            found += [it._replace(place=it.place._replace(tensor=copy)) for it in concerned]
        else:
            notices.append(
                f"{copy.name!r} in {copy.file!r} stays as it is: layer {concerned[0].layer!r} is "
                f"loaded from {tensor.file!r}, which has other values"
            )
    return found, notices


def _whole(tensor: Tensor) -> Pieces:
    return places.whole(Place(tensor, 0, tensor.shape, tensor.strides))
