"""Weights on which a method made for Gaussian ones might be slow, each beside Gaussian weights."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import contenders
import torch
from outcome import Cell, Goal, Grid, Line, Outcome
from run import USUAL, Run
from weights import Weights, cycled

import lampfast

_LAYERS = 5
_SIDE, _QUICK_SIDE = 2000, 64  # a layer is a square matrix
_PERIODS = (16, 4096, 512 * 16)
_DTYPES = (
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)
_GOAL = Goal(3)
_COLUMNS = {
    "weights": "",
    "masks ms": ",.2f",
    "× Gaussian masks": ".2f",
    "prune ms": ",.2f",
    "× Gaussian prune": ".2f",
    f"must {_GOAL.write(_GOAL.must)}": "",
}


class _Times(NamedTuple):
    """Seconds of one case, and of Gaussian weights in the same rounds."""

    case: str
    verb: str
    seconds: float
    usual: float

    @property
    def ratio(self) -> float:
        return self.seconds / self.usual


def adversarial(run: Run) -> Outcome:
    """masks, and prune where the weights are dense: 20 million in 5 layers, to 90 %."""
    gaussian = _gaussian(_QUICK_SIDE if run.quick else _SIDE)
    gaussian_targets = contenders.clone(gaussian)
    times = []
    for case, weights, s in _cases(gaussian):
        run.progress(f"adversarial: {case}")
        contenders.check_masks(weights, s)
        masks = run.medians(contenders.masks(weights, s), contenders.masks(gaussian, USUAL))
        times.append(_Times(case, "masks", *masks))
        targets = contenders.clone(weights)
        if not _same_layout(weights, targets):
            continue
        contenders.check_prune(weights, targets, s)
        prune = run.medians(
            contenders.prune(weights, targets, s),
            contenders.prune(gaussian, gaussian_targets, USUAL),
        )
        times.append(_Times(case, "prune", *prune))
    title = f"{contenders.numel(gaussian):,} weights in {_LAYERS} layers, beside Gaussian ones"
    return Outcome([*_summary(times)], [Grid(title, _COLUMNS, _rows(times))])


def _cases(gaussian: Weights) -> Iterator[tuple[str, Weights, float]]:
    """Names of cases, their weights and the sparsity to prune them to."""
    yield "all magnitudes equal", _mapped(gaussian, _equal_magnitudes), USUAL
    yield "two values", _mapped(gaussian, lambda weight: 1 + (weight.abs() > 1).float()), USUAL
    zeros = contenders.clone(gaussian)
    lampfast.prune(zeros, USUAL)
    yield "90% zeros, pruned on to 0.95", zeros, 0.95
    yield "90% zeros, to 0.9: ties at zero", zeros, USUAL
    yield "sorted", _mapped(gaussian, lambda weight: weight.flatten().sort().values), USUAL
    yield "one layer has 99.9% of all", _one_large(gaussian), USUAL
    for period in _PERIODS:
        yield f"repeats every {period:,}", _mapped(gaussian, partial(_repeating, period)), USUAL
    yield "all layers equal", _mapped(gaussian, lambda _: gaussian["0"].clone()), USUAL
    yield "channels_last", _mapped(gaussian, _channels_last), USUAL
    yield "every other column", _mapped(gaussian, _every_other_column), USUAL
    yield "transposed", _mapped(gaussian, torch.t), USUAL
    for dtype in _DTYPES:
        yield (
            str(dtype).removeprefix("torch."),
            _mapped(gaussian, partial(_converted, dtype)),
            USUAL,
        )


def _gaussian(side: int) -> Weights:
    generator = torch.Generator().manual_seed(0)
    return {str(layer): torch.randn(side, side, generator=generator) for layer in range(_LAYERS)}


def _mapped(weights: Weights, change: Callable[[torch.Tensor], torch.Tensor]) -> Weights:
    return {name: change(weight) for name, weight in weights.items()}


def _equal_magnitudes(weight: torch.Tensor) -> torch.Tensor:
    return torch.full_like(weight, 0.5).copysign(weight)


def _one_large(weights: Weights) -> Weights:
    values = torch.cat([weight.flatten() for weight in weights.values()])
    small = len(values) // 1000 // (_LAYERS - 1)
    large = len(values) - small * (_LAYERS - 1)
    return dict(zip(weights, torch.split(values, [large] + [small] * (_LAYERS - 1)), strict=True))


def _repeating(period: int, weight: torch.Tensor) -> torch.Tensor:
    return cycled(weight.flatten()[:period], 0, weight.numel()).view_as(weight)


def _channels_last(weight: torch.Tensor) -> torch.Tensor:
    channels = len(weight) // 4
    kernels = weight.view(channels, channels, 4, 4)
    return kernels.contiguous(memory_format=torch.channels_last)


def _every_other_column(weight: torch.Tensor) -> torch.Tensor:
    return torch.cat([weight, weight], 1)[:, ::2]


def _converted(dtype: torch.dtype, weight: torch.Tensor) -> torch.Tensor:
    return weight.to(dtype)


def _same_layout(weights: Weights, copies: Weights) -> bool:
    """Whether the weights are dense in memory, in any order: a copy of others closes the gaps."""
    return all(weight.stride() == copies[name].stride() for name, weight in weights.items())


def _rows(times: Sequence[_Times]) -> list[tuple[Cell, ...]]:
    """A row for each case: both verbs, and whether all that was measured is within the bar."""
    rows: list[tuple[Cell, ...]] = []
    for case in dict.fromkeys(time.case for time in times):
        own = {time.verb: time for time in times if time.case == case}
        cells: list[Cell] = []
        for verb in ("masks", "prune"):
            cells += [own[verb].seconds * 1e3, own[verb].ratio] if verb in own else [None, None]
        rows.append((case, *cells, _GOAL.verdict(max(time.ratio for time in own.values()))))
    return rows


def _summary(times: Sequence[_Times]) -> Iterator[Line]:
    for verb in ("masks", "prune"):
        worst = max((time for time in times if time.verb == verb), key=lambda time: time.ratio)
        what, beside = f"{verb}, adversarial, worst: {worst.case}", f"{worst.usual * 1e3:,.2f} ms"
        yield Line(what, worst.ratio, _GOAL, worst.seconds, f"Gaussian {beside}")
