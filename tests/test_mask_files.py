"""Masks in files: they come back as they were, a file is whole or not there, others are refused."""

import json
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compare import assert_same_masks
from hypothesis import given, settings
from hypothesis import strategies as st
from test_masks_out import LAYOUTS, made
from torch import nn

import lampfast

safetensors = pytest.importorskip("safetensors")

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
SHAPES = st.lists(st.integers(0, 9), max_size=4).map(tuple)


@st.composite
def _mask(draw: st.DrawFn) -> Any:
    """A mask of any shape and memory format, as a tensor or an array."""
    shape = draw(SHAPES)
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    kept = np.asarray(random.random(shape) < draw(st.sampled_from([0.0, 0.3, 1.0])))
    if draw(st.booleans()):
        way = draw(st.sampled_from(["contiguous", "fortran", "backwards", "read-only"]))
        if way == "fortran":
            return np.asfortranarray(kept).reshape(shape)
        if way == "backwards":
            return np.asarray(np.flip(kept))
        kept.setflags(write=way != "read-only")
        return kept
    return made(draw(st.sampled_from(list(LAYOUTS))), shape).copy_(torch.from_numpy(kept))


def as_tensors(masks: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.asarray(mask).copy()) for name, mask in masks.items()}


@given(masks=st.dictionaries(NAMES, _mask(), max_size=5))
def test_round_trip(masks: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "masks.safetensors"
    lampfast.save_masks(masks, path)
    got = lampfast.load_masks(path)
    assert_same_masks(got, as_tensors(masks))
    for mask in got.values():
        assert mask.is_contiguous()
        mask.fill_(True)  # it can be written


@given(sizes=st.lists(st.integers(0, 40), max_size=4), seed=st.integers(0, 99))
@settings(max_examples=50)
def test_another_program_finds_the_bits_where_the_docstring_says(
    sizes: list[int], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    random = np.random.default_rng(seed)
    masks = {str(i): random.random(size) < 0.5 for i, size in enumerate(sizes)}
    path = tmp_path_factory.getbasetemp() / "bits.safetensors"
    lampfast.save_masks(masks, path)
    with safetensors.safe_open(path, "numpy") as file:
        metadata = file.metadata()
        assert json.loads(metadata["shapes"]) == {name: [len(m)] for name, m in masks.items()}
        assert (metadata["lampfast.masks"], metadata["bit_order"]) == ("1", "little")
        for name, mask in masks.items():
            expected = [0] * ((len(mask) + 7) // 8)
            for i, kept in enumerate(mask.tolist()):
                expected[i // 8] |= kept << (i % 8)
            assert file.get_tensor(name).tolist() == expected


def test_ten_thousand_layers_and_a_large_one(tmp_path: Path) -> None:
    path, generator = tmp_path / "masks", torch.Generator().manual_seed(0)
    masks = {f"layer{i}": torch.rand(i % 7, 3, generator=generator) < 0.5 for i in range(10_000)}
    masks["large"] = torch.rand(1001, 3001, generator=generator) < 0.1
    lampfast.save_masks(masks, str(path))
    assert_same_masks(lampfast.load_masks(str(path)), masks)
    assert path.stat().st_size < 1001 * 3001 / 8 + 150 * len(masks)


def test_a_models_masks_are_checked_and_in_its_order(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    masks = lampfast.masks(model, 0.5)
    path = tmp_path / "masks"
    lampfast.save_masks(dict(reversed(masks.items())), path)
    assert_same_masks(lampfast.load_masks(path, model), masks)
    with pytest.raises(ValueError, match=r"missing: \[\], unknown: \['0.weight'\]") as caught:
        lampfast.load_masks(path, model, exclude="0.*")
    assert str(path) in str(caught.value)
    lampfast.save_masks({"1.weight": masks["1.weight"]}, path)
    with pytest.raises(ValueError, match=r"missing: \['0.weight'\], unknown: \[\]"):
        lampfast.load_masks(path, model)
    assert list(lampfast.load_masks(path, model, include="1.weight")) == ["1.weight"]
    lampfast.save_masks(masks | {"1.weight": masks["1.weight"].t()}, path)
    with pytest.raises(ValueError, match=r"'1.weight' in .* has shape \(3, 2\), .* shape \(2, 3\)"):
        lampfast.load_masks(path, model)
    with pytest.raises(ValueError, match="none is given"):
        lampfast.load_masks(path, include="*")


@pytest.mark.parametrize(
    ("masks", "error", "words"),
    [
        ([torch.ones(3) > 0], TypeError, "masks is a list"),
        ({1: torch.ones(3) > 0}, TypeError, "the key 1"),
        ({"a": torch.ones(3)}, TypeError, r"'a' has dtype torch.float32"),
        ({"a": np.ones(3)}, TypeError, r"'a' has dtype float64"),
        ({"a": [True]}, TypeError, r"'a' is a list"),
        ({"a": torch.ones(3, dtype=torch.bool, device="meta")}, TypeError, "meta device"),
        ({"__metadata__": torch.ones(3) > 0}, ValueError, "'__metadata__'"),
    ],
)
def test_what_is_no_mask_is_not_saved(
    masks: Any, error: type[Exception], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        lampfast.save_masks(masks, tmp_path / "masks")
    assert list(tmp_path.iterdir()) == []


# --- whole files only ---

MASKS = {"a": torch.tensor([True, False, True]), "b": torch.ones(4, 5, dtype=torch.bool)}


@pytest.mark.parametrize("failing", ["fsync", "chmod", "replace"])
def test_where_writing_fails_the_earlier_file_stays(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "masks"
    lampfast.save_masks(MASKS, path)

    def fail(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, failing, fail)
        with pytest.raises(KeyboardInterrupt):
            lampfast.save_masks({"c": MASKS["a"]}, path)
    assert list(tmp_path.iterdir()) == [path]
    assert_same_masks(lampfast.load_masks(path), MASKS)


def test_what_safetensors_cannot_write_is_an_error_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise safetensors.SafetensorError("no space left")

    monkeypatch.setattr("safetensors.numpy.save_file", fail)
    with pytest.raises(OSError, match="masks cannot be written: no space left"):
        lampfast.save_masks(MASKS, tmp_path / "masks")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        lampfast.save_masks(MASKS, tmp_path / "nowhere" / "masks")
    with pytest.raises(FileNotFoundError):
        lampfast.load_masks(tmp_path / "masks")


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    """A device would be gone for the whole system."""
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder' is a folder"):
        lampfast.save_masks(MASKS, tmp_path / "folder")
    if sys.platform != "win32":
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(OSError, match="pipe' is no regular file"):
            lampfast.save_masks(MASKS, tmp_path / "pipe")
        assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert {path.name for path in tmp_path.iterdir()} <= {"folder", "pipe"}


def test_a_path_of_bytes(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path / "masks")
    lampfast.save_masks(MASKS, path)  # type: ignore[arg-type]
    assert_same_masks(lampfast.load_masks(path), MASKS)  # type: ignore[arg-type]


@pytest.mark.skipif(sys.platform == "win32", reason="needs links and modes")
def test_links_and_modes(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder / "masks")
    plain = tmp_path / "plain"
    plain.touch()
    lampfast.save_masks(MASKS, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert_same_masks(lampfast.load_masks(folder / "masks"), MASKS)
    assert stat.S_IMODE((folder / "masks").stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


# --- files that are no masks ---


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "masks"
    lampfast.save_masks(MASKS, path)
    return path.read_bytes()


def changed(**changes: Any) -> Callable[[Path], None]:
    """Writes a file that differs in some tensors or metadata; None leaves one out."""

    def write(path: Path) -> None:
        tensors = {"a": np.array([5], np.uint8), "b": np.array([255, 255, 15], np.uint8)}
        shapes = '{"a": [3], "b": [4, 5]}'
        metadata = {"lampfast.masks": "1", "bit_order": "little", "shapes": shapes}
        for name, change in changes.items():
            into: dict[str, Any] = tensors if name in ("a", "b", "c") else metadata
            into[name.replace("_masks", ".masks")] = change
            if change is None:
                del into[name.replace("_masks", ".masks")]
        safetensors.numpy.save_file(tensors, path, metadata)

    return write


def written(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (written(b""), "does not begin with a header"),
    "text": (written(b"just some text, longer than eight bytes"), "does not begin with a header"),
    "no JSON": (written(b"\x04" + bytes(7) + b"\xff\xfe{}"), "does not begin with a header"),
    "no object": (written(b"\x02" + bytes(7) + b"[]"), "does not begin with a header"),
    "deep": (
        written((99_999).to_bytes(8, "little") + b"[" * 99_999),
        "does not begin with a header",
    ),
    "pickle": (lambda path: torch.save(MASKS, path), "does not begin with a header"),
    "a checkpoint": (
        lambda path: safetensors.numpy.save_file({"a": np.ones(3, np.float32)}, path),
        "without masks",
    ),
    "odd metadata": (
        written(b"\x14" + bytes(7) + b'{"__metadata__": []}'),
        "without masks",
    ),
    "a later version": (changed(lampfast_masks="2"), "version '2'"),
    "big-endian bits": (changed(bit_order="big"), "bit order 'big'"),
    "no bit order": (changed(bit_order=None), "bit order None"),
    "no shapes": (changed(shapes=None), "no shapes"),
    "a list of shapes": (changed(shapes="[]"), "no shapes"),
    "shapes that are no JSON": (changed(shapes="{"), "no shapes"),
    "negative": (changed(shapes='{"a": [-1, -3], "b": [4, 5]}'), "no shapes"),
    "fractions": (changed(shapes='{"a": [3.0], "b": [4, 5]}'), "no shapes"),
    "truths": (changed(shapes='{"a": [true], "b": [4, 5]}'), "no shapes"),
    "more dimensions than a tensor may have": (
        changed(shapes=f'{{"a": {[1] * 64 + [3]}, "b": [4, 5]}}'),
        "no shapes",
    ),
    "nothing of too large a size": (
        changed(a=np.zeros(0, np.uint8), shapes=f'{{"a": [0, {2**63}], "b": [4, 5]}}'),
        "no shapes",
    ),
    "too large a shape": (changed(shapes='{"a": [9, 99999999999], "b": [4, 5]}'), "'a' has uint8"),
    "a shape missing": (changed(shapes='{"a": [3]}'), r"only: \['b'\]"),
    "bits missing": (changed(b=None), r"only: \['b'\]"),
    "more bits": (changed(c=np.zeros(1, np.uint8)), r"only: \['c'\]"),
    "another dtype": (changed(a=np.zeros(1, np.int8)), "'a' has int8"),
    "another size": (changed(b=np.zeros(4, np.uint8)), r"need uint8 of shape \(3,\)"),
    "bits behind the end": (changed(a=np.array([8], np.uint8)), "bits behind its 3 weights"),
}


@pytest.mark.parametrize(("write", "found"), BROKEN.values(), ids=BROKEN)
def test_files_that_are_no_masks(
    write: Callable[[Path], object], found: str, tmp_path: Path
) -> None:
    path = tmp_path / "other.file"
    write(path)
    with pytest.raises(ValueError, match=f"other.file is not a file of masks: .*{found}"):
        lampfast.load_masks(path)


def test_the_files_of_these_tests_are_good_but_for_the_change(tmp_path: Path) -> None:
    changed()(tmp_path / "good")
    assert_same_masks(lampfast.load_masks(tmp_path / "good"), MASKS)


def test_a_file_that_was_cut_anywhere(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "masks"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="is not a file of masks"):
            lampfast.load_masks(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ValueError, match="it is not whole"):
        lampfast.load_masks(path)


@given(position=st.integers(0, 10_000), value=st.integers(0, 255))
def test_a_byte_that_was_changed(
    whole: bytes, position: int, value: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "changed"
    content = bytearray(whole)
    content[position % len(content)] = value
    path.write_bytes(content)
    try:
        got = lampfast.load_masks(path)  # bits or names may be others
    except ValueError as error:
        refusals = [str(error)]
        got = {}
    else:
        refusals = []
    assert all(str(path) in refusal for refusal in refusals)
    assert all(mask.dtype == torch.bool for mask in got.values())


def test_a_large_file_of_something_else_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    with open(path, "wb") as file:
        file.write(b"\x02" + bytes(7) + b"{}")
        file.truncate(1 << 40)  # a hole, which takes no space
    with pytest.raises(ValueError, match="without masks"):
        lampfast.load_masks(path)


@pytest.mark.parametrize("verb", [lampfast.save_masks, lampfast.load_masks])
def test_without_safetensors_the_error_names_the_extra(
    verb: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ModuleNotFoundError, match=rf"lampfast.{verb.__name__} needs safetensors"):
        verb(*([MASKS] if verb is lampfast.save_masks else []), tmp_path / "masks")
