"""Models that are sharded over processes, on 2 and 4 real ranks of gloo, against plain models."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ranks
from torch import distributed

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="needs gloo"
)


@pytest.fixture(scope="module", params=[2, 4])
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What came of each run, by rank."""
    count, folder = request.param, tmp_path_factory.mktemp("ranks")
    return ranks.run("gloo_ranks.py", folder, count, timeout=600)


def test_example(tmp_path: Path) -> None:
    script = Path(__file__).parent.parent / "docs" / "examples" / "sharded.py"
    meeting = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, script, "--quick"],
            env={**ranks.environment(), **meeting, "RANK": str(rank), "TMPDIR": str(tmp_path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    printed = [process.communicate(timeout=300)[0] for process in processes]
    assert printed == ["resumed at step 20, ends at sparsity 90.0%\n", ""]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port: int = free.getsockname()[1]
        return port


def test_same_as_plain_models(results: list[dict[str, Any]]) -> None:
    for rank, result in enumerate(results):
        for name, differences in result["same"].items():
            assert not differences, f"rank {rank}, {name}: {differences[:3]}"


def test_errors_on_all_ranks(results: list[dict[str, Any]]) -> None:
    for rank, result in enumerate(results):
        errors = result["errors"]
        for case, (error, is_unchanged) in errors.items():
            assert is_unchanged, f"rank {rank}, {case}"
            assert error, f"rank {rank}, {case}: no error"
        nan = errors["nan on the last rank"][0]
        assert "ValueError" in nan
        assert "'1.weight'" in nan
        assert f"rank {len(results) - 1}" in nan
        assert "other arguments" in errors["other arguments"][0]
        assert "last rank" in errors["a listener raises"][0]
        assert "nothing*" in errors["a pattern of the last rank"][0]
        assert "for the scores" in errors["scores"][0]
        assert "partial" in errors["partial"][0]


def test_layers_of_some_ranks(results: list[dict[str, Any]]) -> None:
    for result in results:
        found = result["in a group"]
        assert found["stages"]
        assert found["some on all"]
        assert "other values on rank" in found["copies differ"]
        assert "'0.weight' has shape" in found["shapes differ"]


def test_training(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert all(result["trained"].values()), result["trained"]


def test_few_collectives(results: list[dict[str, Any]]) -> None:
    for result in results:
        collectives, sent = result["cost"]
        assert collectives <= 14
        assert sent <= 32 << 10
