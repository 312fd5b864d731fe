"""`lampfast prune` and `lampfast report` as a user runs them."""

import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

import checkpoint_files
import pytest
from typer.testing import CliRunner

from lampfast import checkpoints
from lampfast._cli import tables
from lampfast._cli.app import app


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return checkpoint_files.folder(tmp_path / "dense", checkpoint_files.weights())


def _lampfast(*arguments: object, columns: int = 80, exit_code: int = 0) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": str(columns)})
    assert result.exit_code == exit_code, result.output
    assert isinstance(result.exception, SystemExit | None)
    if not exit_code:
        assert all(len(line) <= columns for line in result.stdout.splitlines())
    return result.output


def test_prune(source: Path, tmp_path: Path) -> None:
    output = _lampfast("prune", source, "50%", "-o", tmp_path / "o")
    assert re.search(r"all 4 layers +8,900 +4,450 +50.00%", output)
    assert "Note: the layers are chosen by their names" in output
    assert "3 copied" in " ".join(output.split())
    assert "Zeros alone make a dense file no smaller" in output
    checkpoints.prune(source, 0.5, out=tmp_path / "again")
    again = checkpoint_files.digests(tmp_path / "again")
    assert checkpoint_files.digests(tmp_path / "o") == again
    error = _lampfast("prune", source, "0.5", "-o", tmp_path / "o", exit_code=1)
    assert re.search(r"^lampfast: .*is there already", error)


def test_prune_in_place_and_dry(source: Path) -> None:
    before = checkpoint_files.digests(source)
    assert "Wrote" not in _lampfast("prune", source, "4450", "--dry-run")
    assert checkpoint_files.digests(source) == before
    assert "Wrote" in _lampfast("prune", source, "4450", "--in-place")
    assert checkpoint_files.digests(source) != before


def test_patterns(source: Path, tmp_path: Path) -> None:
    output = _lampfast("prune", source, "--pattern", "2:4", "-o", tmp_path / "o")
    report = checkpoints.prune(source, pattern="2:4", out=tmp_path / "again")
    assert re.search(rf"all 4 layers +8,900 +{report.kept:,} ", output)
    again = checkpoint_files.digests(tmp_path / "again")
    assert checkpoint_files.digests(tmp_path / "o") == again
    output = _lampfast("report", source, "0.5", "--pattern", ":8", "--dim", "0")
    report = checkpoints.report(source, 0.5, pattern=":8", dim=0)
    assert f"{report.kept:,}" in output
    assert "sparsity" in _lampfast("prune", source, "--dry-run", exit_code=1)
    assert "2:4" in _lampfast("report", source, "0.5", "--pattern", "2:4", exit_code=1)


@pytest.mark.parametrize(
    ("option", "block"), [("4x4", (4, 4)), ("1x32", (1, 32)), ("row", "row"), ("column", "column")]
)
def test_blocks(source: Path, tmp_path: Path, option: str, block: Any) -> None:
    output = _lampfast("prune", source, "0.5", "--block", option, "-o", tmp_path / "o")
    report = checkpoints.prune(source, 0.5, block=block, out=tmp_path / "again")
    assert re.search(rf"all 4 layers +8,900 +{report.kept:,} ", output)
    again = checkpoint_files.digests(tmp_path / "again")
    assert checkpoint_files.digests(tmp_path / "o") == again
    now = _lampfast("report", source, "0.5", "--block", option, "--json", tmp_path / "r.json")
    assert f"{report.kept:,}" in now
    arguments = json.loads((tmp_path / "r.json").read_text())["arguments"]
    assert arguments["block"] == (block if isinstance(block, str) else list(block))


@pytest.mark.parametrize("option", ["4", "4x", "4x4x4", "-4x4", "rows", "1.5x2", "\uff11x4", ""])
def test_no_block(source: Path, option: str) -> None:
    output = " ".join(_lampfast("report", source, "0.5", "--block", option, exit_code=2).split())
    assert "--block" in output
    assert "is no block" in output
    assert "block[1]" in _lampfast("report", source, "0.5", "--block", "4x0", exit_code=1)


@pytest.mark.parametrize(("sparsity", "exit_code"), [("much", 2), ("1.5", 1), ("-3", 2)])
def test_no_sparsity(source: Path, tmp_path: Path, sparsity: str, exit_code: int) -> None:
    _lampfast("prune", source, sparsity, "-o", tmp_path / "o", exit_code=exit_code)
    assert not (tmp_path / "o").exists()


def test_bad_arguments(source: Path, tmp_path: Path) -> None:
    for arguments, message in (
        (("prune", source, "0.5"), "-o names a new place"),
        (("prune", source, "0.5", "-o", tmp_path / "o", "--in-place"), "pass one of them"),
        (("prune", source, "-o", tmp_path / "o"), "the sparsity is missing"),
        (("prune", source, "--pattern", ":4", "--in-place"), "the sparsity is missing"),
        (("report", source, "--block", "row"), "the sparsity is missing"),
        (("prune", tmp_path / "x", "0.5", "-o", tmp_path / "o"), "is not there"),
        (("prune", source, "0.5", "-o", tmp_path / "o", "--include", "x*"), "include"),
        (("report", source, "--method", "erk"), "no sparsity"),
        (("report", source, "--json", tmp_path / "x" / "y.json"), "is not there"),
    ):
        output = _lampfast(*arguments, exit_code=1)
        assert message in output
        assert "Traceback" not in output


def test_files_for_programs(source: Path, tmp_path: Path) -> None:
    files = ("--json", tmp_path / "r.json", "--csv", tmp_path / "r.csv")
    output = _lampfast("report", source, "0.9", "--method", "lamp", "--method", "erk", *files)
    assert re.search(r"weights +lamp +erk", output)
    found = json.loads((tmp_path / "r.json").read_text())
    report = checkpoints.report(source, 0.9)
    assert {key: found[key] for key in report.to_dict()} == json.loads(json.dumps(report.to_dict()))
    assert found["arguments"]["sparsity"] == "0.9"
    assert {"lampfast", "torch"} <= found["versions"].keys()
    assert found["fingerprint"]["files"].keys() == {it.name for it in source.glob("*.safetensors")}
    with open(tmp_path / "r.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["layer"] for row in rows if row["method"] == "lamp"] == [
        layer.name for layer in report.layers
    ]
    assert len(rows) == 8


def test_plot(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    _lampfast("report", source, "0.9", "--plot", tmp_path / "layers.png")
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("columns", [40, 60, 80, 120])
def test_tables_fit_and_names_keep_their_ends(source: Path, columns: int) -> None:
    output = _lampfast("report", source, "0.9", columns=columns)
    for name in checkpoint_files.LAYERS:
        assert name[-10:] in output
    assert tables.with_its_end("a.b.weight", 7) == "…weight"


def test_no_colours_or_bars_where_nobody_looks(source: Path, tmp_path: Path) -> None:
    assert "\x1b" not in _lampfast("prune", source, "0.5", "-o", tmp_path / "o")


def test_without_transformers_names_decide(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source / "config.json").write_text('{"architectures": ["BertModel"]}')
    monkeypatch.setitem(sys.modules, "transformers", None)
    output = " ".join(_lampfast("report", source).split())
    assert "transformers is not installed, which would tell the layers of BertModel" in output


@pytest.mark.parametrize("option", ["--json", "--csv"])
def test_reports_that_cannot_be_written_are_refused_first(
    source: Path, tmp_path: Path, option: str
) -> None:
    before = checkpoint_files.digests(source)
    for file, problem in ((tmp_path / "no" / "x", "not there"), (tmp_path, "is a folder")):
        output = _lampfast("prune", source, "0.5", "--in-place", option, file, exit_code=1)
        assert problem in output
    assert checkpoint_files.digests(source) == before
