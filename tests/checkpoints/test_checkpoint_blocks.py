"""Blocks of a checkpoint's layers go as by the plain call, bit for bit, written in any parts."""

import itertools
from pathlib import Path
from typing import Any

import checkpoint_files
import numpy as np
import pytest
import torch
from checkpoint_files import LAYERS
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import lampfast
from lampfast import _core, checkpoints
from lampfast._blocks import Shape
from lampfast._engine import calls, views
from lampfast._engine.calls import Blocks
from lampfast.checkpoints import reading, tiles, writing, zeroing
from lampfast.checkpoints.tiles import TileRule, Tiling
from lampfast.checkpoints.verbs import Arguments, run

_MOST = 2**62  # rows or columns, as "row" and "column" have it


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows, tiles and regions of tiles end anywhere in what is read and written together."""
    monkeypatch.setattr(writing, "BLOCK", 4096)
    monkeypatch.setattr(zeroing, "_BLOCK", 300)
    monkeypatch.setattr(tiles, "_MOST_AT_ONCE", 200)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return checkpoint_files.folder(tmp_path / "dense", checkpoint_files.weights())


def _layers(path: Path) -> checkpoint_files.Weights:
    """The layers, in the order of the files."""
    content = checkpoint_files.weights()
    names = reading.open_checkpoint("path", path).tensors
    return {name: content[name] for name in names if name in LAYERS}


BLOCKS: list[tuple[object, object, object]] = [
    ((1, 1), 0.6, "lamp"),
    ((4, 4), 0.6, "lamp"),
    ([7, 3], 0.5, "global"),
    ((16, 1), 1234, "uniform"),
    ((1, 25), 0.5, "erk"),
    ("row", 0.3, "lamp"),
    ("column", 0.3, "lamp"),
    ("column", None, {"layers.*": 0.5}),
    ((4, 4), 1.0, "lamp"),
    ((4, 4), 0, "lamp"),
]


@pytest.mark.parametrize(("block", "sparsity", "method"), BLOCKS)
def test_a_folder(
    source: Path, tmp_path: Path, block: Any, sparsity: float | None, method: Any
) -> None:
    how: dict[str, Any] = {"method": method, "block": block}
    expected = _layers(source)
    kept, masks = (
        lampfast.masks(expected, sparsity, **how),
        checkpoints.masks(source, sparsity, **how),
    )
    assert list(masks) == list(kept)
    assert all(torch.equal(masks[name], kept[name]) for name in masks)
    report = checkpoints.prune(source, sparsity, out=tmp_path / "o", **how)
    assert report == checkpoints.report(source, sparsity, **how)
    assert report == lampfast.prune(expected, sparsity, **how)
    found = checkpoint_files.loaded(tmp_path / "o")
    for name, tensor in (checkpoint_files.weights() | expected).items():
        assert torch.equal(found[name], tensor), name
    checkpoints.prune(source, sparsity, in_place=True, **how)
    assert checkpoint_files.digests(source) == checkpoint_files.digests(tmp_path / "o")


@pytest.mark.parametrize("in_place", [False, True])
def test_a_stopped_run_goes_on_with_its_blocks(
    source: Path, tmp_path: Path, in_place: bool
) -> None:
    def stopped(stage: str, done: int, total: int) -> None:
        if stage == "writing" and done > total / 2:
            raise KeyboardInterrupt

    checkpoints.prune(source, 0.5, block=(4, 4), out=tmp_path / "whole")
    out = None if in_place else tmp_path / "o"
    arguments = Arguments(0.5, block=(4, 4))
    with pytest.raises(KeyboardInterrupt):
        run(source, arguments, out=out, in_place=in_place, progress=stopped)
    with pytest.raises(ValueError, match=r"arguments .*\[4, 4\].*\[4, 2\]"):
        run(source, Arguments(0.5, block=(4, 2)), out=out, in_place=in_place)
    assert run(source, arguments, out=out, in_place=in_place).is_resumed
    whole = checkpoint_files.digests(tmp_path / "whole")
    assert checkpoint_files.digests(out or source) == whole


def test_importances_decide(source: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    expected = _layers(source)
    importance = {name: torch.rand(expected[name].shape) for name in LAYERS}
    save_file(importance, tmp_path / "importance.safetensors")
    given_file = tmp_path / "importance.safetensors"
    checkpoints.prune(source, 0.6, block=(4, 8), out=tmp_path / "o", importance=given_file)
    lampfast.prune(expected, 0.6, block=(4, 8), importance=importance)
    found = checkpoint_files.loaded(tmp_path / "o")
    assert all(torch.equal(found[name], expected[name]) for name in LAYERS)


def test_kernels_and_experts(tmp_path: Path) -> None:
    """Convolutions of several dimensions, and slices that are layers."""
    torch.manual_seed(0)
    content = {
        "conv.weight": torch.randint(-3, 4, (14, 10, 3, 3)).half(),
        "depthwise.weight": torch.randn(20, 1, 5),
        "a.experts.w": torch.randn(4, 30, 20).to(torch.float8_e4m3fn),
    }
    save_file(content, tmp_path / "dense.safetensors")
    for i, block in enumerate([(4, 4), (1, 9), (3, 5), "row", "column"]):
        how: dict[str, Any] = {"block": block}
        out = tmp_path / f"{i}.safetensors"
        report = checkpoints.prune(tmp_path / "dense.safetensors", 0.5, out=out, **how)
        order = list(reading.open_checkpoint("path", tmp_path / "dense.safetensors").tensors)
        expected = {name: content[name].clone() for name in order}
        assert report.layers == lampfast.prune(expected, 0.5, stacked="a.*", **how).layers
        found = load_file(out)
        for name, tensor in expected.items():
            assert torch.equal(found[name].float(), tensor.float()), (name, block)


@pytest.mark.parametrize("name", ["o.pt", "o.safetensors"])
def test_files_of_torch(tmp_path: Path, name: str) -> None:
    """Transposed, partial and tied tensors, in the same format and in another."""
    torch.manual_seed(0)
    tied = torch.randn(64, 64)
    state = {
        "a.weight": torch.randint(-3, 4, (30, 20)).bfloat16(),
        "b.weight": torch.randn(40, 30).t(),
        "tied.weight": tied,
        "head.weight": tied,
        "part.weight": torch.randn(100, 100)[10:30],
    }
    torch.save({"model": state, "epoch": 3}, tmp_path / "dense.pt")
    layers = {it: state[it].clone() for it in state if it != "head.weight"}
    report = checkpoints.prune(tmp_path / "dense.pt", 0.6, block=(5, 8), out=tmp_path / name)
    assert report == lampfast.prune(layers, 0.6, block=(5, 8))
    if name.endswith(".pt"):
        found = torch.load(tmp_path / name, weights_only=True)["model"]
    else:
        found = load_file(tmp_path / name)
    for it, tensor in (layers | {"head.weight": layers["tied.weight"]}).items():
        assert torch.equal(found[it], tensor), it


def test_what_is_refused(source: Path, tmp_path: Path) -> None:
    codes = {"a.weight": torch.ones(8, 8).to(torch.float8_e4m3fn), "a.weight_scale": torch.ones(1)}
    save_file(codes, tmp_path / "codes.safetensors")
    with pytest.raises(ValueError, match=r"layer 'a\.weight' has scales, .* by blocks"):
        checkpoints.report(tmp_path / "codes.safetensors", 0.5, block=(2, 2))
    with pytest.raises(TypeError, match=r"block=\(2, 2\) and pattern='2:4' are both given"):
        checkpoints.report(source, pattern="2:4", block=(2, 2))
    with pytest.raises(TypeError, match="sparsity"):
        checkpoints.report(source, block=(2, 2))
    with pytest.raises(ValueError, match="block='rows' is not known"):
        checkpoints.masks(source, 0.5, block="rows")  # type: ignore[arg-type]


@given(data=st.data())
def test_zeroing_by_tiles(data: st.DataObject) -> None:
    """In parts that end anywhere; few values, so that the sums of many tiles are equal."""
    shape = data.draw(st.sampled_from([(6, 5), (4, 3, 2), (3, 4, 2, 3), (7,), (), (1, 9), (9, 1)]))
    axis = data.draw(st.integers(0, 1)) if len(shape) > 1 else 0
    extents = st.one_of(st.integers(1, 7), st.just(_MOST))
    block: Shape = (data.draw(extents), data.draw(extents), axis)
    size = int(np.prod(shape))
    values = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0])
    numbers = data.draw(st.lists(values, min_size=size, max_size=size))
    weight = torch.tensor(numbers).reshape(shape)
    spec = _core.SelectionSpec(_core.Ranking.lamp, [data.draw(st.integers(0, size))])
    expected = weight.clone()
    layers = views.layers({"w": expected})
    (found,) = calls.thresholds(layers, layers, Blocks([block], spec))
    calls.prune(layers, layers, Blocks([block], spec), lambda _: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "_MOST_AT_ONCE", data.draw(st.integers(1, 30)))
        rule = TileRule(block, found.pruned, shape, weight.clone)
        flat = zeroing.bits(weight).reshape(-1)
        cuts = [0, *sorted(data.draw(st.sets(st.integers(0, size), max_size=3))), size]
        for first, last in itertools.pairwise(cuts):
            rule.zero(flat[first:last], first)
    assert np.array_equal(zeroing.bits(weight), zeroing.bits(expected))


@pytest.mark.parametrize("shape", [(13, 11), (9, 7, 3)])
@pytest.mark.parametrize("axis", [0, 1])
def test_pieces_count_their_own(shape: tuple[int, ...], axis: int) -> None:
    """The weights that go of each piece, or the dimension in which it cuts a tile."""
    torch.manual_seed(0)
    weight = torch.randint(-2, 3, shape).float()
    kernel = int(np.prod(shape[2:]))
    block: Shape = (2, 2 * kernel, axis)
    spec = _core.SelectionSpec(_core.Ranking.lamp, [weight.numel() // 2])
    mask = torch.empty(shape, dtype=torch.bool)
    layers, out = views.layers({"w": weight}), [views.part("w", mask, _core.Dtype.boolean)]
    calls.masks(layers, layers, out, Blocks([block], spec))
    fates = tiles.fates(weight, block, int((~mask).sum()))
    tiling = Tiling(block, shape)
    rest = [slice(0, n) for n in shape[2:]]
    for rows, columns in itertools.product([(0, 4), (2, shape[0])], [(0, 2), (4, shape[1])]):
        box = [slice(*rows), slice(*columns), *rest]
        assert tiling.cut_dimension(box) is None
        assert tiling.part(fates, box) == int((~mask[tuple(box)]).sum())
    assert tiling.cut_dimension([slice(1, 4), slice(0, 2), *rest]) == 0
    assert tiling.cut_dimension([slice(0, 4), slice(0, 3), *rest]) == 1
    if rest:
        assert tiling.cut_dimension([slice(0, 4), slice(0, 2), slice(0, 1)]) == 2
