"""The verbs on models that are sharded over processes, of which every rank makes the same call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from lampfast import _arguments, _core, methods
from lampfast._engine import in_place, placed, shards
from lampfast._engine.stacks import Layers
from lampfast._engine.views import View, Weight
from lampfast._training import replicas
from lampfast.methods import Allocation, Method
from lampfast.reports import Report

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from lampfast._engine.sharded import Sharded

Thresholds = list[_core.LayerThreshold]


def are_needed(
    found: Layers, group: ProcessGroup | None, pattern: object = None, block: object = None
) -> bool:
    """Whether a layer is a DTensor, of which other ranks have other parts; or a group is given.

    Raises:
        TypeError: What is given is no group of torch.distributed.
        ValueError: torch.distributed does not run; or a pattern or block is asked for, or a layer
            has scales.
    """
    replicas.check_group(group, "group")
    needed = group is not None or any(map(shards.is_sharded, found.wholes.values()))
    if needed and found.scales:
        raise ValueError(
            f"layer {next(iter(found.scales))!r} is quantised, with scales beside it, in a "
            "sharded model; prune it before it is quantised or sharded, or leave it out with "
            "exclude="
        )
    if needed and pattern is not None:
        raise ValueError(
            f"pattern={pattern!r} is asked for in a sharded model, whose groups may lie on several "
            "ranks; choose the pattern before the model is sharded"
        )
    if needed and block is not None:
        raise ValueError(
            f"block={block!r} is asked for in a sharded model, whose tiles may lie on several "
            "ranks; prune by blocks before the model is sharded"
        )
    return needed


def thresholds(
    found: Layers,
    group: ProcessGroup | None,
    sparsity: float | None,
    method: Method | Allocation,
    importance: Mapping[str, Weight] | None,
) -> tuple[Sequence[View], Thresholds]:
    """The layers, and what pruning them would need; without a sparsity, what is zero now."""
    with _sharded(found, group, ("report", sparsity, method), importance) as model:
        is_asked = sparsity is not None or isinstance(method, Mapping)
        if is_asked:
            return _layers(model), model.thresholds(_spec(model, sparsity, method))
        return _layers(model), model.zeros()


def masks(
    found: Layers,
    group: ProcessGroup | None,
    sparsity: float | None,
    method: Method | Allocation,
    importance: Mapping[str, Weight] | None,
) -> dict[str, Any]:
    """By parameter, True where a weight is kept; each rank has the part that it has of them."""
    with _sharded(found, group, ("masks", sparsity, method), importance) as model:
        return model.masks(_spec(model, sparsity, method))


def pruned(
    found: Layers,
    group: ProcessGroup | None,
    sparsity: float | None,
    method: Method | Allocation,
    importance: Mapping[str, Weight] | None,
    result: Callable[[Sequence[View], Thresholds], Report],
    record: Callable[[Report], None] | None = None,
) -> Report:
    """Prune, as soon as no rank can fail any more; `result` is made on all of them before that.

    `record` is called after it, since until then another rank may keep the weights from changing.
    """
    reports: list[Report] = []
    with _sharded(found, group, ("prune", sparsity, method), importance, write=True) as model:
        spec = _spec(model, sparsity, method)

        def write(before_writing: in_place.BeforeWriting) -> None:
            model.prune(spec, before_writing)
            if record is not None:
                record(reports[0])

        def made(thresholds: Thresholds) -> Report:
            reports.append(result(_layers(model), thresholds))
            return reports[0]

        return in_place.zero(
            [*found.wholes.values(), *(view.weight for view in model.local_views())],
            model.local_views(),
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
    with _sharded(found, None, ("scores", None, "lamp"), importance) as model:
        for name, weight in found.wholes.items():
            model.wait()  # for all, or for one that has failed: gathering would hang then
            stacks = {name: found.stacks[name]} if name in found.stacks else {}
            given = importance and {
                it: placed.whole(importance[it]) for it in importance if it == name
            }
            found_whole = of_whole(Layers({name: placed.whole(weight)}, stacks), given)
            made[name] = placed.cut(weight, found_whole[name])
        model.wait()
    return made


@contextmanager
def _sharded(
    found: Layers,
    group: ProcessGroup | None,
    call: tuple[object, ...],
    importance: Mapping[str, Weight] | None,
    *,
    write: bool = False,
) -> Iterator[Sharded]:
    """A section that has what all ranks hold; if it fails on one of them, it does on all."""
    from lampfast._engine import sharded

    verb, sparsity, method = call
    asked = verb, sparsity, dict(method) if isinstance(method, Mapping) else method
    question = *asked, importance is None
    communicator = sharded.communicator_of(found.wholes, group)
    with communicator.failing_together():
        yield sharded.Sharded(
            found,
            question,
            write=write,
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
    if group is None and not any(map(shards.is_sharded, weights)):
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


def _layers(model: Sharded) -> Sequence[View]:
    """The layers, for those who ask for no more than names, shapes and sizes."""
    return cast(Sequence[View], model.layers)


def _spec(
    model: Sharded, sparsity: float | None, method: Method | Allocation
) -> _core.SelectionSpec:
    """What the engine is to select of all layers."""
    if isinstance(method, Mapping):
        return methods.allocation_spec(method, model.stacks, _layers(model))
    count = _arguments.count("sparsity", sparsity, sum(layer.size for layer in model.layers))
    if methods.looks_at_magnitudes(method):
        return methods.selection_spec(method, count, [], [])
    zeros = [found.pruned for found in model.zeros()]
    return methods.spec_beside_zeros(method, count, [it.shape for it in model.layers], zeros)
