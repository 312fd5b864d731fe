"""A rank that is killed while it prunes: the others get an error, and have their weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import ranks
from torch import distributed

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="needs gloo"
)


def test_others_hear_of_it_and_change_nothing(tmp_path: Path) -> None:
    script = Path(__file__).with_name("killed_ranks.py")
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(tmp_path), str(rank), "3"], env=ranks.environment()
        )
        for rank in range(3)
    ]
    try:
        codes = [process.wait(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, -9, 0]
    for rank in (0, 2):
        error, is_unchanged = json.loads((tmp_path / f"{rank}.json").read_text())
        assert error, rank
        assert is_unchanged, rank
