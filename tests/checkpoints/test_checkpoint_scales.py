"""float8 codes are ranked by their products with the scales beside them, which stay as they are."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import checkpoint_files
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_transformers import GROUPED

import lampfast
from lampfast import _core, checkpoints
from lampfast._engine import calls, views
from lampfast._engine.scales import Scales
from lampfast.checkpoints import scaling, zeroing
from lampfast.checkpoints.verbs import Arguments, run
from lampfast.checkpoints.zeroing import ScaledThreshold

CODES = [torch.float8_e4m3fn, torch.float8_e5m2]


def _codes(*shape: int, dtype: torch.dtype = torch.float8_e4m3fn) -> torch.Tensor:
    return (4 * torch.randn(shape)).to(dtype)  # few values, so that many products are equal


def _content() -> checkpoint_files.Weights:
    """Scales of a tensor, of rows and of blocks, of powers of two and of odd values."""
    torch.manual_seed(0)
    return {
        "l.0.q.weight": _codes(60, 40),
        "l.0.q.weight_scale_inv": torch.tensor(0.25),
        "l.0.k.weight": _codes(48, 40, dtype=torch.float8_e5m2),
        "l.0.k.weight_scale": 2.0 ** torch.randint(-2, 2, (48, 1)),
        "l.0.v.weight": _codes(64, 48),
        "l.0.v.weight_scale_inv": torch.rand(4, 3),
        "l.0.input_scale": torch.rand(1),
        "l.1.experts.up": _codes(3, 32, 48),
        "l.1.experts.up_scale_inv": torch.rand(3, 2, 3).bfloat16(),
        "l.1.dense.weight": torch.randn(30, 40).bfloat16(),
        "head.weight": _codes(40, 30),
    }


LAYERS = [name for name in _content() if name.endswith(("weight", "experts.up"))]


def _folder(path: Path) -> Path:
    """Each tensor in another shard than its scales."""
    folder = checkpoint_files.folder(path, _content(), shards=4)
    config = {"quantization_config": {"weight_block_size": [16, 16]}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _ordered(content: checkpoint_files.Weights, path: Path) -> checkpoint_files.Weights:
    """In the order of the files and of their headers."""
    from lampfast.checkpoints import reading

    return {name: content[name] for name in reading.open_checkpoint("path", path).tensors}


def _plain(path: Path) -> tuple[checkpoint_files.Weights, dict[str, Any]]:
    content = _ordered(_content(), path)
    module = "l.0.v"
    rows = content[f"{module}.weight_scale_inv"]  # of blocks that a mapping cannot tell
    content[f"{module}.weight_scale_inv"] = rows.repeat_interleave(16, 0).repeat_interleave(16, 1)
    up = content["l.1.experts.up_scale_inv"]
    wide = up.repeat_interleave(16, 1).repeat_interleave(16, 2)
    content["l.1.experts.up_scale_inv"] = wide
    names = [name for name in content if name in LAYERS]
    return content, {"include": names, "stacked": "l.1.experts.up"}


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.7, 1.0])
def test_agreement_with_the_plain_call(tmp_path: Path, sparsity: float) -> None:
    source = _folder(tmp_path / "dense")
    content, arguments = _plain(source)
    expected = lampfast.masks(content, sparsity, **arguments)
    masks = checkpoints.masks(source, sparsity)
    assert masks.keys() == expected.keys()
    assert all(torch.equal(masks[name], expected[name]) for name in masks)
    report = checkpoints.prune(source, sparsity, out=tmp_path / "sparse")
    assert report == checkpoints.report(source, sparsity)
    assert report.layers == lampfast.prune(content, sparsity, **arguments).layers
    found = checkpoint_files.loaded(tmp_path / "sparse")
    for name, tensor in _content().items():
        wanted = content[name] if name in LAYERS else tensor
        ours, theirs = (it.reshape(-1).view(torch.uint8) for it in (found[name], wanted))
        assert torch.equal(ours, theirs), name
    now = checkpoints.report(tmp_path / "sparse")
    assert now.kept == sum(int((found[name].float() != 0).sum()) for name in LAYERS)
    checkpoints.prune(source, sparsity, in_place=True)
    sparse = checkpoint_files.digests(tmp_path / "sparse")
    assert checkpoint_files.digests(source) == sparse


@pytest.mark.filterwarnings("ignore")
def test_experts_of_an_architecture(tmp_path: Path) -> None:
    """Each expert lies with scales of its own, and is a half of a slice in the model."""
    transformers = pytest.importorskip("transformers")
    config = transformers.MixtralConfig(**GROUPED, num_local_experts=3)
    torch.manual_seed(0)
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path / "dense")
    file = tmp_path / "dense" / "model.safetensors"
    content = load_file(file)
    for name in [name for name in content if re.search(r"w\d\.weight|_proj\.weight", name)]:
        content[name] = _codes(*content[name].shape)
        content[f"{name}_scale_inv"] = torch.rand(len(content[name]), 1)
    save_file(content, file, {"format": "pt"})
    masks = checkpoints.masks(tmp_path / "dense", 0.6)
    report = checkpoints.report(tmp_path / "dense", 0.6)
    assert {it.reason for it in report.left_out} <= {"embedding", "router", "scale"}
    layers: checkpoint_files.Weights = {}
    for name in (layer.name for layer in report.layers):
        found = re.fullmatch(r"(.*)\.(gate_up|down)_proj\[(\d)\](\.\w+)?", name)
        part = {".gate": "w1", ".up": "w3", None: "w2"}
        stored = f"{found[1]}.{found[3]}.{part[found[4]]}.weight" if found else name
        stored = stored.replace(".mlp.", ".block_sparse_moe.")
        stored = stored if stored in content else stored.replace(".block_sparse_moe.", ".mlp.")
        layers[name] = content[stored]
        if f"{stored}_scale_inv" in content:
            layers[f"{name}_scale_inv"] = content[f"{stored}_scale_inv"]
    expected = lampfast.masks(layers, 0.6)
    halves = [masks["model.layers.0.mlp.experts.gate_up_proj"][1].chunk(2)[i] for i in (0, 1)]
    prefix = "model.layers.0.mlp.experts.gate_up_proj[1]"
    assert torch.equal(halves[0], expected[f"{prefix}.gate"])
    assert torch.equal(halves[1], expected[f"{prefix}.up"])
    assert report.layers == lampfast.report(layers, 0.6).layers


def test_a_stopped_run_finds_the_scales_again(tmp_path: Path) -> None:
    source = _folder(tmp_path / "dense")

    def stopped(stage: str, done: int, total: int) -> None:
        if stage == "writing" and done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(source, Arguments(0.6), out=tmp_path / "o", progress=stopped)
    assert run(source, Arguments(0.6), out=tmp_path / "o").is_resumed
    checkpoints.prune(source, 0.6, out=tmp_path / "again")
    again = checkpoint_files.digests(tmp_path / "again")
    assert checkpoint_files.digests(tmp_path / "o") == again


def test_importances_take_the_place_of_products(tmp_path: Path) -> None:
    content = {"a.weight": _codes(30, 40), "a.weight_scale": torch.rand(30, 1)}
    save_file(content, tmp_path / "dense.safetensors")
    importance = {"a.weight": torch.rand(30, 40)}
    save_file(importance, tmp_path / "importance.safetensors")
    given = tmp_path / "importance.safetensors"
    masks = checkpoints.masks(tmp_path / "dense.safetensors", 0.5, importance=given)
    expected = lampfast.masks(content, 0.5, include="a.weight", importance=importance)
    assert torch.equal(masks["a.weight"], expected["a.weight"])


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ({"weight_scale": torch.tensor([[1.0], [float("nan")]] * 20)}, "nan at index"),
        ({"weight_scale": torch.ones(7, 1)}, "does not tell what block"),
        ({"weight_scale": torch.ones(40, 1), "weight_scale_inv": torch.ones(1)}, "not known how"),
        ({"weight_scales": torch.ones(40, 1)}, "not known how"),
        ({"weight_scale": torch.ones(40, 1, dtype=torch.uint8)}, "dtype torch.uint8"),
    ],
)
def test_scales_that_are_refused(
    tmp_path: Path, scales: checkpoint_files.Weights, message: str
) -> None:
    content = {"a.weight": _codes(40, 30), **{f"a.{name}": it for name, it in scales.items()}}
    save_file(content, tmp_path / "dense.safetensors")
    with pytest.raises((ValueError, TypeError), match=message):
        checkpoints.prune(tmp_path / "dense.safetensors", 0.5, out=tmp_path / "o.safetensors")
    assert not (tmp_path / "o.safetensors").exists()


@pytest.mark.parametrize("dtype", CODES)
@given(data=st.data())
def test_zeroing_by_products(dtype: torch.dtype, data: st.DataObject) -> None:
    """Scales of zero and negative ones too; parts end anywhere."""
    shape = data.draw(st.sampled_from([(6, 5), (2, 3, 4), (7,), (1, 1)]))
    block = tuple(data.draw(st.integers(1, n)) for n in shape)
    counts = [-(-n // size) for n, size in zip(shape, block, strict=True)]
    values = st.sampled_from([0.0, 0.5, 1.0, -1.0, 2.0, 0.3, -3.0])
    size = int(np.prod(counts))
    scale = torch.tensor(data.draw(st.lists(values, min_size=size, max_size=size)))
    scales = Scales(scale.reshape(counts), block)
    codes = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, -0.5, 4.0])
    size = int(np.prod(shape))
    drawn = torch.tensor(data.draw(st.lists(codes, min_size=size, max_size=size)))
    weight = drawn.reshape(shape).to(dtype)
    layers = [views.layers({"w": weight})[0].scaled(scales)]
    count = data.draw(st.integers(0, size))
    spec = _core.SelectionSpec(_core.Ranking.lamp, [count])
    (found,) = calls.thresholds(layers, layers, spec)
    mask = torch.ones(shape, dtype=torch.bool)
    outputs = [views.part("w", mask, _core.Dtype.boolean)]
    calls.masks(layers, layers, outputs, spec)
    rule = ScaledThreshold(found.key, found.ties, scales, shape, dtype)
    flat = zeroing.bits(weight).reshape(-1)
    cuts = [0, *sorted(data.draw(st.sets(st.integers(0, size), max_size=3))), size]
    for first, last in itertools.pairwise(cuts):
        rule.zero(flat[first:last], first)
    assert torch.equal(weight.float(), torch.where(mask, drawn.reshape(shape), 0.0))


def test_scales_of_boxes() -> None:
    scales = Scales(torch.arange(12.0).reshape(3, 4), (4, 5))
    wide = scales.values.repeat_interleave(4, 0).repeat_interleave(5, 1)
    for rows, columns in ((range(4, 8), range(20)), (range(3, 9), range(2, 17))):
        start, shape = (rows.start, columns.start), (len(rows), len(columns))
        values, block = scaling.of_piece(scales, start, shape)
        found = values.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
        expected = wide[rows.start : rows.stop, columns.start : columns.stop]
        assert torch.equal(found[: shape[0], : shape[1]], expected)
