"""What a pruned checkpoint is: the zeros of `lampfast.prune`, and every other byte as it was."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import checkpoint_files
import pytest
import torch
from checkpoint_files import LAYERS
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import lampfast
from lampfast import checkpoints
from lampfast.checkpoints import verbs, writing, zeroing
from lampfast.checkpoints.verbs import Arguments, run
from lampfast.reports import Report


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return checkpoint_files.folder(tmp_path / "dense", checkpoint_files.weights())


def _expected(
    sparsity: float | None, **arguments: object
) -> tuple[checkpoint_files.Weights, Report]:
    """What `lampfast.prune` makes of the layers, in the order of the files."""
    content = checkpoint_files.weights()
    order = [name for i in range(3) for name in list(content)[i::3] if name in LAYERS]
    # In a file safetensors sorts by the size of the dtypes, then by name.
    order.sort(key=lambda n: (list(content).index(n) % 3, -content[n].itemsize, n))
    layers = {name: content[name] for name in order}
    report = lampfast.prune(layers, sparsity, **arguments)  # type: ignore[arg-type]
    return content | layers, report


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.93, 1.0, 777])
def test_a_folder_gets_the_zeros_and_nothing_else(
    source: Path, tmp_path: Path, sparsity: float
) -> None:
    before = checkpoint_files.digests(source)
    out = tmp_path / "sparse"
    report = checkpoints.prune(source, sparsity, out=out)
    expected, planned = _expected(sparsity)
    found = checkpoint_files.loaded(out)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert report == planned
    assert checkpoint_files.digests(source) == before
    assert checkpoint_files.digests(out).keys() == before.keys()
    for file in source.glob("*.safetensors"):
        ours, theirs = (out / file.name).read_bytes(), file.read_bytes()
        length = 8 + int.from_bytes(theirs[:8], "little")
        assert ours[:length] == theirs[:length]
        assert len(ours) == len(theirs)
        changed = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
        assert all(ours[i] == 0 for i in changed)
    assert (out / "tokenizer" / "vocab.txt").read_text() == "a\nb\n"


def test_in_place_gives_the_same_files(source: Path, tmp_path: Path) -> None:
    checkpoints.prune(source, 0.7, out=tmp_path / "sparse")
    checkpoints.prune(source, 0.7, in_place=True)
    assert checkpoint_files.digests(source) == checkpoint_files.digests(tmp_path / "sparse")


@pytest.mark.parametrize("method", ["global", "uniform", "erk", {"layers.*": 0.5}])
def test_methods_and_patterns(source: Path, tmp_path: Path, method: object) -> None:
    sparsity = None if isinstance(method, dict) else 0.6
    arguments = {"method": method, "exclude": "*.1.*"}
    report = checkpoints.prune(source, sparsity, out=tmp_path / "o", **arguments)  # type: ignore[arg-type]
    expected, planned = _expected(sparsity, **arguments)
    found = checkpoint_files.loaded(tmp_path / "o")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert report == planned


@pytest.mark.parametrize(
    ("sparsity", "arguments"),
    [
        (None, {"pattern": "2:4"}),
        (None, {"pattern": "1:3", "dim": 0}),
        (0.55, {"pattern": ":8"}),
        (0.5, {"pattern": ":7", "method": "erk", "dim": 0}),
    ],
)
def test_patterns(
    source: Path,
    tmp_path: Path,
    sparsity: float | None,
    arguments: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(writing, "BLOCK", 4096)  # rows and groups are cut by it
    monkeypatch.setattr(zeroing, "_BLOCK", 300)
    report = checkpoints.prune(source, sparsity, out=tmp_path / "o", **arguments)  # type: ignore[arg-type]
    expected, planned = _expected(sparsity, **arguments)
    found = checkpoint_files.loaded(tmp_path / "o")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert report == planned
    checkpoints.prune(source, sparsity, in_place=True, **arguments)  # type: ignore[arg-type]
    assert checkpoint_files.digests(source) == checkpoint_files.digests(tmp_path / "o")


def test_a_stopped_run_goes_on_with_its_pattern(source: Path, tmp_path: Path) -> None:
    def stopped(stage: str, done: int, total: int) -> None:
        if stage == "writing" and done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(source, Arguments(None, pattern="2:4"), out=tmp_path / "o", progress=stopped)
    with pytest.raises(ValueError, match="2:4"):
        checkpoints.prune(source, pattern="1:4", out=tmp_path / "o")
    assert run(source, Arguments(None, pattern="2:4"), out=tmp_path / "o").is_resumed
    checkpoints.prune(source, pattern="2:4", out=tmp_path / "again")
    again = checkpoint_files.digests(tmp_path / "again")
    assert checkpoint_files.digests(tmp_path / "o") == again


def test_importance_decides(source: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    content = checkpoint_files.weights()
    importance = {name: torch.rand(content[name].shape) for name in LAYERS}
    save_file(importance, tmp_path / "importance.safetensors")
    given = tmp_path / "importance.safetensors"
    checkpoints.prune(source, 0.6, out=tmp_path / "o", importance=given)
    expected, _ = _expected(0.6, importance=importance)
    found = checkpoint_files.loaded(tmp_path / "o")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    checkpoints.prune(source, pattern="2:4", out=tmp_path / "p", importance=given)
    expected, _ = _expected(None, pattern="2:4", importance=importance)
    found = checkpoint_files.loaded(tmp_path / "p")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_stacked_slices_are_layers(tmp_path: Path) -> None:
    """Also where a slice's elements do not lie one after the other."""
    torch.manual_seed(0)
    content = {"a.experts.w": torch.randn(4, 30, 20), "b.weight": torch.randn(20, 30)}
    save_file(content, tmp_path / "dense.safetensors")
    report = checkpoints.prune(tmp_path / "dense.safetensors", 0.8, out=tmp_path / "o.safetensors")
    expected = dict(content)
    assert str(lampfast.prune(expected, 0.8, stacked="a.experts.w")) == str(report)
    found = load_file(tmp_path / "o.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in content)


def test_report_and_masks(source: Path, tmp_path: Path) -> None:
    planned = checkpoints.report(source, 0.7)
    masks = checkpoints.masks(source, 0.7)
    pruned = checkpoints.prune(source, 0.7, out=tmp_path / "o")
    assert planned == pruned == checkpoints.prune(source, 0.7, dry_run=True)
    found = checkpoint_files.loaded(tmp_path / "o")
    for name, mask in masks.items():
        assert torch.equal(found[name] == 0, ~mask | (found[name] == 0)), name
        assert int(mask.sum()) == next(it.kept for it in pruned.layers if it.name == name)
    now = checkpoints.report(tmp_path / "o")
    assert now.kept == sum(int((found[name] != 0).sum()) for name in LAYERS)
    lampfast.save_masks(masks, tmp_path / "masks.safetensors")
    assert lampfast.load_masks(tmp_path / "masks.safetensors").keys() == masks.keys()


def test_blocks_of_any_size(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ties are counted from block to block; past the page cache and through it."""
    checkpoints.prune(source, 0.5, out=tmp_path / "whole")
    monkeypatch.setattr(writing, "BLOCK", 4096)
    checkpoints.prune(source, 0.5, out=tmp_path / "blocks")
    monkeypatch.setattr(writing, "_DIRECT", 0)
    checkpoints.prune(source, 0.5, out=tmp_path / "cached")
    whole = checkpoint_files.digests(tmp_path / "whole")
    assert checkpoint_files.digests(tmp_path / "blocks") == whole
    assert checkpoint_files.digests(tmp_path / "cached") == whole


def test_values_that_are_not_aligned(tmp_path: Path) -> None:
    """As a header of odd length leaves them, which safetensors itself never writes."""
    torch.manual_seed(0)
    content = {"a.weight": torch.randint(-3, 4, (50, 30)).float(), "b.weight": torch.randn(30, 20)}
    save_file(content, tmp_path / "aligned.safetensors")
    raw = (tmp_path / "aligned.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + length].rstrip() + b"\n"
    header += b" " * ((len(header) + 1) % 2)
    odd = len(header).to_bytes(8, "little") + header + raw[8 + length :]
    (tmp_path / "odd.safetensors").write_bytes(odd)
    assert len(header) % 2
    checkpoints.prune(tmp_path / "odd.safetensors", 0.6, out=tmp_path / "o.safetensors")
    expected = dict(content)
    lampfast.prune(expected, 0.6)
    pruned = (tmp_path / "o.safetensors").read_bytes()
    assert pruned[: 8 + len(header)] == odd[: 8 + len(header)]
    found = load_file(tmp_path / "o.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_tensor_in_two_files_is_zeroed_in_both(source: Path, tmp_path: Path) -> None:
    first, second, _ = sorted(source.glob("*.safetensors"))
    double = load_file(second) | {"layers.0.up.weight": checkpoint_files.weights()[LAYERS[0]]}
    save_file(double, second)
    index = source / "model.safetensors.index.json"
    place = json.loads(index.read_text())
    place["weight_map"]["layers.0.up.weight"] = second.name
    index.write_text(json.dumps(place))
    save_file(load_file(first) | {"layers.0.up.weight": double["layers.0.up.weight"]}, first)
    checkpoints.prune(source, 0.6, out=tmp_path / "o")
    a, b = (load_file(tmp_path / "o" / it.name)["layers.0.up.weight"] for it in (first, second))
    assert torch.equal(a, b)
    assert (a == 0).any()


def test_large_files_without_a_layer_are_linked(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "_SMALL", 1)
    checkpoints.prune(source, 0.5, out=tmp_path / "o")
    ours, theirs = (path / "tokenizer" / "vocab.txt" for path in (tmp_path / "o", source))
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_source_that_changes_meanwhile_is_noticed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = min(source.glob("*.safetensors"))

    def touching(*arguments: object) -> None:
        copy(*arguments)
        os.utime(first)

    copy: Callable[..., None] = writing.copy_zeroed
    monkeypatch.setattr(writing, "copy_zeroed", touching)
    with pytest.raises(ValueError, match="has changed while it was read"):
        checkpoints.prune(source, 0.5, out=tmp_path / "o")
    assert not list((tmp_path / "o").glob("*.safetensors"))


def test_a_full_disk_is_told_before_anything_is_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match="1,000 bytes free"):
        checkpoints.prune(source, 0.5, out=tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_a_disk_that_fills_up_leaves_no_part_under_a_final_name(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space left"):
            checkpoints.prune(source, 0.5, out=tmp_path / "o")
    assert [it.name for it in (tmp_path / "o").iterdir()] == [".lampfast-state"]
    checkpoints.prune(source, 0.5, out=tmp_path / "o")  # and is finished by the same call
    checkpoints.prune(source, 0.5, out=tmp_path / "again")
    again = checkpoint_files.digests(tmp_path / "again")
    assert checkpoint_files.digests(tmp_path / "o") == again


def test_another_run_does_not_finish_it(source: Path, tmp_path: Path) -> None:
    def stopped(stage: str, done: int, total: int) -> None:
        if stage == "writing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(source, Arguments(0.5), out=tmp_path / "o", progress=stopped)
    with pytest.raises(ValueError, match=r"arguments \(.*0\.5.*0\.6.*\)"):
        checkpoints.prune(source, 0.6, out=tmp_path / "o")
    save_file({"x": torch.ones(3)}, min(source.glob("*.safetensors")))
    with pytest.raises(ValueError, match="has not"):
        checkpoints.prune(source, 0.5, out=tmp_path / "o")


def test_metadata_stays(source: Path, tmp_path: Path) -> None:
    checkpoints.prune(source, 0.5, out=tmp_path / "o")
    for file in (tmp_path / "o").glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            assert opened.metadata()["format"] == "pt"


def test_a_copy_of_another_dtype_is_told_of(tmp_path: Path) -> None:
    weight = torch.randn(8, 8)
    source = tmp_path / "dense"
    source.mkdir()
    save_file({"fc.weight": weight}, source / "a.safetensors")
    save_file({"fc.weight": weight.half(), "b.weight": weight}, source / "b.safetensors")
    places = {"fc.weight": "a.safetensors", "b.weight": "b.safetensors"}
    index = json.dumps({"weight_map": places})
    (source / "model.safetensors.index.json").write_text(index)
    notices = run(source, Arguments(0.5), out=tmp_path / "sparse").notices
    told = "'fc.weight' in 'b.safetensors', F16 of shape [8, 8], stays as it is"
    assert any(told in notice for notice in notices)


def test_a_run_is_not_finished_with_another_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may find other layers, whose scales would then be missing."""
    source = checkpoint_files.folder(tmp_path / "dense", checkpoint_files.weights())
    (source / "config.json").write_text('{"a": 1}')

    def stopped(stage: str, done: int, total: int) -> None:
        if stage == "writing":
            raise KeyboardInterrupt

    monkeypatch.setattr(verbs, "_transformers", lambda: "4.0.0")
    with pytest.raises(KeyboardInterrupt):
        run(source, Arguments(0.5), out=tmp_path / "sparse", progress=stopped)
    monkeypatch.setattr(verbs, "_transformers", lambda: None)
    with pytest.raises(ValueError, match=r"transformers \('4\.0\.0' then, None now\)"):
        run(source, Arguments(0.5), out=tmp_path / "sparse")
