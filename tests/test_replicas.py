"""Replicas under DDP, in two real processes: pruned alike, or on no rank at all."""

from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from torch import distributed

import lampfast

RANKS = 2
pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="needs gloo"
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What each rank says of each run in replicas.py."""
    folder = tmp_path_factory.mktemp("ranks")
    results = ranks.run("replicas.py", folder, RANKS, timeout=120)
    return {name: [result[name] for result in results] for name in results[0]}


def test_replicas_are_pruned_alike(runs: dict[str, list[Any]]) -> None:
    first, *others = runs["agreeing"]
    assert others == [first]
    assert first["history"] == [
        [2, pytest.approx(0.2)],
        [4, 0.4],
        [6, pytest.approx(0.6)],
        [8, 0.8],
    ]
    assert first["kept"] == first["report"] == 72 - round(0.8 * 72)
    assert len(set(first["digests"])) == 10


def test_answers_travel_only_where_ranks_differ(runs: dict[str, list[Any]]) -> None:
    for result in runs["agreeing"]:
        assert result["exchanges"] == 0
    for result in runs["diverged"]:
        assert result["exchanges"] == 2, "the answers, and then what the weights are"


def test_gradients_of_pruned_weights_are_zero_on_every_rank(runs: dict[str, list[Any]]) -> None:
    """When backward returns: the reducer averages after the hooks, and puts the average back."""
    first, *others = runs["gradients"]
    assert others == [first]
    assert set(first) == {"plain", "views", "unused", "static"}
    for kind, found in first.items():
        assert found == {"pruned": 0.0, "is the average": True}, kind


def test_ranks_take_the_same_masks_or_none_does(runs: dict[str, list[Any]]) -> None:
    well, failing = runs["update"]
    for rank in (well, failing):
        assert rank["same"] == {"error": None, "unchanged": False}
        assert rank["other"]["unchanged"]
        for word in ("diverged", "rank 1", "by update() after step 3", "by other masks"):
            assert word in rank["other"]["error"]
        assert rank["wrong"]["unchanged"]
    assert failing["wrong"]["error"].startswith("TypeError: mask of layer")
    assert "rank 1 cannot prune" in well["wrong"]["error"]
    assert failing["wrong"]["error"] in well["wrong"]["error"]


def test_diverged_replicas_raise_the_same_error_everywhere(runs: dict[str, list[Any]]) -> None:
    first, *others = runs["diverged"]
    assert others == [first]
    assert first["unchanged"]
    words = (
        "RuntimeError",
        "diverged",
        "rank 1 of 2",
        "after step 4",
        "'2.weight'",
        "one state",
    )
    for word in words:
        assert word in first["error"]
    assert first["again"] == {"error": None, "unchanged": False}, "repaired, the step is the fourth"


def test_a_rank_that_cannot_prune_stops_the_others(runs: dict[str, list[Any]]) -> None:
    well, failing = runs["nan on one"]
    assert failing["error"].startswith("ValueError: layer '2.weight' has nan")
    assert well["error"].startswith("RuntimeError: rank 1 cannot prune, so no rank has pruned")
    assert failing["error"] in well["error"]
    for rank in (well, failing):
        assert rank["unchanged"]
        assert rank["again"] == {"error": None, "unchanged": False}


def test_ranks_that_all_cannot_prune_say_so_themselves(runs: dict[str, list[Any]]) -> None:
    for rank, result in enumerate(runs["nan on all"]):
        assert result["error"].startswith("ValueError: layer '2.weight' has nan")
        assert f"(0, {rank})" in result["error"]
        assert result["unchanged"]


def test_ranks_whose_schedules_differ(runs: dict[str, list[Any]]) -> None:
    first, *others = runs["other schedule"]
    assert others == [first]
    assert first["unchanged"]
    for word in ("rank 1", "to sparsity 0.2", "to sparsity 0.17", "after step 2"):
        assert word in first["error"]


def test_a_schedule_that_raises_stops_the_others(runs: dict[str, list[Any]]) -> None:
    """At once, and not when they have waited for as long as the group lets them."""
    well, failing = runs["schedule raises"]
    for name in ("prunes", "waits"):
        assert failing[name]["error"] == "KeyError: 'no such step'"
        told = "RuntimeError: rank 1 cannot prune, so no rank has pruned (after step 4)"
        assert well[name]["error"] == f"{told}: {failing[name]['error']}"
    for rank in (well, failing):
        assert rank["prunes"]["unchanged"]
        assert rank["waits"]["unchanged"]
        assert rank["again"] == {"error": None, "unchanged": False}


def test_ranks_at_different_steps(runs: dict[str, list[Any]]) -> None:
    first, *others = runs["other steps"]
    assert others == [first]
    assert first["unchanged"]
    for word in ("rank 1", "to sparsity 0.2 after step 2", "to sparsity 0.4 after step 4"):
        assert word in first["error"]


def test_a_group_of_ones_own_is_not_compared(runs: dict[str, list[Any]]) -> None:
    for result in runs["apart"]:
        assert result == {"error": None, "unchanged": False}


def test_a_single_process_exchanges_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group of one rank needs no answer from others."""
    for name, value in ranks.environment().items():
        monkeypatch.setenv(name, value)
    meeting = (tmp_path / "meeting").as_uri()
    distributed.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
    monkeypatch.setattr(distributed, "all_gather_object", None)
    monkeypatch.setattr(distributed, "all_reduce", None)
    try:
        model = torch.nn.Linear(4, 4)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        pruner = lampfast.Pruner(model, optimizer, lampfast.schedules.constant(0.5))
        pruner.step()
        assert pruner.report.sparsity == 0.5
    finally:
        distributed.destroy_process_group()


def test_each_rank_may_have_a_part_of_the_optimizers_state(runs: dict[str, list[Any]]) -> None:
    first, *others = runs["zero redundancy"]
    assert others == [first]
    assert first["same"] == [True] * 20, "zeros of the model and of its average"
    assert len(set(first["digests"])) == 1, "of the model without and with redundancy"
    assert first["kept"] == 72 - round(0.8 * 72)
