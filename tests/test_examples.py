"""Every script of docs/examples runs, with few steps, and ends where it says."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"


@pytest.mark.parametrize(
    ("script", "ends"),
    [
        ("one_shot.py", "at sparsity 96.0%\n"),
        ("iterative.py", "at sparsity 48.8%\n"),
        ("gradual.py", "15: 93.5%, 20: 95.0%\n"),
        ("rigl.py", "at sparsity 90.0%\n"),
        ("set.py", "with 6,100 weights\n"),
    ],
)
def test_script(
    script: str, ends: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)  # layers this small only wait for threads
    monkeypatch.setattr(sys, "argv", [script, "--quick"])
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delitem(sys.modules, "task", raising=False)
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    printed = capsys.readouterr().out
    assert printed.endswith(ends), printed


def test_every_script_is_tested() -> None:
    scripts = {path.name for path in EXAMPLES.glob("*.py")}
    tested = {"one_shot.py", "iterative.py", "gradual.py", "rigl.py", "set.py"}
    assert scripts == {*tested, "task.py", "sharded.py"}  # test_sharded.py runs the last one
