"""The calls that are timed: lampfast's, the floors below it, and what people use today.

Each is handed out as a function that sets the call up, untimed, and returns it, as
`lampfast._cli.measure.median_seconds` takes it.
"""

import time
from collections.abc import Callable
from functools import partial

import floors
import torch
from torch.nn.utils import prune as torch_prune
from weights import Weights

import lampfast
from lampfast import _arguments, _core
from lampfast._cli.measure import Call
from lampfast._engine import views
from lampfast.methods import Method

Prepare = Callable[[], Call]


def masks(weights: Weights, s: float, method: Method = "lamp") -> Prepare:
    """Times `lampfast.masks`."""
    return lambda: partial(lampfast.masks, weights, s, method=method)


def prune(weights: Weights, targets: Weights, s: float) -> Prepare:
    """Times `lampfast.prune` on `targets`, which are restored from `weights` before every call."""
    return restored(weights, targets, lambda layers: partial(lampfast.prune, layers, s))


def restored(weights: Weights, targets: Weights, call: Callable[[Weights], Call]) -> Prepare:
    """Times a call on `targets`, which are restored from `weights` before every call."""

    def prepare() -> Call:
        restore(weights, targets)
        return call(targets)

    return prepare


def restore(weights: Weights, targets: Weights) -> None:
    """Copies, and waits until torch's threads rest; they spin for milliseconds after their work.

    Whatever is timed next would share its cores with them.
    """
    copy(weights, targets)
    time.sleep(0.02)


# Floors.


def masks_floors(weights: Weights, s: float) -> tuple[Prepare, Prepare]:
    """Times writing the masks when every threshold is already known.

    Returns:
        As `lampfast.masks` does it, into new tensors, whose pages the system may have to provide
        first; and, stricter, into tensors that are there.

    Raises:
        AssertionError: They do not write what `lampfast.masks` returns, but for ties.
    """
    layers, machine = views.layers(weights), (torch.get_num_threads(), ())
    planned = _core.thresholds([layer.pointer for layer in layers], spec(weights, s), machine)
    tensors, keys = list(weights.values()), [threshold.key for threshold in planned]

    def empty() -> list[torch.Tensor]:
        return [torch.empty(weight.shape, dtype=torch.bool) for weight in tensors]

    def write(masks: list[torch.Tensor]) -> list[torch.Tensor]:
        floors.write_masks(tensors, keys, masks)
        return masks

    there, expected = empty(), lampfast.masks(weights, s)
    for mask, right, weight, threshold in zip(
        write(there), expected.values(), tensors, planned, strict=True
    ):
        assert (weight[mask != right].abs().double() == threshold.magnitude).all()
    return lambda: lambda: write(empty()), lambda: partial(write, there)


def copy_floor(weights: Weights, targets: Weights) -> Prepare:
    """Times copying the weights into tensors that are there."""
    return lambda: partial(copy, weights, targets)


# Peers.


def global_magnitude(weights: Weights, s: float) -> Call:
    """Sets up torch's own pruning over all layers: by plain magnitude, so another answer."""
    parameters = []
    for weight in weights.values():
        module = torch.nn.Module()
        module.weight = torch.nn.Parameter(weight)
        parameters.append((module, "weight"))
    return lambda: torch_prune.global_unstructured(parameters, torch_prune.L1Unstructured, amount=s)


# What they have in common.


def clone(weights: Weights) -> Weights:
    """Copies that lie in memory as the weights do."""
    return {name: weight.clone() for name, weight in weights.items()}


def copy(sources: Weights, targets: Weights) -> None:
    """Copies each weight into the target of its name."""
    for name, source in sources.items():
        targets[name].copy_(source)


def numel(weights: Weights) -> int:
    """How many weights there are."""
    return sum(weight.numel() for weight in weights.values())


def dropped(masks: Weights) -> int:
    """How many weights the masks drop."""
    return sum(mask.numel() - int(mask.count_nonzero()) for mask in masks.values())


def spec(weights: Weights, s: float) -> _core.SelectionSpec:
    """What the engine is asked for by `lampfast.masks(weights, s)`."""
    return _core.SelectionSpec(
        _core.Ranking.lamp, [_arguments.count("sparsity", s, numel(weights))]
    )


# Nothing is timed that does not give the right answer.


def check_masks(weights: Weights, s: float) -> None:
    """Checks that the masks drop exactly as many weights as asked for.

    Raises:
        AssertionError: They do not.
    """
    found = dropped(lampfast.masks(weights, s))
    assert found == round(s * numel(weights)), f"{found} are dropped, not {s} of all"


def check_prune(weights: Weights, targets: Weights, s: float) -> None:
    """Checks that exactly as many weights as asked for are zero after pruning.

    Raises:
        AssertionError: They are not.
    """
    prune(weights, targets, s)()()
    check_zeros(targets, s)


def check_zeros(weights: Weights, s: float) -> None:
    """Checks that exactly as many weights are zero as asked for.

    Raises:
        AssertionError: They are not.
    """
    zeros = sum(int((weight.float() == 0).sum()) for weight in weights.values())
    assert zeros == round(s * numel(weights)), f"{zeros} are zero, not {s} of all"
