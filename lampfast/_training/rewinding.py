"""Rewinding: the weights that remain take the values that they had before."""

from __future__ import annotations  # so that help() shows Patterns, not all that it may be

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import nn

from lampfast import _modules, parameters
from lampfast._engine import changes, copies, memory, placed, protection, shards, stacks, views
from lampfast._engine.interrupts import Deferred
from lampfast._engine.stacks import Layers, Stack
from lampfast._training import known
from lampfast._training.kept_layers import KeptLayers
from lampfast._training.zeros import listed
from lampfast.parameters import Patterns
from lampfast.pruning import report
from lampfast.reports import Report

if TYPE_CHECKING:
    from lampfast._engine.communicator import Communicator

_Emptied: TypeAlias = tuple[torch.Tensor, torch.Tensor]  # a layer, and where it is not zero


class _Judged(NamedTuple):
    """What this rank has of a layer.

    Attributes:
        weight: It, in its own memory.
        remaining: Where it is not zero now; None where its saved values are not all zero either.
        had: Whether it is not all zero now.
        has: Whether it will not be.
    """

    weight: torch.Tensor
    remaining: torch.Tensor | None
    had: bool
    has: bool


def rewind(
    model: nn.Module,
    saved_state: Mapping[str, Any],
    *,
    include: Patterns = None,
    exclude: Patterns = None,
    stacked: Patterns = None,
    leave: Patterns = None,
) -> Report:
    """Put saved values back into a pruned model, in place; zeros of its layers stay.

    The rest of the state, biases, normalisation, buffers and what is no layer, is put back as it
    was saved. If anything is wrong, nothing changes.

    Example:
        >>> import copy, lampfast, torch
        >>> model = torch.nn.Linear(3, 1)
        >>> _ = model.load_state_dict(
        ...     {"weight": torch.tensor([[1.0, 2.0, 3.0]]), "bias": torch.tensor([0.5])}
        ... )
        >>> saved = copy.deepcopy(model.state_dict())
        >>> with torch.no_grad():  # training
        ...     _ = model.weight.mul_(torch.tensor([3.0, 2.0, 1.0])), model.bias.add_(1.0)
        >>> _ = lampfast.prune(model, 2)
        >>> lampfast.rewind(model, saved)
        Report(numel=3, kept=1, sparsity=0.6667, layers=1)
        >>> model.weight.tolist(), model.bias.tolist()
        ([[0.0, 2.0, 0.0]], [0.5])

    An optimizer's state is its own: make a new optimizer, or load what was saved of it.

    Weights that remain look pruned where they were saved as zero, as in a head that was initialised
    with zeros. A handle of `keep_zeros`, or a Pruner, that is there already knows them apart; so
    does one that is made next. Otherwise a warning names such layers.

    Args:
        model: A module.
        saved_state: A copy of its state_dict, or of the module's that it wraps, as
            torch.compile does, from any device and in any dtypes, which are converted to the
            model's. Of a sharded model, of which every rank makes the call, it has DTensors, or
            tensors that are whole on every rank; what is not placed as in the model is gathered for
            a moment, one tensor at a time.
        include: Glob pattern or patterns over the parameters' names: these are the layers, in the
            place of those by default. Their zeros stay.
        exclude: Glob pattern or patterns over the same names: these are left out, and put
            back whole.
        stacked: Glob pattern or patterns over the names of parameters that hold several layers, one
            in each slice along the first dimension.
        leave: Glob pattern or patterns over the names of the model's state_dict: these are left as
            they are now, for example `leave="*.running_*"`.

    Returns:
        What there is now, as from `lampfast.report`. A weight that was saved as zero counts as
        pruned, as does one that training brought to exactly zero: they cannot be told apart.

    Raises:
        TypeError: The model, a layer or an argument has a type, dtype, layout or device that is not
            taken; or the model is no module, or the state no mapping of names to tensors.
        ValueError: An argument is out of range, a value is NaN or infinite, a pattern matches
            nothing, or a layer cannot be pruned; names or shapes in the state are not those of the
            model, its tensors are the model's own, or a value for a layer is NaN or infinite. The
            layers may have such values now.

    Source:
        Renda, Frankle, Carbin: Comparing rewinding and fine-tuning in neural network pruning, ICLR
        2020, arXiv 2003.02389.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; pass a torch.nn.Module")
    model, prefix = _modules.unwrapped(model)
    saved_state = _of_the_wrapped(saved_state, prefix or "_orig_mod.")
    found = parameters.find(model, include, exclude, stacked).layers
    ranks = _ranks(found, saved_state)
    state = model.state_dict(keep_vars=True)
    with shards.together(ranks):
        names = _named(found, state)
        left = _left(state, leave)
        check_fits(state, saved_state, left)
    for name in left:
        del state[name]
    saved = {name: placed.own(now, saved_state[name]) for name, now in state.items()}
    with shards.together(ranks):
        values, judged = _values(state, saved, names, found.partial())
    emptied = _not_held(_emptied(judged, ranks))
    if emptied:
        warnings.warn(
            f"{listed(list(emptied))} zero throughout in saved_state, so weights that remain look "
            "pruned and count as pruned; keep_zeros or a Pruner tells them apart if it is made "
            "now, before anything else is pruned, or before the rewinding",
            stacklevel=2,
        )
    with Deferred():
        model.load_state_dict(values, strict=not left)
        for weight, remaining in emptied.values():
            known.layers.rewound_to_zero(weight, remaining)
    return report(model, include=include, exclude=exclude, stacked=stacked)


def _ranks(found: Layers, saved_state: object) -> Communicator | None:
    """The ranks that have parts of the layers, if these are sharded; all rewind to states alike."""
    if not shards.are_sharded(found.wholes.values()):
        return None
    from lampfast._engine.sharded import Sharded

    return Sharded(found, ("rewind", placed.described(saved_state)), write=True).communicator


def _named(found: Layers, state: Mapping[str, Any]) -> dict[object, str]:
    """The names of layers that can be written and are in a state, by what they are in memory."""
    own = {name: shards.part(whole) for name, whole in found.wholes.items()}
    layers = views.layers(own, write=True)
    names = {_identity(found.wholes[layer.name]): layer.name for layer in layers}
    for missing in names.keys() - set(map(_identity, state.values())):
        raise ValueError(
            f"layer {names[missing]!r} is not in the model's state_dict, so it cannot be rewound; "
            "leave it out with exclude="
        )
    return names


def _values(
    state: Mapping[str, Any],
    saved: Mapping[str, Any],
    names: Mapping[object, str],
    partial: Mapping[str, Stack],
) -> tuple[dict[str, Any], dict[str, _Judged]]:
    """What a state is to have, of what was saved of it on this rank, and what becomes of layers."""
    values, judged = {}, {}
    for name, now in state.items():
        own = shards.part(now)
        # A layer may have other names in the state, as a decoder that is tied to an embedding.
        if (layer := names.get(_identity(now))) is None:
            value = _converted(own, saved[name])
        else:
            value = _remaining(name, own, saved[name], partial.get(layer))
            remaining, has = _nonzero(own), bool(_nonzero(value).any())
            had = bool(remaining.any())
            judged[layer] = _Judged(own, None if has else remaining, had, has)
        values[name] = placed.as_is(now, value)
    return values, judged


def _emptied(judged: Mapping[str, _Judged], ranks: Communicator | None) -> dict[str, _Emptied]:
    """The layers of which weights remain, but all are zero on all ranks."""
    flags = [flag for it in judged.values() for flag in (it.had, it.has)]
    if ranks is not None:
        flags = ranks.anywhere(flags)
    found = zip(judged.items(), flags[::2], flags[1::2], strict=True)
    return {
        name: (it.weight, it.remaining)
        for (name, it), had, has in found
        if had and not has and it.remaining is not None
    }


def _of_the_wrapped(saved_state: Any, prefix: str) -> Any:
    """A state by the names of a wrapped module, where it has those of its wrapper."""
    if not isinstance(saved_state, Mapping) or not all(
        isinstance(name, str) and name.startswith(prefix) for name in saved_state
    ):
        return saved_state
    return {name.removeprefix(prefix): value for name, value in saved_state.items()}


def _not_held(emptied: Mapping[str, _Emptied]) -> dict[str, _Emptied]:
    """Those of the layers for which no handle of kept zeros has a mask that tells what remains."""
    held = set()
    for listener in changes.listening():
        if isinstance(listener, KeptLayers):
            held |= {id(layer.weight) for layer in listener.layers}
    return {name: found for name, found in emptied.items() if id(found[0]) not in held}


def _left(state: Mapping[str, Any], leave: Patterns) -> set[str]:
    """The names whose values stay: those that match, and other names of the same tensors."""
    if leave is None:
        return set()
    left = {_identity(state[name]) for name in parameters.matching("leave", leave, state)}
    return {name for name, value in state.items() if _identity(value) in left}


def _identity(value: object) -> object:
    """What tied tensors have in common: where their memory begins; of DTensors, which is theirs."""
    if isinstance(value, torch.Tensor) and not shards.is_sharded(value):
        return value.device, value.data_ptr()
    return id(value)


def _are_one(saved: torch.Tensor, now: torch.Tensor) -> bool:
    """Whether two tensors, or what this rank has of them, begin at the same place in memory."""
    one, other = shards.part(saved), shards.part(now)
    return bool(one.numel() and other.numel()) and _identity(one) == _identity(other)


def check_fits(state: Mapping[str, Any], saved_state: Mapping[str, Any], left: set[str]) -> None:
    """Check that a saved state has what the model's state needs, and nothing else."""
    if not isinstance(saved_state, Mapping):
        raise TypeError(
            f"saved_state is a {type(saved_state).__name__}; pass a copy of model.state_dict()"
        )
    problems = [f"{name!r} is missing" for name in state if name not in {*saved_state, *left}]
    problems += [f"{name!r} is unexpected" for name in saved_state if name not in state]
    for name in [name for name in state if name in saved_state and name not in left]:
        now, saved = state[name], saved_state[name]
        if not isinstance(now, torch.Tensor):
            continue
        if problem := _problem(shards.part(saved)):
            raise TypeError(f"{name!r} in saved_state is {problem}")
        if saved.is_complex() and not now.is_complex():
            raise TypeError(
                f"{name!r} in saved_state is {saved.dtype}, which {now.dtype} has no place for; "
                "pass real values"
            )
        _check_writable(name, shards.part(now))
        if saved.shape != now.shape:
            problems.append(f"{name!r} has shape {tuple(saved.shape)}, not {tuple(now.shape)}")
        elif _are_one(saved, now):
            raise ValueError(
                f"{name!r} in saved_state is the model's own tensor, which holds what it holds "
                "now; save a copy beforehand: copy.deepcopy(model.state_dict())"
            )
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(
            f"saved_state does not fit the model: {', '.join(problems[:5])}{more}; pass a state of "
            "this very model (of one that another module wraps, take the wrapped module for both)"
        )


def _problem(saved: object) -> str | None:
    """Why something has no values that could be put back, and what to do."""
    if not isinstance(saved, torch.Tensor):
        return f"a {type(saved).__name__}; pass a tensor with its values"
    if saved.is_meta:
        return "a meta tensor; pass a tensor with its values"
    if saved.layout is not torch.strided or saved.is_nested:
        return "sparse or nested; convert it with .to_dense() first"
    if views.is_wrapper(saved):
        return f"a {type(saved).__name__}, which wraps other tensors; pass a plain tensor"
    return None


def _converted(now: object, saved: Any) -> Any:
    """A saved value as the one that it replaces, whatever that takes; a tensor's may be its own."""
    if not isinstance(now, torch.Tensor):
        return saved
    return saved.detach().to(now.device, now.dtype)


def _check_writable(name: str, tensor: torch.Tensor) -> None:
    """Check that a tensor can be given values: torch would write the ones before it first."""
    if tensor.is_inference() and not torch.is_inference_mode_enabled():
        raise ValueError(
            f"{name!r} was made in torch.inference_mode(), and can only be written there; rewind "
            "in it, or leave it out with leave="
        )
    place = views.extent(tensor)
    if place is None or place.storage is None:
        return
    if not place.storage.resizable() and protection.refuses(place.pointer[0], tensor):
        raise ValueError(
            f"{name!r} lies in read-only memory, as torch.from_numpy of a read-only memmap does; "
            "give the model a copy of it, or leave it out with leave="
        )
    if tensor.layout is not torch.strided or tensor.is_contiguous() or not copies.is_local(tensor):
        return
    address, strides = tensor.data_ptr(), tensor.stride()
    if memory.repeats(memory.array(address, tensor.itemsize, tensor.shape, strides)):
        raise ValueError(
            f"{name!r} has elements that share memory, as an expanded tensor does, so that it "
            "cannot be given values; make it contiguous, or leave it out with leave="
        )


def _remaining(
    name: str, layer: torch.Tensor, saved: torch.Tensor, partial: Stack | None
) -> torch.Tensor:
    """A layer's saved values where it is not zero now, or is no layer."""
    values = saved.detach().to(layer.device, layer.dtype)
    now, where = views.as_integers(layer), _nonzero(layer)
    if partial is not None:
        where |= stacks.uncovered(partial, layer)
    remaining = torch.where(where, views.as_integers(values), now).view(layer.dtype)
    if not (remaining.float() if layer.itemsize == 1 else remaining).isfinite().all():
        raise ValueError(
            f"layer {name!r} has NaN or infinite values in saved_state, or such that are infinite "
            f"in {layer.dtype}; pass a state from before they came"
        )
    return remaining


def _nonzero(layer: torch.Tensor) -> torch.Tensor:
    """Where a layer is not zero."""
    # By their bits: a processor may take subnormals for zeros, and float8 has no comparisons. The
    # shift drops the sign, so that -0 is zero.
    return views.as_integers(layer) << 1 != 0
