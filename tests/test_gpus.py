"""What a call asks of the GPUs that layers are on, with runtimes that are faked.

Some tests fake torch's side, the others the CUDA runtime of the emulated build (tests/emulator).
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import strategies
import torch
from compare import assert_same_masks
from hypothesis import given
from hypothesis import strategies as st
from refusal import refused
from strategies import Model
from torch.overrides import TorchFunctionMode

import lampfast
from lampfast import _core, reference
from lampfast._engine import copies, gpus, views
from lampfast._engine.views import Pointer

IS_EMULATED = "LAMPFAST_EMULATED" in os.environ
needs_emulation = pytest.mark.skipif(
    not IS_EMULATED, reason="needs a build with LAMPFAST_CUDA=EMULATED (.ci/test_sizes)"
)
fakes_torch = pytest.mark.skipif(IS_EMULATED, reason="gpus.py is replaced by the emulation")

# Errors of CUDA by which loading a kernel says that there is none to load.
NO_DEVICE_FUNCTION, NO_KERNEL_IMAGE, NEWER_PTX = 98, 209, 222
OLD_DRIVER, NO_DEVICE = 35, 100


class FakeTorch(TorchFunctionMode):
    """As torch with GPUs, from 0 on: memory that is asked for there is made in the host."""

    def __init__(self) -> None:
        super().__init__()
        self.current = 0
        self.capturing: set[int] = set()
        self.lent: list[tuple[str, int]] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        asked = dict(kwargs or {})
        if func is torch.empty:
            place = "pinned" if asked.pop("pin_memory", False) else str(asked["device"])
            self.lent.append((place, args[0]))
            asked["device"] = "cpu"
        return func(*args, **asked)

    @contextmanager
    def device(self, index: int) -> Iterator[None]:
        """As torch.cuda's, like the others."""
        before, self.current = self.current, index
        yield
        self.current = before

    def current_stream(self) -> SimpleNamespace:
        """Only its handle."""
        return SimpleNamespace(cuda_stream=7000 + self.current)

    def is_current_stream_capturing(self) -> bool:
        """Whether a test says so."""
        return self.current in self.capturing


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTorch]:
    with FakeTorch() as torch_with_gpus:
        for name in ("device", "current_stream", "is_current_stream_capturing"):
            monkeypatch.setattr(torch.cuda, name, getattr(torch_with_gpus, name))
        yield torch_with_gpus


def pointers(*devices: int) -> list[Pointer]:
    return [(4096, _core.Dtype.float32, (8,), (1,), device) for device in devices]


def on_gpu(index: int) -> Any:
    place = torch.device("cuda", index)
    return mock.Mock(spec=torch.Tensor, is_cpu=False, is_cuda=True, device=place)


def needs(layers: Sequence[Any], device: int) -> Any:
    return SimpleNamespace(bytes=100 + device, host_bytes=10 + device)


# --- what is lent ---


@fakes_torch
def test_each_gpu_lends_its_stream_and_memory(fake: FakeTorch) -> None:
    fake.current = 1
    with gpus.machine(pointers(2, gpus.HOST, 0, 2), needs) as (threads, lent):
        assert threads == torch.get_num_threads()
        found = [(gpu[0], gpu[1], gpu[3], gpu[5]) for gpu in lent]
        assert found == [(0, 7000, 100, 10), (2, 7002, 102, 12)]
    assert fake.lent == [("cuda:0", 100), ("pinned", 10), ("cuda:2", 102), ("pinned", 12)]
    assert fake.current == 1


@fakes_torch
def test_layers_in_the_host_ask_for_no_gpu(fake: FakeTorch) -> None:
    with gpus.machine(pointers(gpus.HOST, gpus.HOST), needs) as (_, lent):
        assert not lent
    assert not fake.lent


# --- CUDA graphs ---


@fakes_torch
def test_nothing_is_lent_while_a_stream_is_captured(fake: FakeTorch) -> None:
    fake.capturing = {1}
    with gpus.machine(pointers(0, 2), needs) as (_, lent):
        assert len(lent) == 2
    fake.lent.clear()
    asked = mock.Mock()
    with pytest.raises(RuntimeError, match=r"cuda:1, .* being captured into a CUDA graph"):
        gpus.machine(pointers(0, 1), asked).__enter__()
    asked.assert_not_called()
    assert not fake.lent
    assert fake.current == 0


@fakes_torch
def test_masks_of_one_bit_go_into_a_graph(fake: FakeTorch) -> None:
    fake.capturing = {0}
    with gpus.machine(pointers(0)) as (_, lent):
        assert [gpu[:2] for gpu in lent] == [(0, 7000)]


@fakes_torch
def test_calls_under_a_capture_are_refused(
    fake: FakeTorch, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.capturing = {0}
    monkeypatch.setattr(gpus, "index", lambda tensor: 0)
    monkeypatch.setattr(gpus, "are_in_host", lambda tensors: False)
    weights = {"a": torch.arange(1.0, 9), "b": torch.ones(3, 4)}
    saliency = {name: weight + 1 for name, weight in weights.items()}
    kept = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    versions = [weight._version for weight in weights.values()]
    for call in (
        lambda: lampfast.prune(weights, 0.5),
        lambda: lampfast.prune(weights, 0.5, importance=saliency),
        lambda: lampfast.masks(weights, 0.5),
        lambda: lampfast.masks(weights, 0.5, out=kept),
        lambda: lampfast.scores(weights),
        lambda: lampfast.report(weights),
        lambda: lampfast.report(weights, 0.5),
    ):
        words = ("captured", "outside of the capture", "masks(..., out=)")
        with refused(RuntimeError, *words, keeps=[*weights.values(), *kept.values()]):
            call()
    assert [weight._version for weight in weights.values()] == versions


@fakes_torch
def test_no_copy_is_made_under_a_capture(fake: FakeTorch) -> None:
    fake.capturing = {1}
    weight = on_gpu(1)
    with pytest.raises(RuntimeError, match="being captured"):
        copies.to_host(weight)
    with pytest.raises(RuntimeError, match="being captured"):
        copies.to_device(weight, torch.device("cuda", 1))
    weight.detach.assert_not_called()
    copies.to_device(weight, torch.device("cuda", 0))
    weight.detach.assert_called_once()


# --- which GPUs the engine is for ---


@fakes_torch
@pytest.mark.parametrize(
    ("indices", "usable", "expected"),
    [
        pytest.param([1, 1, 1], {1}, [1, 1, 1], id="one GPU"),
        pytest.param([0, 1, 0], {0, 1}, [0, 1, 0], id="two GPUs"),
        pytest.param([1, 1], {0}, None, id="one without code"),
        pytest.param([0, 1], {0}, None, id="two, the second without code"),
    ],
)
def test_the_devices_of_many_layers(
    indices: list[int], usable: set[int], expected: list[int] | None
) -> None:
    tensors: list[Any] = [
        SimpleNamespace(is_cpu=False, is_cuda=True, device=torch.device("cuda", i)) for i in indices
    ]
    with (
        mock.patch.object(_core, "cuda_built", True),
        mock.patch.object(gpus, "_is_usable", lambda device: device in usable),
    ):
        found = views._devices(tensors)
    assert (found and [it for it, _ in zip(found, tensors, strict=False)]) == expected


@pytest.mark.parametrize(
    ("runs_on", "capability", "hip", "expected"),
    [
        pytest.param({0, 1}, (9, 0), None, [True, True], id="both"),
        pytest.param({0}, (9, 0), None, [True, False], id="no code for the second"),
        pytest.param(set(), (9, 0), None, [False, False], id="old driver"),
        pytest.param({0, 1}, (7, 0), None, [False, False], id="old GPUs"),
        pytest.param({0, 1}, (9, 0), "6.0", [False, False], id="GPUs of AMD"),
    ],
)
def test_other_gpus_have_no_engine(
    runs_on: set[int],
    capability: tuple[int, int],
    hip: str | None,
    expected: list[bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def answer(device: int) -> bool:
        asked.append(device)
        return device in runs_on

    monkeypatch.setattr(_core, "cuda_built", True)
    monkeypatch.setattr(_core, "cuda_runs_on", answer)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    gpus._is_usable.cache_clear()
    try:
        for _ in range(2):
            assert [copies.is_local(on_gpu(i)) for i in range(2)] == expected
    finally:
        gpus._is_usable.cache_clear()
    assert len(asked) == len(set(asked))  # asking loads a kernel


@needs_emulation
@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        pytest.param({}, [True, True, False], id="two GPUs"),
        pytest.param({"DEVICES": 1}, [True, False, False], id="one GPU, or a MIG slice of one"),
        pytest.param({"DEVICES": 3}, [True, True, True], id="three GPUs"),
        pytest.param({"DEVICES": 0}, [False, False, False], id="no GPU"),
        pytest.param({"DRIVER": NO_DEVICE}, [False, False, False], id="no driver"),
        pytest.param({"DRIVER": OLD_DRIVER}, [False, False, False], id="old driver"),
        pytest.param(
            {"NO_CODE": f"1:{NO_KERNEL_IMAGE}"}, [True, False, False], id="no code for the second"
        ),
        pytest.param(
            {"NO_CODE": f"0:{NO_DEVICE_FUNCTION}"}, [False, True, False], id="nor for the first"
        ),
        pytest.param({"NO_CODE": f"1:{NEWER_PTX}"}, [True, False, False], id="newer PTX"),
    ],
)
def test_the_engine_asks_for_driver_and_code(
    machine: Mapping[str, object], expected: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in machine.items():
        monkeypatch.setenv(f"LAMPFAST_EMULATOR_{name}", str(value))
    assert [_core.cuda_runs_on(device) for device in range(3)] == expected
    assert not _core.cuda_runs_on(-1)
    is_there = machine.get("DEVICES") != 0 and "DRIVER" not in machine
    assert _core.cuda_usable() == is_there
    for name in machine:
        monkeypatch.delenv(f"LAMPFAST_EMULATOR_{name}")
    lampfast.prune([torch.arange(1.0, 9)], 0.5)  # the errors have left nothing behind


@needs_emulation
def test_what_else_fails_is_no_missing_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMPFAST_EMULATOR_FAIL", "2")  # after cudaGetDeviceCount, cudaGetDevice
    with pytest.raises(RuntimeError, match="cudaFuncGetAttributes failed: cudaErrorIllegalAddress"):
        _core.cuda_runs_on(0)


@needs_emulation
def test_a_gpu_without_code_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.arange(1.0, 9)
    monkeypatch.setenv("LAMPFAST_EMULATOR_NO_CODE", f"0:{NO_KERNEL_IMAGE}")
    with refused(RuntimeError, "failed: cudaErrorNoKernelImageForDevice", keeps=[weight]):
        lampfast.prune([weight], 0.5)


# --- several GPUs ---


@contextmanager
def spread(model: Model, importance: Model, data: st.DataObject) -> Iterator[list[str]]:
    """Put tensors on GPUs 0 and 1; yields the names of the importances that are copied to another.

    No GPU reads another one's memory, so it does not matter whether they are peers: torch copies.
    """
    places = [st.sampled_from([0, 1]), st.sampled_from([gpus.HOST, 0, 1])]
    home = {layer.data_ptr(): data.draw(places[0], "layer") for layer in model.values()}
    home |= {layer.data_ptr(): data.draw(places[1], "importance") for layer in importance.values()}
    copied: list[str] = []

    def to_device(weight: torch.Tensor, device: torch.device) -> torch.Tensor:
        (name,) = (name for name, tensor in importance.items() if tensor is weight)
        copied.append(name)
        twin = weight.clone()
        home[twin.data_ptr()] = home[model[name].data_ptr()]
        alive.append(twin)
        return twin

    alive: list[torch.Tensor] = []
    with (
        mock.patch.object(gpus, "index", lambda tensor: home[tensor.data_ptr()]),
        mock.patch.object(gpus, "are_in_host", return_value=False),
        mock.patch.object(copies, "to_device", to_device),
    ):
        yield copied
    for name, weight in importance.items():
        is_elsewhere = home[weight.data_ptr()] != home[model[name].data_ptr()]
        assert copied.count(name) == is_elsewhere


@needs_emulation
@strategies.fewer
@given(st.data(), st.integers(1, 4))
def test_importances_on_other_gpus_are_copied(data: st.DataObject, layers: int) -> None:
    generator = torch.Generator().manual_seed(layers)
    model = {str(i): torch.randn(30, generator=generator) for i in range(layers)}
    importance = {name: torch.randn(30, generator=generator) for name in model}
    s = data.draw(strategies.amounts(strategies.numel(model)), "s")
    with spread(model, importance, data):
        got = lampfast.masks(model, s, importance=importance)
    assert_same_masks(got, reference.masks(model, s, importance=importance))
