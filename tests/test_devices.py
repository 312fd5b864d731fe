"""Layers on devices without an engine, whose weights go through host memory.

Tensors with `far` storages stand in for them; the last test takes a real GPU where there is one.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from unittest import mock

import pytest
import strategies
import torch
from compare import assert_one_ulp, assert_same_masks, assert_same_memory, pruned_copy
from hypothesis import given
from hypothesis import strategies as st
from refusal import refused
from strategies import Model

import lampfast
from lampfast import reference
from lampfast._engine import copies, gpus


@contextmanager
def far(tensors: Iterable[torch.Tensor]) -> Iterator[None]:
    """Keep the engine away from the storages of tensors."""
    storages = {tensor.untyped_storage()._cdata for tensor in tensors}

    def is_here(tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage()._cdata not in storages

    with (
        mock.patch.object(copies, "is_local", is_here),
        mock.patch.object(gpus, "are_in_host", return_value=False),
        mock.patch.object(copies, "_warned", {"cpu"}),
    ):
        yield


def some(data: st.DataObject, model: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """A part of the layers, most often not all."""
    return [layer for layer in model.values() if data.draw(st.booleans(), "far")]


@strategies.fewer
@given(st.data(), strategies.models())
def test_masks(data: st.DataObject, model: Model) -> None:
    s = data.draw(strategies.amounts(strategies.numel(model)), "s")
    with far(some(data, model)):
        got = lampfast.masks(model, s)
    assert_same_masks(got, reference.masks(model, s))


@strategies.fewer
@given(st.data(), strategies.models())
def test_prune(data: st.DataObject, model: Model) -> None:
    s = data.draw(strategies.amounts(strategies.numel(model)), "s")
    masks = reference.masks(model, s)
    expected = {name: pruned_copy(layer, masks[name]) for name, layer in model.items()}
    with far(some(data, model)):
        report = lampfast.prune(model, s)
    assert_same_memory(model, expected)
    assert {layer.name: layer.kept for layer in report.layers} == {
        name: int(mask.sum()) for name, mask in masks.items()
    }


@strategies.fewer
@given(st.data(), strategies.models())
def test_scores(data: st.DataObject, model: Model) -> None:
    with far(some(data, model)):
        got = lampfast.scores(model)
    for name, exact in reference.scores(model).items():
        assert got[name].shape == model[name].shape
        for i, (value, score) in enumerate(zip(got[name].reshape(-1).tolist(), exact, strict=True)):
            assert_one_ulp(name, i, value, score, got[name].dtype)


@strategies.fewer
@given(st.data(), strategies.models())
def test_importance(data: st.DataObject, model: Model) -> None:
    importance = data.draw(strategies.importances(model), "importance")
    s = data.draw(strategies.amounts(strategies.numel(model)), "s")
    with far([*some(data, model), *some(data, importance)]):
        got = lampfast.masks(model, s, importance=importance)
    assert_same_masks(got, reference.masks(model, s, importance=importance))


def test_the_warning_comes_once() -> None:
    weights = {"fc": torch.randn(10)}
    with far(weights.values()), mock.patch.object(copies, "_warned", set()):
        with pytest.warns(UserWarning, match="copied to host memory and back") as caught:
            lampfast.prune(weights, 0.5)
        assert [warning.filename for warning in caught] == [__file__]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            lampfast.prune(weights, 0.5)


def test_a_tied_layer_counts_once() -> None:
    weight = torch.randn(4, 5)
    twin = torch.empty(20)
    with far([weight, twin]):
        report = lampfast.report({"a": weight, "b": weight.t(), "c": twin})
    assert [layer.name for layer in report.layers] == ["a", "c"]


def test_layers_that_share_part_of_their_memory() -> None:
    base = torch.randn(30)
    layers = {"a": base[:20], "b": base[10:]}
    with far([base]), refused(ValueError, "'a' and 'b' share part of their memory", keeps=[base]):
        lampfast.prune(layers, 0.5)


def test_nonfinite_weights_change_nothing() -> None:
    good, bad = torch.randn(10), torch.tensor([[1.0, 2.0], [float("nan"), 0.0]])
    with (
        far([good, bad]),
        refused(ValueError, "layer 'bad' has nan at index (1, 0)", keeps=[good, bad]),
    ):
        lampfast.prune({"good": good, "bad": bad}, 0.5)


def test_autograd_sees_the_change_and_records_nothing() -> None:
    fc = torch.nn.Linear(8, 8)
    loss = fc(torch.randn(2, 8, requires_grad=True)).square().sum()
    with far(fc.parameters()):
        lampfast.prune(fc, 0.5)
    assert fc.weight.is_leaf
    assert fc.weight.requires_grad
    assert int((fc.weight == 0).sum()) == 32
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_inference_tensors() -> None:
    with torch.inference_mode():
        weight = torch.randn(10)
    with far([weight]):
        lampfast.prune([weight], 4)
    assert int((weight == 0).sum()) == 4


def test_an_alias_through_another_storage() -> None:
    weight = torch.arange(1.0, 11)
    alias = torch.utils.dlpack.from_dlpack(weight)
    layers = {"a": weight, "b": alias[4:]}
    with far([weight, alias]), refused(ValueError, "'a' and 'b' share part", keeps=[weight]):
        lampfast.prune(layers, 0.5)


def test_storages_that_only_their_device_can_find() -> None:
    base, other = torch.randn(30), torch.randn(30)
    with far([base, other]), mock.patch.object(copies, "has_address", return_value=False):
        report = lampfast.report({"a": base, "b": base.view(5, 6), "c": other})
        assert [layer.name for layer in report.layers] == ["a", "c"]
        with refused(ValueError, "'a' and 'b' share part", keeps=[base]):
            lampfast.prune({"a": base[:20], "b": base[10:]}, 0.5)


def test_a_default_device() -> None:
    weight = torch.arange(1.0, 11)
    with far([weight]), torch.device("meta"):
        lampfast.prune([weight], 4)
        mask = lampfast.masks([weight], 4)["0"]
    assert int((weight == 0).sum()) == 4
    assert mask.is_cpu


def test_nothing_is_copied_before_all_is_checked() -> None:
    weight = torch.arange(1.0, 11)
    with far([weight]), mock.patch.object(copies, "to_host") as copied:
        with pytest.raises(ValueError, match=r"sparsity is 7\.5"):
            lampfast.prune([weight], 7.5)
        with pytest.raises(TypeError, match="layer '1'"):
            lampfast.prune([weight, torch.ones(3, dtype=torch.int32)], 0.5)
    copied.assert_not_called()


def test_a_device_that_fails_leaves_no_stale_backward() -> None:
    near, away = torch.randn(10, requires_grad=True), torch.randn(10)
    loss = near.square().sum()
    with (
        far([away]),
        mock.patch.object(copies, "write_back", side_effect=RuntimeError("lost")),
        pytest.raises(RuntimeError, match="lost"),
    ):
        lampfast.prune([near, away], 10)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.backward([loss])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings("ignore:layers on cuda")
def test_a_gpu() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Linear(32, 8))
    model[0].cuda()
    host = {name: layer.detach().to("cpu", copy=True) for name, layer in model.named_parameters()}
    masks = lampfast.masks(model, 0.7)
    expected = lampfast.masks({name: host[name] for name in masks}, 0.7)
    assert [mask.device.type for mask in masks.values()] == ["cuda", "cpu"]
    assert_same_masks({name: mask.cpu() for name, mask in masks.items()}, expected)
    lampfast.prune(model, 0.7)
    for name, mask in expected.items():
        assert torch.equal(model.get_parameter(name).cpu(), host[name] * mask)
