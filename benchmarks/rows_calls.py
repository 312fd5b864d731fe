"""Whole calls: small models, models of many layers, the memory of one call, and huge models."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import contenders
import torch
from outcome import Goal, Line, Outcome
from run import USUAL, Run
from shapes import Shapes
from weights import Weights, gaussian

import lampfast
from lampfast._cli import measure
from lampfast._cli.measure import Call

_MORE_ROUNDS = 10  # for calls of about a millisecond
_MIB = 2**20


def lenet(run: Run) -> Outcome:
    """`lampfast.prune` of LeNet-300-100 (LeCun et al., 1998): 266,200 weights."""
    widths = (784, 300, 100, 10)
    model = torch.nn.Sequential()
    for inputs, outputs in pairwise(widths):
        model.extend([torch.nn.Linear(inputs, outputs), torch.nn.ReLU()])
    return _whole_call(run, "prune LeNet-300-100", model, Goal(1, 0.4, "{:.2f} ms"))


def thousand_layers(run: Run) -> Outcome:
    """`lampfast.prune` of 1,000 layers of 1,000 weights."""
    model = torch.nn.ModuleList(torch.nn.Linear(40, 25, bias=False) for _ in range(1000))
    return _whole_call(run, "prune 1,000 layers of 1,000", model, Goal(6, 2, "{:.2f} ms"))


def slices(run: Run) -> Outcome:
    """Calls on 10,000 slices of one parameter over those on as many tensors of 576 weights."""
    run.progress("10,000 slices of a parameter")
    apart = gaussian(run.sized({str(layer): (24, 24) for layer in range(10_000)}))
    whole = {"experts": torch.stack(list(apart.values()))}
    lines = []
    for verb in (lampfast.masks, lampfast.prune):
        stacked, layers = run.medians(
            _prepared(partial(verb, stacked="experts"), whole), _prepared(verb, apart)
        )
        what, beside = f"{verb.__name__}, 10,000 slices over tensors", f"tensors {layers:.3f} s"
        lines.append(Line(what, stacked / layers, Goal(1.2, 1), stacked, beside))
    return Outcome(lines)


def _prepared(verb: Callable[..., object], weights: Weights) -> Callable[[], Call]:
    targets = contenders.clone(weights)

    def prepare() -> Call:
        contenders.copy(weights, targets)
        return partial(verb, targets, USUAL)

    return prepare


def memory(run: Run) -> Outcome:
    """What `lampfast.prune` needs beyond the weights, in a fresh process."""
    run.progress("memory: prune resnet50")
    shapes = run.model("resnet50")
    size = 4 * sum(map(math.prod, shapes.values()))  # float32
    peak = measure.peak_bytes(partial(prune_in_fresh_process, shapes))
    if peak is None:  # not Linux
        return Outcome()
    goal = Goal(0.05 + _MIB / size, 0.02, "{:.2%}")
    beside = f"{peak / _MIB:.2f} MiB"
    return Outcome([Line("prune resnet50, extra memory", peak / size, goal, beside=beside)])


def prune_in_fresh_process(shapes: Shapes) -> Call:
    """Sets up one call in the process that measures it, its code already loaded."""
    lampfast.prune(measure.warm_up(), USUAL)
    return partial(lampfast.prune, gaussian(shapes), USUAL)


def scaling(run: Run) -> Outcome:
    """Ns a weight of 16 layers of 25 million weights over those of one such layer."""
    run.progress("scaling: 25 and 400 million weights")
    many = gaussian(run.sized({str(layer): (5000, 5000) for layer in range(16)}))
    targets = contenders.clone(many)
    one, target = {"0": many["0"]}, {"0": targets["0"]}
    contenders.check_masks(many, USUAL)
    contenders.check_prune(many, targets, USUAL)
    masks = run.medians(contenders.masks(many, USUAL), contenders.masks(one, USUAL))
    prune = run.medians(
        contenders.prune(many, targets, USUAL), contenders.prune(one, target, USUAL)
    )
    times = len(many)
    return Outcome([_scaled("masks", masks, times), _scaled("prune", prune, times)])


def _whole_call(run: Run, what: str, model: torch.nn.Module, goal: Goal) -> Outcome:
    run.progress(what)
    targets: Weights = {
        name: parameter.detach()
        for name, parameter in model.named_parameters()
        if parameter.dim() == 2
    }
    weights = contenders.clone(targets)

    def prepare() -> Call:
        contenders.copy(weights, targets)
        return partial(lampfast.prune, model, USUAL)

    contenders.check_prune(weights, targets, USUAL)
    (seconds,) = measure.median_seconds([prepare], run.rounds * _MORE_ROUNDS)
    beside = f"{contenders.numel(weights):,} weights"
    return Outcome([Line(what, seconds * 1e3, goal, seconds, beside)])


def _scaled(verb: str, seconds: Sequence[float], times: int) -> Line:
    many, one = seconds
    what, beside = f"{verb}, {times} layers over one", f"one layer {one * 1e3:,.2f} ms"
    return Line(what, many / times / one, Goal(1.2, 1.05), many, beside)
