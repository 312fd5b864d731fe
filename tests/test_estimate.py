"""What calls read: exact answers would hide a bad estimator, which only costs reads.

The bounds leave about twice what was measured, or two layers of 20. Intervals of 0.5 instead of 4
deviations, no probes, or sums of squares off by a factor of 2 exceed them.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import cpu_settings
import numpy as np
import numpy.typing as npt
import pytest
import torch

from lampfast import _core
from lampfast._engine import gpus
from lampfast._engine.views import Pointer

pytestmark = pytest.mark.skipif(
    cpu_settings.TEST_SIZES, reason="with sizes for tests, estimates are bad on purpose"
)

Array = npt.NDArray[np.float64]
Rng = np.random.Generator
Rows = Callable[[int, Rng], Array]

ROW = 576
SPARSITIES = (0.5, 0.9, 0.99)
RANKINGS = ("lamp", "magnitude", "per_layer")


class Cost(NamedTuple):
    """Of a call: parts of all elements, but misses for each layer."""

    misses: float
    read: float
    candidates: float


def _gaussian(rows: int, rng: Rng) -> Array:
    return rng.standard_normal((rows, ROW)) * math.sqrt(2 / rows)


def _scaled_rows(rows: int, rng: Rng) -> Array:
    return _gaussian(rows, rng) * np.exp(rng.standard_normal((rows, 1)))


def _scaled_columns(rows: int, rng: Rng) -> Array:
    return _gaussian(rows, rng) * np.exp(rng.standard_normal((1, ROW)))


def _heavy_tailed(rows: int, rng: Rng) -> Array:
    return rng.standard_t(3, (rows, ROW)) * math.sqrt(2 / rows)


def _uniform(rows: int, rng: Rng) -> Array:
    return rng.uniform(-1, 1, (rows, ROW)) / math.sqrt(rows)


def _pruned(rows: int, rng: Rng) -> Array:
    weights = _gaussian(rows, rng)
    weights[np.abs(weights) < np.quantile(np.abs(weights), 0.9)] = 0
    return weights


def _few_values(rows: int, rng: Rng) -> Array:
    weights = _gaussian(rows, rng)
    step = np.abs(weights).max() / 12
    rounded: Array = np.round(weights / step) * step
    return rounded


def _sorted(rows: int, rng: Rng) -> Array:
    return np.sort(np.abs(_gaussian(rows, rng)), axis=None).reshape(rows, ROW)


@dataclass(frozen=True)
class Kind:
    """Weights, and the most that a call may cost, whatever its ranking and sparsity."""

    rows: Rows
    most: Cost
    dtype: torch.dtype = torch.float32
    layers: int = 20


# Without ties a call reads everything once and probes, at the most, everything once.
USUAL = Cost(misses=0.1, read=2.1, candidates=0.06)
KINDS = {
    "gaussian": Kind(_gaussian, USUAL),
    "scaled columns": Kind(_scaled_columns, USUAL),
    # One of 180 layers misses its interval and is read again in a wide one.
    "heavy-tailed": Kind(_heavy_tailed, USUAL._replace(candidates=0.2)),
    "one layer": Kind(_gaussian, USUAL, layers=1),
    "one heavy-tailed layer": Kind(_heavy_tailed, USUAL, layers=1),
    "float64": Kind(_gaussian, USUAL, torch.float64),
    "float16": Kind(_gaussian, USUAL, torch.float16),
    "bfloat16": Kind(_gaussian, USUAL, torch.bfloat16),
    # What a draw tells of rows is uncertain, so that some layers are probed twice.
    "scaled rows": Kind(_scaled_rows, USUAL._replace(read=3.0)),
    # An interval reaches from 0, whose score is far below, to the first weights that are not.
    "pruned already": Kind(_pruned, Cost(misses=0.1, read=2.5, candidates=0.15)),
    # All that equals the threshold is inside: of so few magnitudes each has a large part.
    "float8_e4m3fn": Kind(_gaussian, Cost(0.05, 2.0, 0.5), torch.float8_e4m3fn),
    "float8_e5m2": Kind(_gaussian, Cost(0.05, 2.0, 0.8), torch.float8_e5m2),
    # Such a part exceeds the memory for candidates too, so that weights are read instead of them.
    "few values": Kind(_few_values, Cost(misses=4.0, read=10.0, candidates=2.5)),
    # Neighbours are alike: a piece tells no more than one element.
    "sorted": Kind(_sorted, Cost(misses=3.0, read=6.0, candidates=0.6)),
}


def _model(kind: Kind, seed: int) -> list[torch.Tensor]:
    """Layers of 9,216 to 294,912 elements, or one of the latter."""
    rng = np.random.default_rng(seed)
    rows = [512] if kind.layers == 1 else [int(2 ** rng.uniform(4, 9)) for _ in range(kind.layers)]
    layers = [torch.from_numpy(kind.rows(count, rng)) for count in rows]
    if kind.dtype.itemsize == 1:
        layers = [layer / layer.abs().max() * 128 for layer in layers]  # within their range
    return [layer.to(kind.dtype) for layer in layers]


def _profile(layers: list[torch.Tensor], ranking: str, sparsity: float) -> _core.CallProfile:
    """Of a call that writes masks in host memory."""
    sizes = [layer.numel() for layer in layers]
    shared = sizes if ranking == "per_layer" else [sum(sizes)]
    spec = _core.SelectionSpec(
        getattr(_core.Ranking, ranking), [round(sparsity * size) for size in shared]
    )
    outputs = [torch.empty(layer.shape, dtype=torch.bool) for layer in layers]
    profile = _core.CallProfile()
    _core.masks(_pointers(layers), _pointers(outputs), spec, (1, ()), profile)
    return profile


def _pointers(tensors: list[torch.Tensor]) -> list[Pointer]:
    def dtype(tensor: torch.Tensor) -> _core.Dtype:
        name = str(tensor.dtype).removeprefix("torch.")
        found: _core.Dtype = getattr(_core.Dtype, "boolean" if name == "bool" else name)
        return found

    return [(t.data_ptr(), dtype(t), tuple(t.shape), t.stride(), gpus.HOST) for t in tensors]


def _cost(profile: _core.CallProfile, layers: list[torch.Tensor]) -> Cost:
    size = sum(layer.numel() for layer in layers)
    return Cost(profile.misses / len(layers), profile.read / size, profile.candidates / size)


@pytest.mark.parametrize("name", KINDS)
def test_calls_read_little(name: str) -> None:
    kind = KINDS[name]
    for seed in range(3):
        layers = _model(kind, seed)
        for ranking, sparsity in itertools.product(RANKINGS, SPARSITIES):
            cost = _cost(_profile(layers, ranking, sparsity), layers)
            exceeded = {
                what: (found, most)
                for what, found, most in zip(Cost._fields, cost, kind.most, strict=True)
                if found > most
            }
            assert not exceeded, f"{ranking}, {sparsity}, seed {seed}: {exceeded}"


@pytest.mark.parametrize("magnitude", [0.01, 1.0, 100.0])
def test_magnitudes_have_no_scale(magnitude: float) -> None:
    layer = _model(KINDS["one heavy-tailed layer"], 0)[0] * magnitude
    assert _cost(_profile([layer], "magnitude", 0.9), [layer]).read == 1


@pytest.mark.parametrize("size", [1, 4096, 4097, 10**5, 10**6])
def test_draws_are_a_small_part(size: int) -> None:
    layer = torch.randn(size, generator=torch.Generator().manual_seed(0))
    drawn = _profile([layer], "lamp", 0.5).drawn
    if size <= 4096:
        assert drawn == size
    else:
        part = max(size // 64, min(size // 8, 8192))
        assert part - 64 <= drawn < part + 64  # a piece more or less
