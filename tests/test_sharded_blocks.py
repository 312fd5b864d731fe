"""Blocks of sharded models, bit for bit as of one process, or refused by all ranks alike."""

from __future__ import annotations

from typing import Any

import broken_rules
import numpy as np
import pytest
import torch
from test_sharded_patterns import refusals
from test_sharded_placements import Case, differences, random_case
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.placement_types import Placement, _StridedShard
from virtual_ranks import Group, Placed, Rank, can_place, here, joined

import lampfast

pytestmark = [
    pytest.mark.skipif(not can_place, reason="needs meshes without process groups"),
    pytest.mark.usefixtures("forgotten_ranks"),
]
SEEDS = range(120)


def case_of(seed: int) -> Case:
    """A random model with a block that fits the pieces more often than not."""
    rng = np.random.default_rng(seed)
    case = random_case(seed)
    block: Any = (int(rng.choice([1, 1, 2, 3, 100])), int(rng.choice([1, 1, 2, 4, 100])))
    if rng.random() < 0.3:
        block = "row" if rng.random() < 0.5 else "column"
    if case.asked.get("stacked") and block != "row":
        case.asked["stacked"] = None
    asked = case.asked | {"block": block}
    if rng.random() < 0.2:
        del asked["sparsity"]
        asked["method"] = {name: float(rng.random()) for name in case.wholes}
    return case._replace(asked=asked)


def tiles_of(shape: torch.Size, block: Any) -> torch.Tensor:
    """For each weight of a layer the number of its tile."""
    rows, columns = (
        (1, int(np.prod(shape))) if len(shape) < 2 else (shape[0], int(np.prod(shape[1:])))
    )
    kernel = int(np.prod(shape[2:]))
    r, c = {"row": (1, columns), "column": (max(rows, 1), kernel)}.get(block, block)
    if len(shape) < 2 and block == "column":
        c = 1
    row = torch.arange(rows) // r
    column = torch.arange(columns) // c
    across = -(-columns // c)
    tiles: torch.Tensor = row[:, None] * across + column
    return tiles.reshape(shape)


def straddles(case: Case) -> set[str]:
    """The parameters of which a rank has some weights of a tile and not the others."""
    found = set()
    for name, whole in case.wholes.items():
        stacked = name in (case.asked.get("stacked") or ())
        shape = whole.shape[1:] if stacked else whole.shape
        one = tiles_of(shape, case.asked["block"])
        every = torch.stack([one + i * one.numel() for i in range(len(whole))]) if stacked else one
        sizes = every.flatten().bincount()
        for rank in range(case.ranks):
            held = case.placed[name].local(rank, every).flatten().bincount(minlength=len(sizes))
            if ((held != 0) & (held != sizes)).any():
                found.add(name)
    return found


def has_split_kernels(case: Case) -> bool:
    """Whether a piece may have columns that do not follow each other, which is refused as well."""
    cut = [p.dim for name in case.wholes for p in case.placed[name].placements if hasattr(p, "dim")]
    return any(dim >= 2 for dim in cut)


@pytest.mark.parametrize("seed", SEEDS)
def test_same_bits_or_refused(seed: int) -> None:
    case = case_of(seed)
    cut = straddles(case)
    if not cut:
        found = differences(case)
        if found and has_split_kernels(case):
            found = [it for it in found if "is cut at" not in it]
        assert not found
        return
    said = refusals(case)
    assert len(set(said)) == 1, said
    assert "placements (" in said[0]
    assert "is cut at" in said[0]


def test_many_models_are_pruned_and_many_refused() -> None:
    refused = sum(bool(straddles(case_of(seed))) for seed in SEEDS)
    assert len(SEEDS) // 5 < refused < 2 * len(SEEDS) // 3


LINE, CUBE = torch.arange(4), torch.arange(4).reshape(2, 2)
PLACED = [
    Placed(LINE, (Shard(0),)),
    Placed(LINE, (Shard(1),)),
    Placed(CUBE, (Replicate(), Shard(1))),
    Placed(CUBE, (Shard(1), Shard(0))),
    Placed(CUBE, (_StridedShard(0, split_factor=2), Shard(0))),
]
METHODS = ("lamp", "global", "uniform", "erk")


def model(kind: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Two layers whose tiles of 2 by 4 have sums that tie in many ways."""
    generator = torch.Generator().manual_seed(0)

    def normal() -> torch.Tensor:
        return torch.randn(64, 96, generator=generator)

    match kind:
        case "ties":
            found = {name: (normal() * 2).round() / 2 for name in "ab"}
        case "alike":
            found = {name: torch.ones(64, 96) for name in "ab"}
        case "permuted":  # equal as real numbers, and not as the doubles that are added up
            tile = torch.randn(1, 4, generator=generator)
            orders = torch.stack([torch.randperm(4, generator=generator) for _ in range(64 * 24)])
            found = {"a": tile.expand(64 * 24, 4).gather(1, orders).reshape(64, 96), "b": normal()}
            found["b"][::2] = found["a"][::2] * 2
        case "zeros":
            found = {
                name: normal() * (torch.rand(64, 1, generator=generator) < 0.4) for name in "ab"
            }
        case _:
            found = {"a": normal(), "b": normal() * torch.logspace(-3, 3, 64)[:, None]}
    return {name: it.to(dtype) for name, it in found.items()}


@pytest.mark.parametrize("kind", ["normal", "ties", "alike", "permuted", "zeros"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_same_bits_of_many_tiles(kind: str, dtype: torch.dtype, method: str) -> None:
    """More tiles than ranks sort as a whole: bins, and what these leave open."""
    wholes = model(kind, dtype)
    rng = np.random.default_rng(len(kind) + METHODS.index(method))
    for sparsity in (0.2, 0.7):
        placed = dict(
            zip(wholes, (PLACED[i] for i in rng.integers(0, len(PLACED), 2)), strict=True)
        )
        asked = {"sparsity": sparsity, "method": method, "block": (2, 4)}
        assert not differences(Case(wholes, placed, asked, None, {}))


def test_the_cut_lies_among_zeros() -> None:
    wholes = {name: torch.zeros(16, 16) for name in "ab"}
    wholes["b"][5:, 7:] = 1
    for count in (0, 5, 256, 300, 311):
        for placed in PLACED:
            asked = {"sparsity": count, "block": (2, 2)}
            assert not differences(Case(wholes, dict.fromkeys("ab", placed), asked, None, {}))


def test_replicas_that_lie_otherwise_in_memory() -> None:
    """Their sums are rounded otherwise, and they lose the same tiles."""
    generator = torch.Generator().manual_seed(0)
    whole = {"a": torch.randn(64, 96, generator=generator)}
    expected = lampfast.masks(whole, 0.5, block=(4, 4))["a"]
    placed = Placed(CUBE, (Replicate(), Shard(0)))

    def run(rank: Rank) -> Any:
        here.rank = rank
        weight = placed.dtensor(rank.rank, whole["a"])
        if rank.rank >= 2:
            local = weight._local_tensor
            weight._local_tensor = local.t().contiguous().t()
        return torch.equal(
            lampfast.masks({"a": weight}, 0.5, block=(4, 4))["a"].to_local(),
            placed.local(rank.rank, expected),
        )

    with joined():
        assert Group(4).run(run) == [True] * 4


def uneven(block: Any, *placements: Placement) -> Case:
    wholes = {"a": torch.ones(12, 10), "b": torch.ones(12, 10)}
    placed = Placed(torch.arange(2), placements)
    return Case(wholes, dict.fromkeys(wholes, placed), {"sparsity": 0.5, "block": block}, None, {})


@pytest.mark.parametrize(
    ("block", "placement", "words"),
    [
        ("row", Shard(1), ["1 rows by all columns", "shard it along its outputs"]),
        ("column", Shard(0), ["all rows by 1 columns", "shard it along its inputs"]),
        ((4, 1), Shard(0), ["cut at 6 along dimension 0", "4 rows by 1 columns"]),
        ((1, 4), Shard(1), ["cut at 5 along dimension 1", "whose columns end where"]),
    ],
)
def test_tiles_on_several_ranks_are_refused(
    block: Any, placement: Placement, words: list[str]
) -> None:
    for said in refusals(uneven(block, placement)):
        assert "layer 'a' of shape (12, 10) with placements (" in said
        assert all(word in said for word in words), said


def test_values_that_cannot_be_ranked() -> None:
    case = uneven((2, 2), Shard(0))
    case.wholes["b"][9, 3] = torch.nan
    for said in refusals(case):
        assert "layer 'b'" in said
        assert "index (9, 3), on rank 1" in said


def test_cost_does_not_depend_on_weights() -> None:
    """At most 14 collectives a call, and 32 KiB a layer that a rank sends, of any size."""
    placed = Placed(torch.arange(8), (Shard(0),))
    generator = torch.Generator().manual_seed(0)
    for rows in (64, 512):
        wholes = {name: torch.randn(rows, 512, generator=generator) for name in "abcd"}

        def run(rank: Rank, wholes: Any = wholes) -> None:
            here.rank = rank
            own = {name: placed.dtensor(rank.rank, it) for name, it in wholes.items()}
            lampfast.masks(own, 0.9, block=(1, 8))

        group = Group(8)
        with joined():
            assert group.run(run) == [None] * 8
        assert group.collectives <= 16
        assert max(group.sent) <= 32 * 4 << 10


TIED = Case(
    model("ties", torch.float32),
    dict.fromkeys("ab", Placed(CUBE, (Replicate(), Shard(0)))),
    {"sparsity": 0.5, "block": (2, 4)},
    None,
    {},
)


def test_tiles_have_their_numbers_in_the_whole_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not differences(TIED)
    broken_rules.turn_pieces_around(monkeypatch)
    assert differences(TIED)


def test_replicas_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    broken_rules.count_replicas(monkeypatch)
    assert differences(TIED)
