"""The shapes that are measured: the prunable weights of models, by name."""

from collections.abc import Callable, Iterator
from typing import TypeAlias

Shapes: TypeAlias = dict[str, tuple[int, ...]]

_STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))  # how many bottlenecks, their inner width
_EXPANSION = 4
_SHRINK = 256


def resnet50() -> Shapes:
    """ResNet-50 (He et al., 2015): every convolution and the classifier, named as torchvision does.

    54 layers, 25,502,912 weights.
    """
    return dict(_resnet50())


def one_layer() -> Shapes:
    """One square matrix of 100,000,000 weights."""
    return {"weight": (10_000, 10_000)}


def transformer() -> Shapes:
    """GPT-2 small (Radford et al., 2019): 12 blocks of width 768 and an output layer of its own.

    49 layers, 123,532,032 weights.
    """
    return dict(_transformer(blocks=12, width=768, vocabulary=50_257))


def shrunk(shapes: Shapes) -> Shapes:
    """The same layers with a small part of their rows, to try out what would take long."""
    return {name: (max(1, rows // _SHRINK), *rest) for name, (rows, *rest) in shapes.items()}


MODELS: dict[str, Callable[[], Shapes]] = {
    "resnet50": resnet50,
    "one layer": one_layer,
    "transformer": transformer,
}


def _resnet50() -> Iterator[tuple[str, tuple[int, ...]]]:
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


def _transformer(blocks: int, width: int, vocabulary: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for block in range(blocks):
        yield f"{block}.in_proj.weight", (3 * width, width)
        yield f"{block}.out_proj.weight", (width, width)
        yield f"{block}.fc1.weight", (4 * width, width)
        yield f"{block}.fc2.weight", (width, 4 * width)
    yield "output.weight", (vocabulary, width)
