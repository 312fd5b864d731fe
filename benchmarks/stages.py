"""Where the time goes: masks and prune by stage, and the memory traffic that each must cause."""

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import contenders
import torch
from contenders import Prepare
from shapes import MODELS, shrunk
from weights import Weights, gaussian

from lampfast import _core
from lampfast._cli.measure import Call, median_seconds
from lampfast._engine import views

_MODELS = ("resnet50", "one layer")
_DTYPES = (torch.float32, torch.bfloat16)
_S = 0.9
_STAGES = ("estimate", "partition", "narrow", "select", "commit")


def stages(quick: bool, rounds: int) -> Iterator[dict[str, str | float]]:
    """The stages of masks and prune of Gaussian weights to 0.9, and the traffic they must cause."""
    for model, dtype in product(_MODELS, _DTYPES):
        shapes = shrunk(MODELS[model]()) if quick else MODELS[model]()
        weights = {layer: weight.to(dtype) for layer, weight in gaussian(shapes).items()}
        call = {"model": model, "dtype": str(dtype).removeprefix("torch.")}
        for verb, seconds in _seconds(weights, rounds).items():
            moved = _bytes(dtype.itemsize, 1 if verb == "masks" else dtype.itemsize)
            for stage, taken in seconds.items():
                ns, least = taken / contenders.numel(weights) * 1e9, moved.get(stage, 0)
                where = {**call, "call": verb, "stage": stage, "bytes/weight": str(least)}
                yield {**where, "ns/weight": ns, "GB/s": least / ns}


def _bytes(read: int, written: int) -> dict[str, int]:
    """The bytes that a stage moves for every weight at the very least; samples are free.

    The partition reads every weight, the commit reads it again and writes.
    """
    return {
        "partition": read,
        "commit": read + written,
        "whole call": 2 * read + written,
    }


def _seconds(weights: Weights, rounds: int) -> dict[str, dict[str, float]]:
    """By verb and stage."""
    targets = contenders.clone(weights)
    contenders.check_masks(weights, _S)
    contenders.check_prune(weights, targets, _S)
    return {
        "masks": _by_stage(contenders.masks(weights, _S), _staged_masks(weights), rounds),
        "prune": _by_stage(
            contenders.prune(weights, targets, _S), _staged_prune(weights, targets), rounds
        ),
    }


def _by_stage(
    whole: Prepare, staged: Callable[[_core.CallProfile], Call], rounds: int
) -> dict[str, float]:
    recorded: list[_core.CallProfile] = []

    def prepare() -> Call:
        recorded.append(_core.CallProfile())
        return staged(recorded[-1])

    call, _ = median_seconds([whole, prepare], rounds)
    measured = recorded[1:]  # the first one warmed up
    seconds = {
        stage: statistics.median(getattr(one, stage) for one in measured) for stage in _STAGES
    }
    return seconds | {"rest of the call": call - sum(seconds.values()), "whole call": call}


def _staged_masks(weights: Weights) -> Callable[[_core.CallProfile], Call]:
    layers = views.layers(weights)
    sources, threads = [layer.pointer for layer in layers], (torch.get_num_threads(), ())
    spec = contenders.spec(weights, _S)

    def masks(times: _core.CallProfile) -> views.Views:
        outputs = views.empty_masks(layers)  # new ones, as lampfast.masks returns them
        targets = [output.pointer for output in outputs]
        _core.masks(sources, targets, spec, threads, times)
        return outputs

    return lambda times: partial(masks, times)


def _staged_prune(weights: Weights, targets: Weights) -> Callable[[_core.CallProfile], Call]:
    pointers = [layer.pointer for layer in views.layers(targets, write=True)]
    spec, threads = contenders.spec(weights, _S), (torch.get_num_threads(), ())

    def prepare(times: _core.CallProfile) -> Call:
        contenders.restore(weights, targets)
        return partial(_core.prune, pointers, pointers, spec, threads, times)

    return prepare
