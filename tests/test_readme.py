"""What the README shows works as it says."""

import re
import shlex
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    exec(example, {})
    printed = capsys.readouterr().out
    assert "2.weight" in printed
    assert printed.endswith("90.00% of the weights are zero now\n")


@pytest.mark.parametrize("last", [".venv/bin/lampfast demo", ".venv/bin/pytest"])
def test_one_line_sets_up_and_runs(last: str) -> None:
    blocks = re.findall(r"^```sh\n(.*?)\n```", README, re.MULTILINE | re.DOTALL)
    (command,) = [block for block in blocks if block.endswith(last)]
    assert "\n" not in command
    assert shlex.split(command)[:4] == ["python3", "-m", "venv", ".venv"]
