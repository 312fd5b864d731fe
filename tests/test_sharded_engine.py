"""The engine on any number of ranks against itself on one, bit for bit; ranks are threads here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hard_weights import DTYPES, HARD, hard_layers
from virtual_ranks import Box, Group, Rank, cut, held, pointers, sharding, split

from lampfast import _core

RANKINGS = (_core.Ranking.lamp, _core.Ranking.magnitude, _core.Ranking.per_layer)


def values(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    normal = rng.standard_normal(shape)
    match int(rng.integers(0, 8)):
        case 0:
            return np.round(normal * 2) / 2  # many ties
        case 1:
            return rng.standard_cauchy(shape)
        case 2:
            return np.where(rng.random(shape) < 0.6, 0.0, normal)
        case 3:
            return 1 + rng.random(shape) * 2.0 ** -int(rng.integers(4, 30))
        case 4:
            return normal * 1e-40
        case 5:
            return np.full(shape, float(rng.standard_normal()))
        case 6:
            return 2.0 ** rng.integers(-60, 60, shape)
    return normal


def model(rng: np.random.Generator, dtype: torch.dtype | None = None) -> list[torch.Tensor]:
    layers = []
    for _ in range(int(rng.integers(1, 6))):
        shape = tuple(int(n) for n in rng.integers(1, 14, int(rng.integers(0, 4))))
        own = dtype or DTYPES[int(rng.integers(0, len(DTYPES)))]
        limits = torch.finfo(own)
        drawn = np.clip(values(rng, shape), limits.min, limits.max)
        layers.append(torch.from_numpy(np.asarray(drawn)).to(own))
    if len(layers) > 1 and rng.random() < 0.3:
        layers[-1] = layers[0].clone()  # equal scores in two layers
    return layers


def spec(rng: np.random.Generator, layers: list[torch.Tensor]) -> _core.SelectionSpec:
    ranking = RANKINGS[int(rng.integers(0, 3))]
    sizes = [layer.numel() for layer in layers]
    if ranking == _core.Ranking.per_layer:
        return _core.SelectionSpec(ranking, [int(rng.integers(0, n + 1)) for n in sizes])
    return _core.SelectionSpec(ranking, [int(rng.integers(0, sum(sizes) + 1))])


def masks_of(layers: list[torch.Tensor], wanted: _core.SelectionSpec) -> list[torch.Tensor]:
    masks = [torch.empty_like(layer, dtype=torch.bool) for layer in layers]
    _core.masks(pointers(layers), pointers(masks), wanted, (1, []))
    return masks


def check(
    layers: list[torch.Tensor], boxes: list[Box], wanted: _core.SelectionSpec, ranks: int
) -> Group:
    """Masks, thresholds and weights on all ranks are those of one."""
    expected = masks_of(layers, wanted)
    masks = [torch.empty_like(layer, dtype=torch.bool) for layer in layers]
    group = Group(ranks)

    def run(rank: Rank) -> Any:
        parts = [part.clone() for part in held(rank.rank, layers, boxes)]
        kept = [torch.empty(part.shape, dtype=torch.bool) for part in parts]
        machine: _core.ShardedMachine = 2, [], sharding(rank, layers, boxes)
        found = _core.masks(pointers(parts), pointers(kept), wanted, machine)
        _core.prune(pointers(parts), pointers(parts), wanted, machine)
        return found, parts, kept

    results = group.run(run)
    reference = _core.thresholds(pointers(layers), wanted, (1, []))
    for rank, result in enumerate(results):
        if isinstance(result, BaseException):
            raise result
        found, parts, kept = result
        assert found == reference
        exact = zip(
            held(rank, expected, boxes), held(rank, layers, boxes), parts, kept, strict=True
        )
        for mask, weight, part, own in exact:
            assert torch.equal(own, mask), (rank, own, mask)
            zeroed = torch.where(mask, weight.double(), 0.0)
            assert torch.equal(part.double(), zeroed)
    del masks
    return group


@pytest.mark.parametrize("seed", range(150))
def test_same_bits(seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers = model(rng, None if rng.random() < 0.5 else DTYPES[seed % len(DTYPES)])
    ranks = int(rng.choice([1, 2, 3, 4, 4, 7]))
    boxes = [box for i, layer in enumerate(layers) for box in split(rng, i, layer.shape, ranks)]
    check(layers, boxes, spec(rng, layers), ranks)


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize(("dtype", "most_sent"), [(torch.float32, 32), (torch.bfloat16, 64)])
def test_cost_does_not_depend_on_weights(dtype: torch.dtype, most_sent: int, dim: int) -> None:
    """At most 14 collectives a call, and so many KiB a layer, on 64 ranks; and the same bits."""
    rng = np.random.default_rng(0)
    layers = [torch.from_numpy(rng.standard_normal((130, 130))).to(dtype) for _ in range(4)]
    ranks = 64
    boxes = cut(layers, dim, ranks)
    wanted = _core.SelectionSpec(_core.Ranking.lamp, [50_000])
    group = check(layers, boxes, wanted, ranks)  # of two calls
    assert group.collectives <= 2 * 14
    assert max(group.sent) <= 2 * len(layers) * most_sent << 10


@pytest.mark.parametrize("ranking", [_core.Ranking.lamp, _core.Ranking.magnitude], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", HARD)
def test_cost_of_hard_weights(kind: str, dtype: torch.dtype, ranking: _core.Ranking) -> None:
    layers = hard_layers(kind, dtype, layers=4, side=256)
    for sparsity in (0.5, 0.9):
        wanted = _core.SelectionSpec(ranking, [round(sparsity * 4 * 256**2)])
        group = check(layers, cut(layers, 1, 3), wanted, 3)  # of two calls
        assert group.collectives <= 2 * 13  # masks and prune; a whole call has one more
        assert max(group.sent) <= 2 * len(layers) * 32 << 10
