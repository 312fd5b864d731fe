"""The three networks, small enough for a processor core: 70,000 to 270,000 prunable weights."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

_CLASSES = 10


@dataclass(frozen=True)
class Architecture:
    """A network of the study.

    Attributes:
        title: What it is, in a few words.
        make: Makes one, with weights from torch's global generator.
        seeds: How many seeds the study has of it.
        milliseconds: Roughly, a training step on one core: for the first estimate of the time.
    """

    title: str
    make: Callable[[], nn.Module]
    seeds: int
    milliseconds: float


def mlp() -> nn.Module:
    """A fully connected network with 300 and 100 hidden units, LeNet-300-100."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(28 * 28, 300),
        nn.ReLU(),
        nn.Linear(300, 100),
        nn.ReLU(),
        nn.Linear(100, _CLASSES),
    )


def vgg() -> nn.Module:
    """Five 3×3 convolutions with batch normalisation, pooled in between as in VGG."""
    return _channels_last(
        *_convolution(1, 16, stride=2),  # early, where most of the time would go
        nn.MaxPool2d(2),
        *_convolution(16, 32),
        *_convolution(32, 32),
        nn.MaxPool2d(2),
        *_convolution(32, 64),
        *_convolution(64, 64),
        *_head(64),
    )


def resnet() -> nn.Module:
    """Three residual blocks of two convolutions each, with batch normalisation, after a stem."""
    return _channels_last(
        *_convolution(1, 16, stride=2),
        nn.MaxPool2d(2),
        _Block(16, 16),
        _Block(16, 32, stride=2),
        _Block(32, 64, stride=2),
        *_head(64),
    )


class _Block(nn.Module):
    """Two convolutions beside a shortcut, which is a 1×1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Sequential(*_convolution(inputs, outputs, stride))
        self.second = nn.Sequential(*_convolution(outputs, outputs)[:-1])  # relu after the sum
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut.append(nn.Conv2d(inputs, outputs, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(outputs))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.second(self.first(images)) + self.shortcut(images)
        return result.relu()


def _convolution(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]


def _head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, _CLASSES)]


def _channels_last(*modules: nn.Module) -> nn.Module:
    """In the memory format in which processors convolve faster."""
    model = nn.Sequential(*modules)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


ARCHITECTURES = {
    "mlp": Architecture("fully connected, 300-100", mlp, seeds=5, milliseconds=2),
    "vgg": Architecture("VGG-style, 5 convolutions", vgg, seeds=3, milliseconds=11),
    "resnet": Architecture("ResNet, 3 blocks", resnet, seeds=3, milliseconds=11),
}
