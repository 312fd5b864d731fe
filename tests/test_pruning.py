"""The verbs in place: autograd, storages, views, ties, memory formats; and importance."""

import gc
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from compare import assert_same_masks
from refusal import Weight
from torch import nn

import lampfast
from lampfast import reference

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def layers(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """A few small layers with ties within and between them."""
    torch.manual_seed(0)
    return {
        "conv": torch.randn(4, 3, 2, 2).to(dtype),
        "fc": (torch.randint(-3, 4, (6, 5)) / 2).to(dtype),
        "again": (torch.randint(-3, 4, (5, 6)) / 2).to(dtype),
    }


def total(model: dict[str, torch.Tensor]) -> int:
    return sum(layer.numel() for layer in model.values())


@pytest.mark.parametrize("dtype", [*DTYPES, *FLOAT8])
@pytest.mark.parametrize("s", [0, 1, 40, 0.5, 0.9, 1.0])
def test_the_verbs_agree(dtype: torch.dtype, s: float) -> None:
    model = layers(dtype)
    before = {name: layer.clone() for name, layer in model.items()}
    masks = lampfast.masks(model, s)
    scores = lampfast.scores(model)
    assert all(torch.equal(model[name].double(), before[name].double()) for name in model)
    report = lampfast.prune(model, s)

    assert_same_masks(masks, reference.masks(before, s))
    for name, layer in model.items():
        assert torch.equal(layer.double(), before[name].double() * masks[name])
        assert masks[name].device == scores[name].device == layer.device
        assert scores[name].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert scores[name].shape == layer.shape
    kept = [int(mask.sum()) for mask in masks.values()]
    assert [layer.kept for layer in report.layers] == kept
    assert report.kept == total(model) - (s if isinstance(s, int) else round(s * total(model)))


def test_sparsity_is_absolute() -> None:
    twice, once = layers(), layers()
    lampfast.prune(twice, 0.5)
    assert lampfast.prune(twice, 0.75).sparsity == lampfast.report(twice).sparsity == 0.75
    lampfast.prune(once, 0.75)
    assert lampfast.report(once).sparsity == 0.75


@pytest.mark.parametrize(
    "mode", [nullcontext, torch.no_grad, torch.inference_mode, torch.enable_grad]
)
@pytest.mark.parametrize("verb", [lampfast.prune, lampfast.masks])
def test_weights_that_require_grad_in_every_mode(
    mode: Callable[[], AbstractContextManager[Any]], verb: Callable[..., Any]
) -> None:
    weight = nn.Parameter(torch.tensor([3.0, 1.0, 2.0]))
    weight.grad = torch.ones(3)
    address = weight.data_ptr()
    with mode():
        result = verb([weight], 1)
    assert weight.is_leaf
    assert weight.requires_grad
    assert weight.grad_fn is None
    assert weight.data_ptr() == address
    assert weight.grad.tolist() == [1.0, 1.0, 1.0]
    if verb is lampfast.masks:
        assert not result["0"].requires_grad
        assert result["0"].tolist() == [True, False, True]
    else:
        assert weight.tolist() == [3.0, 0.0, 2.0]
    torch.autograd.backward((weight * 2).sum())
    assert weight.grad.tolist() == [3.0, 3.0, 3.0]


def test_scores_are_not_recorded() -> None:
    weight = nn.Parameter(torch.tensor([3.0, 1.0]))
    score = lampfast.scores([weight])["0"]
    assert type(score) is torch.Tensor
    assert not score.requires_grad
    assert type(lampfast.masks([weight], 1)["0"]) is torch.Tensor


def test_a_stale_backward_is_caught() -> None:
    weight = nn.Parameter(torch.randn(4))
    loss = (weight * weight).sum()
    lampfast.prune([weight], 2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.backward(loss)


def test_a_stale_backward_is_caught_under_every_name() -> None:
    weight = nn.Parameter(torch.randn(4))
    tied = nn.Parameter(weight.data)  # the same memory with a version counter of its own
    loss = (tied * tied).sum()
    lampfast.prune({"weight": weight, "tied": tied}, 2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.backward(loss)


def test_a_backward_through_a_view_is_caught() -> None:
    weight = nn.Parameter(torch.randn(4, 4))
    loss = (weight.T @ weight).sum()
    lampfast.prune([weight.detach()], 2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.backward(loss)


@pytest.mark.parametrize("verb", [lampfast.masks, lampfast.prune])
def test_reading_does_not_move_the_version(verb: Callable[..., Any]) -> None:
    weight = nn.Parameter(torch.randn(4))
    version = weight._version
    lampfast.scores([weight])
    lampfast.report([weight])
    verb([weight], 2)
    assert (weight._version > version) == (verb is lampfast.prune)


def test_weights_in_the_middle_of_a_graph() -> None:
    base = torch.tensor([3.0, 1.0, 2.0], requires_grad=True)
    weight = base * 1
    lampfast.prune([weight], 1)
    assert weight.tolist() == [3.0, 0.0, 2.0]
    assert base.tolist() == [3.0, 1.0, 2.0]
    assert weight.requires_grad


def test_inference_tensors() -> None:
    with torch.inference_mode():
        weight = torch.tensor([3.0, 1.0, 2.0])
        inside = torch.tensor([3.0, 1.0, 2.0])
        lampfast.prune([inside], 1)
    lampfast.prune([weight], 1)
    assert weight.tolist() == inside.tolist() == [3.0, 0.0, 2.0]
    assert weight.is_inference()


def test_hooks_stay() -> None:
    model = nn.Linear(4, 4)
    calls: list[str] = []
    weight: Any = model.weight  # torch's hooks are not typed
    weight.register_hook(lambda _: calls.append("grad"))
    model.register_forward_hook(lambda *_: calls.append("forward"))
    lampfast.prune(model, 0.5)
    model(torch.randn(2, 4)).sum().backward()
    assert calls == ["forward", "grad"]


def test_views_and_storage_stay() -> None:
    storage = torch.randn(40)
    before = storage.clone()
    weight = storage[5:35].view(5, 6)
    row, untyped = weight[2], weight.untyped_storage().data_ptr()
    mask = lampfast.masks([weight], 0.5)["0"]
    lampfast.prune([weight], 0.5)
    assert weight.untyped_storage().data_ptr() == untyped
    expected = before.clone()
    expected[5:35].view(5, 6)[~mask] = 0
    assert torch.equal(storage, expected)
    assert torch.equal(row, expected[5:35].view(5, 6)[2])


def test_a_slice_leaves_its_gaps() -> None:
    base = torch.randn(6, 8)
    before, weight = base.clone(), base[1:4, ::2]
    lampfast.prune([weight], 1.0)
    assert torch.count_nonzero(base) == before.numel() - 12
    untouched = torch.ones(6, 8, dtype=torch.bool)
    untouched[1:4, ::2] = False
    assert torch.equal(base[untouched], before[untouched])


@pytest.mark.parametrize("dtype", [*DTYPES, *FLOAT8])
@pytest.mark.parametrize("s", [17, 0.5, 0.8])
def test_memory_formats_do_not_matter(dtype: torch.dtype, s: float) -> None:
    model = layers(dtype)
    expected = reference.masks(model, s)
    formats: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "channels_last": lambda t: (
            t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t.clone()
        ),
        "transposed": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
        "sliced": lambda t: torch.stack([t.float(), t.float()], -1).to(dtype)[..., 0],
    }
    for change in formats.values():
        changed = {name: change(layer) for name, layer in model.items()}
        strides = {name: layer.stride() for name, layer in changed.items()}
        masks = lampfast.masks(changed, s)
        assert_same_masks(masks, expected)
        lampfast.prune(changed, s)
        for name, layer in changed.items():
            assert layer.stride() == strides[name]
            assert torch.equal(layer.double(), model[name].double() * expected[name])


def test_masks_take_the_memory_format_of_the_weight() -> None:
    weight = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    mask = lampfast.masks([weight], 0.5)["0"]
    assert mask.is_contiguous(memory_format=torch.channels_last)
    assert lampfast.scores([weight])["0"].is_contiguous()


def test_temporaries_live_long_enough() -> None:
    for _ in range(20):
        masks = lampfast.masks([torch.ones(50_000), torch.arange(50_000.0)], 50_000)
        assert sum(int(mask.sum()) for mask in masks.values()) == 50_000


def test_tied_parameters_of_a_module() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    report = lampfast.prune(model, 0.5)
    assert [layer.name for layer in report.layers] == ["0.weight", "1.weight"]
    assert report.kept == 16
    assert model[2].weight is model[0].weight
    assert torch.count_nonzero(model[0].get_parameter("weight")) == report.layers[0].kept


def test_a_module_used_twice() -> None:
    shared = nn.Linear(4, 4)
    report = lampfast.prune(nn.Sequential(shared, nn.ReLU(), shared), 0.5)
    assert [layer.name for layer in report.layers] == ["0.weight"]


def test_tied_entries_of_a_state_dict() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    model[1].weight = model[0].weight
    state = model.state_dict()
    masks = lampfast.masks(state, 0.5)
    assert list(masks) == ["0.weight"]
    assert lampfast.prune(state, 0.5).numel == 20
    assert torch.equal(model[1].get_parameter("weight") != 0, masks["0.weight"])


def test_importance_of_tied_weights_goes_by_the_first_name() -> None:
    weight = torch.tensor([1.0, 2.0, 3.0])
    importance = {"a": torch.tensor([3.0, 2.0, 1.0])}
    lampfast.prune({"a": weight, "b": weight.detach()}, 1, importance=importance)
    assert weight.tolist() == [1.0, 2.0, 0.0]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_arrays(dtype: type[np.floating[Any]]) -> None:
    rng = np.random.default_rng(0)
    model = {
        "c": rng.standard_normal((4, 5)).astype(dtype),
        "fortran": np.asfortranarray(rng.standard_normal((4, 5)).astype(dtype)),
        "flipped": rng.standard_normal((4, 5)).astype(dtype)[::-1, ::-2],
        "empty": np.zeros((0, 3), dtype),
        "scalar": np.array(2, dtype),
    }
    twins = {name: torch.from_numpy(array.copy()) for name, array in model.items()}
    expected = lampfast.masks(twins, 0.5)
    masks, scores = lampfast.masks(model, 0.5), lampfast.scores(model)
    for name, array in model.items():
        assert isinstance(masks[name], np.ndarray)
        assert masks[name].dtype == np.bool_
        assert np.array_equal(masks[name], expected[name].numpy())
        assert isinstance(scores[name], np.ndarray)
        assert scores[name].dtype == (np.float64 if dtype is np.float64 else np.float32)
        assert masks[name].shape == scores[name].shape == array.shape
    report = lampfast.prune(model, 0.5)
    assert report == lampfast.prune(twins, 0.5)
    for name, array in model.items():
        assert np.array_equal(array, twins[name].numpy())


def test_arrays_and_tensors_together() -> None:
    array, tensor = np.array([3.0, 1.0], np.float32), torch.tensor([0.5, 8.0])
    model: list[Weight] = [array, tensor]
    masks = lampfast.masks(model, 2)
    assert isinstance(masks["0"], np.ndarray)
    assert isinstance(masks["1"], torch.Tensor)
    lampfast.prune(model, 2)
    assert (array.tolist(), tensor.tolist()) == ([3.0, 0.0], [0.0, 8.0])


def test_memory_maps(tmp_path: Any) -> None:
    path = tmp_path / "weights"
    mapped = np.memmap(path, np.float32, "w+", shape=(3,))
    mapped[:] = [3, 1, 2]
    assert type(lampfast.masks([mapped], 1)["0"]) is np.ndarray
    lampfast.prune([mapped], 1)
    mapped.flush()
    assert np.fromfile(path, np.float32).tolist() == [3.0, 0.0, 2.0]


@pytest.mark.parametrize("s", [0, 30, 0.5, 0.9, 1.0])
def test_the_magnitude_as_importance_changes_nothing(s: float) -> None:
    model = layers()
    expected = lampfast.masks(model, s)
    changes: list[Callable[[torch.Tensor], Weight]] = [
        torch.abs,
        torch.neg,
        torch.detach,
        torch.clone,
        lambda t: t.double() * 4,  # the score does not see a layer's scale
        lambda t: t.abs().transpose(0, 1).contiguous().transpose(0, 1),
        lambda t: t.numpy().copy(),
        lambda t: np.asfortranarray(t.numpy()),
    ]
    for change in changes:
        importance = {name: change(layer) for name, layer in model.items()}
        assert_same_masks(lampfast.masks(model, s, importance=importance), expected)
    lampfast.prune(model, s, importance=model)
    for name, layer in model.items():
        assert not torch.count_nonzero(layer[~expected[name]])


@pytest.mark.parametrize("dtype", [*DTYPES, *FLOAT8])
@pytest.mark.parametrize("other", [*DTYPES, *FLOAT8])
def test_importance_of_any_dtype_and_layout(dtype: torch.dtype, other: torch.dtype) -> None:
    model = layers(dtype)
    torch.manual_seed(1)
    importance = {
        name: torch.randn(layer.shape).transpose(0, 1).contiguous().to(other).transpose(0, 1)
        for name, layer in model.items()
    }
    expected = reference.masks(model, 0.6, importance)
    assert_same_masks(lampfast.masks(model, 0.6, importance=importance), expected)
    before = {name: layer.clone() for name, layer in model.items()}
    lampfast.prune(model, 0.6, importance=importance)
    for name, layer in model.items():
        assert torch.equal(layer.double(), before[name].double() * expected[name])
    for name, scores in lampfast.scores(before, importance=importance).items():
        assert scores.dtype == (torch.float64 if other == torch.float64 else torch.float32)
        assert torch.equal(scores, lampfast.scores(importance)[name])


def test_read_only_and_expanded_importance() -> None:
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    by_row = torch.tensor([[9.0], [1.0]]).expand(2, 2)
    lampfast.prune([weight], 2, importance={"0": by_row})
    assert weight.tolist() == [[1.0, 2.0], [0.0, 0.0]]
    array = np.array([4.0, 5.0], np.float32)
    array.flags.writeable = False
    lampfast.prune([weight[0]], 1, importance={"0": array})
    assert weight[0].tolist() == [0.0, 2.0]


def test_zero_weights_that_matter_are_kept() -> None:
    weight = torch.tensor([0.0, 5.0])
    mask = lampfast.masks([weight], 1, importance={"0": torch.tensor([1.0, 0.0])})["0"]
    assert mask.tolist() == [True, False]


def test_importance_of_a_module() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model(torch.randn(8, 4)).square().sum().backward()
    names = [layer.name for layer in lampfast.report(model).layers]
    importance = {}
    for name in names:
        weight = model.get_parameter(name)
        assert weight.grad is not None
        importance[name] = weight * weight.grad
    masks = lampfast.masks(model, 0.5, importance=importance)
    assert_same_masks(masks, lampfast.masks(importance, 0.5))
    assert lampfast.prune(model, 0.5, importance=importance).kept == 16


@pytest.mark.parametrize("dtype", [*DTYPES, *FLOAT8])
def test_subnormals_count_where_the_processor_flushes_them(dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    steps = torch.tensor([3, 0, -1, 2, -3, 1], dtype=torch.float64)
    weight = (steps * info.smallest_normal * info.eps).to(dtype)
    expected = torch.tensor([True, False, False, True, True, False])
    torch.set_flush_denormal(True)
    try:
        masks = lampfast.masks([weight], 3)
        report = lampfast.prune([weight], 3)
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(masks["0"], expected)
    assert torch.equal(weight.double() != 0, expected)
    assert report.layers[0].threshold == 2 * info.smallest_normal * info.eps


def test_threads_of_the_caller() -> None:
    """Many Python threads at once, each with layers of its own."""
    model = layers()
    expected = lampfast.masks(model, 0.7)
    wrong: list[str] = []

    def work() -> None:
        for _ in range(20):
            own = {name: layer.clone() for name, layer in model.items()}
            lampfast.prune(own, 0.7)
            wrong.extend(
                name for name in own if not torch.equal(own[name], model[name] * expected[name])
            )

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_as_it_was_after_every_verb(enabled: bool) -> None:
    (gc.enable if enabled else gc.disable)()
    try:
        weights = [torch.randn(5)]
        for call in (lampfast.prune, lampfast.masks, lampfast.report):
            call(weights, 0.5)
        lampfast.scores(weights)
        with pytest.raises(ValueError, match="sparsity is 2"):
            lampfast.masks(weights, 2.0)
        assert gc.isenabled() == enabled
    finally:
        gc.enable()
