"""What config says; the instruction set that LAMPFAST_ISA names is the one in use, or an error."""

import re
import subprocess
from pathlib import Path

import another_python
import answers
import pytest
import torch

import lampfast

ASK = "import lampfast; print(lampfast.config()['instruction_set'])"


def ask(name: str) -> subprocess.CompletedProcess[str]:
    """What a new process says of its instruction set when LAMPFAST_ISA is `name`."""
    return another_python.run("-c", ASK, LAMPFAST_ISA=name)


def best() -> str:
    """The best one for this processor, by what Linux says of it."""
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    has = set(flags[1].split() if flags else ())
    if {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= has:
        return "avx512"
    return "avx2" if {"avx2", "fma", "bmi2"} <= has else "baseline"


def test_baseline_is_always_there() -> None:
    assert ask("baseline").stdout == "baseline\n"


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="only Linux has /proc/cpuinfo")
def test_the_best_one_is_the_default() -> None:
    assert ask("").stdout == f"{best()}\n"


@pytest.mark.parametrize("name", ["avx512", "avx2", "baseline"])
def test_every_one_gives_the_same_answers(name: str) -> None:
    found = another_python.run(answers.__file__, LAMPFAST_ISA=name)
    if "but this processor has" in found.stderr:
        pytest.skip(f"this processor has no {name}")
    assert found.stdout == f"{answers.digest()}\n", found.stderr


@pytest.mark.parametrize("name", ["sse9", "AVX2", " baseline"])
def test_an_unknown_one_is_an_error(name: str) -> None:
    answer = ask(name)
    assert answer.returncode != 0
    assert f"LAMPFAST_ISA is '{name}', but this processor has: " in answer.stderr
    assert "baseline" in answer.stderr


@pytest.mark.parametrize("asked", ["0.5", "pattern='2:4'", "0.5, block=(2, 2)"])
def test_an_unknown_one_ends_a_call(asked: str) -> None:
    call = f"import lampfast, torch; lampfast.masks([torch.ones(8, 8)], {asked})"
    found = another_python.run("-c", call, LAMPFAST_ISA="sse9")
    assert found.returncode == 1
    assert "RuntimeError: LAMPFAST_ISA is 'sse9', but this processor has: " in found.stderr


def test_config_tells_what_is_in_use() -> None:
    torch.set_num_threads(3)
    config = lampfast.config()
    assert config["version"] == lampfast.__version__
    assert config["torch"] == torch.__version__
    assert config["threads"] == 3
    devices = config["devices"]
    assert isinstance(devices, list)
    assert devices[0] == "cpu"
    assert len(devices) == 1 + torch.cuda.device_count()
