"""The verbs on models that are sharded over processes, of which every rank makes the same call."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from torch import nn

from lampfast import _arguments, _blocks, _core, _patterns, methods
from lampfast._blocks import Block
from lampfast._engine import calls, in_place, placed, shards
from lampfast._engine.stacks import Layers
from lampfast._engine.views import View, Weight
from lampfast._patterns import Pattern
from lampfast._training import replicas
from lampfast.methods import Allocation, Method
from lampfast.reports import Report

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from lampfast._engine.sharded import Sharded

Thresholds = list[_core.LayerThreshold]


class Asked(NamedTuple):
    """Which weights are to go."""

    sparsity: float | None
    method: Method | Allocation
    pattern: Pattern | None
    block: Block | None


def are_needed(found: Layers, group: ProcessGroup | None) -> bool:
    """Whether a layer is a DTensor, of which other ranks have other parts; or a group is given.

    Raises:
        TypeError: What is given is no group of torch.distributed.
        ValueError: torch.distributed does not run, or a layer has scales.
    """
    replicas.check_group(group, "group")
    needed = group is not None or shards.are_sharded(found.wholes.values())
    if needed and found.scales:
        raise ValueError(
            f"layer {next(iter(found.scales))!r} is quantised, with scales beside it, in a "
            "sharded model; prune it before it is quantised or sharded, or leave it out with "
            "exclude="
        )
    return needed


def thresholds(
    model: object,
    found: Layers,
    group: ProcessGroup | None,
    asked: Asked | None,
    importance: Mapping[str, Weight] | None,
) -> tuple[Sequence[View], Thresholds]:
    """The layers, and what pruning them would need; if nothing is asked, what is zero now."""
    with _sharded(found, group, "report", asked, importance) as everyone:
        if asked is None:
            return _layers(everyone), everyone.zeros()
        selection = _selection(model, found, group, everyone, asked)
        return _layers(everyone), everyone.thresholds(selection)


def masks(
    model: object,
    found: Layers,
    group: ProcessGroup | None,
    asked: Asked,
    importance: Mapping[str, Weight] | None,
) -> dict[str, Any]:
    """By parameter, True where a weight is kept; each rank has the part that it has of them."""
    with _sharded(found, group, "masks", asked, importance) as everyone:
        return everyone.masks(_selection(model, found, group, everyone, asked))


def pruned(
    model: object,
    found: Layers,
    group: ProcessGroup | None,
    asked: Asked,
    importance: Mapping[str, Weight] | None,
    result: Callable[[Sequence[View], Thresholds], Report],
    record: Callable[[Report], None] | None = None,
) -> Report:
    """Prune, as soon as no rank can fail any more; `result` is made on all of them before that.

    `record` is called after it, since until then another rank may keep the weights from changing.
    """
    reports: list[Report] = []
    with _sharded(found, group, "prune", asked, importance, write=True) as everyone:
        selection = _selection(model, found, group, everyone, asked)

        def write(before_writing: in_place.BeforeWriting) -> None:
            everyone.prune(selection, before_writing)
            if record is not None:
                record(reports[0])

        def made(thresholds: Thresholds) -> Report:
            reports.append(result(_layers(everyone), thresholds))
            return reports[0]

        return in_place.zero(
            [*found.wholes.values(), *(view.weight for view in everyone.local_views())],
            everyone.local_views(),
            write,
            made,
        )


def scores(
    found: Layers,
    importance: Mapping[str, Weight] | None,
    of_whole: Callable[[Layers, Mapping[str, Weight] | None], dict[str, Any]],
) -> dict[str, Any]:
    """By parameter, the scores of what this rank has; each is gathered to be sorted."""
    made: dict[str, Any] = {}
    with _sharded(found, None, "scores", None, importance) as everyone:
        for name, weight in found.wholes.items():
            everyone.wait()  # for all, or for one that has failed: gathering would hang then
            stacks = {name: found.stacks[name]} if name in found.stacks else {}
            given = importance and {
                it: placed.whole(importance[it]) for it in importance if it == name
            }
            found_whole = of_whole(Layers({name: placed.whole(weight)}, stacks), given)
            made[name] = placed.cut(weight, found_whole[name])
        everyone.wait()
    return made


@contextmanager
def _sharded(
    found: Layers,
    group: ProcessGroup | None,
    verb: str,
    asked: Asked | None,
    importance: Mapping[str, Weight] | None,
    *,
    write: bool = False,
) -> Iterator[Sharded]:
    """A section that has what all ranks hold; if it fails on one of them, it does on all."""
    from lampfast._engine import sharded

    if asked is not None and isinstance(asked.method, Mapping):
        asked = asked._replace(method=dict(asked.method))
    question = verb, asked and tuple(asked), importance is None
    communicator = sharded.communicator_of(found.wholes, group)
    with communicator.failing_together():
        yield sharded.Sharded(
            found,
            question,
            write=write,
            through_host=asked is not None and asked.block is not None,
            importance=importance,
            group=group,
            communicator=communicator,
        )


@contextmanager
def telling_others(model: object, group: ProcessGroup | None) -> Iterator[None]:
    """A section before the first exchange of a call: if it fails, other ranks wait for that."""
    try:
        yield
    except BaseException as error:
        with suppress(Exception):  # what is wrong may be the model or the group themselves
            _tell(model, group, error)
        raise


def _tell(model: object, group: ProcessGroup | None, error: BaseException) -> None:
    weights = _weights(model)
    if group is None and not shards.are_sharded(weights):
        return
    from lampfast._engine import sharded

    sharded.communicator_of(dict(enumerate(weights)), group).give_up(error)


def _weights(model: object) -> list[object]:
    """All that may be a layer of a model, whatever it is."""
    if isinstance(model, nn.Module):
        return list(model.parameters())
    if isinstance(model, Mapping):
        return list(model.values())
    if not isinstance(model, Sequence):
        return []
    found: list[object] = []
    for entry in model:
        # A weight that its module computes may compute it anew whenever it is looked at.
        found.extend(entry[0].parameters() if isinstance(entry, Sequence) else [entry])
    return found


def _layers(everyone: Sharded) -> Sequence[View]:
    """The layers, for those who ask for no more than names, shapes and sizes."""
    return cast(Sequence[View], everyone.layers)


def _selection(
    model: object, found: Layers, group: ProcessGroup | None, everyone: Sharded, asked: Asked
) -> calls.Selection:
    """What the engine is to select of all layers.

    Raises:
        ValueError: A group or a tile lies in several pieces of its layer; or as for `prune`.
    """
    grouped, tiles, layers = None, None, _layers(everyone)
    if asked.pattern is not None or asked.block is not None:
        first_dims, in_stacks = _lie(model, found, group, everyone)
    if asked.block is not None:
        tiles = _blocks.shapes(first_dims, in_stacks, layers, asked.block)
        _blocks.check_cuts(tiles, layers, everyone.cuts())
    if asked.pattern is not None:
        grouped = _patterns.grouped(first_dims, layers, asked.pattern.dim)
        _patterns.check_cuts(asked.pattern.size, grouped, everyone.cuts())
    is_apart, spec = isinstance(asked.method, Mapping), None
    if is_apart or asked.sparsity is not None:
        spec = _spec(everyone, asked, tiles)
    if asked.pattern is not None and grouped is not None:
        pruned = None if spec is None else [it.pruned for it in everyone.thresholds(spec)]
        return _patterns.groups(asked.pattern, grouped, pruned, are_apart=is_apart)
    assert spec is not None
    return spec if tiles is None else calls.Blocks(tiles, spec)


def _lie(
    model: object, found: Layers, group: ProcessGroup | None, everyone: Sharded
) -> tuple[dict[str, int], set[str]]:
    """The layers with inputs in their first dimension, and those that are slices of a parameter.

    In a group a rank knows this of its own layers only, so all tell each other.
    """
    first_dims = _patterns.first_dims(model, found)
    in_stacks = found.slices()
    if group is not None:
        own = json.dumps([first_dims, sorted(in_stacks)])
        for answer in everyone.communicator.gather(own.encode(), 256):
            dims, names = json.loads(answer)
            first_dims |= dims
            in_stacks.update(names)
    return first_dims, in_stacks


def _spec(
    everyone: Sharded, asked: Asked, tiles: Sequence[_blocks.Shape] | None
) -> _core.SelectionSpec:
    """What a method selects of all layers."""
    if isinstance(asked.method, Mapping):
        return methods.allocation_spec(asked.method, everyone.stacks, _layers(everyone))
    size = sum(layer.size for layer in everyone.layers)
    count = _arguments.count("sparsity", asked.sparsity, size)
    if methods.looks_at_magnitudes(asked.method):
        return methods.selection_spec(asked.method, count, [], [])
    if tiles is not None:
        zeros = everyone.sizes_of_zero_blocks(tiles)
    else:
        zeros = [found.pruned for found in everyone.zeros()]
    return methods.spec_beside_zeros(
        asked.method, count, [it.shape for it in everyone.layers], zeros
    )
