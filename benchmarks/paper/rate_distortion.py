"""Layerwise sparsities of the least output distortion, a rival of LAMP that looks at data.

Rebuilt from the description of RD_PRUNE: Xu et al., *Efficient Joint Optimization of Layer-Adaptive
Weight Pruning in Deep Neural Networks*, ICCV 2023, arXiv 2308.10438. Every layer has a curve, the
distortion of the network's output when that layer alone is pruned by magnitude. The distortions of
several layers are taken to add up, and dynamic programming over the layers finds the counts of the
least sum.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from data import Images
from torch import nn

import lampfast
from lampfast import parameters

CALIBRATION = 1024  # images, as the authors use for CIFAR-10
_STEP, _POINTS = (
    0.8,
    24,
)  # of a curve: it is measured where the layer keeps 1, 0.8, 0.8² ... and none
_UNITS = 2000  # into which the weights to keep are divided for the dynamic programming


class Curve(NamedTuple):
    """The distortion of the output over how many weights one layer keeps.

    Attributes:
        kept: Counts in ascending order, the first 0, the last all weights that are not zero yet.
        distortion: At each of them; in between it is interpolated.
    """

    kept: np.ndarray
    distortion: np.ndarray

    @property
    def available(self) -> int:
        """How many weights the layer has that are not zero yet."""
        return int(self.kept[-1])


def allocation(model: nn.Module, images: Images, sparsity: float) -> dict[str, int]:
    """Share a sparsity of the whole network among its layers.

    Args:
        model: The network; its weights are as before when this returns.
        images: On which the distortion is measured.
        sparsity: The fraction to prune of all prunable weights.

    Returns:
        By layer how many of its weights to prune, as `lampfast.prune(method=...)` takes them.
    """
    names = parameters.named(model)
    layers = {name: layer for name, layer in model.named_parameters() if name in names}
    total = sum(layer.numel() for layer in layers.values())
    curves = [_curve(model, layer, images.pixels) for layer in layers.values()]
    kept = allocate(curves, total - round(sparsity * total))
    return {
        name: layer.numel() - count
        for (name, layer), count in zip(layers.items(), kept, strict=True)
    }


def allocate(curves: Sequence[Curve], total: int) -> list[int]:
    """Choose how many weights each layer keeps so that the distortions add up to the least.

    Example:
        >>> steep = Curve(np.array([0, 2, 4]), np.array([9.0, 1.0, 0.0]))
        >>> flat = Curve(np.array([0, 2, 4]), np.array([0.5, 0.2, 0.0]))
        >>> allocate([steep, flat], 4)
        [4, 0]

    Args:
        curves: One for each layer.
        total: How many weights all layers keep together, at most those that are available.

    Returns:
        For each layer a count; together they are `total`.
    """
    unit = max(1, -(-total // _UNITS))
    budget = total // unit
    best = np.full(budget + 1, np.inf)  # by units kept so far, the least distortion
    best[0] = 0.0
    choices = []
    for curve in curves:
        counts = np.arange(min(budget, -(-curve.available // unit)) + 1) * unit
        best, choice = _extend(best, np.interp(counts, curve.kept, curve.distortion))
        choices.append(choice)
    kept, left = [], budget
    for curve, choice in zip(reversed(curves), reversed(choices), strict=True):
        kept.append(min(int(choice[left]) * unit, curve.available))
        left -= int(choice[left])
    return _filled(kept[::-1], curves, total)


def _extend(best: np.ndarray, distortion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Add a layer: the new least distortions, and how many units it keeps in each of them."""
    extended, choice = np.full_like(best, np.inf), np.zeros(len(best), np.int64)
    for units, own in enumerate(distortion):
        candidate = best[: len(best) - units] + own
        better = candidate < extended[units:]
        extended[units:][better] = candidate[better]
        choice[units:][better] = units
    return extended, choice


def _filled(kept: list[int], curves: Sequence[Curve], total: int) -> list[int]:
    """Give what whole units have left over, less than a unit a layer, to the largest layers."""
    for i in sorted(range(len(curves)), key=lambda i: -curves[i].available):
        kept[i] += min(total - sum(kept), curves[i].available - kept[i])
    return kept


@torch.no_grad()
def _curve(model: nn.Module, layer: nn.Parameter, pixels: torch.Tensor) -> Curve:
    """Measure one layer's curve; the network is as before when this returns."""
    model.eval()
    original, whole = layer.clone(), model(pixels)
    available = int(original.count_nonzero())
    kept = sorted({0, *(round(available * _STEP**power) for power in range(_POINTS + 1))})
    distortion = []
    for count in kept:
        mask = lampfast.masks({"layer": original}, layer.numel() - count)["layer"]
        layer.copy_(original * mask)
        # The worst image counts, as in the commands with which the authors got their results.
        distortion.append(float((model(pixels) - whole).square().mean(1).max()))
    layer.copy_(original)
    return Curve(np.array(kept), np.array(distortion))
