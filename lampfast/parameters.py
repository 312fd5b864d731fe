"""From a model to its layers by name: which parameters are pruned, unless asked otherwise.

`Model`, `Patterns` and `Weight` are the types of what `lampfast.prune` and the others take.
"""

import difflib
import re
import reprlib
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
import torch
from torch import nn

from lampfast import _modules, _scales, _sharding
from lampfast._engine.scales import Quantised
from lampfast._engine.stacks import Layers, Stack
from lampfast._engine.views import Weight
from lampfast._modules import DIRECTION_PROBLEM, ONE_WEIGHT, Other, Unfit
from lampfast._scales import SCALE

__all__ = ["Model", "Patterns", "Weight"]

Model: TypeAlias = (
    nn.Module | Mapping[str, Weight] | Sequence[Weight] | Sequence[tuple[nn.Module, str]]
)
"""What can be pruned; see `lampfast.prune`."""
Patterns: TypeAlias = str | Sequence[str] | None
"""One or more glob patterns of layers' names."""

_NO_WEIGHTS = (str, bytes, bytearray, memoryview, range)  # sequences that hold no tensors


class Found(NamedTuple):
    """The layers of a model, and what is none.

    Attributes:
        layers: Those that are pruned.
        others: Names and parameters that are none of them, with the reason.
        unfit: What would be a layer but for how it is computed, and nobody has asked for.
        is_default: Whether nobody has chosen among them.
    """

    layers: Layers
    others: list[Other]
    unfit: dict[str, Unfit]
    is_default: bool

    def ranked(self, importance: object) -> "Found":
        """The same with the layers' scales, unless importances are ranked in their place."""
        return self._replace(layers=self.layers.ranked(importance))


def named(
    model: Model, include: Patterns = None, exclude: Patterns = None, stacked: Patterns = None
) -> dict[str, Weight]:
    """The layers of a model, by name.

    Example:
        >>> mlp = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 2))
        >>> list(named(mlp)), list(named(mlp, include="*.bias", exclude="1.*"))
        (['0.weight', '2.weight'], ['0.bias', '2.bias'])
        >>> list(named({"experts": torch.ones(2, 4, 4)}, stacked="experts"))
        ['experts[0]', 'experts[1]']

    Args:
        model: A module, a mapping of names to weights, or a sequence of weights or of (module,
            parameter name) pairs, which are named by position: "0" or "0.weight". The names of a
            module that torch.compile, DataParallel or DistributedDataParallel wraps are its own.
        include: Glob pattern or patterns that choose the layers among all parameters of a module,
            or all entries of a mapping or sequence. One that equals a name chooses just that.
        exclude: Glob pattern or patterns over the same names of layers to leave out. A parameter
            with several names is left out if one of them matches.
        stacked: Glob pattern or patterns over the same names: each slice of such a parameter along
            its first dimension is a layer, besides the stacks that are known.

    Returns:
        The weights, yet to be checked, tied ones under each name; none for an empty mapping or
        sequence.

    Raises:
        TypeError: The model is of another type.
        ValueError: A pattern matches nothing, no layer is left, or a layer is not a parameter but
            computed from others.
    """
    return find(model, include, exclude, stacked).layers.named()


def find(
    model: Model, include: Patterns = None, exclude: Patterns = None, stacked: Patterns = None
) -> Found:
    """What `named` names, as parameters and how they are cut; and what else there is."""
    unfit: dict[str, Unfit] = {}
    if isinstance(model, nn.Module):
        model, _ = _modules.unwrapped(model)
        layers, stacks, others = _modules.survey(model)
        unfit = {name: layer for name, layer in layers.items() if type(layer) is Unfit}
    else:  # whoever lists layers means each of them
        layers, stacks, others = _entries(model), {}, []
    is_default = include is None and exclude is None
    if is_default and stacked is None:
        if unfit:
            layers = _fit(layers)
        if not layers and isinstance(model, nn.Module):
            raise ValueError(_no_layer(model, others))
    else:
        layers, stacks, others = _chosen(
            model, layers, stacks, others, unfit, include, exclude, stacked
        )
    for name, layer in layers.items():
        if type(layer) is Unfit:
            raise ValueError(f"layer {name!r} {layer.problem()}")
    weights = cast(dict[str, Weight], layers)
    quantised = _scales.beside(model, weights)
    weights, scales = _without_scales(weights, quantised)
    if scales:
        _check_more_than_scales("include", include, weights, scales)
        _check_more_than_scales("stacked", stacked, weights, scales)
    stacks = {name: stack for name, stack in stacks.items() if name in weights}
    _sharding.refuse(model, weights)
    if others:
        chosen = {id(weight) for weight in weights.values()}
        others = [other for other in others if id(other[1]) not in chosen]
    return Found(Layers(weights, stacks, quantised), [*scales, *others], unfit, is_default)


def _without_scales(
    layers: dict[str, Weight], quantised: Mapping[str, Quantised]
) -> tuple[dict[str, Weight], list[Other]]:
    """The layers of which none is a scale, and the scales."""
    if not quantised and not [name for name in layers if "scale" in name]:
        return layers, []
    scales = {name: scale for it in quantised.values() for name, scale in it.scales.items()}
    known = {id(scale) for scale in scales.values()}
    unknown = {name for it in quantised.values() for name in it.unknown}
    for name, layer in layers.items():
        is_named = "scale" in name and _scales.is_scale(name.rpartition(".")[2])
        if is_named or id(layer) in known or name in unknown:
            scales[name] = layer
    if not scales:
        return layers, []
    left = {name: layer for name, layer in layers.items() if name not in scales}
    if not left:
        raise ValueError(
            f"model has no layers but scales of weights, as {next(iter(scales))!r}, which are not "
            "pruned; choose the weights"
        )
    return left, [(name, scale, SCALE) for name, scale in scales.items()]


def _check_more_than_scales(
    argument: str, patterns: Patterns, layers: Iterable[str], scales: Sequence[Other]
) -> None:
    """Check that no pattern means scales only, which would then do nothing."""
    for pattern in [patterns] if isinstance(patterns, str) else patterns or ():
        only = [name for name, _, _ in scales if pattern == name or fnmatchcase(name, pattern)]
        if only and not any(fnmatchcase(layer, pattern) for layer in layers):
            raise ValueError(
                f"{argument}={pattern!r} matches only scales of weights, as {only[0]!r}, which are "
                "no layers; choose the weights, which are ranked by their products with the scales"
            )


def _fit(layers: dict[str, Weight | Unfit]) -> dict[str, Weight | Unfit]:
    """Those that can be pruned; all, if there are none."""
    fit = {
        name: layer
        for name, layer in layers.items()
        if not (isinstance(layer, Unfit) and layer.is_optional)
    }
    return fit or layers


def _no_layer(model: nn.Module, others: Sequence[Other]) -> str:
    """Why nothing of a module is pruned, and the way out."""
    problem = (
        f"{type(model).__name__} has no linear, convolution, bilinear, attention or recurrent layer"
    )
    matrices = [(name, reason) for name, it, reason in others if _modules.is_matrix(it, reason)]
    matrices = [(name, reason) for name, reason in matrices if reason != SCALE]
    if matrices:
        (name, reason), *more = [it for it in matrices if it[1] != _modules.QUANTISED] or matrices
        there = f"{problem}; it has the {reason} {name!r}{f' and {len(more)} more' * bool(more)}"
        if reason == _modules.QUANTISED:
            return f"{there}: prune the model before it is quantised, codes are not pruned"
        pattern = _pattern(name, model, {name for name, _ in matrices}) if more else name
        return (
            f"{there}: choose among its parameters with include=, for example include={pattern!r}"
        )
    if next(model.parameters(), None) is None:
        return f"{problem} and no other parameter; pass a model whose weights are parameters"
    return f"{problem}; choose among its parameters with include=, for example include='*weight'"


def _pattern(name: str, model: nn.Module, matrices: Set[str]) -> str:
    """A pattern for a matrix and all that are numbered like it, if it means nothing else."""
    pattern = re.sub(r"\d+", "*", name)
    every = (_modules.plain_name(it) for it, _ in model.named_parameters(remove_duplicate=False))
    is_apt = all(it in matrices for it in every if fnmatchcase(it, pattern))
    return pattern if is_apt else name


def _entries(model: object) -> dict[str, Weight | Unfit]:
    """The layers of a mapping or a sequence: all that it holds."""
    if isinstance(model, Mapping):
        for key in model:
            if not isinstance(key, str):
                raise TypeError(f"model has the key {key!r}; a layer's name is a str")
        return dict(model)
    if not isinstance(model, Sequence) or isinstance(model, _NO_WEIGHTS):
        one = isinstance(model, torch.Tensor | np.ndarray)
        raise TypeError(
            f"model is a {type(model).__name__}; pass a torch.nn.Module, a mapping of names to "
            "tensors, or a list of tensors" + (": [tensor]" if one else "")
        )
    if not any(issubclass(kind, Sequence) for kind in set(map(type, model))):
        return {str(i): entry for i, entry in enumerate(model)}
    layers = {}
    for i, entry in enumerate(model):
        match entry:
            case [nn.Module() as module, str() as attribute]:
                layers[f"{i}.{attribute}"] = _entry(i, module, attribute)
            case _:
                layers[str(i)] = entry
    return layers


def _entry(i: int, module: nn.Module, attribute: str) -> Weight | Unfit:
    """A parameter that a pair in a sequence names."""
    is_matrix = isinstance(module, ONE_WEIGHT) and attribute == "weight"
    look_up = _modules.matrix if is_matrix else _modules.lookup
    layer = look_up(module, attribute)
    if layer is None:
        names = ", ".join(name for name, _ in module.named_parameters())
        raise ValueError(
            f"{type(module).__name__} at position {i} has no parameter {attribute!r}; "
            f"it has {names or 'none'}"
        )
    if _modules.is_direction(module, attribute):
        return Unfit(lambda: DIRECTION_PROBLEM)
    return layer


def _chosen(
    model: object,
    layers: dict[str, Weight | Unfit],
    stacks: dict[str, Stack],
    others: list[Other],
    unfit: Mapping[str, Unfit],
    include: Patterns,
    exclude: Patterns,
    stacked: Patterns,
) -> tuple[dict[str, Weight | Unfit], dict[str, Stack], list[Other]]:
    """The layers that patterns ask for, with their stacks, and what else there is."""
    every: dict[str, Weight | Unfit] = layers
    if isinstance(model, nn.Module):
        every = {
            _modules.plain_name(name): parameter
            for name, parameter in model.named_parameters(remove_duplicate=False)
        }
        every |= {name: layer for name, layer in unfit.items() if name in every}
    stacks = _stacks(every, layers, stacks, stacked)
    if include is not None:
        layers, stacks = _included(model, include, every, unfit, stacks)
    elif stacked is not None:
        extra = {name for name in stacks if name not in layers}
        layers = layers | {name: every[name] for name in extra}
        layers = {name: layers[name] for name in {**every, **layers} if name in layers}
    stacks = {name: stack for name, stack in stacks.items() if name in layers}
    if exclude is not None:
        layers, stacks = _without(exclude, {**every, **layers}, layers, stacks)
    if include is None and unfit:
        layers = _fit(layers)
    if not layers:
        raise ValueError(f"include={include!r}, exclude={exclude!r} leave no layer to prune")
    for name in stacks:
        if len(shape := _shape(layers[name])) < 2:
            raise ValueError(
                f"stacked= matches {name!r} of shape {shape}, whose slices would be single weights;"
                " choose parameters of two dimensions or more"
            )
    return layers, stacks, _rest(every, layers, stacks, others)


def _rest(
    every: Mapping[str, Weight | Unfit],
    layers: Mapping[str, Weight | Unfit],
    stacks: Mapping[str, Stack],
    others: Sequence[Other],
) -> list[Other]:
    """What is no layer among all that patterns could ask for; biases need not be told."""
    chosen = "left out by include= or exclude="
    reasons = {id(it): reason for _, it, reason in others}
    rest = [
        (name, it, reasons.get(id(it), chosen))
        for name, it in every.items()
        if not isinstance(it, Unfit) and not name.endswith("bias")
    ]
    rest += [
        (name + suffix, part, chosen)
        for name, stack in stacks.items()
        if stack.without
        for suffix, part in stack._replace(without=frozenset()).cut("", cast(Weight, layers[name]))
        if suffix in stack.without
    ]
    return rest


def _stacks(
    every: Mapping[str, Weight | Unfit],
    layers: Mapping[str, Weight | Unfit],
    known: Mapping[str, Stack],
    stacked: Patterns,
) -> dict[str, Stack]:
    """The stacks under each of their names: those that are known, and those that are asked for."""
    matched = matching("stacked", stacked, every) if stacked is not None else ()
    by_id = {id(layers[name]): stack for name, stack in known.items()}
    stacks = {}
    for name, whole in {**every, **layers}.items():  # some wrappers give parameters other names
        if (stack := by_id.get(id(whole))) is not None:
            stacks[name] = stack
        elif name in matched and not isinstance(whole, Unfit):
            stacks[name] = Stack((*_shape(whole), 0)[0])
    return stacks


def _shape(weight: object) -> tuple[int, ...]:
    """The shape of something, if it has one yet."""
    try:
        return tuple(getattr(weight, "shape", ()))
    except (RuntimeError, ValueError, TypeError):  # not initialised yet, or no weight at all
        return ()


def _names(every: Iterable[str], stacks: Mapping[str, Stack]) -> dict[str, tuple[str, str]]:
    """All names that patterns may mean: of parameters, and of the slices of stacks."""
    names = {name: (name, "") for name in every}
    for name, stack in stacks.items():
        names.update({name + suffix: (name, suffix) for suffix in stack.suffixes()})
    return names


def _included(
    model: object,
    include: str | Sequence[str],
    every: Mapping[str, Weight | Unfit],
    unfit: Mapping[str, Unfit],
    stacks: Mapping[str, Stack],
) -> tuple[dict[str, Weight | Unfit], dict[str, Stack]]:
    """The parameters that patterns choose, or slices of them."""
    names = _names(every, stacks)
    patterns: Any = [include] if isinstance(include, str) else include
    asked = []  # computed ones, by their very names
    if unfit and isinstance(patterns, Sequence | Set):
        asked = [name for name in unfit if name in patterns]
        patterns = [pattern for pattern in patterns if pattern not in asked]
    matched = {names[name] for name in matching("include", patterns, names)}
    chosen: dict[str, Weight | Unfit] = {name: unfit[name] for name in asked}
    cut: dict[str, Stack] = {}
    parts = {name for name, suffix in matched if suffix}
    for name, whole in every.items():
        if (name, "") in matched:
            chosen[name] = whole
        elif name in parts:
            chosen[name] = whole
            out = (suffix for suffix in stacks[name].suffixes() if (name, suffix) not in matched)
            cut[name] = stacks[name]._replace(without=frozenset(out))
    if isinstance(model, nn.Module):
        chosen |= _directions(model, chosen)
    return chosen, {**stacks, **cut}


def _without(
    exclude: str | Sequence[str],
    every: Mapping[str, Weight | Unfit],
    layers: Mapping[str, Weight | Unfit],
    stacks: Mapping[str, Stack],
) -> tuple[dict[str, Weight | Unfit], dict[str, Stack]]:
    """The layers that no pattern matches under any of their names."""
    names = _names(every, stacks)
    out: dict[int, set[str]] = {}  # by parameter: "" for the whole, or which slices
    for matched in matching("exclude", exclude, names):
        name, suffix = names[matched]
        out.setdefault(id(every[name]), set()).add(suffix)
    left = {}
    cut = dict(stacks)
    for name, layer in layers.items():
        suffixes = out.get(id(layer), ())
        if "" in suffixes:
            continue
        if suffixes:
            cut[name] = cut[name]._replace(without=cut[name].without | frozenset(suffixes))
            if next(cut[name].suffixes(), None) is None:
                continue
        left[name] = layer
    return left, {name: stack for name, stack in cut.items() if name in left}


def _directions(model: nn.Module, names: Iterable[str]) -> dict[str, Weight | Unfit]:
    """Those of a module's parameters that weight_norm divides by the lengths of their rows."""
    found: dict[str, Weight | Unfit] = {}
    for name in [name for name in names if name.endswith(("_v", "original1"))]:
        owner, _, attribute = name.rpartition(".")
        if _modules.is_direction(model.get_submodule(owner), attribute):
            found[name] = Unfit(lambda: DIRECTION_PROBLEM)
    return found


def matching(argument: str, patterns: str | Sequence[str], names: Collection[str]) -> set[str]:
    """The names that equal a pattern or match one as a glob; every pattern has to match."""
    if isinstance(patterns, str):
        patterns = [patterns]
    if not isinstance(patterns, Sequence | Set) or not all(isinstance(p, str) for p in patterns):
        raise TypeError(
            f"{argument} is a {type(patterns).__name__}, not a glob pattern or a list of them: "
            f"{reprlib.repr(patterns)}"
        )
    found: set[str] = set()
    for pattern in patterns:
        # A name may have brackets, which in a glob pattern mean something else.
        matched = [pattern] if pattern in names else [n for n in names if fnmatchcase(n, pattern)]
        if not matched:
            similar = difflib.get_close_matches(pattern, names, cutoff=0.4) or list(names)[:3]
            raise ValueError(f"{argument}={pattern!r} matches no name; near it are {similar}")
        found.update(matched)
    return found
