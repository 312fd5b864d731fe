"""LAMP as people compute it today: sort, cumsum, divide, k-th value. The peer in the benchmarks.

It follows the paper's formula in plain torch, in each weight's own precision, and shows what that
costs. lampfast itself never uses it; the exact definition is `lampfast.reference`. What to expect:

- Each score is off by the rounding of ``total - cumsum``, most for the largest weights of a layer.
- The count is what ``score >= threshold`` gives: weights that tie at the threshold are all kept.
- A layer of zeros scores 0/0 = NaN. NaN sorts above every score, so a single such layer makes the
  threshold NaN, and every layer is erased.
"""

from collections.abc import Mapping

import torch


def scores(layers: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Scores every weight by its square over the sum of the squares at or above it in its layer.

    >>> scores({"fc": torch.tensor([1.0, -2.0, 2.0])})
    {'fc': tensor([0.1111, 0.5000, 1.0000])}

    Args:
        layers: Floating tensors of any shape by name; dimensionless weights.

    Returns:
        For each name a tensor of the layer's shape and dtype, of scores in [0, 1] up to rounding.

    Source:
        Lee et al., Layer-adaptive sparsity for the Magnitude-based Pruning, ICLR 2021, equation 3.
    """
    return {name: _score(weight.detach()) for name, weight in layers.items()}


def masks(layers: Mapping[str, torch.Tensor], sparsity: float) -> dict[str, torch.Tensor]:
    """Keeps the weights whose score reaches the (N - k)-th largest one of all layers.

    >>> masks({"a": torch.tensor([1.0, -2.0, 2.0]), "b": torch.tensor([3.0, 1.0])}, 0.6)
    {'a': tensor([False, False,  True]), 'b': tensor([ True, False])}

    Args:
        layers: Floating tensors of one dtype by name, N elements in all; dimensionless weights.
        sparsity: The fraction to prune, k = round(sparsity * N), or k itself as an int.

    Returns:
        For each name a bool tensor of the layer's shape, True = kept. About k are False.

    Source:
        Lee et al., Layer-adaptive sparsity for the Magnitude-based Pruning, ICLR 2021, section 2.
    """
    score = scores(layers)
    ranking = torch.cat([layer.flatten() for layer in score.values()])
    k = sparsity if isinstance(sparsity, int) else round(sparsity * ranking.numel())
    keep = ranking.numel() - k
    if keep == 0:
        return {name: torch.zeros_like(layer, dtype=torch.bool) for name, layer in score.items()}
    threshold = ranking.kthvalue(ranking.numel() - keep + 1).values
    return {name: layer >= threshold for name, layer in score.items()}


def prune(layers: Mapping[str, torch.Tensor], sparsity: float) -> None:
    """Zeroes in place the weights that `masks` does not keep.

    >>> weight = torch.tensor([1.0, -2.0, 2.0])
    >>> prune({"fc": weight}, 1)
    >>> weight
    tensor([ 0., -2.,  2.])

    Args:
        layers: Floating tensors of one dtype by name, N elements in all; changed in place.
        sparsity: The fraction to prune, k = round(sparsity * N), or k itself as an int.

    Source:
        Lee et al., Layer-adaptive sparsity for the Magnitude-based Pruning, ICLR 2021, section 2.
    """
    with torch.no_grad():
        for name, mask in masks(layers, sparsity).items():
            layers[name].mul_(mask)


def _score(weight: torch.Tensor) -> torch.Tensor:
    """Scores one layer: its squares in ascending order, each over what is not yet summed up."""
    ascending, order = weight.flatten().square().sort()
    before = torch.zeros_like(ascending)
    torch.cumsum(ascending[:-1], 0, out=before[1:])
    ascending /= ascending.sum() - before
    return torch.empty_like(ascending).scatter_(0, order, ascending).view_as(weight)
