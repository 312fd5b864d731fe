"""Folders of torch.distributed.checkpoint: the same zeros, in files that torch reads as before."""

import io
import itertools
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoint_files
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

import lampfast
from lampfast import checkpoints
from lampfast.checkpoints import distributed, reading
from lampfast.checkpoints.verbs import Arguments, run

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is")


def _save(path: Path, content: checkpoint_files.Weights, **rest: Any) -> None:
    save({"model": content, **rest}, checkpoint_id=path, no_dist=True)


def _loaded(path: Path, content: checkpoint_files.Weights) -> checkpoint_files.Weights:
    state = {"model": {name: torch.empty_like(it) for name, it in content.items()}}
    load(state, checkpoint_id=path, no_dist=True)
    return state["model"]


def _layers(content: checkpoint_files.Weights, path: Path) -> checkpoint_files.Weights:
    """The layers, in the order in which the metadata has them."""
    tensors = reading.open_checkpoint("path", path).tensors
    return {name: content[name].clone() for name in tensors if name in checkpoint_files.LAYERS}


@pytest.fixture
def content() -> checkpoint_files.Weights:
    return checkpoint_files.weights()


@pytest.fixture
def source(tmp_path: Path, content: checkpoint_files.Weights) -> Path:
    optimizer = {"exp_avg": torch.randn(60, 40), "step": 3}
    _save(tmp_path / "dense", content, optim=optimizer, epoch=7)
    return tmp_path / "dense"


def test_a_folder(source: Path, tmp_path: Path, content: checkpoint_files.Weights) -> None:
    before = checkpoint_files.digests(source)
    report = checkpoints.prune(source, 0.6, out=tmp_path / "sparse")
    expected = _layers(content, source)
    masks = checkpoints.masks(source, 0.6)
    assert masks.keys() == expected.keys()
    kept = lampfast.masks(expected, 0.6)
    assert all(torch.equal(masks[name], kept[name]) for name in masks)
    assert lampfast.prune(expected, 0.6).layers == report.layers
    found = _loaded(tmp_path / "sparse", content)
    for name, tensor in (content | expected).items():
        assert torch.equal(found[name], tensor), name
    state: dict[str, Any] = {"optim": {"exp_avg": torch.empty(60, 40), "step": 0}, "epoch": 0}
    load(state, checkpoint_id=tmp_path / "sparse", no_dist=True)
    assert state["epoch"] == 7
    assert checkpoint_files.digests(source) == before
    assert [it.name for it in (tmp_path / "sparse").glob(".*")] == [".metadata"]
    checkpoints.prune(source, 0.6, in_place=True)
    sparse = checkpoint_files.digests(tmp_path / "sparse")
    assert checkpoint_files.digests(source) == sparse


def _sharded(
    folder: Path, tensors: dict[str, tuple[torch.Tensor, list[tuple[int, ...]]]], ranks: int
) -> None:
    """What ranks would write: chunks that begin at these indices, in turns in their files."""
    from torch.distributed.checkpoint import filesystem, metadata

    folder.mkdir()
    entries: dict[str, metadata.STORAGE_TYPES] = {}
    places = {}
    files = {f"__{rank}_0.distcp": io.BytesIO() for rank in range(ranks)}
    turns = itertools.cycle(files)
    for name, (tensor, starts) in tensors.items():
        chunks = []
        for start in starts:
            stops = [
                min([other[d] for other in starts if other[d] > at] or [tensor.shape[d]])
                for d, at in enumerate(start)
            ]
            part = tensor[tuple(map(slice, start, stops))].clone(
                memory_format=torch.contiguous_format
            )
            relative = next(turns)
            file = files[relative]
            offset = file.tell()
            torch.save(part, file)
            index = metadata.MetadataIndex(name, start)
            places[index] = filesystem._StorageInfo(relative, offset, file.tell() - offset)
            chunks.append(metadata.ChunkStorageMetadata(torch.Size(start), part.shape))
        properties = metadata.TensorProperties.create_from_tensor(tensor)
        entries[name] = metadata.TensorStorageMetadata(properties, tensor.shape, chunks)
    for name, file in files.items():
        (folder / name).write_bytes(file.getvalue())
    found = metadata.Metadata(entries, None, places, metadata.StorageMeta(folder))
    (folder / ".metadata").write_bytes(pickle.dumps(found))


def _in_chunks() -> dict[str, tuple[torch.Tensor, list[tuple[int, ...]]]]:
    """Of rows, of columns, of a grid; with many ties, experts and float8 with scales."""
    torch.manual_seed(0)
    ties = torch.randint(-3, 4, (50, 40)).float()
    return {
        "rows.weight": (torch.randn(60, 40).bfloat16(), [(0, 0), (20, 0), (55, 0)]),
        "columns.weight": (ties, [(0, 0), (0, 13), (0, 30)]),
        "grid.weight": (ties.half().t().contiguous(), [(0, 0), (0, 30), (17, 0), (17, 30)]),
        "experts.up": (torch.randn(4, 24, 16), [(0, 0, 0), (2, 0, 0), (3, 0, 0)]),
        "codes.weight": (
            torch.randn(40, 32).to(torch.float8_e4m3fn),
            [(0, 0), (0, 9), (21, 0), (21, 9)],
        ),
        "codes.weight_scale": (torch.rand(40, 1), [(0, 0), (20, 0)]),
        "norm.weight": (torch.ones(40), [(0,), (20,)]),
    }


@pytest.mark.parametrize("sparsity", [0.3, 0.8])
def test_chunks(tmp_path: Path, sparsity: float) -> None:
    tensors = {name: tensor for name, (tensor, _) in _in_chunks().items()}
    _sharded(tmp_path / "dense", _in_chunks(), 3)
    layers = {name: it.clone() for name, it in tensors.items() if not name.startswith("norm")}
    expected = lampfast.masks(layers, sparsity, stacked="experts.up")
    masks = checkpoints.masks(tmp_path / "dense", sparsity)
    assert masks.keys() == expected.keys()
    assert all(torch.equal(masks[name], expected[name]) for name in masks)
    report = checkpoints.prune(tmp_path / "dense", sparsity, out=tmp_path / "sparse")
    assert report.layers == lampfast.prune(layers, sparsity, stacked="experts.up").layers
    found = {name: torch.zeros_like(it) for name, it in tensors.items()}
    load(found, checkpoint_id=tmp_path / "sparse", no_dist=True)
    for name, tensor in (tensors | layers).items():
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name


def test_chunks_as_safetensors(tmp_path: Path) -> None:
    tensors = {name: tensor for name, (tensor, _) in _in_chunks().items()}
    _sharded(tmp_path / "dense", _in_chunks(), 3)
    report = checkpoints.prune(tmp_path / "dense", 0.6, out=tmp_path / "o.safetensors")
    layers = {name: it.clone() for name, it in tensors.items() if not name.startswith("norm")}
    assert report.layers == lampfast.prune(layers, 0.6, stacked="experts.up").layers
    found = load_file(tmp_path / "o.safetensors")
    for name, tensor in (tensors | layers).items():
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name


@pytest.mark.parametrize(
    "arguments",
    [Arguments(0.5), Arguments(0.5, exclude="codes*", block=(1, 1))],
    ids=["weights", "blocks"],
)
def test_stopped_in_place(tmp_path: Path, arguments: Arguments) -> None:
    """Pieces of a layer in a file that is finished count no more ties in one that is not."""
    _sharded(tmp_path / "dense", _in_chunks(), 3)
    run(tmp_path / "dense", arguments, out=tmp_path / "sparse")
    for share in (0.2, 0.5, 0.9):
        _sharded(tmp_path / f"{share}", _in_chunks(), 3)

        def stopped(stage: str, done: int, total: int, share: float = share) -> None:
            if stage == "writing" and done > share * total:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / f"{share}", arguments, in_place=True, progress=stopped)
        assert run(tmp_path / f"{share}", arguments, in_place=True).is_resumed
        found = checkpoint_files.digests(tmp_path / f"{share}")
        sparse = checkpoint_files.digests(tmp_path / "sparse")
        assert {k: v for k, v in found.items() if k != ".metadata"} == {
            k: v for k, v in sparse.items() if k != ".metadata"
        }


def test_patterns_in_chunks(tmp_path: Path) -> None:
    tensors = {name: tensor for name, (tensor, _) in _in_chunks().items()}
    _sharded(tmp_path / "dense", _in_chunks(), 3)
    rows = {"rows.weight": tensors["rows.weight"].clone()}
    checkpoints.prune(tmp_path / "dense", pattern="2:4", include="rows*", out=tmp_path / "sparse")
    lampfast.prune(rows, pattern="2:4")
    found = {name: torch.zeros_like(it) for name, it in tensors.items()}
    load(found, checkpoint_id=tmp_path / "sparse", no_dist=True)
    assert torch.equal(found["rows.weight"], rows["rows.weight"])
    with pytest.raises(ValueError, match="groups of 4 weights are cut"):
        checkpoints.report(tmp_path / "dense", pattern="2:4", include="columns*")


@pytest.mark.parametrize("sparsity", [0.3, 0.8])
@pytest.mark.parametrize("out", ["sparse", "o.safetensors"])
def test_blocks_in_chunks(tmp_path: Path, sparsity: float, out: str) -> None:
    """Of rows, of columns and of a grid; where tiles of equal sums lie in several chunks."""
    torch.manual_seed(0)
    ties = torch.randint(-1, 2, (48, 40)).float()
    chunks: dict[str, tuple[torch.Tensor, list[tuple[int, ...]]]] = {
        "rows.weight": (torch.randn(60, 40).bfloat16(), [(0, 0), (20, 0), (56, 0)]),
        "columns.weight": (ties, [(0, 0), (0, 12), (0, 32)]),
        "grid.weight": (ties.half().t().contiguous(), [(0, 0), (0, 32), (16, 0), (16, 32)]),
        "experts.up": (torch.randn(4, 24, 16), [(0, 0, 0), (2, 0, 0), (3, 0, 0)]),
        "conv.weight": (torch.randn(16, 8, 3, 3), [(0, 0, 0, 0), (8, 0, 0, 0)]),
    }
    _sharded(tmp_path / "dense", chunks, 3)
    layers = {name: tensor.clone() for name, (tensor, _) in chunks.items()}
    expected = lampfast.masks(layers, sparsity, stacked="experts.up", block=(4, 4))
    masks = checkpoints.masks(tmp_path / "dense", sparsity, block=(4, 4))
    assert masks.keys() == expected.keys()
    assert all(torch.equal(masks[name], expected[name]) for name in masks)
    report = checkpoints.prune(tmp_path / "dense", sparsity, block=(4, 4), out=tmp_path / out)
    pruned = lampfast.prune(layers, sparsity, stacked="experts.up", block=(4, 4))
    assert report.layers == pruned.layers
    if out == "sparse":
        found = {name: torch.zeros_like(it) for name, it in layers.items()}
        load(found, checkpoint_id=tmp_path / "sparse", no_dist=True)
    else:
        found = load_file(tmp_path / out)
    for name, tensor in layers.items():
        assert torch.equal(found[name], tensor), name


def test_chunks_that_cut_tiles_are_refused(tmp_path: Path) -> None:
    _sharded(tmp_path / "dense", _in_chunks(), 3)
    for include, block, told in (
        ("rows*", (8, 8), "0 to 20 of dimension 0, so that tiles of 8 x 8 weights"),
        ("columns*", "row", "0 to 13 of dimension 1, so that tiles of 1 x 40 weights"),
        ("grid*", "column", "0 to 17 of dimension 0, so that tiles of 40 x 1 weights"),
    ):
        how: dict[str, Any] = {"include": include, "block": block}
        with pytest.raises(ValueError, match=f"{told} are cut; choose another block="):
            checkpoints.report(tmp_path / "dense", 0.5, **how)


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


def _truncate(folder: Path) -> None:
    os.truncate(folder / "__0_0.distcp", 700)


def _remove(folder: Path) -> None:
    (folder / "__0_0.distcp").unlink()


def _garbage(folder: Path) -> None:
    (folder / ".metadata").write_bytes(b"\x80\x04]q")


def _other(folder: Path) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps({"a": 1}))


def _code(folder: Path) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps({"a": _Code()}))


def _code_in_a_chunk(folder: Path) -> None:
    _change(folder, lambda _: None)
    raw = bytearray((folder / "__0_0.distcp").read_bytes())
    at = raw.index(b"_rebuild_tensor_v2")
    raw[at : at + 18] = b"_rebuild_tensor_vX"
    (folder / "__0_0.distcp").write_bytes(raw)


def _change(folder: Path, change: Callable[[Any], None]) -> None:
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    change(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def _outside(metadata: Any) -> None:
    for info in metadata.storage_data.values():
        info.relative_path = "../secret"


def _too_large(metadata: Any) -> None:
    entry = metadata.state_dict_metadata["model.head.weight"]
    entry.size = torch.Size([51, 40])


def _other_shape(metadata: Any) -> None:
    entry = metadata.state_dict_metadata["model.head.weight"]
    entry.size = torch.Size([40, 50])
    entry.chunks[0].sizes = torch.Size([40, 50])


def _lost(metadata: Any) -> None:
    del metadata.storage_data[next(it for it in metadata.storage_data if "head" in it.fqn)]


def _compressed(metadata: Any) -> None:
    for info in metadata.storage_data.values():
        info.transform_descriptors = ["zstd"]


def _metadata(change: Callable[[Any], None]) -> Callable[[Path], None]:
    return lambda folder: _change(folder, change)


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (_truncate, "is not whole"),
    "a file is missing": (_remove, "is not there"),
    "garbage": (_garbage, "no metadata of torch.distributed.checkpoint"),
    "another pickle": (_other, "is not understood"),
    "code": (_code, "no metadata of torch.distributed.checkpoint.*mkdir"),
    "code in a chunk": (_code_in_a_chunk, "would have to be executed"),
    "outside": (_metadata(_outside), "no file of the folder"),
    "too large": (_metadata(_too_large), "do not make up its shape"),
    "another shape": (_metadata(_other_shape), "says F64 of shape"),
    "a place is missing": (_metadata(_lost), "does not say where"),
    "compressed": (_metadata(_compressed), "stored by an extension"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(
    source: Path, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spoil, message = BAD[case]
    spoil(source)
    before = checkpoint_files.digests(source)
    for arguments in ({"out": tmp_path / "o"}, {"in_place": True}):
        with pytest.raises(ValueError, match=message) as found:
            checkpoints.prune(source, 0.5, **arguments)
        assert "\n" not in str(found.value)
    assert not (tmp_path / "o").exists()
    assert not (tmp_path / "executed").exists()
    assert checkpoint_files.digests(source) == before


def test_which_tensors_are_the_models(tmp_path: Path) -> None:
    weight = {"fc.weight": torch.randn(8, 8)}
    save(
        {"app": {"model": weight, "optim": {"fc.weight": torch.randn(8, 8)}}},
        checkpoint_id=tmp_path / "app",
        no_dist=True,
    )
    save({**weight, "optim": weight}, checkpoint_id=tmp_path / "flat", no_dist=True)
    for name in ("app", "flat"):
        found = distributed.read_metadata(tmp_path / name)
        assert [it.name for it in found] == ["fc.weight"]


def _nested(*keys: str) -> dict[str, Any]:
    """A matrix under keys in one another."""
    value: Any = torch.randn(4, 4)
    for key in reversed(keys):
        value = {key: value}
    assert isinstance(value, dict)
    return value


@pytest.mark.parametrize(
    "others",
    [
        _nested("optimizer", "state_dict", "state", "fc.weight", "exp_avg"),
        _nested("optimizer_states", "0", "fc.weight"),
        _nested("ema", "model", "fc.weight"),
        _nested("optim.state.fc.weight.exp_avg"),
    ],
    ids=lambda others: next(iter(others)),
)
def test_what_lies_beside_a_model_is_none(tmp_path: Path, others: dict[str, Any]) -> None:
    _save(tmp_path / "dense", {"fc.weight": torch.randn(4, 4)}, **others)
    assert [it.name for it in checkpoints.report(tmp_path / "dense").layers] == ["fc.weight"]


def test_an_optimizer_among_the_weights(tmp_path: Path) -> None:
    state = {key: torch.randn(4, 4) for key in ("fc.weight", "state.fc.weight.exp_avg", "optim.a")}
    save(state, checkpoint_id=tmp_path / "dense", no_dist=True)
    report = checkpoints.report(tmp_path / "dense")
    assert [it.name for it in report.layers] == ["fc.weight"]
    assert [(it.name, it.reason) for it in report.left_out] == [
        ("state.fc.weight.exp_avg", "optimizer")
    ]
