"""The prunable weights of ResNet-50 (He et al., 2015): every convolution and the classifier."""

import math
from collections.abc import Iterator

import torch

_STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))  # how many bottlenecks, their inner width
_EXPANSION = 4


def shapes() -> dict[str, tuple[int, ...]]:
    """Names the 54 weights as torchvision does, 25,502,912 elements in all."""
    return dict(_shapes())


def weights() -> dict[str, torch.Tensor]:
    """Makes them, float32, as torchvision initialises them (normal, by fan-out); seeded."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator)
        * math.sqrt(2 / (shape[0] * math.prod(shape[2:])))
        for name, shape in shapes().items()
    }


def _shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "conv1.weight", (64, 3, 7, 7)
    channels = 64
    for stage, (blocks, width) in enumerate(_STAGES, 1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            yield f"{name}.conv1.weight", (width, channels, 1, 1)
            yield f"{name}.conv2.weight", (width, width, 3, 3)
            yield f"{name}.conv3.weight", (_EXPANSION * width, width, 1, 1)
            if block == 0:
                yield f"{name}.downsample.0.weight", (_EXPANSION * width, channels, 1, 1)
            channels = _EXPANSION * width
    yield "fc.weight", (1000, channels)
