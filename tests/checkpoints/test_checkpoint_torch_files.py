"""Files of torch.save are pruned as they lie: the same zeros, checksums that are right again."""

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import lampfast
from lampfast import checkpoints
from lampfast.checkpoints.verbs import Arguments, run


def _state() -> dict[str, torch.Tensor]:
    """Tied, transposed and partial tensors."""
    torch.manual_seed(0)
    tied = torch.randn(64, 64)
    return {
        "embed.weight": torch.randn(30, 20),
        "a.weight": torch.randn(300, 200).bfloat16(),
        "tied.weight": tied,
        "b.weight": torch.randn(40, 30).t(),
        "b.bias": torch.randn(30),
        "head.weight": tied,
        "part.weight": torch.randn(100, 100)[10:30],
    }


@pytest.mark.parametrize("outer", [None, "state_dict", "model"])
def test_a_file(tmp_path: Path, outer: str | None) -> None:
    state = _state()
    rest: dict[str, Any] = {"epoch": 3, "optimizer": {"exp_avg": torch.randn(64, 64)}}
    torch.save({outer: state, **rest} if outer else state, tmp_path / "dense.pt")
    report = checkpoints.prune(tmp_path / "dense.pt", 0.6, out=tmp_path / "sparse.pt")
    found = torch.load(tmp_path / "sparse.pt", weights_only=True)
    if outer:
        assert found["epoch"] == 3
        assert torch.equal(found["optimizer"]["exp_avg"], rest["optimizer"]["exp_avg"])
        found = found[outer]
    layers = {
        name: state[name].clone() for name in ("a.weight", "tied.weight", "b.weight", "part.weight")
    }
    assert lampfast.prune(layers, 0.6) == report
    for name, tensor in (state | layers | {"head.weight": layers["tied.weight"]}).items():
        assert torch.equal(found[name], tensor), name
    assert zipfile.ZipFile(tmp_path / "sparse.pt").testzip() is None


def test_a_folder_of_torch_files(tmp_path: Path) -> None:
    (tmp_path / "dense").mkdir()
    torch.save(_state(), tmp_path / "dense" / "pytorch_model.bin")
    checkpoints.prune(tmp_path / "dense", 0.6, in_place=True)
    report = checkpoints.report(tmp_path / "dense")
    assert report.numel - report.kept == round(0.6 * report.numel)


def test_files_that_hold_no_weights(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"the keys \['epoch'\] and no state dict"):
        checkpoints.report(tmp_path / "a.pt")
    torch.save([1, 2], tmp_path / "b.pt")
    with pytest.raises(ValueError, match="holds a list"):
        checkpoints.report(tmp_path / "b.pt")
    torch.save({"a.weight": torch.eye(3).to_sparse()}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match=r"'a\.weight'"):
        checkpoints.report(tmp_path / "c.pt")


def test_a_file_of_torch_as_safetensors(tmp_path: Path) -> None:
    state = _state() | {"experts.w": torch.randn(20, 4, 30).permute(1, 2, 0)}
    state |= {"n": torch.tensor(3), "empty": torch.ones(0, 4), "bytes": torch.arange(3).byte()}
    torch.save({"model": state, "epoch": 3}, tmp_path / "dense.pt")
    report = checkpoints.prune(tmp_path / "dense.pt", 0.6, out=tmp_path / "o.safetensors")
    assert report == checkpoints.prune(tmp_path / "dense.pt", 0.6, out=tmp_path / "o.pt")
    expected = torch.load(tmp_path / "o.pt", weights_only=True)["model"]
    found = load_file(tmp_path / "o.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
        assert found[name].dtype == tensor.dtype
    assert (found["experts.w"] == 0).any()
    now = checkpoints.report(tmp_path / "o.safetensors", exclude="head.weight")
    assert now.kept == report.kept
    assert [it.name for it in tmp_path.iterdir() if it.name.startswith(".")] == []


def test_a_conversion_that_is_stopped(tmp_path: Path) -> None:
    torch.save(_state(), tmp_path / "dense.pt")
    checkpoints.prune(tmp_path / "dense.pt", 0.6, out=tmp_path / "o.safetensors")

    def stopped(stage: str, done: int, total: int) -> None:
        if stage == "writing":
            raise KeyboardInterrupt

    out = tmp_path / "again.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "dense.pt", Arguments(0.6), out=out, progress=stopped)
    assert not out.exists()
    assert run(tmp_path / "dense.pt", Arguments(0.6), out=out).is_resumed
    assert out.read_bytes() == (tmp_path / "o.safetensors").read_bytes()


def test_a_tied_weight_that_is_transposed_is_zeroed_twice(tmp_path: Path) -> None:
    tied = torch.randn(30, 20)
    state = {"a.weight": tied, "b.weight": tied.t(), "c.weight": torch.randn(8, 8)}
    torch.save(state, tmp_path / "dense.pt")
    checkpoints.prune(tmp_path / "dense.pt", 0.5, out=tmp_path / "o.safetensors")
    found = load_file(tmp_path / "o.safetensors")
    assert torch.equal(found["a.weight"], found["b.weight"].t())
    assert (found["a.weight"] == 0).any()


_SHARED = torch.randn(8, 8)
_UNWRITABLE = {
    "share part of their memory": {"a.weight": _SHARED, "a.bias": _SHARED[0]},
    "is not followed": {"a.weight": _SHARED[::2]},
    "'__metadata__'": {"a.weight": _SHARED, "__metadata__": torch.ones(2)},
}


@pytest.mark.parametrize("problem", _UNWRITABLE)
def test_what_safetensors_cannot_hold_is_refused_first(tmp_path: Path, problem: str) -> None:
    torch.save(_UNWRITABLE[problem], tmp_path / "dense.pt")
    with pytest.raises(ValueError, match=problem):
        checkpoints.prune(tmp_path / "dense.pt", 0.5, out=tmp_path / "o.safetensors")
    assert [it.name for it in tmp_path.iterdir()] == ["dense.pt"]
    checkpoints.prune(tmp_path / "dense.pt", 0.5, out=tmp_path / "o.pt")


def test_values_that_are_not_those_in_the_file_are_refused(tmp_path: Path) -> None:
    torch.save({"a.weight": torch._neg_view(torch.randn(4, 4))}, tmp_path / "neg.pt")
    with pytest.raises(ValueError, match="lazily negated"):
        checkpoints.report(tmp_path / "neg.pt")
    torch.save({"a.weight": torch.randn(1, 4).expand(4, 4)}, tmp_path / "expanded.pt")
    with pytest.raises(ValueError, match="elements that share memory"):
        checkpoints.prune(tmp_path / "expanded.pt", 0.5, out=tmp_path / "o.pt")
    assert not (tmp_path / "o.pt").exists()
