"""From a model to its layers by name: which parameters are pruned, unless asked otherwise.

`Model`, `Patterns` and `Weight` are the types of what `lampfast.prune` and the others take.
"""

import difflib
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

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


class _Computed(NamedTuple):
    """A layer that is no parameter: its module computes it from others."""

    module: nn.Module
    attribute: str


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
            or all entries of a mapping or sequence.
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
    weights: dict[str, Weight] = {}
    for name, layer in layers.items():
        if isinstance(layer, _Computed):
            raise ValueError(f"layer {name!r} {_remedy(*layer)}")
        weights[name] = layer
    return weights


def _prunable(model: nn.Module) -> dict[str, Weight | _Computed]:
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
            if (layer := _lookup(module, attribute)) is not None:
                layers[f"{prefix}.{attribute}" if prefix else attribute] = layer
    return layers


def _recurrent(module: nn.RNNBase) -> Iterator[str]:
    for i in range(module.num_layers):
        for direction in ("", "_reverse") if module.bidirectional else ("",):
            for kind in ("ih", "hh", "hr"):  # hr: an LSTM's projection, if it has one
                yield f"weight_{kind}_l{i}{direction}"


def _entries(model: object) -> dict[str, Weight | _Computed]:
    """The layers of a mapping or a sequence: all that it holds."""
    if isinstance(model, Mapping):
        for key in model:
            if not isinstance(key, str):
                raise TypeError(f"model has the key {key!r}; a layer's name is a str")
        return dict(model)
    if not isinstance(model, Sequence) or isinstance(model, str):
        one = isinstance(model, torch.Tensor | np.ndarray)
        raise TypeError(
            f"model is a {type(model).__name__}; pass a torch.nn.Module, a mapping of names to "
            "tensors, or a list of tensors" + (": [tensor]" if one else "")
        )
    layers = {}
    for i, entry in enumerate(model):
        match entry:
            case [nn.Module() as module, str() as attribute]:
                layer = _lookup(module, attribute)
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


def _lookup(module: nn.Module, attribute: str) -> Weight | _Computed | None:
    """A module's parameter; None if it has nothing of this name."""
    parameter = module._parameters.get(attribute)
    if parameter is not None:
        return parameter
    # Asked in this order because looking at a parametrised weight computes it.
    if is_parametrized(module, attribute) or getattr(module, attribute, None) is not None:
        return _Computed(module, attribute)
    return None


def _remedy(module: nn.Module, attribute: str) -> str:
    """Why a computed weight cannot be pruned, and the ways out."""
    everywhere = ""
    if is_parametrized(module, attribute):
        call = "torch.nn.utils.parametrize.remove_parametrizations"
    elif hasattr(module, f"{attribute}_mask"):
        call = "torch.nn.utils.prune.remove"
        everywhere = ", or lampfast.torch_prune.to_zeros(model) for all such layers"
    elif hasattr(module, f"{attribute}_g"):
        call = "torch.nn.utils.remove_weight_norm"
    elif hasattr(module, f"{attribute}_orig"):
        call = "torch.nn.utils.remove_spectral_norm"
    else:
        return "is not a parameter of its module; make it one, or leave it out with exclude="
    return (
        f"is computed from other parameters, so zeros in it would not last; call {call}(module, "
        f"{attribute!r}) first{everywhere}, or leave it out with exclude=, or choose what it is "
        "computed from with include="
    )


def _chosen(
    model: object,
    layers: dict[str, Weight | _Computed],
    include: Patterns,
    exclude: Patterns,
) -> dict[str, Weight | _Computed]:
    """The layers that `include` and `exclude` ask for."""
    every = layers
    if isinstance(model, nn.Module):
        every = dict(model.named_parameters(remove_duplicate=False))
    if include is not None:
        matched = matching("include", include, every)
        layers = {name: layer for name, layer in every.items() if name in matched}
    if exclude is not None:
        every = {**every, **layers}
        matched = matching("exclude", exclude, every)
        out = {id(every[name]) for name in matched}
        layers = {name: layer for name, layer in layers.items() if id(layer) not in out}
    if not layers:
        raise ValueError(f"include={include!r}, exclude={exclude!r} leave no layer to prune")
    return layers


def matching(argument: str, patterns: str | Sequence[str], names: Collection[str]) -> set[str]:
    """The names that match one of the patterns; every pattern has to match."""
    if isinstance(patterns, str):
        patterns = [patterns]
    if not isinstance(patterns, Collection) or not all(isinstance(p, str) for p in patterns):
        raise TypeError(f"{argument}={patterns!r} is not a glob pattern or a list of them")
    found: set[str] = set()
    for pattern in patterns:
        matched = [name for name in names if fnmatchcase(name, pattern)]
        if not matched:
            similar = difflib.get_close_matches(pattern, names, cutoff=0.4) or list(names)[:3]
            raise ValueError(f"{argument}={pattern!r} matches no name; near it are {similar}")
        found.update(matched)
    return found
