"""Where the time goes: masks and prune by stage, beside the memory traffic that each must cause."""

import statistics
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import contenders
import torch
from contenders import Prepare
from machine import Machine
from outcome import Cell, Grid, Outcome
from run import USUAL, Run
from weights import Weights, gaussian

from lampfast import _core
from lampfast._cli.measure import Call
from lampfast._engine import views

_MODELS = ("resnet50", "one layer")
_DTYPES = (torch.float32, torch.bfloat16)
_STAGES = ("estimate", "partition", "narrow", "select", "commit")
_COLUMNS = {
    "model": "",
    "dtype": "",
    "call": "",
    "stage": "",
    "ns/weight": ".3f",
    "bytes/weight": "d",
    "ns at bandwidth": ".3f",
}


class _Traffic(NamedTuple):
    """The bytes that a stage moves for every weight, at the very least, and the ns they take."""

    bytes: int
    ns: float


def stages(run: Run) -> Outcome:
    """Every stage of masks and prune, and what the Python call adds to them."""
    rows: list[tuple[Cell, ...]] = []
    for model in _MODELS:
        for dtype in _DTYPES:
            name = str(dtype).removeprefix("torch.")
            run.progress(f"stages: {model}, {name}")
            single = gaussian(run.model(model))
            weights = {layer: weight.to(dtype) for layer, weight in single.items()}
            del single
            for verb, seconds in _seconds(run, weights).items():
                written = 1 if verb == "masks" else dtype.itemsize
                traffic = _traffic(run.machine, dtype.itemsize, written)
                for stage, taken in seconds.items():
                    ns = taken / contenders.numel(weights) * 1e9
                    rows.append((model, name, verb, stage, ns, *traffic.get(stage, (0, 0.0))))
    return Outcome(grids=[Grid("gaussian, 0.9, by stage", _COLUMNS, rows)])


def _traffic(machine: Machine, read: int, written: int) -> dict[str, _Traffic]:
    """The partition reads every weight, the commit reads it again and writes; samples are free."""
    partition = _Traffic(read, read / machine.read)
    commit = _Traffic(read + written, (read + written) / machine.copy)
    whole = _Traffic(partition.bytes + commit.bytes, partition.ns + commit.ns)
    return {"partition": partition, "commit": commit, "whole call": whole}


def _seconds(run: Run, weights: Weights) -> dict[str, dict[str, float]]:
    """By verb and stage."""
    targets = contenders.clone(weights)
    contenders.check_masks(weights, USUAL)
    contenders.check_prune(weights, targets, USUAL)
    return {
        "masks": _by_stage(run, contenders.masks(weights, USUAL), _staged_masks(weights)),
        "prune": _by_stage(
            run, contenders.prune(weights, targets, USUAL), _staged_prune(weights, targets)
        ),
    }


def _by_stage(
    run: Run, whole: Prepare, staged: Callable[[_core.CallProfile], Call]
) -> dict[str, float]:
    recorded: list[_core.CallProfile] = []

    def prepare() -> Call:
        recorded.append(_core.CallProfile())
        return staged(recorded[-1])

    call, _ = run.medians(whole, prepare)
    measured = recorded[1:]  # the first one warmed up
    seconds = {
        stage: statistics.median(getattr(one, stage) for one in measured) for stage in _STAGES
    }
    return seconds | {"rest of the call": call - sum(seconds.values()), "whole call": call}


def _staged_masks(weights: Weights) -> Callable[[_core.CallProfile], Call]:
    layers = views.layers(weights)
    sources, machine = [layer.pointer for layer in layers], (torch.get_num_threads(), ())
    spec = contenders.spec(weights, USUAL)

    def masks(times: _core.CallProfile) -> list[views.View]:
        outputs = views.empty_masks(layers)  # new ones, as lampfast.masks returns them
        targets = [output.pointer for output in outputs]
        _core.masks(sources, targets, spec, machine, times)
        return outputs

    return lambda times: partial(masks, times)


def _staged_prune(weights: Weights, targets: Weights) -> Callable[[_core.CallProfile], Call]:
    pointers = [layer.pointer for layer in views.layers(targets, write=True)]
    spec, machine = contenders.spec(weights, USUAL), (torch.get_num_threads(), ())

    def prepare(times: _core.CallProfile) -> Call:
        contenders.restore(weights, targets)
        return partial(_core.prune, pointers, pointers, spec, machine, times)

    return prepare
