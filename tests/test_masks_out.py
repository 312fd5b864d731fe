"""Masks that exist: `masks(..., out=)` writes into them, and refuses those that it cannot write."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import strategies
import torch
from compare import assert_same_masks
from hypothesis import given
from hypothesis import strategies as st
from refusal import Weight, refused
from strategies import ArrayModel, Model
from test_devices import far, some
from torch import nn

import lampfast
from lampfast import reference
from lampfast._engine import calls

# Bytes that a bool tensor of torch never holds: what the engine leaves as it was shows up.
STALE = 0xA5


def stale(shape: tuple[int, ...]) -> torch.Tensor:
    """A bool tensor whose memory holds something else."""
    return torch.full(shape, STALE, dtype=torch.uint8).view(torch.bool)


LAYOUTS: dict[str, Callable[[tuple[int, ...]], torch.Tensor]] = {
    "contiguous": stale,
    "reversed": lambda shape: stale(shape[::-1]).permute(*reversed(range(len(shape)))),
    "channels_last": lambda shape: (
        stale((shape[0], *shape[2:], shape[1])).movedim(-1, 1) if len(shape) == 4 else stale(shape)
    ),
    "every third column": lambda shape: stale((*shape[:-1], 3 * shape[-1] + 2))[..., 1:-1:3],
    "wide rows": lambda shape: stale((*shape[:-1], shape[-1] + 5))[..., 2 : 2 + shape[-1]],
    "every other row": lambda shape: stale((2 * shape[0] + 1, *shape[1:]))[1::2],
}


def made(layout: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A stale mask in a memory format; one without dimensions has only one."""
    return LAYOUTS[layout](shape) if shape else stale(shape)


def memory(mask: torch.Tensor) -> torch.Tensor:
    """The bytes of the storage, gaps included."""
    return torch.empty(0, dtype=torch.uint8).set_(mask.untyped_storage())


def assert_written(out: Model, expected: Model) -> None:
    """Require the masks, each byte 0 or 1, and the gaps between their elements as they were."""
    assert_same_masks(out, expected)
    for name, mask in out.items():
        assert torch.equal(mask.view(torch.uint8), expected[name].view(torch.uint8)), name
        bytes_ = memory(mask).clone()
        twin = torch.empty(0, dtype=torch.uint8)
        twin.set_(bytes_.untyped_storage(), mask.storage_offset(), mask.shape, mask.stride())
        twin.fill_(STALE)
        assert (bytes_ == STALE).all(), name


@given(st.data(), strategies.models(), strategies.cpus)
def test_the_oracles_masks_in_every_memory_format(
    data: st.DataObject, model: Model, cpu: Any
) -> None:
    cpu.use()
    s = data.draw(strategies.amounts(strategies.numel(model)), "s")
    layouts = st.sampled_from(list(LAYOUTS))
    out = {name: made(data.draw(layouts, name), tuple(w.shape)) for name, w in model.items()}
    got = lampfast.masks(model, s, out=dict(reversed(out.items())))
    assert list(got) == list(model)
    assert all(got[name] is mask for name, mask in out.items())
    assert_written(out, reference.masks(model, s))


@strategies.fewer
@given(st.data(), strategies.models())
def test_with_an_importance_and_again(data: st.DataObject, model: Model) -> None:
    out = {name: stale(tuple(layer.shape)) for name, layer in model.items()}
    for turn in ("first", "again"):
        importance = data.draw(strategies.importances(model), turn)
        s = data.draw(strategies.amounts(strategies.numel(model)), turn)
        lampfast.masks(model, s, importance=importance, out=out)
        assert_written(out, reference.masks(model, s, importance))


@strategies.fewer
@given(st.data(), strategies.models())
def test_on_devices_without_an_engine(data: st.DataObject, model: Model) -> None:
    out = {name: stale(tuple(layer.shape)) for name, layer in model.items()}
    s = data.draw(strategies.amounts(strategies.numel(model)), "s")
    with far([*some(data, model), *some(data, out)]):
        lampfast.masks(model, s, out=out)
    assert_same_masks(out, reference.masks(model, s))


@strategies.fewer
@given(st.data(), strategies.array_models())
def test_arrays(data: st.DataObject, model: ArrayModel) -> None:
    s = data.draw(strategies.amounts(strategies.numel(model)), "s")
    out = {
        name: np.full(layer.shape, STALE, np.uint8, order=data.draw(st.sampled_from("CF"))).view(
            np.bool_
        )
        for name, layer in model.items()
    }
    got = lampfast.masks(model, s, out=out)
    for name, expected in lampfast.masks(model, s).items():
        assert got[name] is out[name]
        assert np.array_equal(out[name].view(np.uint8), expected.view(np.uint8))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", ["lamp", "uniform"])
@pytest.mark.parametrize("s", [0.5, 0.99])
def test_large_layers_of_noise_and_of_ties(layout: str, method: Any, s: float) -> None:
    rng = np.random.default_rng(0)
    noise = torch.from_numpy(rng.standard_normal((64, 48, 9, 11)).astype(np.float32))
    ties = torch.from_numpy(rng.integers(-2, 3, (300, 700)).astype(np.float32))
    model = {
        "noise": noise,
        "ties": ties,
        "last": noise.contiguous(memory_format=torch.channels_last),
    }
    out = {name: made(layout, tuple(layer.shape)) for name, layer in model.items()}
    lampfast.masks(model, s, method=method, out=out)
    assert_written(out, lampfast.masks(model, s, method=method))


def test_modules_patterns_and_ties() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    out = lampfast.masks(model, 0.25)
    assert_same_masks(lampfast.masks(model, 0.75, out=out), lampfast.masks(model, 0.75))
    one = lampfast.masks(model, 0.5, include="1.weight", out={"1.weight": stale((4, 4))})
    assert_same_masks(one, lampfast.masks(model, 0.5, include="1.weight"))


def test_masks_may_lie_between_each_other() -> None:
    model = {"a": torch.randn(5, 7), "b": torch.randn(5, 7)}
    base = stale((5, 14))
    out = {"a": base[:, ::2], "b": base[:, 1::2]}
    assert_same_masks(lampfast.masks(model, 0.5, out=out), lampfast.masks(model, 0.5))


def test_versions_and_a_stale_backward() -> None:
    weight, x = torch.randn(4), torch.randn(4, requires_grad=True)
    out = lampfast.masks([weight], 2)
    version, of_weight = out["0"]._version, weight._version
    loss = (x * out["0"]).sum()
    lampfast.masks([weight], 3, out=out)
    assert out["0"]._version > version
    assert weight._version == of_weight
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.backward(loss)


def test_inference_tensors() -> None:
    weight = torch.tensor([3.0, 1.0, 2.0])
    with torch.inference_mode():
        out = {"0": torch.zeros(3, dtype=torch.bool)}
        lampfast.masks([weight], 1, out=out)
    assert out["0"].tolist() == [True, False, True]
    assert lampfast.masks([weight], 2, out=out)["0"].tolist() == [True, False, False]


def test_a_failed_call_counts_as_a_write_and_changes_no_weight() -> None:
    good, bad = torch.randn(3000), torch.randn(3000)
    out = lampfast.masks([good, bad], 0.5)
    bad[7] = float("nan")
    version = out["0"]._version
    with refused(ValueError, "layer '1' has nan at index (7,)", keeps=[good, bad]):
        lampfast.masks([good, bad], 0.5, out=out)
    assert out["0"]._version > version


_WEIGHT = torch.randn(4, 6)

# What is refused, for a layer "a" of _WEIGHT and a layer "b" of zeros of shape (3,).
UNFIT: dict[str, tuple[type[Exception], Callable[[], Any], tuple[str, ...]]] = {
    "list": (TypeError, lambda: [stale((4, 6)), stale((3,))], ("out is a list", "mapping")),
    "tensor": (TypeError, lambda: stale((4, 6)), ("out is a Tensor", "mapping")),
    "missing": (ValueError, lambda: {"a": stale((4, 6))}, ("missing: ['b']", "lampfast.masks")),
    "surplus": (ValueError, lambda: _out(c=stale((3,))), ("unknown: ['c']", "lampfast.masks")),
    "number": (TypeError, lambda: _out(a=True), ("'a'", "a bool;", "bool tensor")),
    "bytes": (
        TypeError,
        lambda: _out(a=torch.ones(4, 6, dtype=torch.uint8)),
        ("'a'", "torch.uint8", "bool tensor"),
    ),
    "floats that require grad": (
        TypeError,
        lambda: _out(a=torch.ones(4, 6, requires_grad=True)),
        ("'a'", "torch.float32", "bool tensor"),
    ),
    "array": (TypeError, lambda: _out(a=np.ones((4, 6), bool)), ("'a'", "ndarray", "bool tensor")),
    "transposed": (ValueError, lambda: _out(a=stale((6, 4))), ("'a'", "(6, 4)", "(4, 6)")),
    "flat": (ValueError, lambda: _out(a=stale((24,))), ("'a'", "(24,)", "(4, 6)")),
    "elsewhere": (
        ValueError,
        lambda: _out(a=torch.empty(4, 6, dtype=torch.bool, device="meta")),
        ("'a'", "is on meta", "on cpu", "device"),
    ),
    "sparse": (
        TypeError,
        lambda: _out(a=torch.ones(4, 6, dtype=torch.bool).to_sparse()),
        ("'a'", "sparse"),
    ),
    "expanded": (
        ValueError,
        lambda: _out(a=stale((4, 1)).expand(4, 6)),
        ("'a'", "elements that share memory", "memory of its own"),
    ),
    "overlapping itself": (
        ValueError,
        lambda: _out(a=stale((10,)).as_strided((4, 6), (1, 1))),
        ("'a'", "elements that share memory"),
    ),
    "each other": (
        ValueError,
        lambda: (lambda base: {"a": base[:24].view(4, 6), "b": base[22:25]})(stale((25,))),
        ("'a'", "shares memory with out of layer 'b'", "memory of its own"),
    ),
    "its weight": (
        ValueError,
        lambda: _out(a=_WEIGHT.view(torch.bool)[:, :6]),
        ("'a'", "shares memory with layer 'a'", "memory of its own"),
    ),
    "another's weight": (
        ValueError,
        lambda: _out(b=_WEIGHT.view(torch.bool)[1, 2:5]),
        ("'b'", "shares memory with layer 'a'", "memory of its own"),
    ),
}


def _out(**masks: Any) -> dict[str, Any]:
    return {"a": stale((4, 6)), "b": stale((3,)), **masks}


@pytest.mark.parametrize(("error", "make", "words"), UNFIT.values(), ids=UNFIT)
def test_unfit_masks_change_nothing(
    error: type[Exception], make: Callable[[], Any], words: tuple[str, ...]
) -> None:
    out = make()
    masks = out.values() if isinstance(out, dict) else out
    dense = [m for m in masks if isinstance(m, torch.Tensor) and m.is_cpu and not m.is_sparse]
    keeps = [_WEIGHT, *(mask.view(torch.uint8) for mask in dense if mask.dtype == torch.bool)]
    with refused(error, "out", *words, keeps=keeps):
        lampfast.masks({"a": _WEIGHT, "b": torch.zeros(3)}, 0.5, out=out)


def test_a_mask_that_shares_memory_with_an_importance() -> None:
    weight, importance = torch.randn(8), torch.randn(8)
    out = {"0": importance.view(torch.bool)[8:16]}
    words = ("out of layer '0'", "shares memory with importance of layer '0'")
    with refused(ValueError, *words, keeps=[weight, importance]):
        lampfast.masks([weight], 0.5, importance={"0": importance}, out=out)


def test_arrays_of_other_kinds() -> None:
    model: list[Weight] = [np.ones(3, np.float32)]
    locked = np.ones(3, bool)
    locked.flags.writeable = False
    with refused(TypeError, "out of layer '0'", "Tensor", "numpy array", keeps=model):
        lampfast.masks(model, 1, out={"0": torch.ones(3, dtype=torch.bool)})
    with refused(TypeError, "out of layer '0'", "int8", "numpy array", keeps=model):
        lampfast.masks(model, 1, out={"0": np.ones(3, np.int8)})
    with refused(ValueError, "out of layer '0'", "read-only", "its own", keeps=[*model, locked]):
        lampfast.masks(model, 1, out={"0": locked})


def test_nothing_is_read_before_the_masks_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(calls, "zero_thresholds", read)
    monkeypatch.setattr(calls, "masks", read)
    with pytest.raises(ValueError, match="missing"):
        lampfast.masks([torch.ones(3)], 0.5, method="uniform", out={})


def test_threads_write_masks_of_their_own() -> None:
    weights = [torch.randn(20_000) for _ in range(4)]
    outs = [{"0": stale((20_000,))} for _ in weights]

    def ask(i: int) -> None:
        for _ in range(20):
            lampfast.masks([weights[i]], 0.9, out=outs[i])

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for weight, out in zip(weights, outs, strict=True):
        assert_same_masks(out, lampfast.masks([weight], 0.9))
