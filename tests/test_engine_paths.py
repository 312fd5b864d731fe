"""The engine's rare paths, bit for bit against sorted_check.py, with 1 to 4 threads.

Small enough to run often, and against a build with far smaller sizes (.ci/test_sizes) too.
"""

from collections.abc import Callable, Iterable
from math import prod

import cpu_settings
import numpy as np
import numpy.typing as npt
import pytest
import torch
from compare import assert_same_masks, assert_same_memory, pruned_copy
from sorted_check import SortedCheck
from strategies import DTYPES

import lampfast
from lampfast import _core
from lampfast._engine import gpus
from lampfast._engine.views import Pointer

Array = npt.NDArray[np.float64]
Rng = np.random.Generator
Model = dict[str, torch.Tensor]

CHUNK = 1 << 17  # csrc/chunks.h
SMALL_CHUNK = 20
SCALE = 16 if cpu_settings.TEST_SIZES else 1  # as many chunks take all the more time there


def _model(layers: Iterable[Array], dtype: torch.dtype = torch.float32) -> Model:
    return {str(i): torch.from_numpy(layer).to(dtype, copy=True) for i, layer in enumerate(layers)}


def _around(counts: Iterable[int], most: int) -> list[int]:
    """Each count with those one below and above it."""
    near = {count + step for count in counts for step in (-1, 0, 1)}
    return sorted(k for k in near if 0 <= k <= most)


def _pointer(tensor: torch.Tensor) -> Pointer:
    name = str(tensor.dtype).removeprefix("torch.")
    dtype: _core.Dtype = getattr(_core.Dtype, "boolean" if name == "bool" else name)
    return tensor.data_ptr(), dtype, tuple(tensor.shape), tensor.stride(), gpus.HOST


def _pointers(tensors: Model) -> list[Pointer]:
    return [_pointer(tensor) for tensor in tensors.values()]


def _copy(layer: torch.Tensor) -> torch.Tensor:
    """The same values and memory format."""
    return pruned_copy(layer, torch.ones_like(layer, dtype=torch.bool))


def _assert_exact(model: Model, counts: Iterable[int], check: SortedCheck | None = None) -> None:
    """Require the exact masks and pruned weights for every count."""
    check = check or SortedCheck(model)
    for turn, k in enumerate(counts):
        cpu_settings.in_turn(turn).use()
        expected = check.masks(k)
        assert_same_masks(lampfast.masks(model, k), expected)
        if turn % 2 == 0:
            pruned = {name: _copy(layer) for name, layer in model.items()}
            lampfast.prune(pruned, k)
            layers = {name: pruned_copy(layer, expected[name]) for name, layer in model.items()}
            assert_same_memory(pruned, layers)


# --- masks written during the survey ---


def _layouts(values: torch.Tensor) -> Model:
    """One layer in every memory format, and wider ones by expanding."""
    wide = torch.zeros((*values.shape[:-1], 2 * values.shape[-1] + 1), dtype=values.dtype)
    wide[..., 1::2] = values
    flat = values.flatten(1)
    row, column = flat[0].clone(), flat[:, :1].clone()
    return {
        "contiguous": values,
        "channels_last": values.contiguous(memory_format=torch.channels_last),
        "transposed": flat.t().contiguous().t(),
        "strided": wide[..., 1::2],
        "every other row": flat.repeat_interleave(2, 0)[::2],
        "expanded": row.expand(50, -1),
        "expanded within": column.expand(-1, 40),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 3, 2, 2), (70, 60 // SCALE, 6, 6)])
@pytest.mark.parametrize("tied", [False, True], ids=["noise", "ties"])
def test_masks_written_on_the_way_are_right_in_every_memory_format(
    dtype: torch.dtype, shape: tuple[int, ...], tied: bool
) -> None:
    rng = np.random.default_rng(prod(shape))
    values = rng.integers(-9, 10, shape) / 4.0 if tied else rng.standard_normal(shape)
    model = _layouts(torch.from_numpy(values).to(dtype))
    check = SortedCheck(model)
    sources = _pointers(model)
    for turn, share in enumerate((0.4, 0.95)):
        k, threads = round(share * check.numel), 2 + turn
        expected = check.masks(k)
        spec = _core.SelectionSpec(_core.Ranking.lamp, [k])
        planned = _core.thresholds(sources, spec, (threads, ()))
        assert sum(threshold.pruned for threshold in planned) == k
        for memory_format in (torch.preserve_format, torch.contiguous_format):
            masks = {
                name: torch.empty_like(layer, dtype=torch.bool, memory_format=memory_format)
                for name, layer in model.items()
            }
            found = _core.masks(sources, _pointers(masks), spec, (threads, ()))
            assert_same_masks(masks, expected)
            assert [(t.key, t.ties, t.pruned) for t in found] == [
                (t.key, t.ties, t.pruned) for t in planned
            ]


# --- guesses that miss ---


def _giants_in_a_few_runs(rng: Rng, size: int) -> Array:
    """Nearly all of the sum of squares lies where a sample hardly looks."""
    layer = rng.standard_normal(size)
    for begin in rng.integers(0, size, 3):
        layer[begin : begin + size // 1000 + 1] *= 10.0 ** rng.uniform(1, 3)
    return layer


def _quiet_but_for_a_run(rng: Rng, size: int) -> Array:
    """Nearly all weights are equal or zero; those that are not are neighbours."""
    layer = np.full(size, rng.choice([0.0, 1e-3]))
    begin = rng.integers(0, size)
    run = layer[begin : begin + size // 300 + 1]
    run[:] = rng.standard_normal(run.size)
    return layer


def _periodic(rng: Rng, size: int) -> Array:
    """The scale of the noise has a period of a block of the sample, or of several."""
    period = 2 ** int(rng.integers(2, 11))
    scale = 10.0 ** rng.uniform(-3, 1, period)
    return rng.standard_normal(size) * np.resize(scale, size)


def _steps(rng: Rng, size: int) -> Array:
    """Long stretches of one magnitude each, all a little apart."""
    heights = rng.integers(1, 9, 40) / 8.0
    edges = np.sort(rng.integers(0, size, heights.size - 1))
    return np.repeat(heights, np.diff([0, *edges.tolist(), size]))


LIARS: list[Callable[[Rng, int], Array]] = [
    _giants_in_a_few_runs,
    _quiet_but_for_a_run,
    _periodic,
    _steps,
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("liar", [*LIARS, None], ids=lambda liar: getattr(liar, "__name__", "all"))
def test_weights_that_lie_to_the_sample(
    liar: Callable[[Rng, int], Array] | None, dtype: torch.dtype
) -> None:
    rng = np.random.default_rng(0)
    sizes = (*(size // SCALE for size in (120_000, 40_000, 20_000)), 2_500, 500, 90)
    liars = [liar] if liar else LIARS
    model = _model((make(rng, size) for size in sizes for make in liars), dtype)
    check = SortedCheck(model)
    _assert_exact(model, rng.integers(0, check.numel + 1, 4).tolist(), check)
    _assert_exact(model, [round(share * check.numel) for share in (0.5, 0.95, 0.9999)], check)


# --- scores that only exact arithmetic tells apart ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("size", [40, 700])
def test_scaled_copies_that_differ_in_one_bit(dtype: torch.dtype, size: int) -> None:
    """A factor of 3 or 5 is exact here and changes no score; the last bit of one weight does."""
    rng = np.random.default_rng(size)
    values = rng.integers(1, 400, size).astype(np.float64)
    model = _model((values * factor for factor in (1, 3, -5, 0.5, 3, 1, 2.0**-6)), dtype)
    for i, name in enumerate(["4", "5", "6"]):
        layer = model[name]
        place = torch.argsort(layer.abs(), stable=True)[[-1, size // 2, 3][i]]
        layer[place] = torch.nextafter(layer[place], layer.new_tensor(0.0))
    check = SortedCheck(model)
    some = int(rng.integers(check.numel - 30))
    _assert_exact(model, [*range(some, some + 30), check.numel * 9 // 10], check)


def test_scores_apart_by_less_than_any_float_sees() -> None:
    """Hundreds of weights that differ in their last bits, next to a much larger one."""
    rng = np.random.default_rng(0)
    bits = [rng.integers(0, 300, size) for size in (900, 900, 1, 400)]
    layers: list[Array] = [(1 + 2.0**-52 * places).astype(np.float64) for places in bits]
    layers = [rng.permutation(np.append(layer, 2.0**30)) for layer in layers]
    model = _model([*layers, layers[1] * 2, layers[0][::-1].copy()], torch.float64)
    check = SortedCheck(model)
    counts = _around([5, 900, 2_501, 3_333, check.numel - 6], check.numel)
    _assert_exact(model, counts, check)


# --- ties that straddle the cut ---


TIED = [torch.float32, torch.bfloat16, torch.float8_e4m3fn]


def _as_channels_last(model: Model) -> Model:
    return {
        name: layer.reshape(20, -1, 3, 3).contiguous(memory_format=torch.channels_last)
        for name, layer in model.items()
    }


@pytest.mark.parametrize("channels_last", [False, True], ids=["row-major", "channels_last"])
@pytest.mark.parametrize("dtype", TIED)
def test_the_cut_between_chunks_of_equal_weights(dtype: torch.dtype, channels_last: bool) -> None:
    size = 271_980 // SCALE // 180 * 180
    model = _model([np.full(size, -0.25)], dtype)
    if channels_last:
        model = _as_channels_last(model)
    edges = [SMALL_CHUNK, 3 * SMALL_CHUNK, CHUNK, 2 * CHUNK]
    _assert_exact(model, [0, 1, *_around(edges, size), size - 1, size])


@pytest.mark.parametrize("channels_last", [False, True], ids=["row-major", "channels_last"])
@pytest.mark.parametrize("dtype", TIED)
def test_the_cut_between_equal_layers(dtype: torch.dtype, channels_last: bool) -> None:
    """Layers of the same weights have the same scores, and of these the first layers' go first."""
    rng = np.random.default_rng(0)
    some = rng.choice([0.5, 0.5, -1.0, 2.0], 18_000 // SCALE // 180 * 180)
    model = _model([some, rng.permutation(some), -2 * some, some[::-1].copy()], dtype)
    if channels_last:
        model = _as_channels_last(model)
    check = SortedCheck(model)
    halves = 4 * int((np.abs(some) == 0.5).sum())
    ones = halves + 4 * int((np.abs(some) == 1.0).sum())
    edges = [2, 4 * SMALL_CHUNK, halves // 2, halves, (halves + ones) // 2, ones, check.numel - 2]
    _assert_exact(model, [k for edge in edges for k in range(edge - 2, edge + 3)], check)


@pytest.mark.parametrize("dtype", TIED)
def test_ties_go_in_order_whichever_thread_finds_them(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    values = torch.from_numpy(rng.integers(1, 4, (60, 90 // SCALE, 6, 6)) / 2.0).to(dtype)
    model = {**_layouts(values), "again": values.clone()}
    check = SortedCheck(model)
    k = check.numel * 2 // 3
    expected = check.masks(k)
    for cpu in cpu_settings.EVERY:
        cpu.use()
        assert_same_masks(lampfast.masks(model, k), expected)


# --- zeros, and counts at the ends ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1, 400 // SCALE])
def test_counts_around_the_number_of_zeros(dtype: torch.dtype, scale: int) -> None:
    rng = np.random.default_rng(scale)
    sizes = [scale * size for size in (90, 1, 30, 250)]
    layers = [rng.standard_normal(n) * (rng.random(n) < 0.3) for n in sizes]
    layers[2][:] = 0
    layers[3] *= 1e-3
    layers.append(np.where(rng.random(50) < 0.5, -0.0, 0.0))
    model = _model(layers, dtype)
    check = SortedCheck(model)
    zeros = sum(int((layer == 0).sum()) for layer in model.values())
    _assert_exact(model, _around([0, 1, zeros, check.numel], check.numel), check)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_but_zeros(dtype: torch.dtype) -> None:
    size = 70_000 // SCALE
    model = _model([np.zeros(3), -np.zeros(size), np.zeros(0), np.zeros(500)], dtype)
    _assert_exact(model, _around([0, 3, 23, size + 3, size + 503], size + 503))


# --- many small layers ---


def _uniform(rng: Rng, size: int) -> Array:
    return rng.uniform(-1, 1, size)


def _normal(rng: Rng, size: int) -> Array:
    return rng.standard_normal(size) * 2.0 ** rng.integers(-9, 9)


def _mostly_zero(rng: Rng, size: int) -> Array:
    return rng.standard_normal(size) * (rng.random(size) < 0.05)


def _few_values(rng: Rng, size: int) -> Array:
    return rng.integers(-2, 3, size) * 2.0 ** rng.integers(-3, 3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", [_uniform, _normal, _mostly_zero, _few_values])
def test_two_hundred_small_layers(make: Callable[[Rng, int], Array], dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    model = _model((make(rng, int(rng.integers(1, 301))) for _ in range(200)), dtype)
    check = SortedCheck(model)
    counts = [round(share * check.numel) for share in (0.01, 0.5, 0.9, 0.95, 0.999)]
    _assert_exact(model, [*counts, *rng.integers(0, check.numel, 5).tolist()], check)


# --- magnitudes at the ends of a dtype's range ---


@pytest.mark.skipif(cpu_settings.TEST_SIZES, reason="so few are drawn that most are candidates")
@pytest.mark.parametrize(
    ("dtype", "power"),
    [(torch.float32, 125), (torch.float32, -127), (torch.float64, 1020), (torch.float64, -1022)],
)
def test_candidates_are_few_whatever_the_magnitudes(dtype: torch.dtype, power: int) -> None:
    size = 300_000
    rng = np.random.default_rng(7)
    model = _model([np.ldexp(rng.uniform(-1, 1, size), power)], dtype)
    mask = torch.empty(size, dtype=torch.bool)
    spec = _core.SelectionSpec(_core.Ranking.lamp, [size // 2])
    profile = _core.CallProfile()
    _core.masks(_pointers(model), [_pointer(mask)], spec, (1, ()), profile)
    assert int(mask.sum()) == size // 2
    assert profile.candidates < size / 4
