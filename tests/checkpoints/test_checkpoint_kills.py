"""Runs that are killed with signal 9 at any moment are finished by the same call, to the byte."""

import sys
from pathlib import Path

import another_python
import checkpoint_files
import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork")

DRIVER = str(Path(__file__).parent / "kill_driver.py")


@pytest.mark.parametrize("kills", [0, 6], ids=["at every step", "at random"])
@pytest.mark.parametrize("mode", ["out", "in_place"])
def test_kills(tmp_path: Path, mode: str, kills: int) -> None:
    source = checkpoint_files.folder(tmp_path / "dense", checkpoint_files.weights(), shards=2)
    arguments = (str(source), str(tmp_path), str(kills), "0")
    result = another_python.run(DRIVER, *arguments, *[mode] * (mode == "in_place"))
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) >= (20 if kills == 0 else 1), result.stdout
