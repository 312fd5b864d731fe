"""What config says; the instruction set that LAMPFAST_ISA names is the one in use, or an error."""

import os
import subprocess
import sys

import pytest
import torch

import lampfast

ASK = "import lampfast; print(lampfast.config()['instruction_set'])"


def ask(name: str) -> subprocess.CompletedProcess[str]:
    """What a new process says of its instruction set when LAMPFAST_ISA is `name`."""
    environment = os.environ | {"LAMPFAST_ISA": name}
    return subprocess.run(
        [sys.executable, "-c", ASK], env=environment, capture_output=True, text=True
    )


def test_baseline_is_always_there() -> None:
    assert ask("baseline").stdout == "baseline\n"


def test_the_best_one_is_the_default() -> None:
    assert ask("").stdout.strip() in {"avx512", "avx2", "baseline"}


@pytest.mark.parametrize("name", ["sse9", "AVX2", " baseline"])
def test_an_unknown_one_is_an_error(name: str) -> None:
    answer = ask(name)
    assert answer.returncode != 0
    assert f"LAMPFAST_ISA is '{name}', but this processor has: " in answer.stderr
    assert "baseline" in answer.stderr


def test_config_tells_what_is_in_use() -> None:
    torch.set_num_threads(3)
    config = lampfast.config()
    assert config["version"] == lampfast.__version__
    assert config["torch"] == torch.__version__
    assert config["threads"] == 3
    assert config["devices"] == ["cpu"] or torch.cuda.is_available()
