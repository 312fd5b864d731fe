"""Runs that are killed with signal 9 at any moment are finished by the same call, to the byte."""

import sys
from pathlib import Path

import another_python
import checkpoint_files
import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork")

DRIVER = str(Path(__file__).parent / "kill_driver.py")


AT_EVERY_STEP, AT_RANDOM = 0, 6
RUNS = {
    "out, at every step": (AT_EVERY_STEP, []),
    "out, at random": (AT_RANDOM, []),
    "in place, at every step": (AT_EVERY_STEP, ["in_place"]),
    "in place, at random": (AT_RANDOM, ["in_place"]),
    "in place by blocks, at random": (AT_RANDOM, ["in_place", "blocks"]),
}


@pytest.mark.parametrize("run", RUNS)
def test_kills(tmp_path: Path, run: str) -> None:
    kills, how = RUNS[run]
    source = checkpoint_files.folder(tmp_path / "dense", checkpoint_files.weights(), shards=2)
    result = another_python.run(DRIVER, str(source), str(tmp_path), str(kills), "0", *how)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) >= (20 if kills == AT_EVERY_STEP else 1), result.stdout
