"""The definition of LAMP pruning in plain Python integers: exact, slow, and meant to be read.

A layer has finite weights w_1 … w_n. Order them by (|w|, flat row-major index), ascending, and
write q_i = w_i² and S_i = q_i + q_{i+1} + … + q_n. The LAMP score of a weight is what pruning it,
and nothing larger, would cost its layer:

    score_i = q_i / S_i,   and 0 where q_i = 0

To prune k weights of a model, order the elements of all layers by (score, layer position, |w|,
flat index) and take the first k. Scores are compared as real numbers: a floating-point weight is
an integer times a power of two, so every score is a quotient of two integers and nothing here is
ever rounded. The rest of lampfast gives the same masks and is tested against this file.

The baselines that the paper compares with share the same k in other ways, and in each layer prune
the smallest magnitudes: by the order (|w|, layer position, flat index) of all layers together, or
by a number that each layer keeps (`kept_counts`).

Source: the LAMP score of Lee, Park, Mo, Ahn, Shin: Layer-adaptive Sparsity for the
Magnitude-based Pruning, ICLR 2021 (arXiv 2010.07611). The paper leaves ties open; the order of
equal elements is lampfast's own.
"""

import itertools
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["Layer", "kept_counts", "magnitudes", "masks", "scores"]

Layer: TypeAlias = torch.Tensor | npt.NDArray[Any]


# What an element is sorted by: its rank, the layer position, the magnitude, the flat index.
_Element: TypeAlias = tuple[Fraction, int, int, int]


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
    layer = _tensor(layer)
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
    layers: Mapping[str, Layer],
    sparsity: float,
    importance: Mapping[str, Layer] | None = None,
    method: str = "lamp",
) -> dict[str, torch.Tensor]:
    """Return the masks that keep all but the k elements that go first.

    Example:
        >>> import torch
        >>> from lampfast import reference
        >>> layers = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([30.0, -30.0, 40.0])}
        >>> reference.masks(layers, 0.4)
        {'a': tensor([False,  True]), 'b': tensor([False,  True,  True])}

        The elements 3 of a and -30 of b both score 9/25; the earlier layer went first.

    Args:
        layers: Name to float tensor or array, of any shape; their order is the layer position.
        sparsity: How much to prune: a float in [0, 1] is a share of all elements,
            k = round(sparsity * N); an int is k itself, from 0 to N.
        importance: Name to tensor or array of the layer's shape, whose magnitude takes |w|'s place.
        method: "lamp", "global", "uniform", "uniform+" or "erk".

    Returns:
        Name to bool tensor of the layer's shape, True where the element is kept.

    Raises:
        KeyError: A dtype is not one that lampfast prunes.
        ValueError: An element is NaN or infinite, k is not in 0 … N, or "uniform+" keeps more.

    Source:
        Global pruning by the LAMP score, Lee et al., ICLR 2021 (arXiv 2010.07611), and section 4
        there for the baselines.
    """
    chosen = layers if importance is None else {name: importance[name] for name in layers}
    rankings = [_ranking(position, layer, method) for position, layer in enumerate(chosen.values())]
    total = sum(map(len, rankings))
    k = sparsity if isinstance(sparsity, int) else round(sparsity * total)
    if not 0 <= k <= total:
        raise ValueError(f"cannot prune {k} of {total} elements")

    if method in ("lamp", "global"):
        gone = sorted(itertools.chain(*rankings))[:k]
    else:
        stay = kept_counts(chosen, total - k, method).values()
        apart = [ranking[: len(ranking) - n] for ranking, n in zip(rankings, stay, strict=True)]
        gone = list(itertools.chain(*apart))
    kept = [torch.ones(layer.shape, dtype=torch.bool) for layer in chosen.values()]
    for _, position, _, index in gone:
        kept[position].view(-1)[index] = False
    return dict(zip(chosen, kept, strict=True))


def group_masks(
    layers: Mapping[str, Layer],
    kept: int,
    size: int,
    dim: int,
    importance: Mapping[str, Layer] | None = None,
) -> dict[str, torch.Tensor]:
    """Return the masks that keep the largest elements of every group of an n:m pattern.

    Example:
        >>> import torch
        >>> from lampfast import reference
        >>> reference.group_masks({"a": torch.tensor([[3.0, 1.0, -3.0, 3.0, 7.0]])}, 2, 4, dim=1)
        {'a': tensor([[False, False,  True,  True,  True]])}

    Args:
        layers: Name to float tensor or array, with a dimension `dim`.
        kept: n, how many elements of a group are kept: those that come last when they are ordered
            by magnitude and then by position.
        size: m, how many elements that follow each other along the dimension make a group. What
            is left at the end of the dimension is a smaller group, which keeps in proportion,
            rounded up.
        dim: The dimension along which groups lie.
        importance: Name to tensor or array of the layer's shape, whose magnitude takes |w|'s place.

    Returns:
        Name to bool tensor of the layer's shape, True where the element is kept.

    Raises:
        KeyError: A dtype is not one that lampfast prunes.
        ValueError: An element is NaN or infinite.

    Source:
        Mishra et al., Accelerating Sparse Deep Neural Networks, arXiv 2104.08378, section 2, for
        the pattern 2:4.
    """
    chosen = layers if importance is None else {name: importance[name] for name in layers}
    result = {}
    for name, layer in chosen.items():
        sizes, shape = magnitudes(layer), tuple(layer.shape)
        positions = torch.arange(len(sizes)).reshape(shape).movedim(dim, -1)
        mask = torch.ones(len(sizes), dtype=torch.bool)
        for line in positions.reshape(-1, shape[dim]).tolist() if sizes else []:
            for first in range(0, len(line), size):
                group = line[first : first + size]
                stay = math.ceil(Fraction(kept * len(group), size))
                ascending = sorted(group, key=sizes.__getitem__)  # which is stable
                mask[ascending[: len(group) - stay]] = False
        result[name] = mask.reshape(shape)
    return result


def block_masks(
    layers: Mapping[str, Layer],
    sparsity: float,
    block: tuple[int, int],
    dim: int = 1,
    importance: Mapping[str, Layer] | None = None,
    method: str = "lamp",
) -> dict[str, torch.Tensor]:
    """Return the masks that keep all but the tiles that go first.

    A layer is a matrix: its rows are the outputs, and its columns the inputs, each with all
    positions of its kernel in row-major order. A tile's sum is that of its squares. Order a layer's
    tiles by (sum, position), ascending; the score of one is its sum over the sum of all from it on,
    and 0 where its sum is 0. Tiles of all layers go in the order of (score, layer position, sum,
    tile position), until one has more weights than are still to go.

    Example:
        >>> import torch
        >>> from lampfast import reference
        >>> reference.block_masks({"a": torch.tensor([[3.0, 4.0, 5.0, 0.0, 1.0]])}, 0.6, (1, 2))
        {'a': tensor([[False, False,  True,  True, False]])}

        The tile (1) of one weight goes first, then (3, 4): of equal sums the one before (5, 0).

    Args:
        layers: Name to float tensor or array, of any shape; their order is the layer position.
        sparsity: How much to prune at most, as for `masks`.
        block: The rows and columns of a tile. Those at the end of a row or a column are smaller.
        dim: The dimension of the inputs, 0 or 1; the other one is that of the outputs. A vector has
            inputs only.
        importance: Name to tensor or array of the layer's shape, whose magnitude takes |w|'s place.
        method: As for `masks`. "global" compares sums in place of scores. Of those that give each
            layer a number, what is not in tiles of sum 0 remains, and tiles of a layer go until one
            has more weights than its layer still has to lose.

    Returns:
        Name to bool tensor of the layer's shape, True where the element is kept.

    Raises:
        KeyError: A dtype is not one that lampfast prunes.
        ValueError: As for `masks`.

    Source:
        lampfast's own: the score of Lee et al., ICLR 2021 (arXiv 2010.07611), of tiles.
    """
    chosen = layers if importance is None else {name: importance[name] for name in layers}
    tiles = {name: _tiles(layer, block, dim) for name, layer in chosen.items()}
    rankings = [
        _tile_ranking(position, name, layer, tiles[name], method)
        for position, (name, layer) in enumerate(chosen.items())
    ]
    total = sum(math.prod(layer.shape) for layer in chosen.values())
    k = sparsity if isinstance(sparsity, int) else round(sparsity * total)
    if not 0 <= k <= total:
        raise ValueError(f"cannot prune {k} of {total} elements")

    kept = {name: torch.ones(layer.shape, dtype=torch.bool) for name, layer in chosen.items()}
    if method in ("lamp", "global"):
        queues = [(k, sorted(itertools.chain(*rankings)))]
    else:
        alive = {name: _without_zero_tiles(layer, tiles[name]) for name, layer in chosen.items()}
        stay = kept_counts(alive, total - k, method)
        queues = [
            (len(kept[name].view(-1)) - stay[name], ranking)
            for name, ranking in zip(chosen, rankings, strict=True)
        ]
    for budget, queue in queues:
        for *_, number, name in queue:
            budget -= len(tiles[name][number])
            if budget < 0:
                break
            kept[name].view(-1)[tiles[name][number]] = False
    return kept


def kept_counts(layers: Mapping[str, Layer], kept: int, method: str) -> dict[str, int]:
    """Return how many elements each layer keeps by a method that gives each layer a number.

    Of what remains, the elements that are not zero, "uniform" keeps the same part in every layer.
    "uniform+" does that, too, but leaves the first layer as it is where that has three dimensions
    or more, and keeps at least a fifth of the last layer's size. "erk" keeps in proportion to the
    sum of the layer's dimensions. A layer that would keep more than remains keeps that, and its
    share is spread again over the others. What is no whole number is rounded down, and then up for
    the largest fractions, the earlier layer first, until the sum is right. Where more are to be
    kept than remain, the same part of each layer's zeros is kept, too.

    Example:
        >>> import torch
        >>> from lampfast import reference
        >>> layers = {"a": torch.ones(2, 2), "b": torch.ones(2, 5)}
        >>> reference.kept_counts(layers, 8, "uniform"), reference.kept_counts(layers, 8, "erk")
        ({'a': 2, 'b': 6}, {'a': 3, 'b': 5})

    Args:
        layers: Name to float tensor or array, of any shape.
        kept: How many elements all layers keep together.
        method: "uniform", "uniform+" or "erk".

    Returns:
        Name to the number of elements that are kept.

    Raises:
        ValueError: "uniform+" keeps more, or the method is another.

    Source:
        Lee et al., section 4; Gale et al. 2019 (arXiv 1902.09574) for "uniform+"; Evci et al., ICML
        2020 (arXiv 1911.11134) for "erk".
    """
    if method not in ("uniform", "uniform+", "erk"):
        raise ValueError(f"{method!r} gives no layer a number")
    sizes = {name: magnitudes(layer) for name, layer in layers.items()}
    zeros = {name: layer.count(0) for name, layer in sizes.items()}
    remains = {name: len(layer) - zeros[name] for name, layer in sizes.items()}
    surplus = kept - sum(remains.values())
    if surplus >= 0:
        more = _rounded(_spread(surplus, {}, zeros, zeros))
        return {name: remains[name] + more[name] for name in layers}

    first, last = next(iter(layers)), list(layers)[-1]
    fixed, weights = {}, remains
    if method == "erk":
        weights = {name: max(sum(layer.shape), 1) for name, layer in layers.items()}
    if method == "uniform+" and len(layers[first].shape) >= 3:
        fixed[first] = remains[first]
    counts = _rounded(_spread(kept, fixed, remains, weights))
    least = min(math.ceil(Fraction(len(sizes[last]), 5)), remains[last])
    if method == "uniform+" and last not in fixed and counts[last] < least:
        fixed[last] = least
        counts = _rounded(_spread(kept, fixed, remains, weights))
    if sum(fixed.values()) > kept:
        raise ValueError(f"uniform+ keeps more than {kept} elements")
    return counts


def _spread(
    kept: int, fixed: Mapping[str, int], limits: Mapping[str, int], weights: Mapping[str, int]
) -> dict[str, Fraction]:
    """What is not fixed, in proportion to the weights; a share above its limit is fixed at it."""
    fixed = dict(fixed)
    while True:
        free = [name for name in weights if name not in fixed]
        rest, whole = kept - sum(fixed.values()), sum(weights[name] for name in free)
        shares = {name: Fraction(rest * weights[name], max(whole, 1)) for name in free}
        over = next((name for name in free if shares[name] > limits[name]), None)
        if over is None:
            return {name: Fraction(fixed.get(name, shares.get(name, 0))) for name in weights}
        fixed[over] = limits[over]


def _rounded(shares: Mapping[str, Fraction]) -> dict[str, int]:
    """The largest remainders are rounded up, so that the sum stays."""
    counts = {name: math.floor(share) for name, share in shares.items()}
    by_remainder = sorted(shares, key=lambda name: counts[name] - shares[name])
    for name in by_remainder[: int(sum(shares.values())) - sum(counts.values())]:
        counts[name] += 1
    return counts


def _ranking(position: int, layer: Layer, method: str) -> list[_Element]:
    """The elements of a layer in the order in which they go, each as what it is sorted by."""
    sizes = magnitudes(layer)
    if method == "lamp":
        ranks = _layer_scores(sizes)
    else:
        unit = _unit(layer)
        ranks = [size * unit for size in sizes]
    return sorted(zip(ranks, itertools.repeat(position), sizes, itertools.count(), strict=False))


def _tiles(layer: Layer, block: tuple[int, int], dim: int) -> list[list[int]]:
    """The flat indices of the elements of every tile."""
    shape = tuple(layer.shape)
    indices = torch.arange(math.prod(shape)).reshape(shape)
    if len(shape) < 2:
        matrix = indices.reshape(1, -1)
    else:
        by_output = indices.movedim(1 - dim, 0)
        matrix = by_output.reshape(len(by_output), -1) if indices.numel() else indices.reshape(1, 0)
    rows, columns = matrix.shape
    corners = itertools.product(range(0, rows, block[0]), range(0, columns, block[1]))
    return [matrix[i : i + block[0], j : j + block[1]].flatten().tolist() for i, j in corners]


def _tile_ranking(
    position: int, name: str, layer: Layer, tiles: list[list[int]], method: str
) -> list[tuple[Fraction, int, int, int, str]]:
    """A layer's tiles in the order in which they go, each as what it is sorted by, and the name."""
    sizes = magnitudes(layer)
    sums = [sum(sizes[index] ** 2 for index in tile) for tile in tiles]
    ascending = sorted(range(len(sums)), key=sums.__getitem__)  # which is stable
    ranks = [Fraction(0)] * len(sums)
    if method == "lamp":
        remaining = 0
        for number in reversed(ascending):
            remaining += sums[number]
            ranks[number] = Fraction(sums[number], remaining or 1)
    else:
        ranks = [total * _unit(layer) ** 2 for total in sums]
    return [(ranks[number], position, sums[number], number, name) for number in ascending]


def _without_zero_tiles(layer: Layer, tiles: list[list[int]]) -> torch.Tensor:
    """Ones, and zeros where a whole tile is zero."""
    sizes = magnitudes(layer)
    alive = torch.ones(tuple(layer.shape))
    for tile in tiles:
        if not any(sizes[index] for index in tile):
            alive.view(-1)[tile] = 0
    return alive


def _unit(layer: Layer) -> Fraction:
    """The smallest positive number of a layer's dtype."""
    dtype = _tensor(layer).dtype
    normal: float = torch.finfo(dtype).smallest_normal
    return Fraction(normal) / (1 << _FORMATS[dtype].fraction_bits)


def _tensor(layer: Layer) -> torch.Tensor:
    return torch.from_numpy(np.array(layer, order="C")) if isinstance(layer, np.ndarray) else layer


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
