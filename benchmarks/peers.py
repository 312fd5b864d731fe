"""What people use today for the same job, each by its own arithmetic.

Only `lampfast.textbook` is a package's code; the others are written anew from what is published,
for layers by name instead of modules. They round, so a few weights beside the threshold may differ.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch.ao.pruning.sparsifier.weight_norm_sparsifier import WeightNormSparsifier
from torch.nn.utils import prune as torch_prune
from weights import Weights

from lampfast import textbook


def official_masks(weights: Weights, s: float) -> Weights:
    """Prunes as the paper's own code does: scores, counts by layer, then torch's pruning of each.

    The scores are the textbook's. Those that reach the threshold are counted in each layer, and
    `l1_unstructured` prunes every layer to its count.

    Source:
        Lee et al., Layer-adaptive sparsity for the Magnitude-based Pruning, ICLR 2021, section 2.
    """
    scores = textbook.scores(weights)
    ranking = torch.cat([score.flatten() for score in scores.values()])
    threshold = ranking.topk(len(ranking) - round(s * len(ranking)), sorted=False).values.min()
    masks = {}
    for name, weight in weights.items():
        module = torch.nn.Module()
        module.weight = torch.nn.Parameter(weight)
        pruned = int((scores[name] < threshold).sum())
        torch_prune.l1_unstructured(module, "weight", pruned)  # type: ignore[no-untyped-call]
        masks[name] = module.get_buffer("weight_mask").bool()
    return masks


def descending_masks(weights: Weights, s: float) -> Weights:
    """Prunes by Torch-Pruning's arithmetic of LAMP: sums from the largest square down.

    There it ranks channels by their norms; here every weight is a channel.

    Source:
        Fang et al., DepGraph: Towards Any Structural Pruning, CVPR 2023; its LAMPImportance.
    """
    scores = {}
    for name, weight in weights.items():
        squares, order = weight.flatten().square().sort(descending=True)
        squares /= squares.cumsum(0)
        scores[name] = torch.empty_like(squares).scatter_(0, order, squares).view_as(weight)
    ranking = torch.cat([score.flatten() for score in scores.values()])
    pruned = round(s * len(ranking))
    threshold = ranking.topk(pruned, largest=False, sorted=False).values.max()
    return {name: score > threshold for name, score in scores.items()}


def numpy_masks(weights: Weights, s: float) -> Weights:
    """Prunes by numpy: each layer sorted, its scores in ascending order, then one partition.

    A layer's scores rise with the magnitude, so what is pruned of it is a count.
    """
    ascending, scores = [], []
    for weight in weights.values():
        magnitudes = np.sort(np.abs(weight.numpy()), axis=None)
        squares = np.square(magnitudes, dtype=np.float64)
        ascending.append(magnitudes)
        scores.append(squares / np.cumsum(squares[::-1])[::-1])
    ranking = np.concatenate(scores)
    pruned = round(s * len(ranking))
    threshold = np.partition(ranking, pruned)[pruned]
    masks = {}
    for (name, weight), magnitudes, score in zip(weights.items(), ascending, scores, strict=True):
        first = np.searchsorted(score, threshold)
        least = magnitudes[first] if first < len(magnitudes) else np.inf
        masks[name] = torch.from_numpy(np.abs(weight.numpy()) >= least)
    return masks


MASKS: dict[str, Callable[[Weights, float], Weights]] = {
    "textbook": textbook.masks,
    "official-code": official_masks,
    "torch-pruning": descending_masks,
    "numpy-partition": numpy_masks,
}


def topk_masks(weights: Weights, n: int, m: int) -> Weights:
    """Keeps by torch's topk the n largest of every m neighbours along dimension 1."""
    masks = {}
    for name, weight in weights.items():
        groups = weight.abs().view(-1, m)
        kept = groups.topk(n, dim=1, sorted=False).indices
        mask = torch.zeros(groups.shape, dtype=torch.bool).scatter_(1, kept, value=True)
        masks[name] = mask.view_as(weight)
    return masks


def sparsifier_masks(weights: Weights, n: int, m: int) -> Weights:
    """Keeps the n largest of every m neighbours along dimension 1, by torch's WeightNormSparsifier.

    Source:
        torch.ao.pruning, https://docs.pytorch.org/docs/stable/sparse.html.
    """
    model = torch.nn.ModuleList()
    for weight in weights.values():
        module = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        module.weight = torch.nn.Parameter(weight)
        model.append(module)
    sparsifier = WeightNormSparsifier(1.0, (1, m), m - n)
    config = [{"tensor_fqn": f"{i}.weight"} for i in range(len(weights))]
    sparsifier.prepare(model, config)  # type: ignore[no-untyped-call]
    sparsifier.step()
    masks = [module.get_buffer("parametrizations.weight.0.mask").bool() for module in model]
    return dict(zip(weights, masks, strict=True))
