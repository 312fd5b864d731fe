"""The four CIFAR-10 models of the LAMP paper's code at full size, with seeded weights.

Only the shapes of their prunable weights matter here. Each architecture is written down as the
rule that gives them; the totals are those of the reference implementation.

Source: shapes after Simonyan & Zisserman 2014 (VGG16), He et al. 2015 (ResNet18), Huang et al.
2016 (DenseNet121, growth rate 12) and Tan & Le 2019 (EfficientNet-B0), as adapted to CIFAR-10.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from compare import assert_same_masks
from sorted_check import SortedCheck

import lampfast

Shapes = list[tuple[int, ...]]


def vgg16() -> Shapes:
    """Thirteen 3x3 convolutions and one linear layer."""
    widths = [3, 64, 64, 128, 128, *[256] * 3, *[512] * 6]
    return [*((out, into, 3, 3) for into, out in pairwise(widths)), (10, 512)]


def resnet18() -> Shapes:
    """Eight blocks of two convolutions, with a 1x1 shortcut where the width changes."""
    shapes: Shapes = [(64, 3, 3, 3)]
    into = 64
    for width in (64, 64, 128, 128, 256, 256, 512, 512):
        shapes += [(width, into, 3, 3), (width, width, 3, 3)]
        if width != into:
            shapes.append((width, into, 1, 1))
        into = width
    return [*shapes, (10, into)]


def densenet121() -> Shapes:
    """Bottlenecks that each add twelve channels, halved between the four dense blocks."""
    growth, channels = 12, 24
    shapes: Shapes = [(channels, 3, 3, 3)]
    for bottlenecks in (6, 12, 24, 16):
        if channels > 24:
            shapes.append((channels // 2, channels, 1, 1))
            channels //= 2
        for _ in range(bottlenecks):
            shapes += [(4 * growth, channels, 1, 1), (growth, 4 * growth, 3, 3)]
            channels += growth
    return [*shapes, (10, channels)]


def efficientnet_b0() -> Shapes:
    """Inverted bottlenecks: expand, depthwise, squeeze, excite, project."""
    into = 32
    shapes: Shapes = [(into, 3, 3, 3)]
    stages = [
        *((1, 16, 1, 3), (6, 24, 2, 3), (6, 40, 2, 5), (6, 80, 3, 3)),
        *((6, 112, 3, 5), (6, 192, 4, 5), (6, 320, 1, 3)),
    ]
    for expansion, out, repeats, kernel in stages:
        for _ in range(repeats):
            wide, squeezed = into * expansion, into // 4
            shapes += [(wide, into, 1, 1), (wide, 1, kernel, kernel)]
            shapes += [(squeezed, wide, 1, 1), (wide, squeezed, 1, 1), (out, wide, 1, 1)]
            into = out
    return [*shapes, (10, into)]


def weights(shapes: Shapes, seed: int = 0) -> dict[str, torch.Tensor]:
    """Gaussian weights with the standard deviation of He et al. 2015, sqrt(2 / fan_in)."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{position}": torch.randn(shape, generator=generator) * math.sqrt(2 / math.prod(shape[1:]))
        for position, shape in enumerate(shapes)
    }


# Layers, weights, and weights kept at 90%, from the reference implementation.
MODELS = {
    vgg16: (14, 14_715_584, 1_471_558),
    resnet18: (21, 11_164_352, 1_116_435),
    densenet121: (121, 969_288, 96_929),
    efficientnet_b0: (82, 3_550_816, 355_082),
}


@pytest.mark.parametrize("architecture", MODELS, ids=lambda model: model.__name__)
def test_masks_and_counts_at_full_size(architecture: Callable[[], Shapes]) -> None:
    layer_count, numel, kept = MODELS[architecture]
    model = weights(architecture())
    assert (len(model), sum(layer.numel() for layer in model.values())) == (layer_count, numel)
    assert all(layer.all() for layer in model.values())  # so every survivor can be counted

    check = SortedCheck(model)
    for s in (0.2, 0.9, 0.99, numel // 2 + 1):
        k = s if isinstance(s, int) else round(s * numel)
        assert_same_masks(lampfast.masks(model, s), check.masks(k))

    ninety = check.masks(round(0.9 * numel))
    report = lampfast.prune(model, 0.9)
    assert report.kept == kept
    assert sum(int(layer.count_nonzero()) for layer in model.values()) == kept
    assert_same_masks({name: layer != 0 for name, layer in model.items()}, ninety)
    assert lampfast.report(model).kept == kept


def test_pruning_on_from_a_pruned_model() -> None:
    """The zeros of the first round score 0 and go first, so s is absolute."""
    model = weights(densenet121())
    numel = MODELS[densenet121][1]
    survivors = SortedCheck(model).masks(round(0.75 * numel))
    for s in (0.5, 0.75):
        lampfast.prune(model, s)
        assert sum(int(layer.count_nonzero()) for layer in model.values()) == numel - round(
            s * numel
        )
    assert_same_masks({name: layer != 0 for name, layer in model.items()}, survivors)


@pytest.mark.parametrize("k", [0, 1, 2, 12_345, 484_644, 969_286, 969_287, 969_288])
def test_survivors_round_trip_k(k: int) -> None:
    model = weights(densenet121(), seed=k)
    report = lampfast.prune(model, k)
    assert report.numel - report.kept == k
    assert sum(int((layer == 0).sum()) for layer in model.values()) == k
    # What survived is a fixed point: nothing more goes.
    pruned = {name: layer.clone() for name, layer in model.items()}
    lampfast.prune(model, k)
    for name, layer in model.items():
        assert torch.equal(layer, pruned[name])
