"""Which parameters of a module are layers, unless asked otherwise; and why the others are none.

Modules are told by their classes' names where they come from packages that lampfast does not
import: transformers for mixtures of experts, PEFT for adapters, others for quantised weights.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Literal, NamedTuple, TypeAlias, cast

import torch
from torch import nn
from torch.nn.parameter import Parameter
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized
from torch.nn.utils.weight_norm import WeightNorm

from lampfast import _sharding
from lampfast._engine import ways_out
from lampfast._engine.stacks import Halves, Stack
from lampfast._engine.views import Weight
from lampfast._scales import SCALE, is_scale

Reason: TypeAlias = str
Other: TypeAlias = tuple[str, Weight, Reason]  # a parameter that is no layer: its name, and why

# Modules whose only matrix is their `weight`. MultiheadAttention's out_proj is such a Linear.
ONE_WEIGHT = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Bilinear,
)

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)

_ADAPTER: Reason = "adapter"
_ROUTER: Reason = "router"
COMPUTED: Reason = "computed"
QUANTISED: Reason = "quantised"
NOT_TOLD: tuple[Reason, ...] = ("embedding", "position table", _ADAPTER, SCALE)  # as expected

_COMPILED = "_orig_mod"  # what torch.compile wraps

_ATTENTION = ("q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_weight")
_CELL = ("weight_ih", "weight_hh")

_ROUTER_CLASS = re.compile(r"Router|Top\w*Gat(e|ing)\b|M[Oo]E\w*Gat(e|ing)\b")
_GATES = frozenset({"gate", "gates", "gating", "gate_network", "wg"})  # beside experts
_MIXTURE_CLASS = re.compile(r"Expert|M[Oo][Ee]([A-Z_0-9]|$)|Mixture")
_COUNTS = (  # what modules call the number of their experts
    "num_experts",
    "n_experts",
    "num_local_experts",
    "n_routed_experts",
    "n_shared_experts",
    "moe_num_experts",
)
_NO_EXPERT = re.compile(r"scale|pos|embed|token|norm|A_log")
_POSITIONS = re.compile(r"pos_emb|position|rel_pos|_pos$")

# Classes of transformers and timm whose matrices are bare parameters: which of these are layers,
# or how the parameters hold several.
_BARE_MATRICES: dict[str, tuple[str, ...]] = {
    "XLNetRelativeAttention": ("q", "k", "v", "o", "r"),
    "FunnelRelMultiheadAttention": ("r_kernel",),
    "Gemma3MultiModalProjector": ("mm_input_projection_weight",),
    "T5Gemma2MultiModalProjector": ("mm_input_projection_weight",),
    "QuantLinear": ("weight",),  # I-BERT's, which rounds them as it goes
}
_BARE_STACKS: dict[str, Literal["stacked", "blocks"]] = {
    "CsmCodebooksHead": "stacked",  # a head for each codebook
    "RecurrentGemmaRglru": "stacked",  # the blocks of a block-diagonal matrix
    "ZambaMambaMixer": "stacked",  # a projection for each head
    "DbrxExpertGLU": "blocks",
    "CondConv2d": "blocks",  # a kernel for each expert, as one row
}
_QUANTISED_CLASS = re.compile(r"Params4bit|Int8Params")  # bitsandbytes'
_QUANTISED_PACKAGES = ("torchao.", "optimum.quanto.")
_QUANTISED_NAMES = frozenset({"qweight", "weight_packed", "W_q"})  # GPTQ's and others'

DIRECTION_PROBLEM = (
    "holds the directions of a weight-normed weight, which are divided by the lengths of their "
    "rows: a row that is pruned as a whole would become 0 / 0, NaN; remove weight_norm from the "
    "module first, with torch.nn.utils.parametrize.remove_parametrizations or "
    "torch.nn.utils.remove_weight_norm, or leave it out with exclude="
)


class Unfit(NamedTuple):
    """A layer that is there and cannot be pruned.

    Attributes:
        problem: Says why, and the ways out.
        is_optional: Whether it is left out where nobody asks for it by name; else it is an error.
    """

    problem: Callable[[], str]
    is_optional: bool = False


class Survey(NamedTuple):
    """What a module has.

    Attributes:
        layers: What is a layer unless asked otherwise, by name; stacks are whole.
        stacks: Those that hold several layers, as the experts of a mixture do.
        others: Names and parameters of matrices, and of what may be one, that are none; with the
            reason.
    """

    layers: dict[str, Weight | Unfit]
    stacks: dict[str, Stack]
    others: list[Other]


class _Kind(NamedTuple):
    """What a class of modules says of their parameters.

    Attributes:
        matrices: The names of those that are layers.
        are_all: Whether it has no other matrices.
        is_recurrent: Whether the module itself has to be asked for its matrices.
        experts: Whether its parameters hold a mixture's experts: all of three dimensions, those
            that have one slice for each expert that the module counts, or as blocks of rows.
        role: What all below it are, if that is told by the class.
        adapters: The names of what adapts it.
        is_packed: Whether torch has quantised its weight and packed it away.
    """

    matrices: tuple[str, ...] = ()
    are_all: bool = False
    is_recurrent: bool = False
    experts: Literal["", "stacked", "counted", "blocks"] = ""
    role: Reason | None = None
    adapters: tuple[str, ...] = ()
    is_packed: bool = False


def unwrapped(model: nn.Module) -> tuple[nn.Module, str]:
    """The module that others only wrap, and what they put before the names in its state.

    Example:
        >>> linear = nn.Linear(2, 2)
        >>> inner, prefix = unwrapped(nn.DataParallel(linear))
        >>> inner is linear, prefix
        (True, 'module.')
    """
    prefix = ""
    while True:
        if _COMPILED in model._modules:
            attribute = _COMPILED
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            attribute = "module"
        else:
            return model, prefix
        model, prefix = cast(nn.Module, model._modules[attribute]), f"{prefix}{attribute}."


def plain_name(name: str) -> str:
    """A parameter's name without those of compiled modules on the way to it."""
    return name.replace(f"{_COMPILED}.", "")


def survey(model: nn.Module) -> Survey:
    """Look at all parameters of a module.

    Example:
        >>> found = survey(nn.Sequential(nn.Embedding(4, 8), nn.Linear(8, 8)))
        >>> list(found.layers), [(name, reason) for name, _, reason in found.others]
        (['1.weight'], [('0.weight', 'embedding')])
    """
    found = Survey({}, {}, [])
    _visit(model, _kind(type(model)), "", None, None, found, {model})
    return found


def _visit(
    module: nn.Module,
    kind: _Kind,
    prefix: str,
    role: Reason | None,
    parent: nn.Module | None,
    found: Survey,
    seen: set[nn.Module],
) -> None:
    """Sort the parameters of a module, then those of its children: the order of torch's names."""
    if kind.matrices or kind.is_recurrent:
        for attribute in _recurrent(module) if kind.is_recurrent else kind.matrices:
            _sort(module, attribute, prefix, role, found)
    if not kind.are_all:
        if module._parameters:
            _sort_others(module, kind, prefix, role, parent, found)
        if module._buffers or kind.is_packed:
            found.others.extend(_packed(module, prefix))
    for name, child in module._modules.items():
        if child is None or child in seen:
            continue
        seen.add(child)
        kind_of_child, of_child = _kind(type(child)), role
        if role is not _ADAPTER:
            if name in kind.adapters:
                of_child = _ADAPTER
            elif "rout" in name or "gat" in name or name == "wg":
                of_child = role or (_ROUTER if _chooses_experts(name, module) else None)
            elif "expert" in name:
                of_child = None  # though it may lie in a router
            of_child = of_child or kind_of_child.role
        below = prefix if name == _COMPILED else f"{prefix}{name}."
        _visit(child, kind_of_child, below, of_child, module, found, seen)


def _sort(
    module: nn.Module, attribute: str, prefix: str, role: Reason | None, found: Survey
) -> None:
    """Put a parameter that its module needs as a matrix where it belongs."""
    name, plain = prefix + attribute, module._parameters.get(attribute)
    if role is None and type(plain) is Parameter and plain.ndim > 1 and plain.is_floating_point():
        found.layers[name] = plain  # nearly always so, and then nothing else has to be asked
        return
    layer = matrix(module, attribute)
    if layer is None:
        found.others.extend(_packed(module, prefix))
        return
    if isinstance(layer, torch.Tensor):
        if role is None and _is_quantised(layer):
            role = QUANTISED
        if role is not None:
            found.others.append((name, layer, role))
            return
    elif role is not None:
        return
    elif isinstance(layer, Unfit) and layer.is_optional:
        for source, parameter in module._parameters.items():
            if parameter is not None and source.startswith(attribute):
                found.others.append((prefix + source, parameter, COMPUTED))
    found.layers[name] = layer


def _sort_others(
    module: nn.Module,
    kind: _Kind,
    prefix: str,
    role: Reason | None,
    parent: nn.Module | None,
    found: Survey,
) -> None:
    """Put the parameters of a module where they belong, but for those that it needs as matrices."""
    for attribute, parameter in module._parameters.items():
        if parameter is None or attribute in kind.matrices:
            continue
        name = prefix + attribute
        if "bias" in attribute:
            continue  # of two dimensions where each expert or head has its own
        if kind.experts and role is None:
            stack = _stack(module, kind, attribute, parameter, prefix, parent)
            if stack is not None:
                found.layers[name] = parameter
                found.stacks[name] = stack
                continue
        if attribute in kind.adapters:
            found.others.append((name, parameter, _ADAPTER))
        else:
            found.others.append((name, parameter, role or _reason(module, attribute, prefix)))


def _packed(module: nn.Module, prefix: str) -> Iterator[Other]:
    """The quantised weights of a module that are not its parameter `weight`."""
    if _kind(type(module)).is_packed:
        yield f"{prefix}weight", cast(Callable[[], torch.Tensor], module.weight)(), QUANTISED
    for name, codes in (*module._buffers.items(), *module._parameters.items()):
        if name in _QUANTISED_NAMES and codes is not None and not codes.is_floating_point():
            yield prefix + name, codes, QUANTISED


def _stack(
    module: nn.Module,
    kind: _Kind,
    attribute: str,
    parameter: torch.Tensor,
    prefix: str,
    parent: nn.Module | None,
) -> Stack | None:
    """How a parameter of a module of experts is cut; None if it holds something else."""
    if not parameter.is_floating_point() or _NO_EXPERT.search(attribute):
        return None
    if kind.experts == "blocks":
        count = getattr(module, "moe_num_experts", 0) or getattr(module, "num_experts", 0)
        is_whole = parameter.ndim == 2 and count > 0 and parameter.shape[0] % count == 0
        return Stack(count) if is_whole else None
    if parameter.ndim != 3:
        return None
    if kind.experts == "counted":
        counts = [getattr(module, name, None) for name in _COUNTS]
        if parameter.shape[0] not in counts:
            return None
    return Stack(parameter.shape[0], _halves(module, attribute, parameter, prefix, parent))


def _halves(
    module: nn.Module,
    attribute: str,
    parameter: torch.Tensor,
    prefix: str,
    parent: nn.Module | None,
) -> Halves | None:
    """Where the experts' gate and up lie in one parameter, as transformers marks it or shapes tell.

    An expert takes `hidden` features and goes through `inner` ones: gate and up together are
    (2 inner, hidden) or, where experts are stored as they multiply from the right, transposed; down
    is (hidden, inner) or (inner, hidden).
    """
    down: object
    if "gate_up" in attribute:
        down = module._parameters.get(attribute.replace("gate_up", "down"))
    elif prefix.endswith("input_linear.") and parent is not None:  # JetMoe's
        down = getattr(parent._modules.get("output_linear"), "weight", None)
    else:
        return None
    marks = vars(module)
    if marks.get("has_gate") is False:
        return None
    is_transposed = marks.get("is_transposed")
    if is_transposed is None and isinstance(down, torch.Tensor) and down.ndim == 3:
        (rows, columns), (hidden, inner) = parameter.shape[1:], down.shape[1:]
        if (rows, columns) == (2 * inner, hidden):
            is_transposed = False
        elif (rows, columns) == (inner, 2 * hidden):
            is_transposed = True
    if is_transposed is None:
        return None
    dim = 2 if is_transposed else 1
    if parameter.shape[dim] % 2:
        return None
    return Halves(dim, "concatenated" if marks.get("is_concatenated", True) else "interleaved")


def _chooses_experts(name: str, parent: nn.Module) -> bool:
    """Whether a module with a router's or a gate's name is one that chooses experts."""
    if "router" in name or "routing" in name or "expert" in name:
        return True
    if name not in _GATES:
        return False
    has_experts = any("experts" in beside for beside in parent._modules)
    return has_experts or "moe" in type(parent).__name__.lower()


def _classify(cls: type[nn.Module]) -> _Kind:
    names = [base.__name__ for base in cls.__mro__]
    role = _ROUTER if any(map(_ROUTER_CLASS.search, names)) else None
    adapters = (*getattr(cls, "adapter_layer_names", ()), *getattr(cls, "other_param_names", ()))
    if cls.__module__.startswith("peft."):
        adapters += ("prompt_encoder",)
        if "ModulesToSaveWrapper" in names:  # whose copy is trained and called in its place
            adapters += ("original_module",)
    if cls.__module__.startswith("torch.ao.nn.quantized") and hasattr(cls, "weight"):
        return _Kind(is_packed=True)
    if issubclass(cls, ONE_WEIGHT) or _is_conv1d(cls):
        return _Kind(("weight",), True, role=role, adapters=adapters)
    if issubclass(cls, nn.MultiheadAttention):
        return _Kind(_ATTENTION, True, role=role, adapters=adapters)
    if issubclass(cls, nn.RNNCellBase):
        return _Kind(_CELL, True, role=role, adapters=adapters)
    if issubclass(cls, nn.RNNBase):
        return _Kind((), True, True, role=role, adapters=adapters)
    for name in names:
        if name in _BARE_MATRICES:
            return _Kind(_BARE_MATRICES[name], adapters=adapters)
        if name in _BARE_STACKS:
            return _Kind(experts=_BARE_STACKS[name], adapters=adapters)
    if any(name.endswith("Experts") for name in names) or hasattr(cls, "_apply_gate"):
        return _Kind(experts="stacked", adapters=adapters)
    if any(map(_MIXTURE_CLASS.search, names)):
        return _Kind(experts="counted", role=role, adapters=adapters)
    # What normalises has no matrices, whatever the shape of its scale.
    is_norm = issubclass(cls, _NORMS) or cls.__name__.endswith("Norm")
    return _Kind(are_all=is_norm, role=role, adapters=adapters)


_kind = cast(Callable[[type[nn.Module]], _Kind], lru_cache(maxsize=1024)(_classify))


def has_inputs_first(module: nn.Module) -> bool:
    """Whether a module's weights have their inputs in the first dimension, their outputs behind."""
    is_transposed = isinstance(module, nn.modules.conv._ConvTransposeNd) or _is_conv1d(type(module))
    return is_transposed or vars(module).get("is_transposed") is True


def _is_conv1d(cls: type[nn.Module]) -> bool:
    """Whether it is transformers' linear layer with its weight transposed."""
    return any(
        (base.__module__, base.__name__) == ("transformers.pytorch_utils", "Conv1D")
        for base in cls.__mro__
    )


def _recurrent(module: nn.Module) -> Iterable[str]:
    assert isinstance(module, nn.RNNBase)
    for i in range(module.num_layers):
        for direction in ("", "_reverse") if module.bidirectional else ("",):
            for kind in ("ih", "hh", "hr"):  # hr: an LSTM's projection, if it has one
                yield f"weight_{kind}_l{i}{direction}"


def _reason(module: nn.Module, attribute: str, prefix: str) -> Reason:
    """Why a parameter that no kind of module explains is no layer."""
    name, cls = f"{prefix}{attribute}".lower(), type(module)
    if is_scale(attribute):
        return SCALE
    if isinstance(module, ParametrizationList):
        return COMPUTED
    if _POSITIONS.search(name):
        return "position table"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) or "embed" in cls.__name__.lower():
        return "embedding"
    if attribute == "weight" and not isinstance(module, nn.ParameterDict):
        return f"custom class {cls.__name__}"
    return "bare parameter"


def is_matrix(parameter: Weight, reason: Reason = "") -> bool:
    """Whether a parameter is a matrix, and not a vector, a bias or a bare table of one row.

    Scales of all shapes are taken for matrices: they are a part of these.
    """
    if reason == SCALE:
        return True
    try:
        shape = parameter.shape
    except (RuntimeError, ValueError):  # not initialised yet
        return False
    if reason in (_ROUTER, _ADAPTER, QUANTISED):  # codes may lie in one long row
        return len(shape) >= 2
    return len([n for n in shape if n > 1]) >= 2


def shape_of(parameter: Weight) -> Sequence[int]:
    """The shape of a matrix, which 4-bit codes are packed from."""
    of_codes = getattr(getattr(parameter, "quant_state", None), "shape", None)
    return cast(Sequence[int], of_codes or parameter.shape)


def _is_quantised(parameter: torch.Tensor) -> bool:
    cls = type(parameter)
    if cls is Parameter and parameter.is_floating_point():
        return False
    is_integer = not (parameter.is_floating_point() or parameter.is_complex())
    return (
        is_integer
        or _QUANTISED_CLASS.match(cls.__name__) is not None
        or f"{cls.__module__}.".startswith(_QUANTISED_PACKAGES)
    )


def matrix(module: nn.Module, attribute: str) -> Weight | Unfit | None:
    """A parameter that its module needs as a matrix; None if it has nothing of this name."""
    parameter = module._parameters.get(attribute)
    if type(parameter) is Parameter and parameter.ndim < 2:
        return Unfit(partial(_sharding.flat_problem, parameter))
    return lookup(module, attribute) if parameter is None else parameter


def lookup(module: nn.Module, attribute: str) -> Weight | Unfit | None:
    """A module's parameter; None if it has nothing of this name."""
    parameter = module._parameters.get(attribute)
    if parameter is not None:
        return parameter
    # Asked in this order because looking at a parametrised weight computes it.
    if is_parametrized(module, attribute) or getattr(module, attribute, None) is not None:
        return Unfit(partial(_remedy, module, attribute), is_optional=True)
    return None


def is_direction(module: nn.Module, attribute: str) -> bool:
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
        if is_direction(module.get_submodule(f"parametrizations.{attribute}"), "original1"):
            otherwise = ""
    elif hasattr(module, f"{attribute}_mask"):
        call = "torch.nn.utils.prune.remove"
        everywhere = ", or lampfast.torch_prune.to_zeros(model) for all such layers"
    elif hasattr(module, f"{attribute}_g"):
        call, otherwise = "torch.nn.utils.remove_weight_norm", ""
    elif hasattr(module, f"{attribute}_orig"):
        call = "torch.nn.utils.remove_spectral_norm"
    else:
        return "is not a parameter of its module; make it one, or " + ways_out.leaving_out()
    return (
        f"is computed from other parameters, so zeros in it would not last; call {call}(module, "
        f"{attribute!r}) first{everywhere}, or {ways_out.leaving_out()}"
        + ways_out.with_patterns(otherwise)
    )
