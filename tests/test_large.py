"""Large layers, drawn to mislead a sample or a sum, against sorted_check.py."""

from collections.abc import Callable

import cpu_settings
import numpy as np
import numpy.typing as npt
import pytest
import torch
from compare import assert_one_ulp, assert_same_masks, assert_same_memory, pruned_copy
from sorted_check import SortedCheck

import lampfast

Array = npt.NDArray[np.float64]
Rng = np.random.Generator
Model = dict[str, torch.Tensor]


def _model(*layers: Array, dtype: torch.dtype = torch.float32) -> Model:
    return {str(i): torch.from_numpy(layer).to(dtype, copy=True) for i, layer in enumerate(layers)}


def _equal(rng: Rng) -> Model:
    return _model(np.full(300_000, 0.3), np.full(200_000, -7.0), np.full(100_001, 1e-3))


def _two_values(rng: Rng) -> Model:
    return _model(
        *(rng.choice([1.0, -2.0], n, p=[p, 1 - p]) for n, p in [(250_000, 0.9), (150_000, 0.2)])
    )


def _mostly_zero(rng: Rng) -> Model:
    layers = [rng.standard_normal(n) * (rng.random(n) < 0.1) for n in (300_000, 100_000, 50_000)]
    return _model(*layers, np.zeros(70_000))


def _sorted(rng: Rng) -> Model:
    return _model(np.sort(rng.standard_normal(400_000)), np.sort(rng.random(100_000)))


def _reversed(rng: Rng) -> Model:
    return _model(
        np.sort(rng.random(400_000))[::-1].copy(), np.sort(rng.random(100_000))[::-1].copy()
    )


def _periodic(period: int) -> Callable[[Rng], Model]:
    """The same row again and again: ties, and a regular sample sees only part of them."""

    def make(rng: Rng) -> Model:
        rows = [np.tile(rng.standard_normal(period), 300_000 // period) for _ in range(2)]
        noise = rng.standard_normal(rows[0].size)  # no ties, but the scale is periodic
        return _model(*rows, rows[0] * noise)

    return make


def _one_giant_layer(rng: Rng) -> Model:
    return _model(rng.standard_normal(1_500_000), *(rng.standard_normal(150) for _ in range(10)))


def _a_thousand_layers(rng: Rng) -> Model:
    return _model(
        *(
            rng.standard_normal(rng.integers(1, 500)) * 2.0 ** rng.integers(-9, 9)
            for _ in range(1000)
        )
    )


def _heavy_tails(rng: Rng) -> Model:
    return _model(
        rng.standard_cauchy(300_000) ** 3, rng.standard_cauchy(200_000), rng.random(100_000) ** 20
    )


def _log_uniform(rng: Rng) -> Model:
    return _model(10 ** rng.uniform(-44, 38, 300_000), 10 ** rng.uniform(-44, -36, 100_000))


def _wide_float64(rng: Rng) -> Model:
    layers = [10 ** rng.uniform(-70, 70, n) for n in (100_000, 50_000)]
    return _model(*layers, layers[1] * 1e200, dtype=torch.float64)


def _scaled_rows(rng: Rng) -> Model:
    return _model(
        *(rng.standard_normal((500, n)) * rng.lognormal(0, 2, (500, 1)) for n in (800, 300))
    )


def _hidden_block(rng: Rng) -> Model:
    """Everything that matters lies in a few neighbouring elements."""
    spike, step = rng.standard_normal(500_000) * 1e-6, rng.standard_normal(300_000)
    spike[123_456:123_956] *= 1e7
    step[:150_000] *= 1e-20
    zeros = np.zeros(200_000)
    zeros[-300:] = rng.standard_normal(300)
    return _model(spike, step, zeros)


def _beneath_a_giant(rng: Rng) -> Model:
    """Scores of equal weights differ by less than a float64 sum can see."""
    layers = [np.ones(6_000), np.ones(6_001), rng.integers(1, 4, 6_000).astype(float)]
    for layer in layers:
        layer[rng.integers(layer.size)] = 2.0**40
    return _model(*layers, dtype=torch.bfloat16)


def _duplicates(rng: Rng) -> Model:
    layer = rng.standard_normal(100_000)
    layers = [
        layer,
        layer,
        rng.permutation(layer),
        layer * -(2.0**-30),
        layer[::-1].copy() * 2.0**20,
    ]
    return _model(*layers)


def _near_duplicates(dtype: torch.dtype) -> Callable[[Rng], Model]:
    """Every score of a layer has neighbours in the others, equal or apart by 1e-12 and less."""

    def make(rng: Rng) -> Model:
        model = _model(*[rng.standard_normal(60_000)] * 6, dtype=dtype)
        for i, layer in enumerate(model.values()):
            top = torch.argsort(layer.abs())[-1 - i // 2]
            layer[top] = torch.nextafter(layer[top], torch.tensor(100.0 * (-1) ** i, dtype=dtype))
            layer *= 2.0**i
        return model

    return make


def _gaussian(dtype: torch.dtype) -> Callable[[Rng], Model]:
    def make(rng: Rng) -> Model:
        sizes = [(500, 500), (64, 64, 3, 3), (1000,), (300, 301)]
        return _model(*(rng.standard_normal(s) * rng.lognormal(0, 1) for s in sizes), dtype=dtype)

    return make


def _every_dtype(rng: Rng) -> Model:
    dtypes = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn)
    return {
        f"{dtype}": torch.from_numpy(rng.standard_normal((200, 400)) * 3).to(dtype)
        for dtype in (*dtypes, torch.float8_e5m2)
    }


def _memory_formats(rng: Rng) -> Model:
    """The ties are broken in logical order, whatever the strides."""
    values = torch.from_numpy(rng.integers(-30, 31, (64, 48, 6, 6)) / 8.0).float()
    wide = torch.full((64, 48, 6, 12), 0.5)
    wide[..., 1::2] = values
    return {
        "contiguous": values,
        "channels_last": values.contiguous(memory_format=torch.channels_last),
        "transposed": values.flatten(1).t().contiguous().t(),
        "strided": wide[..., 1::2],
    }


CASES: dict[str, Callable[[Rng], Model]] = {
    "equal": _equal,
    "two values": _two_values,
    "mostly zero": _mostly_zero,
    "sorted": _sorted,
    "reversed": _reversed,
    **{f"period {p}": _periodic(p) for p in (16, 64, 1024)},
    "one giant layer": _one_giant_layer,
    "a thousand layers": _a_thousand_layers,
    "heavy tails": _heavy_tails,
    "log-uniform": _log_uniform,
    "wide float64": _wide_float64,
    "scaled rows": _scaled_rows,
    "hidden block": _hidden_block,
    "beneath a giant": _beneath_a_giant,
    "duplicates": _duplicates,
    **{f"near duplicates {d}": _near_duplicates(d) for d in (torch.float32, torch.float64)},
    **{
        f"gaussian {d}": _gaussian(d)
        for d in (
            *(torch.float32, torch.float64, torch.bfloat16, torch.float16),
            *(torch.float8_e4m3fn, torch.float8_e5m2),
        )
    },
    "every dtype": _every_dtype,
    "memory formats": _memory_formats,
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Model, SortedCheck]:
    """A model and its sorted layers."""
    model = CASES[request.param](np.random.default_rng(sum(request.param.encode())))
    return model, SortedCheck(model)


def test_masks(case: tuple[Model, SortedCheck]) -> None:
    model, check = case
    rng = np.random.default_rng(check.numel)
    shares = [0.001, 0.1, 0.5, 0.9, 0.95, 0.999, *rng.random(4)]
    counts = [0, 1, check.numel - 1, check.numel, *(round(share * check.numel) for share in shares)]
    some = int(rng.integers(0, check.numel - 8))
    for turn, k in enumerate([*counts, *range(some, some + 8)]):
        cpu_settings.in_turn(turn).use()
        assert_same_masks(lampfast.masks(model, k), check.masks(k))


def test_prune(case: tuple[Model, SortedCheck]) -> None:
    model, check = case
    for turn, s in enumerate((0.3, 0.9)):
        cpu_settings.in_turn(1 + turn).use()
        masks = check.masks(round(s * check.numel))
        everything = {name: torch.ones_like(mask) for name, mask in masks.items()}
        pruned = {name: pruned_copy(model[name], everything[name]) for name in model}
        lampfast.prune(pruned, s)
        expected = {name: pruned_copy(layer, masks[name]) for name, layer in model.items()}
        assert_same_memory(pruned, expected)


def test_importance_decides_and_the_weights_go() -> None:
    rng = np.random.default_rng(0)
    model = _gaussian(torch.float32)(rng)
    importance = _gaussian(torch.bfloat16)(rng)
    check = SortedCheck(importance)
    masks = check.masks(round(0.8 * check.numel))
    assert_same_masks(lampfast.masks(model, 0.8, importance=importance), masks)
    expected = {name: pruned_copy(layer, masks[name]) for name, layer in model.items()}
    lampfast.prune(model, 0.8, importance=importance)
    assert_same_memory(model, expected)


def test_scores(case: tuple[Model, SortedCheck]) -> None:
    """Exactly at some ranks of each layer, and within the float64 sort's error at all of them."""
    model, check = case
    rng = np.random.default_rng(check.numel)
    scores = lampfast.scores(model)
    for name, layer in list(check.layers.items())[:20]:
        got = scores[name].reshape(-1).numpy()[layer.order]
        spacing = np.spacing(layer.scores.astype(got.dtype)).astype(np.float64)
        error = np.abs(got - layer.scores)
        assert (error <= spacing + 1e-9 * layer.scores).all(), name
        n = layer.magnitudes.size
        ranks = {0, n - 1, n // 2, *rng.integers(0, n, 100).tolist()}
        for rank, exact in layer.exact_scores(ranks).items():
            assert_one_ulp(name, rank, got[rank].item(), exact, scores[name].dtype)
