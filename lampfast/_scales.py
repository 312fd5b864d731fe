"""Which tensors scale the quantised weights beside them: told by names, as checkpoints have them.

"X_scale_inv" (DeepSeek, transformers) and "X_scale" (compressed-tensors, ModelOpt, FBGEMM) hold
what the codes in X are multiplied by; so do "scale" (DeepSeek) and "qscale_weight" (Mistral) for
the codes in "weight".
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from lampfast._engine.scales import Quantised
from lampfast._engine.views import Weight

SCALE = "scale"  # why such a tensor is no layer

_ABSENT = object()

CODES = frozenset({torch.float8_e4m3fn, torch.float8_e5m2})
_CODE_NAMES = frozenset({"float8_e4m3fn", "float8_e5m2"})  # of arrays of ml_dtypes

_OF_WEIGHTS = re.compile(r"_scale_inv$|(^|_)weight_scale$|^qscale_weight$")
_OF_ACTIVATIONS = re.compile(
    r"(^|_)(input|activation|act|output|prob|softmax|q|k|v|kv)_scale(_ub|_inv)?$|^qscale_act$"
)
_LIKE = re.compile(r"(^|_)(scales?|scaling|zero_points?)(_|\d|$)", re.IGNORECASE)


class _Group(NamedTuple):
    """Tensors that lie together, in a module or under one prefix of a mapping's keys."""

    tensors: Mapping[str, Weight]
    module: nn.Module | None

    def codes(self) -> list[str]:
        """The names of those that are float8."""
        return [name for name, tensor in self.tensors.items() if _is_coded(tensor)]


def is_scale(attribute: str) -> bool:
    """Whether a tensor scales weights or activations, by the last part of its name."""
    return bool(_OF_WEIGHTS.search(attribute) or _OF_ACTIVATIONS.search(attribute))


def beside(model: object, weights: Mapping[str, Weight]) -> dict[str, Quantised]:
    """The float8 parameters among those of a model that have scales, or what may be, beside them.

    Args:
        model: A module, a mapping or a sequence, as the verbs take it.
        weights: Its layers by name, stacks whole.

    Returns:
        By the parameter's name what is beside it.
    """
    dtypes = {getattr(weight, "dtype", None) for weight in weights.values()}
    if not any(map(_is_code, dtypes)):
        return {}
    coded = {name: weight for name, weight in weights.items() if _is_coded(weight)}
    found = {}
    for name, weight, attribute, group in _grouped(model, coded):
        prefix = name.removesuffix(attribute)
        scales = {
            prefix + other: group.tensors[other]
            for other in _known(attribute)
            if group.tensors.get(other) is not None
        }
        unknown = [prefix + other for other in _unknown(attribute, group)]
        if scales or unknown:
            by_row = type(group.module).__name__ == "CompressedTensorsFP8Linear"
            block_size = _block_size(model, group.module)
            found[name] = Quantised(name, weight, scales, unknown, block_size, by_row)
    return found


def _is_coded(weight: object) -> bool:
    return _is_code(getattr(weight, "dtype", None))


def _is_code(dtype: Any) -> bool:
    return dtype in CODES or getattr(dtype, "name", None) in _CODE_NAMES


def _grouped(
    model: object, coded: Mapping[str, Weight]
) -> Iterable[tuple[str, Weight, str, _Group]]:
    """Each parameter with the last part of its name and what lies beside it."""
    if isinstance(model, Mapping):
        groups: dict[str, dict[str, Weight]] = {}
        for key, tensor in model.items():
            prefix, _, attribute = key.rpartition(".")
            groups.setdefault(prefix, {})[attribute] = tensor
        for name, weight in coded.items():
            prefix, _, attribute = name.rpartition(".")
            yield name, weight, attribute, _Group(groups[prefix], None)
        return
    owners = {  # by parameter: wrappers may give other names than the modules have
        id(parameter): (attribute, module)
        for module in _modules_of(model)
        for attribute, parameter in module._parameters.items()
        if _is_coded(parameter)
    }
    for name, weight in coded.items():
        if (owner := owners.get(id(weight))) is None:
            continue  # a tensor of a list, which has nothing beside it
        attribute, module = owner
        tensors = {**module._parameters, **module._buffers}
        there = {other: tensor for other, tensor in tensors.items() if tensor is not None}
        yield name, weight, attribute, _Group(there, module)


def _modules_of(model: object) -> Iterable[nn.Module]:
    if isinstance(model, nn.Module):
        return model.modules()
    assert isinstance(model, Sequence)
    return [entry[0] for entry in model if isinstance(entry, Sequence) and len(entry) == 2]


def _known(attribute: str) -> list[str]:
    """The names that scales of a parameter may have."""
    others = ["scale", "qscale_weight"] if attribute == "weight" else []
    return [f"{attribute}_scale_inv", f"{attribute}_scale", *others]


def _unknown(attribute: str, group: _Group) -> list[str]:
    """The names of what may scale a parameter, but not in a way that is known."""
    codes = group.codes()
    known = {name for code in codes for name in _known(code)}
    found = []
    for name in group.tensors:
        if name in known or name in codes or not _may_scale(name):
            continue
        owner = max((code for code in codes if name.startswith(code)), key=len, default=attribute)
        if owner == attribute:
            found.append(name)
    return found


def names_beside(attribute: str, beside: Iterable[str]) -> list[str]:
    """Those of the names beside a float8 tensor that scale it, or may do so."""
    known = _known(attribute)
    return [name for name in beside if name in known or _may_scale(name)]


def _may_scale(name: str) -> bool:
    """Whether a tensor may scale weights, by the last part of its name."""
    return bool(_LIKE.search(name)) and not _OF_ACTIVATIONS.search(name)


def _block_size(model: object, module: nn.Module | None) -> tuple[int, ...] | None:
    """The extents of a block that a module tells, or else the model's configuration."""
    given: Any = getattr(module, "block_size", _ABSENT)
    if given is not _ABSENT:
        return integers(given) if given is not None else ()
    config = getattr(getattr(model, "config", None), "quantization_config", None)
    if isinstance(config, Mapping):
        return integers(config.get("weight_block_size"))
    return integers(getattr(config, "weight_block_size", None))


def integers(given: object) -> tuple[int, ...] | None:
    """Positive integers, if that is what was given."""
    if not isinstance(given, Sequence):
        return None
    return tuple(given) if all(type(n) is int and n > 0 for n in given) else None
