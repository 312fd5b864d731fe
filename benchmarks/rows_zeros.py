"""Keeping zeros and masking gradients beside training steps; applying masks beside a copy."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import contenders
import torch
from contenders import Prepare
from outcome import Cell, Goal, Grid, Line, Outcome
from run import SPARSITIES, USUAL, Run
from weights import Weights, gaussian

import lampfast
from lampfast._cli.measure import Call
from lampfast._engine import packed_masks, views
from lampfast._training.zeros import KeptZeros, keep_zeros

_DTYPES = (torch.float32, torch.bfloat16)
_STEPS: dict[str, dict[str, Any]] = {
    "default": {},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}
_COLUMNS = {
    "dtype": "",
    "sparsity": "",
    "ours ms": ",.2f",
    "ns/weight": ".3f",
    "floor ms": ",.2f",
    "ratio": ".2f",
}


def keep(run: Run) -> Outcome:
    """One pass over resnet50, every weight trained, beside reading masks and rewriting weights."""
    rows: list[tuple[Cell, ...]] = []
    lines: list[Line] = []
    for dtype in _DTYPES:
        name = str(dtype).removeprefix("torch.")
        weights = {
            layer: weight.to(dtype) for layer, weight in gaussian(run.model("resnet50")).items()
        }
        for s in SPARSITIES:
            run.progress(f"keep: {name}, {s}")
            targets = contenders.clone(weights)
            lampfast.prune(targets, s)
            layers = views.layers(targets, write=True)
            masks = packed_masks.record(layers)
            _check_kept(weights, targets, partial(packed_masks.apply, layers, masks))
            ours, floor = run.medians(
                _after_restoring(weights, targets, partial(packed_masks.apply, layers, masks)),
                _rewriting(weights, masks),
            )
            ns = ours / contenders.numel(weights) * 1e9
            rows.append((name, str(s), ours * 1e3, ns, floor * 1e3, ours / floor))
            if s == USUAL:
                what, beside = f"keep zeros, resnet50, {name}, {s}", f"floor {floor * 1e3:,.2f} ms"
                lines.append(Line(what, ours / floor, Goal(1.3), ours, beside))
    title = "keeping zeros over its floor: read the masks, read and write the weights"
    return Outcome(lines, [Grid(title, _COLUMNS, rows)])


def share(run: Run) -> Outcome:
    """What it adds to a step of AdamW over resnet50, each step with and without, in turns."""
    lines = []
    for name, options in _STEPS.items():
        run.progress(f"keep-share: {name}")
        weights = [torch.nn.Parameter(w) for w in gaussian(run.model("resnet50")).values()]
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        lampfast.prune(weights, USUAL)
        masks = [weight.detach() != 0 for weight in weights]
        optimizer = torch.optim.AdamW(weights, **options)
        plain, kept = run.medians(*_steps(weights, masks, optimizer))
        what, beside = f"keep zeros, added to AdamW {name}", f"step {plain * 1e3:,.2f} ms"
        lines.append(Line(what, kept / plain - 1, Goal(0.02, form="{:.1%}"), kept, beside))
    return Outcome(lines)


def gradients(run: Run) -> Outcome:
    """What masking gradients adds to training steps that keep zeros, with and without in turns."""
    lines: list[Line] = []
    rows: list[tuple[Cell, ...]] = []
    for name, (model, inputs, goal) in _trained(run).items():
        run.progress(f"gradients: {name}")
        lampfast.prune(model, USUAL)
        plain, masked = run.medians(*_training_steps(model, inputs))
        weights = sum(layer.numel for layer in lampfast.report(model).layers)
        added = (masked - plain) / weights * 1e9
        rows.append((name, weights, plain * 1e3, masked * 1e3, added))
        what, beside = f"mask gradients, added to {name}", f"step {plain * 1e3:,.2f} ms"
        lines.append(Line(what, masked / plain - 1, goal, masked, beside))
    columns = {"step of": "", "weights": ",", "plain ms": ",.3f", "masked ms": ",.3f"}
    title = "masking gradients: forward, backward and AdamW's step, zeros kept in both"
    return Outcome(lines, [Grid(title, {**columns, "added ns/weight": ".3f"}, rows)])


def apply(run: Run) -> Outcome:
    """Applies the masks of resnet50, of 90 %, beside copying its weights."""
    lines = []
    for dtype in _DTYPES:
        name = str(dtype).removeprefix("torch.")
        run.progress(f"apply: {name}")
        weights = {
            layer: weight.to(dtype) for layer, weight in gaussian(run.model("resnet50")).items()
        }
        masks, targets = lampfast.masks(weights, USUAL), contenders.clone(weights)
        lampfast.prune(targets, USUAL)
        call = partial(lampfast.apply, targets, masks)
        _check_kept(weights, targets, call)
        ours, floor = run.medians(
            _after_restoring(weights, targets, call), contenders.copy_floor(weights, targets)
        )
        what, beside = f"apply masks, resnet50, {name}", f"copy {floor * 1e3:,.2f} ms"
        lines.append(Line(what, ours / floor, Goal(2.0), ours, beside))
    return Outcome(lines)


class _Residual(torch.nn.Module):
    """A basic block of ResNet-18 (He et al., 2015)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        step = 1 if channels == width else 2
        convolution = partial(torch.nn.Conv2d, kernel_size=3, padding=1, bias=False)
        self.first, self.last = convolution(channels, width, stride=step), convolution(width, width)
        self.before, self.after = torch.nn.BatchNorm2d(width), torch.nn.BatchNorm2d(width)
        self.shortcut = (
            torch.nn.Conv2d(channels, width, 1, step) if step == 2 else torch.nn.Identity()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Two convolutions beside a shortcut."""
        inner = self.after(self.last(self.before(self.first(x)).relu()))
        return (inner + self.shortcut(x)).relu()  # type: ignore[no-any-return]


def _trained(run: Run) -> dict[str, tuple[torch.nn.Module, torch.Tensor, Goal]]:
    """Models with a batch each: a small one, where calls count, and one where weights do."""
    linear = torch.nn.Linear
    small = torch.nn.Sequential(
        linear(784, 300), torch.nn.ReLU(), linear(300, 100), torch.nn.ReLU(), linear(100, 10)
    )
    widths = [8, 8, 16] if run.quick else [64, 64, 64, 128, 128, 256, 256, 512, 512]
    residual = torch.nn.Sequential(
        torch.nn.Conv2d(3, widths[0], 3, padding=1),
        *(_Residual(*pair) for pair in pairwise(widths)),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        linear(widths[-1], 10),
    )
    images = torch.randn(2 if run.quick else 16, 3, 32, 32)
    return {
        "a small MLP, batch 128": (small, torch.randn(128, 784), Goal(0.1, form="{:.1%}")),
        "ResNet-18, 16 CIFAR images": (residual, images, Goal(0.03, form="{:.1%}")),
    }


def _training_steps(model: torch.nn.Module, inputs: torch.Tensor) -> tuple[Prepare, Prepare]:
    """Whole steps without and with masked gradients, zeros kept in both."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    handles: list[KeptZeros] = []

    def step() -> None:
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()

    def prepared(*, mask_gradients: bool) -> Callable[[], object]:
        while handles:
            handles.pop().remove()
        handles.append(keep_zeros(model, optimizer, mask_gradients=mask_gradients))
        return step

    prepared(mask_gradients=True)()
    for weight in model.parameters():
        assert weight.grad is not None
        assert weight.ndim < 2 or not weight.grad[weight == 0].any(), "a gradient was not masked"
    return partial(prepared, mask_gradients=False), partial(prepared, mask_gradients=True)


def _after_restoring(weights: Weights, targets: Weights, call: Call) -> Prepare:
    def prepare() -> Call:
        contenders.restore(weights, targets)
        return call

    return prepare


def _rewriting(weights: Weights, masks: list[torch.Tensor]) -> Prepare:
    """Times as many bytes in one piece, whatever they mean: nothing is decided by them."""
    flat, words = torch.cat([w.flatten() for w in weights.values()]), torch.cat(masks)

    def rewrite() -> None:
        words.sum()
        flat.neg_()

    return _after_restoring({}, {}, rewrite)


def _steps(
    weights: list[torch.nn.Parameter], masks: list[torch.Tensor], optimizer: torch.optim.Optimizer
) -> tuple[Prepare, Prepare]:
    """A step without and one with the zeros kept, by the same optimizer."""
    handles: list[KeptZeros] = []

    def release() -> None:
        while handles:
            handles.pop().remove()
        with torch.no_grad():
            for weight, mask in zip(weights, masks, strict=True):
                weight.mul_(mask)

    def without() -> Callable[[], object]:
        release()
        return optimizer.step

    def with_zeros() -> Callable[[], object]:
        release()
        handles.append(keep_zeros(weights, optimizer))
        return optimizer.step

    with_zeros()()
    for weight, mask in zip(weights, masks, strict=True):
        assert torch.equal(weight.detach() != 0, mask), "a zero was not kept"
    return without, with_zeros


def _check_kept(weights: Weights, targets: Weights, keep: Call) -> None:
    expected = contenders.clone(targets)
    contenders.copy(weights, targets)
    keep()
    for name, weight in expected.items():
        assert torch.equal(targets[name], weight), f"{name} has lost its zeros, or other weights"
