"""The CUDA engine, on a GPU where there is one, and emulated on the CPU where it is built so.

The emulated build (.ci/test_sizes) also runs the CPU's own exactness tests on these kernels.
"""

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import compare
import pytest
import strategies
import torch
from compare import assert_one_ulp, assert_same_masks, assert_same_memory, pruned_copy
from emulation import played_again, take_costs
from hypothesis import given
from hypothesis import strategies as st
from refusal import refused
from strategies import Model

import lampfast
from lampfast import _arguments, _core, reference
from lampfast._engine import gpus, packed_masks, views
from lampfast._training import zeros

IS_EMULATED = "LAMPFAST_EMULATED" in os.environ
HAS_GPU = not IS_EMULATED and torch.cuda.is_available() and _core.cuda_runs_on(0)

needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="needs a GPU and a build with CUDA")
needs_emulation = pytest.mark.skipif(
    not IS_EMULATED, reason="needs a build with LAMPFAST_CUDA=EMULATED (.ci/test_sizes)"
)
places = pytest.mark.parametrize(
    "device",
    [
        pytest.param("cuda", marks=needs_gpu),
        pytest.param("cpu", marks=needs_emulation, id="emulated"),
    ],
)


def moved(model: Model, device: str) -> Model:
    """The same memory, gaps and strides included, on a device."""
    return {name: compare.moved(layer, device) for name, layer in model.items()}


def back(model: Model) -> Model:
    return moved(model, "cpu")


@places
@given(st.data(), strategies.models())
def test_masks(device: str, data: st.DataObject, model: Model) -> None:
    s = data.draw(strategies.amounts(strategies.numel(model)), "s")
    got = lampfast.masks(moved(model, device), s)
    assert all(mask.device.type == device for mask in got.values())
    assert_same_masks({name: mask.cpu() for name, mask in got.items()}, reference.masks(model, s))


@places
@given(st.data(), strategies.models())
def test_prune(device: str, data: st.DataObject, model: Model) -> None:
    s = data.draw(strategies.amounts(strategies.numel(model)), "s")
    masks = reference.masks(model, s)
    expected = {name: pruned_copy(layer, masks[name]) for name, layer in model.items()}
    there = moved(model, device)
    report = lampfast.prune(there, s)
    assert_same_memory(back(there), expected)
    kept = {layer.name: layer.kept for layer in report.layers}
    assert kept == {name: int(mask.sum()) for name, mask in masks.items()}


@places
@given(strategies.models())
def test_scores(device: str, model: Model) -> None:
    got = lampfast.scores(moved(model, device))
    for name, exact in reference.scores(model).items():
        assert got[name].shape == model[name].shape
        values = got[name].reshape(-1).tolist()
        for i, (value, score) in enumerate(zip(values, exact, strict=True)):
            assert_one_ulp(name, i, value, score, got[name].dtype)


@places
@given(st.data(), strategies.models())
def test_importance(device: str, data: st.DataObject, model: Model) -> None:
    importance = data.draw(strategies.importances(model), "importance")
    s = data.draw(strategies.amounts(strategies.numel(model)), "s")
    masks = reference.masks(model, s, importance=importance)
    expected = {name: pruned_copy(layer, masks[name]) for name, layer in model.items()}
    there = moved(model, device)
    wanted = importance if data.draw(st.booleans(), "far") else moved(importance, device)
    got = lampfast.masks(there, s, importance=wanted)
    assert_same_masks({name: mask.cpu() for name, mask in got.items()}, masks)
    lampfast.prune(there, s, importance=wanted)
    assert_same_memory(back(there), expected)


@places
@given(strategies.models())
def test_report(device: str, model: Model) -> None:
    got = lampfast.report(moved(model, device))
    assert got.to_dict() == _on_the_host(model).to_dict()


def _on_the_host(model: Model) -> lampfast.Report:
    with mock.patch.object(gpus, "index", return_value=gpus.HOST):
        return lampfast.report(model)


@places
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", strategies.DTYPES)
def test_what_is_not_finite_is_named_and_changes_nothing(
    device: str, bad: float, dtype: torch.dtype
) -> None:
    if dtype == torch.float8_e4m3fn and bad == bad:
        pytest.skip("it has no infinity")
    good, weights = torch.randn(300).to(dtype), torch.randn(40, 30).to(dtype)
    weights[7, 5] = weights[30, 2] = bad
    model = {"good": good.to(device), "bad": weights.to(device)}
    message = f"layer 'bad' has {bad} at index (7, 5)"
    for call in (
        lambda: lampfast.prune(model, 0.5),
        lambda: lampfast.masks(model, 0.5),
        lambda: lampfast.scores(model),
        lambda: lampfast.report(model),
    ):
        with refused(ValueError, message, keeps=list(model.values())):
            call()


# --- several places at once ---


@needs_emulation
@given(st.data(), strategies.models())
def test_layers_on_several_devices(data: st.DataObject, model: Model) -> None:
    s = data.draw(strategies.amounts(strategies.numel(model)), "s")
    layers = views.layers(model)
    where = [data.draw(st.sampled_from([gpus.HOST, 0, 1]), "device") for _ in layers]
    masks = {layer.name: torch.empty_like(model[layer.name], dtype=torch.bool) for layer in layers}
    sources = [(*view.pointer[:4], device) for view, device in zip(layers, where, strict=True)]
    targets = [
        (mask.data_ptr(), _core.Dtype.boolean, tuple(mask.shape), mask.stride(), device)
        for mask, device in zip(masks.values(), where, strict=True)
    ]
    count = _arguments.count("sparsity", s, strategies.numel(model))
    spec = _core.SelectionSpec(_core.Ranking.lamp, [count])
    with gpus.machine(sources, _core.cuda_needs) as (_, lent):
        _core.masks(sources, targets, spec, (2, lent))
    assert_same_masks(masks, reference.masks(model, s))


@needs_gpu
@given(st.data(), strategies.models())
def test_layers_on_the_host_and_a_gpu(data: st.DataObject, model: Model) -> None:
    s = data.draw(strategies.amounts(strategies.numel(model)), "s")
    there = moved(model, "cuda")
    mixed = {name: data.draw(st.sampled_from([model[name], there[name]])) for name in model}
    got = lampfast.masks(mixed, s)
    assert {name: mask.device for name, mask in got.items()} == {
        name: layer.device for name, layer in mixed.items()
    }
    assert_same_masks({name: mask.cpu() for name, mask in got.items()}, reference.masks(model, s))


# --- calls of CUDA that fail ---


def _failure_of_prune(weights: Model) -> str:
    try:
        lampfast.prune(weights, 0.5)
    except RuntimeError as error:
        return str(error)
    return ""


@needs_emulation
def test_a_call_that_fails_is_named_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    dtypes = (torch.float32, torch.bfloat16, torch.float64)
    before = {str(dtype): torch.randn(7, 50).to(dtype) for dtype in dtypes}
    for calls in range(1000):
        weights = {name: weight.clone() for name, weight in before.items()}
        monkeypatch.setenv("LAMPFAST_EMULATOR_FAIL", str(calls))
        failure = _failure_of_prune(weights)
        if not failure:
            break
        assert re.match(r"\w+.* failed: cudaErrorIllegalAddress, an illegal memory", failure)
        if "may have been written" not in failure:
            assert_same_memory(weights, before)
        else:  # of the last launches, one for each dtype
            assert failure.startswith("zero failed")
    assert 20 < calls < 999


# --- what is asked of a GPU ---

HAS_TEST_SIZES = hasattr(_core, "use_instruction_set")  # with which a few weights take many turns


@needs_emulation
@pytest.mark.parametrize(
    ("dtype", "most"),
    [(torch.float32, 6 if HAS_TEST_SIZES else 4), (torch.bfloat16, 6 if HAS_TEST_SIZES else 3)],
    ids=["float32", "bfloat16"],
)
@pytest.mark.parametrize("s", [0.5, 0.9])
def test_a_call_waits_for_the_gpu_a_few_times(dtype: torch.dtype, most: int, s: float) -> None:
    """For the draw, the tally, the partition, and of float32 once for candidates."""
    torch.manual_seed(0)
    layers, size = (4, 30) if HAS_TEST_SIZES else (6, 100_000)
    model = {str(i): torch.randn(size).mul(i + 1).to(dtype) for i in range(layers)}
    for call in (lampfast.masks, lampfast.prune):
        take_costs()
        call(model, s)
        costs = take_costs()
        assert 0 < costs.waits <= most
        assert costs.launches <= 12


@needs_emulation
@pytest.mark.skipif(HAS_TEST_SIZES, reason="has too little room for the keys of so many layers")
def test_many_small_layers_wait_three_times() -> None:
    """They are drawn as a whole, so that there is nothing to tally."""
    torch.manual_seed(0)
    model = {str(i): torch.randn(1_000) for i in range(100)}
    take_costs()
    lampfast.masks(model, 0.9)
    assert take_costs().waits <= 3


@needs_emulation
def test_a_call_is_played_again_without_its_kernels() -> None:
    torch.manual_seed(0)
    model = {str(i): torch.randn(500) for i in range(3)}
    with played_again() as play:
        take_costs()
        lampfast.masks(model, 0.5)
        costs = take_costs()
        play()
        lampfast.prune(model, 0.5)
        again = take_costs()
    assert all(torch.all(weights != 0) for weights in model.values())  # no kernel has run
    assert again.waits == costs.waits
    assert again.bytes_to_host == costs.bytes_to_host


@needs_emulation
@pytest.mark.parametrize("layers", [1, 40])
def test_scores_wait_once(layers: int) -> None:
    model = {str(i): torch.randn(40) for i in range(layers)}
    take_costs()
    lampfast.scores(model)
    costs = take_costs()
    assert costs.waits == 1
    assert costs.copies == 2  # where the layers are, and whether they are finite


@needs_emulation
def test_many_layers_are_scored_in_few_batches() -> None:
    model = {str(i): torch.randn(40) for i in range(300)}
    take_costs()
    lampfast.scores(model)
    kernels_of_a_batch = 4
    assert take_costs().launches <= 20 * kernels_of_a_batch


@needs_emulation
def test_keeping_zeros_waits_for_nothing() -> None:
    layers = views.layers({"0": torch.randn(5, 20), "1": torch.randn(30)}, write=True)
    take_costs()
    packed_masks.apply(layers, packed_masks.record(layers))
    costs = take_costs()
    assert costs.launches > 0
    assert costs.waits == costs.copies == 0


# --- what only a GPU can show ---


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    shapes = ((3_000, 2_000), (512, 300, 3, 3), (1_000_001,), (5,), (1_000, 64))
    return {str(i): torch.randn(shape) * 0.1**i for i, shape in enumerate(shapes)}


@pytest.fixture
def gpu_model(model: Model) -> Iterator[Model]:
    yield {name: layer.cuda() for name, layer in model.items()}
    torch.cuda.synchronize()


@needs_gpu
@pytest.mark.parametrize("s", [0.01, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("dtype", strategies.DTYPES)
def test_the_same_bits_as_on_the_host(model: Model, dtype: torch.dtype, s: float) -> None:
    host = {name: layer.to(dtype) for name, layer in model.items()}
    host["1"] = host["1"].contiguous(memory_format=torch.channels_last)
    there = moved(host, "cuda")
    expected = lampfast.masks(host, s)
    got = lampfast.masks(there, s)
    assert_same_masks({name: mask.cpu() for name, mask in got.items()}, expected)
    lampfast.prune(there, s)
    lampfast.prune(host, s)
    assert_same_memory(back(there), host)


@needs_gpu
@pytest.mark.parametrize("size", [300_000_000, (1 << 31) + 5])
def test_a_large_layer(size: int) -> None:
    weights = torch.randn(size, device="cuda", dtype=torch.bfloat16 if size >> 31 else None)
    expected = lampfast.masks([weights.cpu()], 0.9)["0"]
    assert torch.equal(lampfast.masks([weights], 0.9)["0"].cpu(), expected)
    assert int((expected == 0).sum()) == round(0.9 * size)


@needs_gpu
def test_it_runs_on_the_current_stream(gpu_model: Model) -> None:
    expected = {name: mask.cpu() for name, mask in lampfast.masks(gpu_model, 0.8).items()}
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late = {name: layer * 2 for name, layer in gpu_model.items()}
        got = lampfast.masks(late, 0.8)
    stream.synchronize()
    assert_same_masks({name: mask.cpu() for name, mask in got.items()}, expected)


@needs_gpu
def test_threads_do_not_disturb_each_other(gpu_model: Model) -> None:
    expected = lampfast.masks(gpu_model, 0.8)
    torch.cuda.synchronize()

    def work(_: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(20):
                assert_same_masks(lampfast.masks(gpu_model, 0.8), expected)

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(work, range(3)))  # raises what they raise


@needs_gpu
def test_nothing_stays_allocated(gpu_model: Model) -> None:
    lampfast.prune(gpu_model, 0.5)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    lampfast.prune(gpu_model, 0.8)
    size = sum(layer.nbytes for layer in gpu_model.values())
    assert torch.cuda.memory_allocated() == before
    assert torch.cuda.max_memory_allocated() - before <= 0.05 * size + (1 << 20)


@needs_gpu
def test_deterministic_algorithms(gpu_model: Model) -> None:
    expected = lampfast.masks(gpu_model, 0.7)
    torch.use_deterministic_algorithms(True)
    try:
        assert_same_masks(lampfast.masks(gpu_model, 0.7), expected)
    finally:
        torch.use_deterministic_algorithms(False)


@needs_gpu
def test_a_module_and_autograd() -> None:
    fc = torch.nn.Linear(64, 64).cuda()
    loss = fc(torch.randn(2, 64, device="cuda", requires_grad=True)).square().sum()
    lampfast.prune(fc, 0.5)
    assert int((fc.weight == 0).sum()) == 2048
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# --- CUDA graphs (also below, and in test_gpus.py) ---


@needs_gpu
def test_a_capture_survives_a_call_that_is_refused(gpu_model: Model) -> None:
    total = torch.zeros((), device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        total += 1
        with pytest.raises(RuntimeError, match="outside of the capture"):
            lampfast.masks(gpu_model, 0.5)
        total += 1
    graph.replay()
    assert total.item() == 2


@needs_gpu
def test_a_graph_sees_masks_that_are_written_between_replays(gpu_model: Model) -> None:
    masks = lampfast.masks(gpu_model, 0.5)
    pruned = {name: torch.empty_like(layer) for name, layer in gpu_model.items()}
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for name, layer in gpu_model.items():
            torch.mul(layer, masks[name], out=pruned[name])
    lampfast.masks(gpu_model, 0.9, out=masks)
    graph.replay()
    lampfast.prune(gpu_model, 0.9)
    for name, layer in gpu_model.items():
        assert torch.equal(pruned[name], layer), name


# --- masks that are given ---


@places
@given(strategies.models(), st.data())
def test_masks_are_applied(device: str, model: Model, data: st.DataObject) -> None:
    there = moved(model, device)
    masks, expected = {}, {}
    for name, layer in model.items():
        kept = torch.rand(layer.shape, generator=torch.Generator().manual_seed(len(name))) < 0.5
        expected[name] = pruned_copy(layer, kept)
        masks[name] = data.draw(strategies.laid_out(kept)).to(device)
    report = lampfast.apply(there, masks)
    assert_same_memory(back(there), expected)
    assert report.kept == sum(int(mask.sum()) for mask in masks.values())


@needs_gpu
def test_masks_on_another_device_are_moved(gpu_model: Model) -> None:
    masks = {name: torch.rand(layer.shape) < 0.1 for name, layer in gpu_model.items()}
    lampfast.apply(gpu_model, masks)
    for name, layer in gpu_model.items():
        assert not layer[~masks[name].cuda()].any(), name
    host = {name: torch.ones(layer.shape) for name, layer in gpu_model.items()}
    lampfast.apply(host, {name: mask.cuda() for name, mask in masks.items()})
    for name, layer in host.items():
        assert torch.equal(layer != 0, masks[name]), name


# --- zeros that are kept ---


@places
@given(strategies.models())
def test_zeros_are_kept(device: str, model: Model) -> None:
    there = moved(model, device)
    layers = views.layers(there, write=True)
    masks = packed_masks.record(layers)
    assert all(mask.device.type == device for mask in masks)
    keeps = {name: layer.double() != 0 for name, layer in model.items()}
    for layer in there.values():
        layer.copy_(torch.ones_like(layer))
    full = {name: layer.clone() for name, layer in back(there).items()}
    packed_masks.apply(layers, masks)
    for name, layer in back(there).items():
        assert torch.equal(layer.double(), full[name].double() * keeps[name]), name


@needs_gpu
def test_keeping_zeros_waits_for_nothing_and_goes_into_a_graph(gpu_model: Model) -> None:
    weights = [torch.nn.Parameter(layer) for layer in gpu_model.values()]
    weights.append(torch.nn.Parameter(torch.randn(300, 400, device="cuda")[:, ::2]))
    lampfast.prune(weights, 0.9)
    masks = [weight.detach() != 0 for weight in weights]
    optimizer = torch.optim.AdamW(weights, capturable=True)
    zeros.keep_zeros(weights, optimizer)
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    optimizer.step()  # sets up its state
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # in which waiting would be an error
        optimizer.step()
    for _ in range(5):
        graph.replay()
    for weight, mask in zip(weights, masks, strict=True):
        assert torch.equal(weight.detach() != 0, mask)
