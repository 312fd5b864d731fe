"""n:m patterns of sharded models, bit for bit as of one process, or refused by all ranks alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_sharded_placements import Case, differences, random_case
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard
from virtual_ranks import Group, Placed, Rank, can_place, here, joined

import lampfast

pytestmark = [
    pytest.mark.skipif(not can_place, reason="needs meshes without process groups"),
    pytest.mark.filterwarnings("ignore:pattern="),
]
SEEDS = range(80)


def case_of(seed: int) -> Case:
    """A random model with a pattern; the sizes of some of its layers are multiples of m."""
    rng = np.random.default_rng(seed)
    case = random_case(seed)
    m = int(rng.integers(2, 6))
    asked: dict[str, Any] = {"stacked": case.asked.get("stacked")}
    if rng.random() < 0.5:
        asked["pattern"] = f"{int(rng.integers(1, m + 1))}:{m}"
    else:
        asked |= {"pattern": f":{m}", "sparsity": float(rng.random() * (1 - 1 / m))}
        asked["method"] = case.asked["method"]
    return case._replace(asked=asked)


def straddles(case: Case) -> set[str]:
    """The parameters of which a rank has some weights of a group and not the others."""
    m = int(case.asked["pattern"].partition(":")[2])
    found = set()
    for name, whole in case.wholes.items():
        layers = list(whole.unbind(0)) if name in (case.asked["stacked"] or ()) else [whole]
        ids, first = [], 0
        for layer in layers:
            dim = min(1, layer.ndim - 1)
            groups = -(-layer.shape[dim] // m)
            of = torch.arange(layer.numel() // layer.shape[dim] * groups) + first
            lines = of.reshape(*layer.movedim(dim, -1).shape[:-1], groups)
            spread = lines.repeat_interleave(m, -1)[..., : layer.shape[dim]]
            ids.append(spread.movedim(-1, dim))
            first += of.numel()
        every = torch.stack(ids) if name in (case.asked["stacked"] or ()) else ids[0]
        sizes = every.flatten().bincount(minlength=first)
        for rank in range(case.ranks):
            held = case.placed[name].local(rank, every).flatten().bincount(minlength=first)
            if ((held != 0) & (held != sizes)).any():
                found.add(name)
    return found


def refusals(case: Case) -> list[str]:
    """What ranks raise, and that nothing has changed."""

    def run(rank: Rank) -> str:
        here.rank = rank
        model: dict[str, Any] = {
            name: case.placed[name].dtensor(rank.rank, it) for name, it in case.wholes.items()
        }
        before = {name: it.to_local().clone() for name, it in model.items()}
        said = []
        for verb in (lampfast.prune, lampfast.masks, lampfast.report):
            here.rank = Rank(rank.group, rank.rank)
            with pytest.raises(ValueError, match=r"layer .*") as raised:
                verb(model, **case.asked)
            said.append(str(raised.value))
        assert len(set(said)) == 1, said
        for name, it in model.items():
            now = it.to_local().double()
            assert torch.equal(before[name].double().nan_to_num(9.0), now.nan_to_num(9.0))
        return said[0]

    with joined():
        said = Group(case.ranks).run(run)
    for each in said:
        if isinstance(each, BaseException):
            raise each
    return said


@pytest.mark.parametrize("seed", SEEDS)
def test_same_bits_or_refused(seed: int) -> None:
    case = case_of(seed)
    cut = straddles(case)
    if not cut:
        assert not differences(case)
        return
    said = refusals(case)
    assert len(set(said)) == 1, said
    assert any(f"layer '{name}" in said[0] for name in cut)
    assert "placements (" in said[0]
    assert "is cut at" in said[0]


def test_many_models_are_pruned_and_many_refused() -> None:
    refused = sum(bool(straddles(case_of(seed))) for seed in SEEDS)
    assert len(SEEDS) // 5 < refused < 4 * len(SEEDS) // 5


def tied(placed: Placed, shape: tuple[int, int], pattern: str, **asked: Any) -> Case:
    """Two layers of few magnitudes, so that where ties lie decides most elements."""
    generator = torch.Generator().manual_seed(0)
    wholes = {name: torch.randint(-2, 3, shape, generator=generator) / 2 for name in ("a", "b")}
    return Case(wholes, dict.fromkeys(wholes, placed), asked | {"pattern": pattern}, None, {})


LINE, CUBE = torch.arange(3), torch.arange(4).reshape(2, 2)
PLACED = [
    Placed(LINE, (Shard(0),)),
    Placed(LINE, (Shard(1),)),  # 24 columns: 8 on each of 3 ranks
    Placed(CUBE, (Replicate(), Shard(1))),
    Placed(CUBE, (_StridedShard(0, split_factor=2), Shard(0))),
    Placed(CUBE, (_StridedShard(1, split_factor=3), Shard(0))),
]


@pytest.mark.parametrize("placed", PLACED, ids=str)
@pytest.mark.parametrize("pattern", ["2:4", "1:2", ":4"])
def test_same_bits_of_ties(placed: Placed, pattern: str) -> None:
    asked: dict[str, Any] = {"sparsity": 0.4} if pattern == ":4" else {}
    assert not differences(tied(placed, (10, 24), pattern, **asked))


def test_a_remainder_lies_at_the_end_of_the_whole_dimension() -> None:
    placed = Placed(torch.arange(2), (Shard(1),))  # 12 and 11 columns
    assert not differences(tied(placed, (5, 23), "2:4"))
    assert "is cut at 11 along dimension 1" in refusals(tied(placed, (5, 22), "2:4"))[0]


def test_groups_along_another_dimension() -> None:
    placed = Placed(torch.arange(2), (Shard(1),))
    assert not differences(tied(placed, (12, 10), "2:4", dim=0))
    assert "dim=" in refusals(tied(placed, (12, 10), "2:4"))[1]


@pytest.mark.parametrize("asked", [{"pattern": "2:4"}, {"pattern": ":4", "sparsity": 0.5}])
def test_values_that_cannot_be_ranked(asked: dict[str, Any]) -> None:
    placed = Placed(LINE, (Shard(0),))
    case = tied(placed, (12, 8), "2:4")._replace(asked=asked)
    case.wholes["b"][9, 3] = torch.nan
    for said in refusals(case):
        assert "layer 'b'" in said
        assert "index (9, 3), on rank 2" in said


def test_ranks_that_ask_for_different_patterns() -> None:
    case = tied(Placed(torch.arange(2), (Shard(0),)), (8, 8), "2:4")

    def run(rank: Rank) -> str:
        here.rank = rank
        model = {name: case.placed[name].dtensor(rank.rank, it) for name, it in case.wholes.items()}
        with pytest.raises(ValueError, match="other arguments") as raised:
            lampfast.masks(model, pattern=f"{rank.rank + 1}:4")
        return str(raised.value)

    with joined():
        assert all(isinstance(said, str) for said in Group(2).run(run))


@pytest.mark.parametrize("asked", [{"pattern": ":8"}, {"block": (1, 4)}])
def test_a_schedule_gives_the_sparsity(asked: dict[str, Any]) -> None:
    placed = Placed(torch.arange(2), (Shard(0),))
    generator = torch.Generator().manual_seed(0)
    wholes = {name: torch.randn(9, 16, generator=generator) for name in ("a", "b")}

    def train(model: dict[str, Any]) -> Any:
        weights = {name: torch.nn.Parameter(it) for name, it in model.items()}
        optimizer = torch.optim.SGD(weights.values(), lr=0.1)
        schedule = lampfast.schedules.cubic(0.75, 4)
        pruner = lampfast.Pruner(weights, optimizer, schedule, **asked)
        for _ in range(5):
            optimizer.step()
            pruner.step()
        return pruner.report, weights

    report, expected = train({name: it.clone() for name, it in wholes.items()})

    def run(rank: Rank) -> None:
        here.rank = rank
        found, weights = train({n: placed.dtensor(rank.rank, it) for n, it in wholes.items()})
        assert str(found) == str(report)
        for name, weight in weights.items():
            own = placed.local(rank.rank, expected[name])
            assert torch.equal(weight.to_local(), own)

    with joined():
        assert Group(2).run(run) == [None, None]
