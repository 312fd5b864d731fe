"""Copies of a model that have its zeros, as its averages should: their layers, and which are seen.

A copy's layers are found by their names, of which wrappers such as AveragedModel or a compiled
module put a component in front.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TypeAlias, cast

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from lampfast import parameters
from lampfast._engine import views
from lampfast._engine.views import View, Weight
from lampfast.parameters import Patterns

Copy: TypeAlias = nn.Module | Mapping[str, torch.Tensor]
Copies: TypeAlias = Copy | Sequence[Copy] | Sequence[torch.Tensor] | None

_AVERAGE = re.compile(r"AveragedModel|ModelE(ma|MA)|ExponentialMovingAverage|EMAModel")
_WAY_OUT = "pass a copy of this very model, or a mapping of its layers' names to the copy's tensors"


def each(copies: Copies) -> list[Copy]:
    """The distinct copies."""
    if copies is None:
        return []
    if isinstance(copies, nn.Module | Mapping):
        return [copies]
    if not isinstance(copies, Sequence) or isinstance(copies, str | bytes | bytearray | range):
        raise TypeError(
            f"copies is a {type(copies).__name__}; pass a module, as an AveragedModel of the "
            "model, a mapping of its layers' names to tensors, or a list of such"
        )
    if copies and all(isinstance(it, torch.Tensor) for it in copies):
        return [{str(i): cast(torch.Tensor, it) for i, it in enumerate(copies)}]
    for position, copy in enumerate(copies):
        if not isinstance(copy, nn.Module | Mapping):
            raise TypeError(
                f"copies has a {type(copy).__name__} at position {position}; pass modules, or "
                "mappings of the layers' names to tensors"
            )
    return list({id(it): cast(Copy, it) for it in copies}.values())


def layers(
    copies: Copies, originals: Sequence[View], wholes: Mapping[str, Weight]
) -> list[list[View]]:
    """Find the layers of a model in copies of it.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 2))
        >>> average = torch.optim.swa_utils.AveragedModel(model)
        >>> originals = views.layers({"0.weight": model[0].weight})
        >>> found = layers([average], originals, {"0.weight": model[0].weight})
        >>> [[view.name for view in copies] for copies in found]
        [['copies[0].module.0.weight']]

    Args:
        copies: A copy or several: modules, or their parameters by name or, for a model that is
            a list, in its order.
        originals: The distinct layers of the model.
        wholes: The same by name, tied ones under each of theirs.

    Returns:
        For each of the originals what it is in the copies; none for no copy.

    Raises:
        TypeError: A copy is of another type, or a layer of one is not a tensor that can be pruned.
        ValueError: A copy lacks a layer, has it in another shape, cannot be written, or shares
            memory with the model.
    """
    given = each(copies)
    if not given:
        return []
    found: list[list[View]] = [[] for _ in originals]
    positions = _positions(originals, wholes)
    for number, copy in enumerate(given):
        for position, view in _of_copy(copy, f"copies[{number}]", originals, positions):
            found[position].append(view)
    return found


def warn_of_those_inside(model: object, names: Collection[str], copies: Copies) -> None:
    """Warn the caller's caller of averages in a model that do not follow it.

    Args:
        model: The model.
        names: The names of its layers.
        copies: What follows it; None if nobody has thought of that.
    """
    if not isinstance(model, nn.Module):
        return
    averages = [(name, it) for name, it in model.named_modules() if name and is_average(it)]
    given = [it for copy in each(copies) for it in _tensors(copy).values()]
    followed = [it for it in given if isinstance(it, torch.Tensor)]
    for name, average in averages:
        if any(layer.startswith(f"{name}.") for layer in names):
            problem = (
                "its layers count as layers of their own, whose zeros are not those of what it "
                f"averages; pass exclude='{name}.*' and copies=model.{name}"
            )
        elif copies is None or (followed and not has_any(average, followed)):
            problem = (
                "it does not get the zeros of what it averages; pass copies=model."
                f"{name}, or copies=[] if it is to keep its own"
            )
        else:
            continue
        cls = type(average).__name__
        warnings.warn(f"{name!r} is an {cls} inside the model, and {problem}", stacklevel=3)


def is_copy(value: object, model: nn.Module, choice: Mapping[str, Patterns]) -> bool:
    """Whether a module or a mapping has layers like all that are chosen of a model, not its own."""
    if not isinstance(value, nn.Module | Mapping) or value is model:
        return False
    wholes = parameters.find(model, **choice).layers.wholes
    try:
        tensors = _tensors(value)
        found = _matched(dict.fromkeys(wholes, 0), tensors, "", may_lack=False)
    except (TypeError, ValueError):
        return False
    pairs = [(tensors[theirs], wholes[name]) for name, theirs in found.items()]
    return all(
        isinstance(theirs, torch.Tensor) and theirs.shape == ours.shape for theirs, ours in pairs
    ) and not has_any(value, wholes.values())


def has_any(value: nn.Module | Mapping[str, object], weights: Iterable[Weight]) -> bool:
    """Whether some of a module's parameters, or of a mapping's tensors, are among weights."""
    found = value.values() if isinstance(value, Mapping) else value.parameters()
    memory = {_memory(tensor) for tensor in found if isinstance(tensor, torch.Tensor)}
    return not memory.isdisjoint(map(_memory, weights))


def is_average(module: object) -> bool:
    """Whether the class of a module is one that averages another module's weights."""
    return isinstance(module, nn.Module) and _averages(type(module))


def _matches(cls: type[nn.Module]) -> bool:
    return any(_AVERAGE.match(base.__name__) for base in cls.__mro__)


_averages = cast(Callable[[type[nn.Module]], bool], lru_cache(maxsize=1024)(_matches))


def _positions(originals: Sequence[View], wholes: Mapping[str, Weight]) -> dict[str, int]:
    """Which of the layers each name is one of, those of tied ones too."""
    known = {_memory(view.weight): i for i, view in enumerate(originals)}
    positions = {}
    for name, whole in wholes.items():
        position = known.get(_memory(whole))
        if position is not None and originals[position].shape == whole.shape:
            positions[name] = position
    return positions


def _memory(weight: Weight) -> object:
    """What tied tensors have in common."""
    tensor = cast(torch.Tensor, weight)
    try:
        return tensor.untyped_storage()._cdata, tensor.storage_offset()
    except (RuntimeError, ValueError):  # it has no memory, which is told when it is viewed
        return id(tensor)


def _of_copy(
    copy: Copy, label: str, originals: Sequence[View], positions: Mapping[str, int]
) -> Iterator[tuple[int, View]]:
    """The layers of one copy, each with its position among those of the model."""
    tensors = _tensors(copy)
    chosen: dict[object, tuple[str, int]] = {}  # by memory, as layers of a copy may be tied
    for name, theirs in _matched(positions, tensors, label, isinstance(copy, Mapping)).items():
        tensor, position = tensors[theirs], positions[name]
        _check_same_shape(f"{label}.{theirs}", tensor, name, originals[position])
        _, other = chosen.setdefault(_memory(tensor), (theirs, position))
        if other != position:
            raise ValueError(
                f"{label}.{theirs} is tied to another layer there, and layer {name!r} is not tied "
                f"to it in the model; {_WAY_OUT}"
            )
    named = {f"{label}.{theirs}": tensors[theirs] for theirs, _ in chosen.values()}
    found = views.layers(named, write=True)
    for i in views.sharing(found, originals):
        raise ValueError(
            f"{found[i].name} may share memory with the model's layers, so that it is no copy; "
            f"leave it out with exclude= if it lies in the model, or else {_WAY_OUT}"
        )
    where = [position for _, position in chosen.values()]
    return zip(where, found, strict=True)


def _tensors(copy: Copy) -> dict[str, torch.Tensor]:
    if isinstance(copy, Mapping):
        for key in copy:
            if not isinstance(key, str):
                raise TypeError(f"copies has the key {key!r}; a layer's name is a str")
        return dict(copy)
    return dict(copy.named_parameters(remove_duplicate=False))


def _check_same_shape(full_name: str, tensor: object, name: str, original: View) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{full_name} is a {type(tensor).__name__}; pass a torch tensor")
    if not is_lazy(tensor) and tensor.shape != original.shape:
        raise ValueError(
            f"{full_name} has shape {tuple(tensor.shape)}, layer {name!r} has shape "
            f"{tuple(original.shape)}; {_WAY_OUT}"
        )


def _matched(
    names: Mapping[str, int], tensors: Mapping[str, object], label: str, may_lack: bool
) -> dict[str, str]:
    """The names that a copy has for the names of layers, or for some of them if it may lack others.

    Wrappers of the copy are taken off before any of the model, since they are what it has more of.
    """
    for ours in _levels(names):
        if len(ours) < len(names):
            break
        for theirs in reversed(list(_levels(tensors))):
            if theirs.keys() >= ours.keys():
                return {name: theirs[short] for short, name in ours.items()}
    if may_lack and (there := {name: name for name in names if name in tensors}):
        return there
    missing = [name for name in names if name not in tensors]
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    raise ValueError(
        f"{label} has no layer {missing[0]!r}{more} of the model, it has "
        f"{list(tensors)[:3]}; {_WAY_OUT}"
    )


def _levels(names: Iterable[str]) -> Iterator[dict[str, str]]:
    """Names by what is left of them: as they are, and as often without a first part as all share.

    Example:
        >>> [list(level) for level in _levels(["n_averaged", "module.0.weight", "module.2.weight"])]
        [['n_averaged', 'module.0.weight', 'module.2.weight'], ['0.weight', '2.weight']]
    """
    level = {name: name for name in names}
    while level:
        yield level
        parts = {short: short.partition(".") for short in level if "." in short}
        if len({first for first, _, _ in parts.values()}) != 1:
            return
        level = {rest: level[short] for short, (_, _, rest) in parts.items()}
