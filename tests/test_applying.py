"""`lampfast.apply`: zeroes what masks do not keep, wherever they come from, and nothing else."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import strategies
import torch
from compare import BITS, assert_same_memory, memory, pruned_copy
from cpu_settings import CpuSettings
from hypothesis import given
from hypothesis import strategies as st
from refusal import refused
from strategies import ArrayModel, Model
from test_devices import far, some
from test_packed_masks import any_bits
from torch import nn
from torch.optim import SGD

import lampfast
from lampfast._engine import changes


@st.composite
def masks_of(draw: st.DrawFn, model: Model) -> Model:
    """Masks of a model's layers, each in a memory format of its own."""
    masks = {}
    for name, layer in model.items():
        size = layer.numel()
        seed, share = draw(st.integers(0, 2**32)), draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
        kept = torch.rand(size, generator=torch.Generator().manual_seed(seed)) < share
        # laid_out fills gaps with numbers: as bools they are True.
        masks[name] = draw(strategies.laid_out(kept.reshape(layer.shape)))
    return masks


def kept_by(masks: Model) -> tuple[int, ...]:
    return tuple(int(mask.sum()) for mask in masks.values())


@given(st.data(), any_bits(), strategies.cpus)
def test_any_bits_in_any_memory_format(data: st.DataObject, model: Model, cpu: CpuSettings) -> None:
    cpu.use()
    masks = data.draw(masks_of(model))
    expected = {name: pruned_copy(layer, masks[name]) for name, layer in model.items()}
    given_masks = {name: memory(mask).clone() for name, mask in masks.items()}
    report = lampfast.apply(model, masks)
    assert_same_memory(model, expected)
    assert tuple(layer.kept for layer in report.layers) == kept_by(masks)
    for name, mask in masks.items():
        assert torch.equal(memory(mask), given_masks[name])


@given(st.data(), strategies.models())
def test_the_masks_of_a_model_do_what_prune_does(data: st.DataObject, model: Model) -> None:
    s = data.draw(strategies.amounts(strategies.numel(model)), "s")
    twin = {name: pruned_copy(layer, torch.ones(layer.shape) > 0) for name, layer in model.items()}
    masks = lampfast.masks(model, s)
    pruned, applied = lampfast.prune(model, s), lampfast.apply(twin, masks)
    assert_same_memory(twin, model)
    assert (applied.numel, applied.kept) == (pruned.numel, pruned.kept)
    for one, other in zip(applied.layers, pruned.layers, strict=True):
        assert one == other._replace(threshold=None)


@strategies.fewer
@given(st.data(), any_bits())
def test_layers_and_masks_on_devices_without_an_engine(data: st.DataObject, model: Model) -> None:
    masks = data.draw(masks_of(model))
    expected = {name: pruned_copy(layer, masks[name]) for name, layer in model.items()}
    with far([*some(data, model), *some(data, masks)]):
        lampfast.apply(model, masks)
    assert_same_memory(model, expected)


@strategies.fewer
@given(st.data(), strategies.array_models())
def test_arrays_and_masks_of_either_kind(data: st.DataObject, model: ArrayModel) -> None:
    masks: dict[str, Any] = {}
    expected = {}
    for name, layer in model.items():
        rng = np.random.default_rng(data.draw(st.integers(0, 99)))
        kept = np.asarray(rng.random(layer.shape) < 0.5)
        expected[name] = np.where(kept, layer, layer.dtype.type(0))
        masks[name] = torch.from_numpy(kept) if data.draw(st.booleans()) else kept
        if not isinstance(masks[name], torch.Tensor):
            masks[name].setflags(write=False)
    lampfast.apply(model, masks)
    for name, layer in model.items():
        assert layer.tobytes() == expected[name].tobytes()  # -0 that is kept stays, too


@pytest.mark.parametrize("dtype", strategies.DTYPES)
def test_many_chunks_and_threads(dtype: torch.dtype) -> None:
    torch.set_num_threads(3)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(700, 1003, generator=generator).to(dtype)
    masks = {
        "same": torch.rand(weight.shape, generator=generator) < 0.1,
        "transposed": (torch.rand(1003, 700, generator=generator) < 0.1).t(),
        "expanded": (torch.rand(1003, generator=generator) < 0.1).expand(700, 1003),
    }
    model = {name: weight.clone() for name in masks}
    expected = {name: pruned_copy(weight, mask) for name, mask in masks.items()}
    lampfast.apply(model, masks)
    assert_same_memory(model, expected)


def test_nan_stays_where_it_is_kept_and_goes_where_it_is_not() -> None:
    weight = torch.tensor([float("nan"), float("nan"), -0.0, -0.0, float("inf"), -float("inf")])
    kept = torch.tensor([True, False, True, False, True, False])
    before = weight.view(torch.int32).clone()
    report = lampfast.apply([weight], {"0": kept})
    assert torch.equal(weight.view(torch.int32), torch.where(kept, before, 0))
    assert (report.kept, report.layers[0].threshold) == (3, None)


def test_nothing_to_do() -> None:
    assert lampfast.apply({}, {}).numel == 0
    weights = {"empty": torch.empty(0, 3), "scalar": torch.tensor(2.0)}
    masks = {"empty": torch.empty(0, 3, dtype=torch.bool), "scalar": torch.tensor(False)}
    assert lampfast.apply(weights, masks).kept == 0
    assert weights["scalar"] == 0


# --- what others see of it ---


def test_tied_weights_have_one_mask_and_autograd_records_nothing() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    weight = model.get_parameter("0.weight")
    address, version = weight.data_ptr(), weight._version
    report = lampfast.apply(model, {"0.weight": torch.eye(4, dtype=torch.bool)})
    assert (report.numel, report.kept) == (16, 4)
    assert weight.data_ptr() == address
    assert weight._version > version
    assert weight.is_leaf
    assert weight.requires_grad
    assert model.get_parameter("1.weight").count_nonzero() == 4


def test_a_stale_backward_is_caught() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    loss = model(torch.randn(2, 3)).sum()
    lampfast.apply(model[1], {"weight": torch.zeros(1, 3, dtype=torch.bool)})
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_inference_tensors() -> None:
    with torch.inference_mode():
        weight = torch.ones(3)
        mask = torch.tensor([True, False, True])
    lampfast.apply([weight], {"0": mask})
    assert weight.tolist() == [1.0, 0.0, 1.0]


def test_kept_zeros_are_told() -> None:
    model = nn.Linear(6, 4)
    optimizer = SGD(model.parameters(), lr=0.1)
    kept = lampfast.keep_zeros(model, optimizer)
    mask = torch.arange(24).reshape(4, 6) % 3 == 0
    lampfast.apply(model, {"weight": mask})
    model(torch.randn(5, 6)).sum().backward()
    optimizer.step()
    assert torch.equal(model.weight != 0, mask)
    kept.remove()


def test_a_chain_of_models() -> None:
    """What the verb is for: an averaged copy gets the zeros of the model."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(32, 5))
    average = copy.deepcopy(model).to(torch.bfloat16)
    first = average.get_parameter("0.weight")
    first.data = first.data.contiguous(memory_format=torch.channels_last)
    lampfast.prune(model, 0.9)
    masks = {name: p.detach() != 0 for name, p in model.named_parameters() if p.dim() > 1}
    lampfast.apply(average, masks)
    for name, mask in masks.items():
        assert torch.equal(average.get_parameter(name) != 0, mask)


def test_patterns_choose_the_layers() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    nothing = torch.zeros(4, 4, dtype=torch.bool)
    lampfast.apply(model, {"1.weight": nothing}, exclude="0.*")
    assert model.get_parameter("0.weight").count_nonzero() == 16
    assert model.get_parameter("1.weight").count_nonzero() == 0
    lampfast.apply(model, {"0.bias": torch.zeros(4, dtype=torch.bool)}, include="0.bias")
    assert model.get_parameter("0.bias").count_nonzero() == 0


# --- what is refused ---

_WEIGHTS = {name: torch.randn(4, 6) for name in "abc"}
_FLOAT8 = torch.randn(4, 6).to(torch.float8_e5m2)


def _masks(**changed: Any) -> dict[str, Any]:
    """Good masks of three layers, but for what is changed."""
    return {name: torch.zeros(4, 6, dtype=torch.bool) for name in "abc"} | changed


# A layer in the middle fails: the first one must be as it was.
UNFIT: dict[str, tuple[type[Exception], Callable[[], Any], tuple[str, ...]]] = {
    "a list": (TypeError, lambda: list(_masks().values()), ("masks is a list", "mapping")),
    "missing": (ValueError, lambda: {"a": _masks()["a"]}, ("missing: ['b', 'c']", "unknown: []")),
    "unknown": (
        ValueError,
        lambda: _masks(**{str(i): _masks()["a"] for i in range(9)}),
        ("unknown: ['0', '1', '2', '3', '4'] and 4 more", "include="),
    ),
    "floats": (TypeError, lambda: _masks(b=torch.ones(4, 6)), ("'b'", "torch.float32", "!= 0")),
    "bytes": (TypeError, lambda: _masks(b=np.ones((4, 6), np.uint8)), ("'b'", "uint8", "bool")),
    "lists": (TypeError, lambda: _masks(b=[[True] * 6] * 4), ("'b'", "is a list")),
    "transposed": (ValueError, lambda: _masks(b=_masks()["b"].t()), ("'b'", "(6, 4)", "(4, 6)")),
    "flat": (ValueError, lambda: _masks(b=np.ones(24, bool)), ("'b'", "(24,)", "(4, 6)")),
    "meta": (TypeError, lambda: _masks(b=_masks()["b"].to("meta")), ("'b'", "meta", "load")),
    "sparse": (TypeError, lambda: _masks(b=_masks()["b"].to_sparse()), ("'b'", "sparse")),
    "freed": (TypeError, lambda: _masks(b=_freed()), ("'b'", "storage was freed")),
    "no bools": (
        ValueError,
        lambda: _masks(b=torch.full((4, 6), 255, dtype=torch.uint8).view(torch.bool)),
        ("'b'", "neither 0 nor 1", "!= 0"),
    ),
    "a layer's memory": (
        ValueError,
        lambda: _masks(b=_WEIGHTS["c"].view(torch.bool)[:, :6]),
        ("'b'", "share memory with a layer", "copy"),
    ),
}


def _freed() -> torch.Tensor:
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask.untyped_storage().resize_(0)
    return mask


@pytest.mark.parametrize(("error", "make", "words"), UNFIT.values(), ids=UNFIT)
def test_unfit_masks_change_nothing(
    error: type[Exception], make: Callable[[], Any], words: tuple[str, ...]
) -> None:
    versions = [weight._version for weight in _WEIGHTS.values()]
    with refused(error, *words, keeps=_WEIGHTS.values()):
        lampfast.apply(_WEIGHTS, make())
    assert [weight._version for weight in _WEIGHTS.values()] == versions


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        (torch.zeros(4, 6, dtype=torch.int32), TypeError, ("'b'", "int32")),
        (torch.zeros(1, 6).expand(4, 6), ValueError, ("'b'", "share memory")),
        (np.broadcast_to(np.zeros(6, np.float32), (4, 6)), ValueError, ("'b'", "read-only")),
    ],
)
def test_unfit_layers_change_nothing(bad: Any, error: type[Exception], words: Any) -> None:
    model = _WEIGHTS | {"b": bad}
    with refused(error, *words, keeps=_WEIGHTS.values()):
        lampfast.apply(model, _masks())


def test_a_layer_that_is_its_own_mask_is_refused() -> None:
    with refused(ValueError, "'0'", "share memory with a layer", keeps=[_FLOAT8.view(torch.uint8)]):
        lampfast.apply([_FLOAT8], {"0": _FLOAT8.view(torch.bool)})


def test_listeners_are_told_only_of_what_was_done() -> None:
    told: list[list[str]] = []

    class Listener:
        def pruning(self, layers: Any) -> None:
            """Nothing to do."""

        def pruned(self, layers: Any) -> None:
            told.append([layer.name for layer in layers])

        def stepping(self, optimizer: object) -> None:
            """Nothing to do."""

        def stepped(self, optimizer: object) -> None:
            """Nothing to do."""

    listener = Listener()
    changes.listen(listener)
    with pytest.raises(ValueError, match="missing"):
        lampfast.apply(_WEIGHTS, {})
    assert told == []
    model = {name: weight.clone() for name, weight in _WEIGHTS.items()}
    lampfast.apply(model, _masks())
    assert told == [["a", "b", "c"]]
    assert all(not weight.view(BITS[4]).any() for weight in model.values())
