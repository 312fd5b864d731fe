"""Which tensors of a checkpoint are layers: those of its architecture, or else by their names."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, cast

import torch

from lampfast import _coverage, _scales, parameters
from lampfast._engine.stacks import Layers
from lampfast.checkpoints import architectures, headers, origins
from lampfast.checkpoints.architectures import Model
from lampfast.checkpoints.headers import Tensor
from lampfast.checkpoints.origins import Origins
from lampfast.checkpoints.places import Pieces
from lampfast.checkpoints.reading import Checkpoint
from lampfast.parameters import Found, Patterns
from lampfast.reports import LeftOut

_NO_LAYER = (  # parts of names, and what they tell; the first that is found counts
    (r"pos_emb|position|wpe\b|relative_attention|rel_pos|\bpos\b", "position table"),
    (r"embed|\bwte\b|token_type|shared\.weight", "embedding"),
    (r"norm|\bln_?\w*\.|\bbn\d*\.|scale|gamma", "normalisation"),
    (r"router|(mlp|moe|ffn|feed_forward)\.(gate|wg|gates)\.weight", "router"),
    (r"lora_|adapter|prompt_", "adapter"),
    (r"(^|\.)((max_)?exp_avg(_sq)?|exp_inf|momentum_buffer|square_avg|acc_delta)$", "optimizer"),
    (r"bias$|rotary|inv_freq|\bA_log\b|\bdt\b|\bcache|mask", "no weight by its name"),
)

_CODES = re.compile(  # how packed and quantised weights are called
    r"(\.|_)(qweight|qzeros|g_idx|weight_packed|weight_scale_2|blocks|absmax|quant_map|"
    r"quant_state\..*|SCB|codebooks|codes|packed|weight_zero_point)$"
)
_INTEGERS = ("I8", "U8", "I16", "I32", "U32", "F4", "F6_E2M3", "F6_E3M2", "F8_E8M0")


class Choice(NamedTuple):
    """The layers of a checkpoint.

    Attributes:
        model: What they are layers of, without values: a module, or tensors by name.
        layers: The parameters that are layers, or hold several, as `parameters.find` finds them.
        views: By layer name, of which tensors it is a view.
        pieces: By layer name, where it lies in the files.
        copies: Tensors in which layers lie, each with another that is the same.
        left_out: The matrices that are no layers.
        notices: What the user should know of how they were found.
        is_by_name: Whether names have decided, and not the architecture.
    """

    model: parameters.Model
    layers: Layers
    views: dict[str, Pieces]
    pieces: dict[str, Pieces]
    copies: list[tuple[Tensor, Tensor]]
    left_out: list[LeftOut]
    notices: list[str]
    is_by_name: bool


def choose(
    checkpoint: Checkpoint, include: Patterns, exclude: Patterns, stacked: Patterns
) -> Choice:
    """Find the layers of a checkpoint.

    Args:
        checkpoint: Whose layers.
        include: As for `lampfast.prune`, over the names of the model's parameters, or of the
            checkpoint's tensors where its architecture is not known.
        exclude: The same.
        stacked: The same.

    Raises:
        ValueError: As `lampfast.prune`; or the weights are packed or quantised, or a layer is
            computed from several tensors.
    """
    if include is None:
        _refuse_codes(checkpoint)
    try:
        model = architectures.load(checkpoint)
    except architectures.Unknown as reason:
        choice = _by_name(checkpoint, include, exclude, stacked)
        choice.notices.append(f"the layers are chosen by their names, as {reason}; check the list")
    else:
        choice = _by_architecture(checkpoint, model, include, exclude, stacked)
    pieces = {name: origins.located(checkpoint.chunks, view) for name, view in choice.views.items()}
    named = [(checkpoint.tensors[it.name], it) for it in checkpoint.copies]
    alike: list[tuple[Tensor, Tensor]] = []
    unlike: list[tuple[Tensor, Tensor]] = []
    for pair in (*choice.copies, *named):
        for one, other in _divided(checkpoint, *pair):
            (alike if one[1:4] == other[1:4] else unlike).append((one, other))
    layers = {piece.place.tensor for several in pieces.values() for piece in several}
    choice.notices.extend(
        f"{other.name!r} in {other.file!r}, {other.dtype} of shape {list(other.shape)}, stays as "
        f"it is: a layer is loaded from {one.file!r}, {one.dtype} of shape {list(one.shape)}"
        for one, other in unlike
        if one in layers
    )
    return choice._replace(pieces=pieces, copies=alike)


def _divided(
    checkpoint: Checkpoint, tensor: Tensor, copy: Tensor
) -> Iterable[tuple[Tensor, Tensor]]:
    """Two tensors as the chunks in which they lie."""
    chunks = checkpoint.chunks
    if tensor.name not in chunks:
        return [(tensor, copy)]
    ours, theirs = ({it.start: it.tensor for it in chunks[t.name]} for t in (tensor, copy))
    return [(ours[start], theirs[start]) for start in ours.keys() & theirs.keys()]


def _by_architecture(
    checkpoint: Checkpoint, model: Model, include: Patterns, exclude: Patterns, stacked: Patterns
) -> Choice:
    found = parameters.find(model.module, include, exclude, stacked)
    views: dict[str, Pieces] = {}
    missing: dict[str, LeftOut] = {}
    for name, layer in found.layers.named().items():
        if view := model.origins.pieces(cast(torch.Tensor, layer)):
            views[name] = view
            continue
        whole = name if name in found.layers.wholes else name[: name.rindex("[")]
        if whole not in model.missing:
            raise ValueError(
                f"layer {name!r} is computed from others when transformers loads the checkpoint, "
                "in a way that is not stacking, concatenating or cutting, so that it lies nowhere "
                "in the files; leave it out with exclude="
            )
        parameter = cast(torch.Tensor, found.layers.wholes[whole])
        shape = tuple(parameter.shape)
        missing[whole] = LeftOut(whole, shape, parameter.numel(), "not in the checkpoint")
    if not views:
        raise ValueError(
            f"no layer of {type(model.module).__name__} is in {str(checkpoint.path)!r}; its "
            "tensors have other names"
        )
    kept = {name: whole for name, whole in found.layers.wholes.items() if name not in missing}
    unused = model.origins.unused(model.module)
    copies = list(_tied_copies(model.module, views, unused))
    copied = {copy.name for _, copy in copies}
    left = [*missing.values(), *_coverage.left_out(found)]
    left += [
        LeftOut(tensor.name, tensor.shape, tensor.numel, _reason_unused(tensor))
        for tensor in unused
        if _is_matrix(tensor) and tensor.name not in copied
    ]
    stacks = {name: stack for name, stack in found.layers.stacks.items() if name in kept}
    return Choice(model.module, Layers(kept, stacks), views, {}, copies, left, [], False)


def _tied_copies(
    module: torch.nn.Module, views: Mapping[str, Pieces], unused: Sequence[Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Tensors of which the model uses a tied one instead, though the checkpoint has both."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for tied in names.values():
        layer = next((name for name in tied if name in views), None)
        if layer is None or len(tied) < 2 or len(views[layer]) > 1:
            continue
        used = views[layer][0].place.tensor
        for tensor in unused:
            if any(tensor.name == name or name.endswith(f".{tensor.name}") for name in tied):
                yield used, tensor


def _by_name(
    checkpoint: Checkpoint, include: Patterns, exclude: Patterns, stacked: Patterns
) -> Choice:
    """The matrices whose names are not those of something else, in the order of the files."""
    followed = Origins(checkpoint.tensors)
    reasons = {tensor.name: _reason(tensor) for tensor in checkpoint.tensors.values()}
    floats = {
        name: tensor
        for name, tensor in checkpoint.tensors.items()
        if tensor.dtype in headers.FLOATS and tensor.shape
    }
    asked = set(parameters.matching("stacked", stacked, floats)) if stacked is not None else set()
    candidates = {
        name: tensor
        for name, tensor in floats.items()
        if include is not None or not reasons[name] or name in asked
    }
    if not candidates:
        raise ValueError(
            f"{str(checkpoint.path)!r} has no tensor that is a layer by its name; choose some with "
            "include="
        )
    experts = [name for name in candidates if _is_stack(candidates[name])]
    stacks = None if stacked is None and not experts else [*experts, *sorted(asked)]
    weights = {name: followed.state[name] for name in candidates}
    found = parameters.find(weights, include, exclude, stacks)
    views = {
        name: followed.pieces(cast(torch.Tensor, layer))
        for name, layer in found.layers.named().items()
    }
    left = _rest(checkpoint, found, reasons)
    return Choice(weights, found.layers, views, {}, [], left, [], True)


def _rest(checkpoint: Checkpoint, found: Found, reasons: Mapping[str, str]) -> list[LeftOut]:
    """The matrices of a checkpoint that names have not made layers."""
    pattern = "left out by include= or exclude="
    return [
        LeftOut(name, tensor.shape, tensor.numel, reasons[name] or pattern)
        for name, tensor in checkpoint.tensors.items()
        if name not in found.layers.wholes and _is_matrix(tensor)
    ]


def _reason(tensor: Tensor) -> str:
    """Why a tensor is no layer by its name; empty if it is one."""
    if _scales.is_scale(tensor.name.rpartition(".")[2]):
        return _scales.SCALE
    if tensor.dtype not in headers.FLOATS:
        return "no floating-point weights"
    if not _is_matrix(tensor):
        return "vector"
    return next((why for part, why in _NO_LAYER if re.search(part, tensor.name)), "")


def _reason_unused(tensor: Tensor) -> str:
    """Why a tensor that the model does not use is no layer."""
    is_scale = _scales.is_scale(tensor.name.rpartition(".")[2])
    return _scales.SCALE if is_scale else "not in the model"


def _is_matrix(tensor: Tensor) -> bool:
    return len([n for n in tensor.shape if n > 1]) >= 2


def _is_stack(tensor: Tensor) -> bool:
    """Whether a tensor holds the matrices of several experts."""
    return len(tensor.shape) == 3 and "experts" in tensor.name


def _refuse_codes(checkpoint: Checkpoint) -> None:
    """Refuse weights that are codes, whose magnitude says nothing."""
    method = (checkpoint.config or {}).get("quantization_config", {})
    name = method.get("quant_method", "") if isinstance(method, dict) else ""
    found = [
        tensor
        for tensor in checkpoint.tensors.values()
        if _CODES.search(tensor.name)
        or (tensor.dtype in _INTEGERS and _is_matrix(tensor) and tensor.name.endswith("weight"))
    ]
    if found:
        first = found[0]
        raise ValueError(
            f"{str(checkpoint.path)!r} has packed or quantised weights"
            f"{f' ({name})' if name else ''}: {first.name!r} is {first.dtype} of shape "
            f"{list(first.shape)} ({len(found)} such in all); prune the checkpoint that it was "
            "made of, or choose layers that are not quantised with include="
        )


def files_with_layers(pieces: Iterable[Pieces]) -> set[str]:
    """The names of the files that layers lie in."""
    return {piece.place.tensor.file for several in pieces for piece in several}
