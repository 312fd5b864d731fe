"""Rewinding: the weights that remain take the values that they had before."""

from __future__ import annotations  # so that help() shows Patterns, not all that it may be

import warnings
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import nn

from lampfast import _modules, parameters
from lampfast._engine import changes, copies, memory, protection, stacks, views
from lampfast._engine.interrupts import Deferred
from lampfast._engine.stacks import Stack
from lampfast._training import known
from lampfast._training.kept_layers import KeptLayers
from lampfast._training.zeros import listed
from lampfast.parameters import Patterns
from lampfast.pruning import report
from lampfast.reports import Report

_Emptied: TypeAlias = tuple[torch.Tensor, torch.Tensor]  # a layer, and where it is not zero


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
            torch.compile does, from any device and in any dtypes, which are
            converted to the model's.
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
    layers, partial = views.layers(found.wholes, write=True), found.partial()
    state = model.state_dict(keep_vars=True)
    left = _left(state, leave)
    check_fits(state, saved_state, left)
    names = {_identity(layer.weight): layer.name for layer in layers}
    for missing in names.keys() - set(map(_identity, state.values())):
        raise ValueError(
            f"layer {names[missing]!r} is not in the model's state_dict, so it cannot be rewound; "
            "leave it out with exclude="
        )
    for name in left:
        del state[name]
    emptied = {}
    for name, now in state.items():
        saved = saved_state[name]
        # A layer may have other names in the state, as a decoder that is tied to an embedding.
        if (layer := names.get(_identity(now))) is None:
            state[name] = _converted(now, saved)
            continue
        state[name] = _remaining(name, now, saved, partial.get(layer))
        if (remaining := _nonzero(now)).any() and not _nonzero(state[name]).any():
            emptied[layer] = now, remaining
    emptied = _not_held(emptied)
    if emptied:
        warnings.warn(
            f"{listed(list(emptied))} zero throughout in saved_state, so weights that remain look "
            "pruned and count as pruned; keep_zeros or a Pruner tells them apart if it is made "
            "now, before anything else is pruned, or before the rewinding",
            stacklevel=2,
        )
    with Deferred():
        model.load_state_dict(state, strict=not left)
        for weight, remaining in emptied.values():
            known.layers.rewound_to_zero(weight, remaining)
    return report(model, include=include, exclude=exclude, stacked=stacked)


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
    """What tied tensors have in common: where their memory begins."""
    if isinstance(value, torch.Tensor):
        return value.device, value.data_ptr()
    return id(value)


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
        if problem := _problem(saved):
            raise TypeError(f"{name!r} in saved_state is {problem}")
        if saved.is_complex() and not now.is_complex():
            raise TypeError(
                f"{name!r} in saved_state is {saved.dtype}, which {now.dtype} has no place for; "
                "pass real values"
            )
        _check_writable(name, now)
        if saved.shape != now.shape:
            problems.append(f"{name!r} has shape {tuple(saved.shape)}, not {tuple(now.shape)}")
        elif now.numel() and _identity(saved) == _identity(now):
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
