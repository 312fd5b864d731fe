"""What the README shows works as it says."""

import re
import shlex
from typing import Any

import pages
import pytest
import torch

PATH = pages.ROOT / "README.md"
README = PATH.read_text()


def test_the_examples_run_one_after_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)  # layers this small only wait for threads
    names: dict[str, Any] = {}
    pages.run(PATH, names)
    printed = capsys.readouterr().out
    assert "2.weight" in printed
    assert "90.00% of the weights are zero now\n" in printed
    steps = [step for step, _ in names["pruner"].history]
    assert steps == [50, 100, 150, 200]
    assert printed.endswith("after step 200 pruned to 98.0%\n")


@pytest.mark.parametrize("last", [".venv/bin/lampfast demo", ".venv/bin/pytest"])
def test_one_line_sets_up_and_runs(last: str) -> None:
    blocks = re.findall(r"^```sh\n(.*?)\n```", README, re.MULTILINE | re.DOTALL)
    (command,) = [block for block in blocks if block.endswith(last)]
    assert "\n" not in command
    assert shlex.split(command)[:4] == ["python3", "-m", "venv", ".venv"]
