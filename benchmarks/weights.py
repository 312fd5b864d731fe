"""The values that are measured: four kinds of float32 weights, seeded, for any shapes."""

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from shapes import Shapes

from lampfast._cli import demo

Weights: TypeAlias = dict[str, torch.Tensor]

_CHUNK = 2**20  # elements that are worked on at a time, so that scratch stays small


def gaussian(shapes: Shapes) -> Weights:
    """Normal, by fan-out, as torchvision initialises convolutions."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator).mul_(
            math.sqrt(2 / (shape[0] * math.prod(shape[2:])))
        )
        for name, shape in shapes.items()
    }


def row_scaled(shapes: Shapes) -> Weights:
    """Gaussian, each row times a scale of its own: log-normal, sigma 1."""
    weights = gaussian(shapes)
    generator = torch.Generator().manual_seed(1)
    for weight in weights.values():
        weight.flatten(1).mul_(torch.randn(len(weight), 1, generator=generator).exp_())
    return weights


def heavy_tailed(shapes: Shapes) -> Weights:
    """Student's t of 3 degrees of freedom: gaussian over the root of a chi-squared's third."""
    weights = gaussian(shapes)
    generator = torch.Generator().manual_seed(1)
    for weight in weights.values():
        for chunk in torch.split(weight.flatten(), _CHUNK):
            # An exponential of rate 1/2 is a chi-squared of 2; a normal's square adds the third.
            chi_squared = torch.empty_like(chunk).exponential_(0.5, generator=generator)
            chi_squared += torch.randn(chunk.shape, generator=generator).square_()
            chunk.div_(chi_squared.div_(3).sqrt_())
    return weights


def trained(shapes: Shapes) -> Weights:
    """The ImageNet weights of EfficientNet-Lite0, one layer after the other, over and over."""
    stream = torch.cat([weight.flatten() for weight in demo.imagenet_weights().values()])
    weights, start = {}, 0
    for name, shape in shapes.items():
        numel = math.prod(shape)
        weights[name] = cycled(stream, start, numel).view(shape)
        start = (start + numel) % len(stream)
    return weights


def cycled(stream: torch.Tensor, start: int, numel: int) -> torch.Tensor:
    """`numel` elements, from `start` on, of an endless repetition of the stream."""
    period = stream.roll(-start)
    times, rest = divmod(numel, len(period))
    return torch.cat([*[period] * times, period[:rest]])


KINDS: dict[str, Callable[[Shapes], Weights]] = {
    "gaussian": gaussian,
    "row-scaled": row_scaled,
    "heavy-tailed": heavy_tailed,
    "trained": trained,
}
