"""Sharded models that are trained, saved and resumed on real ranks of gloo, and plain ones."""

from __future__ import annotations

from typing import Any

import pytest
import ranks
from torch import distributed

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="needs gloo"
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What came of each run, by rank."""
    return ranks.run("training_ranks.py", tmp_path_factory.mktemp("ranks"), 4, timeout=600)


@pytest.mark.parametrize("part", ["resumed", "elsewhere", "verbs", "trained", "kept", "stages"])
def test_same_as_plain_models(part: str, results: list[dict[str, Any]]) -> None:
    for rank, result in enumerate(results):
        assert not result[part], f"rank {rank}: {result[part][:3]}"


def test_errors_on_all_ranks(results: list[dict[str, Any]]) -> None:
    for rank, result in enumerate(results):
        for case, (error, is_unchanged) in result["errors"].items():
            assert is_unchanged, f"rank {rank}, {case}"
            assert error, f"rank {rank}, {case}: no error"
        is_last = rank == len(results) - 1
        words = {
            "apply, a dtype": ("'0.weight' has dtype torch.float32", "rank 3 has failed"),
            "update, a name": ("other arguments", "other arguments"),
            "load, a dtype": ("'0.weight' is torch.float32", "rank 3 has failed"),
            "rewind, nan": ("'1.weight' has NaN", "rank 3 has failed"),
            "step, a listener raises": ("on the last rank", "rank 3 has failed"),
            "step, another schedule": ("other arguments", "other arguments"),
            "load_masks": ("No such file", "rank 3 has failed"),
        }
        for case, (own, others) in words.items():
            assert (own if is_last else others) in result["errors"][case][0], f"{rank}, {case}"


@pytest.fixture(scope="module")
def with_trainers(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What came of the callbacks for trainers, by rank."""
    return ranks.run("trainer_ranks.py", tmp_path_factory.mktemp("trainers"), 2, timeout=600)


@pytest.mark.parametrize("trainer", ["lightning", "transformers"])
def test_callbacks_for_trainers(trainer: str, with_trainers: list[dict[str, Any]]) -> None:
    for rank, result in enumerate(with_trainers):
        found = result[trainer]
        if found and found[0].startswith("skip: "):
            pytest.skip(found[0])
        assert not found, f"rank {rank}: {found[:3]}"
