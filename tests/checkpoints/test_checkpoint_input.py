"""Bad input: one clear sentence, nothing written; mutated files are refused or pruned rightly."""

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoint_files
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import lampfast
from lampfast import checkpoints
from lampfast.checkpoints import reading

INDEX = "model.safetensors.index.json"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return checkpoint_files.folder(tmp_path / "dense", checkpoint_files.weights())


def _first(source: Path) -> Path:
    return min(source.glob("*.safetensors"))


def _truncate(source: Path) -> None:
    os.truncate(_first(source), 1000)


def _change_header(source: Path, change: Callable[[dict[str, Any]], None]) -> None:
    raw = _first(source).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    _first(source).write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def _outside(header: dict[str, Any]) -> None:
    header["embed.weight"]["data_offsets"] = [10**9, 10**9 + 800]


def _overlapping(header: dict[str, Any]) -> None:
    one, other = [it for name, it in header.items() if name != "__metadata__"][:2]
    one["data_offsets"] = other["data_offsets"]


def _wrong_size(header: dict[str, Any]) -> None:
    header["embed.weight"]["shape"] = [51, 8]


def _huge(header: dict[str, Any]) -> None:
    header["embed.weight"]["shape"] = [2**62, 2**62]


def _unknown_dtype(header: dict[str, Any]) -> None:
    header["embed.weight"]["dtype"] = "F13"


def _long_header(source: Path) -> None:
    with open(_first(source), "rb+") as file:
        file.write(struct.pack("<Q", 100_000_001))


def _deep_json(source: Path) -> None:
    text = b'{"a":' + b"[" * 100_000
    _first(source).write_bytes(struct.pack("<Q", len(text)) + text)


def _change_index(source: Path, change: Callable[[dict[str, Any]], None]) -> None:
    found = json.loads((source / INDEX).read_text())
    change(found)
    (source / INDEX).write_text(json.dumps(found))


def _name_missing(found: dict[str, Any]) -> None:
    found["weight_map"]["x"] = "model-00009-of-00003.safetensors"


def _name_outside(found: dict[str, Any]) -> None:
    found["weight_map"]["x"] = "../../etc/model.safetensors"


def _name_other_tensor(found: dict[str, Any]) -> None:
    found["weight_map"]["x"] = "model-00001-of-00003.safetensors"


def _no_map(found: dict[str, Any]) -> None:
    del found["weight_map"]


def _with_nan(source: Path) -> None:
    content = load_file(_first(source))
    name = next(name for name in content if name in checkpoint_files.LAYERS)
    content[name][1, 2] = float("nan")
    save_file(content, _first(source))


def _link_outside(source: Path) -> None:
    (source.parent / "secret").write_text("secret")
    (source / "notes.txt").symlink_to(source.parent / "secret")


def _linked_shard(source: Path) -> None:
    elsewhere = source.parent / "elsewhere.safetensors"
    _first(source).rename(elsewhere)
    _first(source).with_name("model-00001-of-00003.safetensors").symlink_to(elsewhere)


def _codes(source: Path) -> None:
    content = load_file(_first(source)) | {"layers.5.q.qweight": torch.ones(3, 4).int()}
    save_file(content, _first(source))
    _change_index(
        source, lambda it: it["weight_map"].update({"layers.5.q.qweight": _first(source).name})
    )


def _int8(source: Path) -> None:
    content = load_file(_first(source)) | {"layers.5.q.weight": torch.ones(3, 4).to(torch.int8)}
    save_file(content, _first(source))


def _bad_config(source: Path) -> None:
    (source / "config.json").write_text("{")


def _header(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    return lambda source: _change_header(source, change)


def _index(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    return lambda source: _change_index(source, change)


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (_truncate, "no whole safetensors file"),
    "offsets outside": (_header(_outside), "no whole safetensors file"),
    "overlapping": (_header(_overlapping), "no whole safetensors file"),
    "wrong size": (_header(_wrong_size), "no whole safetensors file"),
    "overflow": (_header(_huge), "no whole safetensors file"),
    "unknown dtype": (_header(_unknown_dtype), "no whole safetensors file"),
    "header too long": (_long_header, "no whole safetensors file"),
    "deep JSON": (_deep_json, "no whole safetensors file"),
    "index names a missing file": (_index(_name_missing), "00009-of-00003.*is not there"),
    "index leads outside": (_index(_name_outside), "no .safetensors file of its folder"),
    "index names a missing tensor": (_index(_name_other_tensor), "tensor 'x', and it has not"),
    "index without a map": (_index(_no_map), "no weight_map"),
    "NaN": (_with_nan, r"layer '.*' \(tensor '.*' in '.*safetensors'\) has nan at index \(1, 2\)"),
    "a link outside": (_link_outside, "leads out of the checkpoint"),
    "a linked shard": (_linked_shard, "leads out of the checkpoint"),
    "packed codes": (_codes, "packed or quantised weights: 'layers.5.q.qweight' is I32"),
    "int8": (_int8, "packed or quantised weights: 'layers.5.q.weight' is I8"),
    "config is no JSON": (_bad_config, "config.json' is no JSON"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(source: Path, tmp_path: Path, case: str) -> None:
    spoil, message = BAD[case]
    spoil(source)
    before = checkpoint_files.digests(source)
    for arguments in ({"out": tmp_path / "o"}, {"in_place": True}):
        if case == "a link outside" and "in_place" in arguments:
            continue  # nothing is carried over
        with pytest.raises(ValueError, match=message) as found:
            checkpoints.prune(source, 0.5, **arguments)
        assert "\n" not in str(found.value)
    assert not (tmp_path / "o").exists()
    assert checkpoint_files.digests(source) == before


def test_places_that_cannot_be(source: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    for out, message in (
        (source / "sub", "lies in the other"),
        (source, "the checkpoint itself"),
        (tmp_path, "lies in the other"),
        (tmp_path / "there", "is there already"),
        (tmp_path / "there" / "file", "a file; a checkpoint's folder needs"),
    ):
        with pytest.raises(ValueError, match=message):
            checkpoints.prune(source, 0.5, out=out)
    with pytest.raises(TypeError, match="in_place"):
        checkpoints.prune(source, 0.5)
    with pytest.raises(TypeError, match="in_place"):
        checkpoints.prune(source, 0.5, out=tmp_path / "o", in_place=True)
    with pytest.raises(FileNotFoundError, match=r"path '.*' is not there"):
        checkpoints.report(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="has neither"):
        checkpoints.report(tmp_path / "there")
    with pytest.raises(ValueError, match=r"ends in '\.safetensors'"):
        checkpoints.prune(_first(source), 0.5, out=tmp_path / "o.pt")


def test_links_of_a_hugging_face_cache_are_followed(source: Path, tmp_path: Path) -> None:
    cache = tmp_path / "models--a--b"
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for file in source.glob("*.*"):
        file.rename(cache / "blobs" / file.name)
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    checkpoints.prune(snapshot, 0.5, out=tmp_path / "o")
    assert not any(it.is_symlink() for it in (tmp_path / "o").iterdir())
    with pytest.raises(ValueError, match="is a link, as in a cache"):
        checkpoints.prune(snapshot, 0.5, in_place=True)


def test_hidden_folders_stay_behind(source: Path, tmp_path: Path) -> None:
    (source / ".git").mkdir()
    (source / ".git" / "HEAD").touch()
    checkpoints.prune(source, 0.5, out=tmp_path / "o")
    assert not (tmp_path / "o" / ".git").exists()


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


def test_code_in_a_pickle_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a.weight": torch.ones(3, 4), "b": _Code()}, "code.pt")
    with pytest.raises(ValueError, match="would have to be executed to be read"):
        checkpoints.prune("code.pt", 0.5, out="o.pt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match="old format"):
        checkpoints.report("old.pt")
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "o.pt").exists()


MUTATIONS = st.lists(
    st.tuples(st.integers(0, 700), st.integers(0, 255) | st.sampled_from(list(b'{}[]",:-0189eE'))),
    min_size=1,
    max_size=4,
)


@given(mutations=MUTATIONS, cut=st.integers(0, 40) | st.just(0))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutated_files(
    tmp_path_factory: pytest.TempPathFactory, mutations: list[tuple[int, int]], cut: int
) -> None:
    """Whatever the bytes of a header say: an error of ours, or what safetensors reads, pruned."""
    home = tmp_path_factory.mktemp("mutated")
    content = checkpoint_files.weights()
    save_file(content, home / "m.safetensors", {"format": "pt"})
    raw = bytearray((home / "m.safetensors").read_bytes())
    for position, value in mutations:
        raw[position] = value
    (home / "m.safetensors").write_bytes(raw[: len(raw) - cut])
    before = checkpoint_files.digests(home)
    try:
        report = checkpoints.prune(home / "m.safetensors", 0.5, out=home / "o.safetensors")
    except (ValueError, TypeError, OSError):
        assert checkpoint_files.digests(home) == before
        return
    assert checkpoint_files.digests(home).keys() == {"m.safetensors", "o.safetensors"}
    _check_pruned(home, report)


def _check_pruned(home: Path, report: lampfast.Report) -> None:
    try:
        dense = load_file(home / "m.safetensors")
    except (SafetensorError, TypeError, KeyError):
        return  # such as a name that torch does not take
    sparse = load_file(home / "o.safetensors")
    source = reading.open_checkpoint("path", home / "m.safetensors")
    names = {layer.name for layer in report.layers}
    expected = {name: dense[name] for name in source.tensors if name in names}
    lampfast.prune(expected, 0.5)
    for name, tensor in dense.items():
        wanted = expected.get(name, tensor)
        same = sparse[name].view(torch.uint8) == wanted.contiguous().view(torch.uint8)
        assert same.all(), name
