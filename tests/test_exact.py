"""prune, masks and scores against the oracle on the hard inputs of strategies.py.

Masks and pruned weights bit for bit, scores to within one unit in the last place, with 1 to 4
threads and every instruction set that the build can choose from (cpu_settings.py).
"""

from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import cpu_settings
import numpy as np
import pytest
import strategies
import torch
from compare import assert_one_ulp, assert_same_masks, assert_same_memory, memory, pruned_copy
from cpu_settings import CpuSettings
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Array, ArrayModel, Model

import lampfast
from lampfast import reference


@given(st.data(), strategies.models(), strategies.cpus)
def test_masks(data: st.DataObject, model: Model, cpu: CpuSettings) -> None:
    s = data.draw(strategies.amounts(strategies.numel(model)), "s")
    cpu.use()
    before = {name: memory(layer).clone() for name, layer in model.items()}
    got = lampfast.masks(model, s)
    assert_same_masks(got, reference.masks(model, s))
    for name, layer in model.items():
        assert torch.equal(memory(layer), before[name]), f"masks changed {name}"


@given(st.data(), strategies.models(), strategies.cpus)
def test_prune_zeroes_exactly_what_the_mask_says(
    data: st.DataObject, model: Model, cpu: CpuSettings
) -> None:
    s = data.draw(strategies.amounts(strategies.numel(model)), "s")
    cpu.use()
    masks = reference.masks(model, s)
    expected = {name: pruned_copy(layer, masks[name]) for name, layer in model.items()}
    lampfast.prune(model, s)
    assert_same_memory(model, expected)


@given(strategies.models(), strategies.cpus)
def test_scores(model: Model, cpu: CpuSettings) -> None:
    cpu.use()
    got = lampfast.scores(model)
    exact = reference.scores(model)
    assert list(got) == list(model)
    for name, layer in model.items():
        assert got[name].shape == layer.shape, name
        dtype = torch.float64 if layer.dtype == torch.float64 else torch.float32
        assert got[name].dtype == dtype, name
        _assert_one_ulp(name, got[name], exact[name])


@given(st.data(), strategies.models(), strategies.cpus)
def test_importance_takes_the_place_of_the_weights(
    data: st.DataObject, model: Model, cpu: CpuSettings
) -> None:
    importance = data.draw(strategies.importances(model), "importance")
    s = data.draw(strategies.amounts(strategies.numel(model)), "s")
    cpu.use()
    masks = reference.masks(model, s, importance)
    assert_same_masks(lampfast.masks(model, s, importance=importance), masks)
    expected = {name: pruned_copy(layer, masks[name]) for name, layer in model.items()}
    lampfast.prune(model, s, importance=importance)
    assert_same_memory(model, expected)


@given(st.data(), strategies.array_models(), strategies.cpus)
def test_numpy_arrays(data: st.DataObject, model: ArrayModel, cpu: CpuSettings) -> None:
    s = data.draw(strategies.amounts(strategies.numel(model)), "s")
    cpu.use()
    expected = reference.masks(model, s)
    got = lampfast.masks(model, s)
    assert list(got) == list(model)
    for name, mask in expected.items():
        assert isinstance(got[name], np.ndarray)
        assert got[name].dtype == np.bool_
        np.testing.assert_array_equal(got[name], mask.numpy(), err_msg=name)

    exact = reference.scores(model)
    for name, score in lampfast.scores(model).items():
        assert isinstance(score, np.ndarray)
        assert score.dtype == (np.float64 if model[name].dtype == np.float64 else np.float32)
        _assert_one_ulp(name, torch.from_numpy(score), exact[name])

    twins = {name: _twin_array(array) for name, array in model.items()}
    lampfast.prune(model, s)
    for name, twin in twins.items():
        twin[~expected[name].numpy()] = 0
        assert _owner(model[name]).tobytes("A") == _owner(twin).tobytes("A"), name


@given(st.data(), strategies.models(), strategies.cpus)
def test_expanded_tensors_have_masks_and_scores(
    data: st.DataObject, model: Model, cpu: CpuSettings
) -> None:
    wide = {
        name: layer.unsqueeze(-1).expand(*layer.shape, data.draw(st.integers(1, 5)))
        for name, layer in model.items()
    }
    s = data.draw(strategies.amounts(strategies.numel(wide)), "s")
    cpu.use()
    assert_same_masks(lampfast.masks(wide, s), reference.masks(wide, s))
    exact = reference.scores(wide)
    for name, score in lampfast.scores(wide).items():
        _assert_one_ulp(name, score, exact[name])


@strategies.fewer
@given(st.data(), strategies.models())
def test_a_sequence_is_named_by_position(data: st.DataObject, model: Model) -> None:
    s = data.draw(strategies.amounts(strategies.numel(model)), "s")
    expected = reference.masks(model, s)
    got = lampfast.masks(list(model.values()), s)
    assert_same_masks(got, {str(i): mask for i, mask in enumerate(expected.values())})


@strategies.fewer
@given(st.data(), strategies.models())
def test_the_report_of_prune(data: st.DataObject, model: Model) -> None:
    s = data.draw(strategies.amounts(strategies.numel(model)), "s")
    masks = reference.masks(model, s)
    k = s if isinstance(s, int) else round(s * strategies.numel(model))
    before = {name: layer.detach().double().abs() for name, layer in model.items()}
    report = lampfast.prune(model, s)
    assert (report.numel, report.kept) == (strategies.numel(model), strategies.numel(model) - k)
    assert [row.name for row in report.layers] == list(model)
    for row in report.layers:
        kept = before[row.name][masks[row.name]]
        assert (row.numel, row.kept) == (masks[row.name].numel(), kept.numel()), row.name
        assert row.threshold == (kept.min().item() if kept.numel() else None), row.name


@pytest.mark.parametrize("dtype", strategies.DTYPES)
@settings(max_examples=15)
@given(seed=st.integers(0, 2**32), cpu=strategies.cpus)
def test_thousands_of_weights(dtype: torch.dtype, seed: int, cpu: CpuSettings) -> None:
    """Enough weights for every branch of a loop over blocks, still few enough for the oracle."""
    rng = np.random.default_rng(seed)
    cpu.use()
    model: Model = {}
    for position in range(rng.integers(1, 5)):
        values = rng.standard_normal(rng.integers(1, 1200)) * 10.0 ** rng.integers(-2, 2)
        if rng.random() < 0.3:
            values *= 10.0 ** rng.uniform(-6, 2, values.size)
        if rng.random() < 0.3:
            values[rng.random(values.size) < 0.7] = 0
        model[str(position)] = strategies.as_dtype(values.tolist(), dtype)
        if rng.random() < 0.3:
            model[f"{position} again"] = model[str(position)].clone()
    for s in (float(rng.random()), int(rng.integers(0, strategies.numel(model) + 1)), 0.9):
        assert_same_masks(lampfast.masks(model, s), reference.masks(model, s))
    exact = reference.scores(model)
    for name, score in lampfast.scores(model).items():
        _assert_one_ulp(name, score, exact[name])


@settings(max_examples=5)
@given(seed=st.integers(0, 2**32), cpu=strategies.cpus)
def test_float64_from_its_smallest_to_its_largest(seed: int, cpu: CpuSettings) -> None:
    """Squares that float64 cannot hold, sums that span 4,000 bits, and a layer of each extreme."""
    rng = np.random.default_rng(seed)
    cpu.use()
    sizes = rng.integers(1, 1500, 3)
    low, high = np.sort(rng.uniform(-323, 308, 2))
    layers = [
        10.0 ** rng.uniform(a, b, size)
        for size, (a, b) in zip(sizes, [(-323, 308), (low, high), (-323, -300)], strict=True)
    ]
    model = {
        str(i): torch.from_numpy(rng.choice([-1, 1], x.size) * x) for i, x in enumerate(layers)
    }
    model["copy"] = model["0"] * 0.5
    for s in rng.random(2):
        assert_same_masks(lampfast.masks(model, s), reference.masks(model, s))
    exact = reference.scores(model)
    for name, score in lampfast.scores(model).items():
        _assert_one_ulp(name, score, exact[name])


def test_near_ties_where_float64_squares_are_subnormal() -> None:
    """Next to a weight of 1 the others' squares keep only a few digits in float64."""
    rng = np.random.default_rng(0)
    small = 2.0 ** rng.uniform(-538, -520, 40)
    near = small * np.sqrt(1.49) * (1 + 1e-6 * rng.standard_normal(40))
    model = {
        "sum of squares 1": torch.from_numpy(np.append(small, 1.0)),
        "sum of squares 1.49": torch.from_numpy(np.append(near, [0.7, 1.0])),
    }
    for k in range(strategies.numel(model)):
        assert_same_masks(lampfast.masks(model, k), reference.masks(model, k))


@pytest.mark.parametrize("dtype", strategies.DTYPES)
@pytest.mark.parametrize("cpu", cpu_settings.FEW_AND_MANY)
def test_every_count_round_trips(dtype: torch.dtype, cpu: CpuSettings) -> None:
    """From nothing pruned to nothing kept, one weight at a time, with ties everywhere."""
    cpu.use()
    model = {
        "a": strategies.as_dtype([1, 2, -2, 3, 0, 3, -0.0, 5], dtype),
        "b": strategies.as_dtype([2, 4, -4, 6, 6, 10], dtype),
        "c": strategies.as_dtype([7, 7, -7, 7, 7], dtype),
        "d": strategies.as_dtype([0, 0], dtype),
    }
    for k in range(strategies.numel(model) + 1):
        assert_same_masks(lampfast.masks(model, k), reference.masks(model, k))


@pytest.mark.parametrize("dtype", strategies.DTYPES)
@pytest.mark.parametrize("cpu", cpu_settings.FEW_AND_MANY)
def test_subnormals_count_even_where_the_processor_flushes_them(
    dtype: torch.dtype, cpu: CpuSettings
) -> None:
    cpu.use()
    info = torch.finfo(dtype)
    step = info.smallest_normal * info.eps  # the smallest subnormal
    rng = np.random.default_rng(0)
    steps = rng.integers(-4, 5, 600) * np.where(rng.random(600) < 0.5, 1.0, 2.0)
    model = {
        "subnormal": strategies.as_dtype((steps[:300] * step).tolist(), dtype),
        "normal": strategies.as_dtype(steps[300:].tolist(), dtype),
    }
    exact = reference.scores(model)
    expected = {k: reference.masks(model, k) for k in (1, 100, 300, 500, 599)}
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    try:
        got = {k: lampfast.masks(model, k) for k in expected}
        scores = lampfast.scores(model)
        lampfast.prune(model, 300)
    finally:
        torch.set_flush_denormal(False)
    for k in expected:
        assert_same_masks(got[k], expected[k])
    for name in model:
        _assert_one_ulp(name, scores[name], exact[name])
        assert torch.equal(model[name] != 0, expected[300][name] & _nonzero(exact[name]))


def test_many_python_threads_at_once() -> None:
    rng = np.random.default_rng(1)
    jobs = []
    for _ in range(24):
        model = {
            str(i): torch.from_numpy(rng.integers(-9, 10, rng.integers(1, 400)).astype(np.float32))
            for i in range(4)
        }
        jobs.append((model, int(rng.integers(0, strategies.numel(model) + 1))))
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda job: lampfast.masks(*job), jobs))
    for (model, k), got in zip(jobs, results, strict=True):
        assert_same_masks(got, reference.masks(model, k))


def _nonzero(scores: list[Fraction]) -> torch.Tensor:
    """Which elements are not zero, by their exact scores."""
    return torch.tensor([score > 0 for score in scores])


def _assert_one_ulp(name: str, got: torch.Tensor, exact: list[Fraction]) -> None:
    for index, (value, score) in enumerate(zip(got.reshape(-1).tolist(), exact, strict=True)):
        assert_one_ulp(name, index, value, score, got.dtype)


def _owner(array: Array) -> Array:
    """The array that owns the memory."""
    return array if array.base is None else _owner(array.base)


def _twin_array(array: Array) -> Array:
    """A view with the same strides into a copy of all the memory."""
    owner = _owner(array)
    copy = owner.copy(order="K").reshape(-1, order="A")
    offset = array.ctypes.data - owner.ctypes.data
    return np.ndarray(array.shape, array.dtype, copy, offset, array.strides)
