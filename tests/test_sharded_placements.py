"""Models on random meshes and placements, on up to 64 virtual ranks, against themselves on one.

`differences` compares bit for bit. The last tests break a rule that the answer rests on, and see
that the comparison notices.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import broken_rules
import numpy as np
import pytest
import torch
from hard_weights import DTYPES
from test_sharded_engine import values
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.placement_types import Placement, _StridedShard
from virtual_ranks import Group, Placed, Rank, can_place, here, joined

import lampfast
from lampfast._engine import pieces, sharded

pytestmark = [
    pytest.mark.skipif(not can_place, reason="needs meshes without process groups"),
    pytest.mark.usefixtures("forgotten_ranks"),
]

METHODS = ("lamp", "lamp", "lamp", "global", "uniform", "erk")


class Case(NamedTuple):
    """A model, how it lies on ranks, and what is asked.

    Attributes:
        wholes: The parameters.
        placed: How each of them lies.
        asked: Arguments of the calls.
        importance: What is scored in the place of each parameter, if it is so.
        is_placed: By parameter, whether its importance lies as it does, or is whole on every rank.
    """

    wholes: dict[str, torch.Tensor]
    placed: dict[str, Placed]
    asked: dict[str, Any]
    importance: dict[str, torch.Tensor] | None
    is_placed: dict[str, bool]

    @property
    def ranks(self) -> int:
        """How many there are."""
        return next(iter(self.placed.values())).mesh.numel()


def random_placements(rng: np.random.Generator, mesh: torch.Tensor, dims: int) -> Placed:
    """What a parameter of so many dimensions may have; that of FSDP over tensor parallelism too."""
    if mesh.ndim == 2 and rng.random() < 0.3:
        dim = int(rng.integers(0, dims))
        return Placed(mesh, (_StridedShard(dim, split_factor=mesh.size(1)), Shard(dim)))
    chosen: list[Placement] = []
    for _ in range(mesh.ndim):
        dim = int(rng.integers(0, dims))
        match int(rng.integers(0, 6)):
            case 0:
                chosen.append(Replicate())
            case 1:
                chosen.append(_StridedShard(dim, split_factor=int(rng.integers(2, 4))))
            case _:
                chosen.append(Shard(dim))
    return Placed(mesh, tuple(chosen))


def random_case(seed: int, ranks: int | None = None) -> Case:
    rng = np.random.default_rng(seed)
    ranks = ranks or int(rng.choice([1, 2, 3, 4, 6, 8]))
    rows = [n for n in range(1, ranks + 1) if ranks % n == 0]
    wholes, placed, stacks = {}, {}, []
    for i in range(int(rng.integers(1, 5))):
        is_stack = rng.random() < 0.3
        dims = 3 if is_stack else int(rng.integers(1, 4))
        shape = tuple(int(n) for n in rng.integers(1, 14, dims))
        dtype = DTYPES[int(rng.integers(0, len(DTYPES)))] if rng.random() < 0.7 else torch.float32
        limits = torch.finfo(dtype)
        drawn = np.clip(values(rng, shape), limits.min, limits.max)
        name = f"{'stack' if is_stack else 'layer'}{i}"
        wholes[name] = torch.from_numpy(np.asarray(drawn)).to(dtype)
        mesh = torch.arange(ranks)
        if rng.random() < 0.6:
            mesh = mesh.reshape(int(rng.choice(rows)), -1)
        placed[name] = random_placements(rng, mesh, dims)
        stacks += [name] * is_stack
    asked: dict[str, Any] = {"stacked": stacks} if stacks else {}
    asked["method"] = METHODS[int(rng.integers(0, len(METHODS)))]
    size = sum(whole.numel() for whole in wholes.values())
    asked["sparsity"] = int(rng.integers(0, size + 1)) if rng.random() < 0.5 else rng.random()
    importance = None
    if rng.random() < 0.25:
        importance = {
            name: torch.from_numpy(np.asarray(rng.integers(0, 5, it.shape) / 4.0)).float()
            for name, it in wholes.items()
        }
    return Case(wholes, placed, asked, importance, {name: rng.random() < 0.5 for name in wholes})


def differences(case: Case) -> list[str]:
    """In what ranks differ from one process, or what they raise."""
    expected = lampfast.masks(case.wholes, importance=case.importance, **case.asked)
    report = lampfast.report(case.wholes, importance=case.importance, **case.asked)
    there = lampfast.report(case.wholes, stacked=case.asked.get("stacked"))
    found: list[str] = []

    def run(rank: Rank) -> None:
        here.rank = rank
        model: dict[str, Any] = {
            name: case.placed[name].dtensor(rank.rank, it) for name, it in case.wholes.items()
        }
        given: dict[str, Any] | None = case.importance and {
            name: case.placed[name].dtensor(rank.rank, it) if case.is_placed[name] else it
            for name, it in case.importance.items()
        }
        masks = lampfast.masks(model, importance=given, **case.asked)
        now = lampfast.report(model, stacked=case.asked.get("stacked"))
        pruned = lampfast.prune(model, importance=given, **case.asked)
        if str(pruned) != str(report) or str(now) != str(there):
            found.append(f"report on rank {rank.rank}: {pruned}")
        for name, placed in case.placed.items():
            kept = placed.local(rank.rank, expected[name])
            if not torch.equal(masks[name].to_local(), kept):
                found.append(f"mask of {name} on rank {rank.rank}")
            before = placed.local(rank.rank, case.wholes[name]).double()
            if not torch.equal(model[name].to_local().double(), torch.where(kept, before, 0.0)):
                found.append(f"weight {name} on rank {rank.rank}")
            if masks[name].placements != placed.placements:
                found.append(f"placements of {name}")

    with joined():
        raised = Group(case.ranks).run(run)
    return found + [repr(error) for error in raised if error is not None]


@pytest.mark.parametrize("seed", range(60))
def test_same_bits(seed: int) -> None:
    assert not differences(random_case(seed))


@pytest.mark.parametrize(("seed", "ranks"), [(1, 16), (2, 48), (3, 64)])
def test_same_bits_on_many_ranks(seed: int, ranks: int) -> None:
    assert not differences(random_case(seed, ranks))


def tied(placements: tuple[Placement, ...], mesh: torch.Tensor) -> Case:
    """Two layers of few magnitudes, so that where ties lie decides most elements."""
    generator = torch.Generator().manual_seed(0)
    shape = (12, 10)
    wholes = {name: torch.randint(-2, 3, shape, generator=generator) / 2 for name in ("a", "b")}
    placed = dict.fromkeys(wholes, Placed(mesh, placements))
    return Case(wholes, placed, {"sparsity": 101}, None, {})


CUBE = torch.arange(4).reshape(2, 2)
STRIDED = tied((_StridedShard(0, split_factor=2), Shard(0)), CUBE)
INTERLEAVED = tied((Shard(1),), torch.arange(3))
IN_ORDER = tied((Shard(0),), torch.arange(3))
HYBRID = tied((Replicate(), Shard(0)), CUBE)


@pytest.mark.parametrize("case", [STRIDED, INTERLEAVED, IN_ORDER, HYBRID])
def test_same_bits_of_ties(case: Case) -> None:
    assert not differences(case)


def test_same_bits_where_some_ranks_have_no_part() -> None:
    case = tied((Shard(0),), torch.arange(3))
    some = case.placed | {"a": Placed(torch.tensor([1, 2]), (Shard(1),))}
    assert not differences(case._replace(placed={"b": some["b"], "a": some["a"]}))


@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_same_bits_where_one_layer_has_most_of_what_is_open(sparsity: float) -> None:
    """Ranks then gather more of its keys than a GPU collects of a layer at once."""
    rng = np.random.default_rng(0)
    wholes = {f"small{i}": torch.from_numpy(rng.standard_normal((4, 8))).float() for i in range(12)}
    wholes["large"] = torch.from_numpy(1.0 + rng.random((20, 15)) * 1e-4).float()
    placed = dict.fromkeys(wholes, Placed(torch.arange(2), (Shard(0),)))
    for method in ("lamp", "global"):
        asked = {"sparsity": sparsity, "method": method}
        assert not differences(Case(wholes, placed, asked, None, {}))


def test_strided_shards_are_not_read_as_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_chunks", lambda held, _: [held])
    assert differences(STRIDED)


def test_replicas_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    broken_rules.count_replicas(monkeypatch)
    assert differences(HYBRID)


def test_ties_go_by_position(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than by rank, as if each piece began where the one before it ends."""

    def by_rank(shape: Any, boxes: Any) -> list[int]:
        return sorted(first for first, _ in boxes)

    monkeypatch.setattr(sharded, "_begins", by_rank)
    assert differences(INTERLEAVED)


def test_ties_begin_where_pieces_do(monkeypatch: pytest.MonkeyPatch) -> None:
    broken_rules.turn_pieces_around(monkeypatch)
    assert differences(IN_ORDER)
