"""The definition of LAMP pruning in plain Python integers: exact, slow, and meant to be read.

A layer has finite weights w_1 … w_n. Order them by (|w|, flat row-major index), ascending, and
write q_i = w_i² and S_i = q_i + q_{i+1} + … + q_n. The LAMP score of a weight is what pruning it,
and nothing larger, would cost its layer:

    score_i = q_i / S_i,   and 0 where q_i = 0

To prune k weights of a model, order the elements of all layers by (score, layer position, |w|,
flat index) and take the first k. Scores are compared as real numbers: a floating-point weight is
an integer times a power of two, so every score is a quotient of two integers and nothing here is
ever rounded. The rest of lampfast gives the same masks and is tested against this file.

Source: the LAMP score of Lee, Park, Mo, Ahn, Shin: Layer-adaptive Sparsity for the
Magnitude-based Pruning, ICLR 2021 (arXiv 2010.07611). The paper leaves ties open; the order of
equal elements is lampfast's own.
"""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["Layer", "magnitudes", "masks", "scores"]

Layer: TypeAlias = torch.Tensor | npt.NDArray[Any]


class _Format(NamedTuple):
    """How a dtype spells a number: sign, then exponent, then `fraction_bits` of fraction."""

    bits: torch.dtype  # integers of the same size
    fraction_bits: int
    largest: int  # the bits of the largest finite number


_FORMATS = {
    torch.float64: _Format(torch.int64, 52, 0x7FEF_FFFF_FFFF_FFFF),
    torch.float32: _Format(torch.int32, 23, 0x7F7F_FFFF),
    torch.bfloat16: _Format(torch.int16, 7, 0x7F7F),
    torch.float16: _Format(torch.int16, 10, 0x7BFF),
    torch.float8_e5m2: _Format(torch.int8, 2, 0x7B),
    torch.float8_e4m3fn: _Format(torch.int8, 3, 0x7E),
}


def magnitudes(layer: Layer) -> list[int]:
    """Return |w| of every element, as an integer number of the dtype's smallest steps.

    The bits are read as they are, so subnormal numbers count even where the processor was told to
    flush them, and -0 is 0. The unit of measure does not matter to a score, which is a quotient.

    Example:
        >>> import torch
        >>> from lampfast import reference
        >>> reference.magnitudes(torch.tensor([2.0**-149, -(2.0**-148), -0.0, 2.0**-126]))
        [1, 2, 0, 8388608]

    Args:
        layer: A float tensor or array of any shape and strides, in a dtype that lampfast prunes.

    Returns:
        The magnitudes in row-major order, in units of the smallest positive number of the dtype.

    Raises:
        KeyError: The dtype is not one that lampfast prunes.
        ValueError: An element is NaN or infinite.
    """
    if isinstance(layer, np.ndarray):
        layer = torch.from_numpy(np.array(layer, order="C"))
    form = _FORMATS[layer.dtype]
    flat = layer.detach().cpu().contiguous().view(form.bits).flatten()
    result = []
    for index, word in enumerate(flat.tolist()):
        bits = word & ((1 << (8 * flat.itemsize - 1)) - 1)  # without the sign
        if bits > form.largest:
            raise ValueError(f"element {index} is not finite")
        exponent, fraction = bits >> form.fraction_bits, bits & ((1 << form.fraction_bits) - 1)
        normal = (fraction | 1 << form.fraction_bits) << max(exponent - 1, 0)
        result.append(normal if exponent else fraction)
    return result


def scores(
    layers: Mapping[str, Layer], importance: Mapping[str, Layer] | None = None
) -> dict[str, list[Fraction]]:
    """Return the exact LAMP score of every element of every layer.

    Example:
        >>> import torch
        >>> from lampfast import reference
        >>> reference.scores({"fc": torch.tensor([[-3.0, 4.0], [0.0, 3.0]])})
        {'fc': [Fraction(9, 34), Fraction(1, 1), Fraction(0, 1), Fraction(9, 25)]}

    Args:
        layers: Name to float tensor or array, of any shape.
        importance: Name to tensor or array of the layer's shape, whose magnitude takes |w|'s place.

    Returns:
        Name to scores, in row-major order; each is in [0, 1].

    Raises:
        KeyError: A dtype is not one that lampfast prunes.
        ValueError: An element is NaN or infinite.

    Source:
        The LAMP score of Lee et al., ICLR 2021 (arXiv 2010.07611).
    """
    chosen = layers if importance is None else {name: importance[name] for name in layers}
    return {name: _layer_scores(magnitudes(layer)) for name, layer in chosen.items()}


def masks(
    layers: Mapping[str, Layer], s: float, importance: Mapping[str, Layer] | None = None
) -> dict[str, torch.Tensor]:
    """Return the masks that keep all but the k elements of the lowest LAMP scores.

    Example:
        >>> import torch
        >>> from lampfast import reference
        >>> layers = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([30.0, -30.0, 40.0])}
        >>> reference.masks(layers, 0.4)
        {'a': tensor([False,  True]), 'b': tensor([False,  True,  True])}

        The elements 3 of a and -30 of b both score 9/25; the earlier layer went first.

    Args:
        layers: Name to float tensor or array, of any shape; their order is the layer position.
        s: How much to prune: a float in [0, 1] is a share of all elements, k = round(s * N);
            an int is k itself, from 0 to N.
        importance: Name to tensor or array of the layer's shape, whose magnitude takes |w|'s place.

    Returns:
        Name to bool tensor of the layer's shape, True where the element is kept.

    Raises:
        KeyError: A dtype is not one that lampfast prunes.
        ValueError: An element is NaN or infinite, or k is not in 0 … N.

    Source:
        Global pruning by the LAMP score, Lee et al., ICLR 2021 (arXiv 2010.07611).
    """
    chosen = layers if importance is None else {name: importance[name] for name in layers}
    ranking = []
    for position, layer in enumerate(chosen.values()):
        sizes = magnitudes(layer)
        for index, (score, size) in enumerate(zip(_layer_scores(sizes), sizes, strict=True)):
            ranking.append((score, position, size, index))
    ranking.sort()

    k = s if isinstance(s, int) else round(s * len(ranking))
    if not 0 <= k <= len(ranking):
        raise ValueError(f"cannot prune {k} of {len(ranking)} elements")
    kept = [torch.ones(layer.shape, dtype=torch.bool) for layer in chosen.values()]
    for _, position, _, index in ranking[:k]:
        kept[position].view(-1)[index] = False
    return dict(zip(chosen, kept, strict=True))


def _layer_scores(sizes: list[int]) -> list[Fraction]:
    """The scores of one layer from its magnitudes: add up the squares from the largest down."""
    result = [Fraction(0)] * len(sizes)
    ascending = sorted(range(len(sizes)), key=lambda index: (sizes[index], index))
    remaining = 0
    for index in reversed(ascending):
        square = sizes[index] ** 2
        remaining += square
        if square:
            result[index] = Fraction(square, remaining)
    return result
