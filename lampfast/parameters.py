"""From a model to its layers by name: which parameters are pruned, unless asked otherwise.

`Model`, `Patterns` and `Weight` are the types of what `lampfast.prune` and the others take.
"""

import difflib
import reprlib
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from fnmatch import fnmatchcase
from functools import partial
from typing import NamedTuple, TypeAlias, cast

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import Parameter
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized
from torch.nn.utils.weight_norm import WeightNorm

from lampfast import _sharding
from lampfast._engine.views import Weight

__all__ = ["Model", "Patterns", "Weight"]

Model: TypeAlias = (
    nn.Module | Mapping[str, Weight] | Sequence[Weight] | Sequence[tuple[nn.Module, str]]
)
Patterns: TypeAlias = str | Sequence[str] | None

# Modules whose only matrix is their `weight`. MultiheadAttention's out_proj is such a Linear.
_ONE_WEIGHT = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Bilinear,
)

_NO_WEIGHTS = (str, bytes, bytearray, memoryview, range)  # sequences that hold no tensors

_DIRECTION_PROBLEM = (
    "holds the directions of a weight-normed weight, which are divided by the lengths of their "
    "rows: a row that is pruned as a whole would become 0 / 0, NaN; remove weight_norm from the "
    "module first, with torch.nn.utils.parametrize.remove_parametrizations or "
    "torch.nn.utils.remove_weight_norm, or leave it out with exclude="
)


class _Unfit(NamedTuple):
    """A layer that is there and cannot be pruned, which is an error unless it is left out."""

    problem: Callable[[], str]


def named(model: Model, include: Patterns = None, exclude: Patterns = None) -> dict[str, Weight]:
    """The layers of a model, by name.

    Example:
        >>> mlp = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 2))
        >>> list(named(mlp)), list(named(mlp, include="*.bias", exclude="1.*"))
        (['0.weight', '2.weight'], ['0.bias', '2.bias'])

    Args:
        model: A module, a mapping of names to weights, or a sequence of weights or of (module,
            parameter name) pairs, which are named by position: "0" or "0.weight".
        include: Glob pattern or patterns that choose the layers among all parameters of a module,
            or all entries of a mapping or sequence. One that equals a name chooses just that.
        exclude: Glob pattern or patterns over the same names of layers to leave out. A parameter
            with several names is left out if one of them matches.

    Returns:
        The weights, yet to be checked, tied ones under each name; none for an empty mapping or
        sequence.

    Raises:
        TypeError: The model is of another type.
        ValueError: A pattern matches nothing, no layer is left, or a layer is not a parameter but
            computed from others.
    """
    layers = _prunable(model) if isinstance(model, nn.Module) else _entries(model)
    if include is not None or exclude is not None:
        layers = _chosen(model, layers, include, exclude)
    elif not layers and isinstance(model, nn.Module):
        way_out = "; choose among its parameters with include=, for example include='*weight'"
        if next(model.parameters(), None) is None:
            way_out = " and no other parameter; pass a model whose weights are parameters"
        raise ValueError(
            f"{type(model).__name__} has no linear, convolution, bilinear, attention or recurrent "
            f"layer{way_out}"
        )
    for name, layer in layers.items():
        if type(layer) is _Unfit:
            raise ValueError(f"layer {name!r} {layer.problem()}")
    _sharding.refuse(model, layers)
    return cast(dict[str, Weight], layers)


def _prunable(model: nn.Module) -> dict[str, Weight | _Unfit]:
    """The layers of a module that are pruned by default."""
    # A model has a Conv1D of transformers only if the program has imported it.
    transformers = sys.modules.get("transformers.pytorch_utils")
    one_weight = (*_ONE_WEIGHT, transformers.Conv1D) if transformers else _ONE_WEIGHT
    layers = {}
    for prefix, module in model.named_modules():
        attributes: Iterable[str]
        if isinstance(module, one_weight):
            attributes = ("weight",)
        elif isinstance(module, nn.MultiheadAttention):
            attributes = ("q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_weight")
        elif isinstance(module, nn.RNNCellBase):
            attributes = ("weight_ih", "weight_hh")
        elif isinstance(module, nn.RNNBase):
            attributes = _recurrent(module)
        else:
            continue
        for attribute in attributes:
            if (layer := _matrix(module, attribute)) is not None:
                layers[f"{prefix}.{attribute}" if prefix else attribute] = layer
    return layers


def _recurrent(module: nn.RNNBase) -> Iterator[str]:
    for i in range(module.num_layers):
        for direction in ("", "_reverse") if module.bidirectional else ("",):
            for kind in ("ih", "hh", "hr"):  # hr: an LSTM's projection, if it has one
                yield f"weight_{kind}_l{i}{direction}"


def _entries(model: object) -> dict[str, Weight | _Unfit]:
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
    layers = {}
    for i, entry in enumerate(model):
        match entry:
            case [nn.Module() as module, str() as attribute]:
                is_matrix = isinstance(module, _ONE_WEIGHT) and attribute == "weight"
                layer = _matrix(module, attribute) if is_matrix else _lookup(module, attribute)
                if layer is not None and _is_direction(module, attribute):
                    layer = _Unfit(lambda: _DIRECTION_PROBLEM)
                if layer is None:
                    names = ", ".join(name for name, _ in module.named_parameters())
                    raise ValueError(
                        f"{type(module).__name__} at position {i} has no parameter {attribute!r}; "
                        f"it has {names or 'none'}"
                    )
                layers[f"{i}.{attribute}"] = layer
            case _:
                layers[str(i)] = entry
    return layers


def _matrix(module: nn.Module, attribute: str) -> Weight | _Unfit | None:
    """A parameter that its module needs as a matrix; None if it has nothing of this name."""
    parameter = module._parameters.get(attribute)
    if type(parameter) is Parameter and parameter.ndim < 2:
        return _Unfit(partial(_sharding.flat_problem, parameter))
    return _lookup(module, attribute) if parameter is None else parameter


def _lookup(module: nn.Module, attribute: str) -> Weight | _Unfit | None:
    """A module's parameter; None if it has nothing of this name."""
    parameter = module._parameters.get(attribute)
    if parameter is not None:
        return parameter
    # Asked in this order because looking at a parametrised weight computes it.
    if is_parametrized(module, attribute) or getattr(module, attribute, None) is not None:
        return _Unfit(partial(_remedy, module, attribute))
    return None


def _is_direction(module: nn.Module, attribute: str) -> bool:
    """Whether a parameter gives the rows of a weight-normed weight their directions."""
    if isinstance(module, ParametrizationList):
        return attribute == "original1" and isinstance(module[0], parametrizations._WeightNorm)
    return any(
        isinstance(hook, WeightNorm) and attribute == f"{hook.name}_v"
        for hook in module._forward_pre_hooks.values()
    )


def _remedy(module: nn.Module, attribute: str) -> str:
    """Why a computed weight cannot be pruned, and the ways out."""
    everywhere, otherwise = "", ", or choose what it is computed from with include="
    if is_parametrized(module, attribute):
        call = "torch.nn.utils.parametrize.remove_parametrizations"
        if _is_direction(module.get_submodule(f"parametrizations.{attribute}"), "original1"):
            otherwise = ""
    elif hasattr(module, f"{attribute}_mask"):
        call = "torch.nn.utils.prune.remove"
        everywhere = ", or lampfast.torch_prune.to_zeros(model) for all such layers"
    elif hasattr(module, f"{attribute}_g"):
        call, otherwise = "torch.nn.utils.remove_weight_norm", ""
    elif hasattr(module, f"{attribute}_orig"):
        call = "torch.nn.utils.remove_spectral_norm"
    else:
        return "is not a parameter of its module; make it one, or leave it out with exclude="
    return (
        f"is computed from other parameters, so zeros in it would not last; call {call}(module, "
        f"{attribute!r}) first{everywhere}, or leave it out with exclude={otherwise}"
    )


def _chosen(
    model: object,
    layers: dict[str, Weight | _Unfit],
    include: Patterns,
    exclude: Patterns,
) -> dict[str, Weight | _Unfit]:
    """The layers that `include` and `exclude` ask for."""
    every = layers
    if isinstance(model, nn.Module):
        every = dict(model.named_parameters(remove_duplicate=False))
    if include is not None:
        matched = matching("include", include, every)
        unfit = {name: layer for name, layer in layers.items() if type(layer) is _Unfit}
        layers = {name: layer for name, layer in every.items() if name in matched}
        layers |= {name: layer for name, layer in unfit.items() if name in matched}
        if isinstance(model, nn.Module):
            layers |= _directions(model, layers)
    if exclude is not None:
        every = {**every, **layers}
        matched = matching("exclude", exclude, every)
        out = {id(every[name]) for name in matched}
        layers = {name: layer for name, layer in layers.items() if id(layer) not in out}
    if not layers:
        raise ValueError(f"include={include!r}, exclude={exclude!r} leave no layer to prune")
    return layers


def _directions(model: nn.Module, names: Iterable[str]) -> dict[str, Weight | _Unfit]:
    """Those of a module's parameters that weight_norm divides by the lengths of their rows."""
    found: dict[str, Weight | _Unfit] = {}
    for name in [name for name in names if name.endswith(("_v", "original1"))]:
        owner, _, attribute = name.rpartition(".")
        if _is_direction(model.get_submodule(owner), attribute):
            found[name] = _Unfit(lambda: _DIRECTION_PROBLEM)
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
