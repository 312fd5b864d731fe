"""What masks cost in training: applying them, keeping zeros after a step, masking gradients."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import contenders
import pytest
import torch
from timing import Clock
from weights import Weights

import lampfast
from lampfast._engine import packed_masks, views

S = 0.9
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("what", ["copy", "apply", "keep-zeros"])
def test_masks_on_weights(what: str, dtype: str, resnet50: Weights, clock: Clock) -> None:
    """`lampfast.apply`, and the pass after each step, beside a copy of the weights."""
    weights = {name: weight.to(_DTYPES[dtype]) for name, weight in resnet50.items()}
    targets, masks = contenders.clone(weights), lampfast.masks(weights, S)
    pruned = {name: weight * masks[name] for name, weight in weights.items()}
    layers = views.layers(targets, write=True)
    packed = packed_masks.record(views.layers(pruned, write=True))
    calls: dict[str, Callable[[], object]] = {
        "copy": partial(contenders.copy, pruned, targets),
        "apply": partial(lampfast.apply, targets, masks),
        "keep-zeros": partial(packed_masks.apply, layers, packed),
    }
    prepare = contenders.restored(weights, targets, lambda _: calls[what])
    clock(f"masks of resnet50 on {dtype} weights", prepare)
    assert all(torch.equal(targets[name], pruned[name]) for name in pruned)


@pytest.mark.parametrize("kept", [False, True], ids=["plain", "zeros-kept"])
@pytest.mark.parametrize("kind", _OPTIONS)
def test_optimizer_step(kind: str, kept: bool, resnet50: Weights, clock: Clock) -> None:
    weights = [torch.nn.Parameter(weight.clone()) for weight in resnet50.values()]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    lampfast.prune(weights, S)
    masks = [weight.detach() != 0 for weight in weights]
    optimizer = torch.optim.AdamW(weights, **_OPTIONS[kind])
    if kept:
        lampfast.keep_zeros(weights, optimizer)
    clock(f"AdamW {kind}: step of resnet50", lambda: optimizer.step)
    for weight, mask in zip(weights, masks, strict=True):
        assert torch.equal(weight.detach() != 0, mask) == kept


@pytest.mark.parametrize("masked", [False, True], ids=["zeros-kept", "gradients-masked-too"])
@pytest.mark.parametrize("name", ["mlp-batch-128", "resnet18-16-images"])
def test_training_step(name: str, masked: bool, clock: Clock, quick: bool) -> None:
    model, inputs = _mlp() if name.startswith("mlp") else _resnet18(quick)
    lampfast.prune(model, S)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    lampfast.keep_zeros(model, optimizer, mask_gradients=masked)

    def step() -> None:
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()

    clock(f"training step: {name}", lambda: step)
    gradients = [(weight, weight.grad) for weight in model.parameters() if weight.ndim > 1]
    leaked = [grad is not None and bool(grad[weight == 0].any()) for weight, grad in gradients]
    assert any(leaked) != masked


def _mlp() -> tuple[torch.nn.Module, torch.Tensor]:
    """LeNet-300-100 with a batch of 128."""
    linear = torch.nn.Linear
    layers = linear(784, 300), torch.nn.ReLU(), linear(300, 100), torch.nn.ReLU(), linear(100, 10)
    return torch.nn.Sequential(*layers), torch.randn(128, 784)


def _resnet18(quick: bool) -> tuple[torch.nn.Module, torch.Tensor]:
    """ResNet-18 with 16 images of CIFAR's size; a part of it where few weights will do."""
    widths = [8, 8, 16] if quick else [64, 64, 64, 128, 128, 256, 256, 512, 512]
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, widths[0], 3, padding=1),
        *(_Residual(*pair) for pair in pairwise(widths)),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(widths[-1], 10),
    )
    return model, torch.randn(2 if quick else 16, 3, 32, 32)


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
