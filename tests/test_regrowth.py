"""Masks that grow again, as of RigL and SET, and what optimizers hold for the weights that do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from refusal import refused
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

import lampfast
from lampfast import Pruner, keep_zeros
from lampfast.schedules import constant

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "momentum": lambda p: SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: AdamW(p, lr=0.01, foreach=True),
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def backward(model: nn.Module, step: int = 0) -> None:
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(step))
    model(x).square().sum().backward()


def train(model: nn.Module, optimizer: Optimizer, steps: int) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()


def random_masks(model: nn.Module, share: float, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    named = {name: p for name, p in model.named_parameters() if p.ndim > 1}
    return {name: torch.rand(p.shape, generator=generator) < share for name, p in named.items()}


def zeros(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach() == 0 for name, p in model.named_parameters() if p.ndim > 1}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_momentum_of_weights_that_grow_starts_at_zero(name: str) -> None:
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    before, after = random_masks(model, 0.4, 1), random_masks(model, 0.4, 2)
    kept = keep_zeros(model, optimizer, masks=before)
    train(model, optimizer, 5)
    layers = {name: model.get_parameter(name) for name in before}
    held = {
        name: {
            key: value.clone()
            for key, value in optimizer.state[weight].items()
            if value.shape == weight.shape
        }
        for name, weight in layers.items()
    }
    steps = [optimizer.state[weight].get("step") for weight in layers.values()]
    kept.update(after)
    for name, weight in layers.items():
        grown = after[name] & ~before[name]
        assert held[name]
        for key, value in held[name].items():
            assert value[grown].any(), "gradients of pruned weights came there"
            assert torch.equal(optimizer.state[weight][key], value.masked_fill(grown, 0))
    assert [optimizer.state[weight].get("step") for weight in layers.values()] == steps
    train(model, optimizer, 1)
    for name, weight in layers.items():
        assert not weight[~after[name]].any()
        assert weight[after[name] & ~before[name]].any()


def test_what_has_no_value_for_each_weight_is_left_alone() -> None:
    """Counts of steps and factored moments, and the state of what is not a parameter."""
    weight = nn.Parameter(torch.ones(1))
    optimizer = Adam([weight])
    optimizer.state[weight] = {"step": torch.ones(1), "row": torch.ones(2), "other": 3}
    kept = keep_zeros([weight], optimizer, masks={"0": torch.tensor([False])})
    kept.update({"0": torch.tensor([True])})
    state = optimizer.state[weight]
    assert state["step"].item() == 1
    assert state["row"].tolist() == [1, 1]
    kept.remove()
    rows = {"first": weight.detach()}
    kept = keep_zeros(rows, optimizer, masks={"first": torch.tensor([False])})
    kept.update({"first": torch.tensor([True])})
    assert state["step"].item() == 1


@pytest.mark.parametrize("make", ["keep_zeros", "Pruner"])
def test_masks_from_the_beginning(make: str) -> None:
    """They say what is kept, of a layer that starts at zero, too, and nobody warns of that."""
    model = network()
    nn.init.zeros_(model.get_parameter("2.weight"))
    optimizer = SGD(model.parameters(), lr=0.1)
    masks = random_masks(model, 0.5, 1)
    pruner: Any = None
    if make == "keep_zeros":
        handle: Any = keep_zeros(model, optimizer, masks=masks)
    else:
        handle = pruner = Pruner(model, optimizer, constant(0.0), masks=masks)
    assert not any(model.get_parameter(name)[~mask].any() for name, mask in masks.items())
    for step in range(3):
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()
        if pruner is not None:
            pruner.step()
    for name, mask in masks.items():
        assert not model.get_parameter(name)[~mask].any()
        assert model.get_parameter(name)[mask].any()
    handle.remove()


@pytest.mark.parametrize("make", ["keep_zeros", "Pruner"])
def test_masks_that_do_not_fit_change_nothing(make: str) -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    masks = random_masks(model, 0.5, 1)
    weights = list(model.parameters())

    def begin(masks: Any) -> Any:
        if make == "keep_zeros":
            return keep_zeros(model, optimizer, masks=masks)
        return Pruner(model, optimizer, constant(0.0), masks=masks)

    for error, wrong, word in (
        (ValueError, {"0.weight": masks["0.weight"]}, "2.weight"),
        (ValueError, {**masks, "2.weight": torch.ones(4, 3, dtype=torch.bool)}, "shape"),
        (TypeError, {**masks, "2.weight": torch.ones(4, 16)}, "bool"),
        (TypeError, [1], "masks"),
    ):
        with refused(error, word, keeps=weights):
            begin(wrong)
        assert not optimizer._optimizer_step_post_hooks
        handle = begin(masks)
        with refused(error, word, keeps=weights):
            handle.update(wrong)
        handle.remove()
        with refused(RuntimeError, "removed", keeps=weights):
            handle.update(masks)


def test_a_pruner_goes_on_from_masks_that_it_is_given() -> None:
    model = network()
    optimizer = AdamW(model.parameters(), lr=0.01)
    pruner = Pruner(model, optimizer, lambda step: 0.5 if step < 6 else 0.75, mask_gradients=True)
    masks = None
    for step in range(1, 8):
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()
        pruner.step()
        if step == 3:
            masks, gone = random_masks(model, 0.5, 3), zeros(model)
            pruner.update(masks)
            state = pruner.state_dict()
        elif masks is not None and step < 6:
            for name, mask in masks.items():
                found = zeros(model)[name]
                assert found[~mask].all()
                assert not found[mask & gone[name]].all(), "but for what has no gradient"
    assert [sparsity for _, sparsity in pruner.history] == [0.5, 0.75]
    assert pruner.report.sparsity == 0.75
    assert masks is not None
    for found, mask in zip(zeros(model).values(), masks.values(), strict=True):
        assert found[~mask].all(), "what was not kept stays pruned"
    again = network()
    resumed = Pruner(again, AdamW(again.parameters()), lambda step: 0.5)
    resumed.load_state_dict(state)
    kept = zip(resumed.state_dict()["zeros"].items(), masks.values(), strict=True)
    for (_, found), mask in kept:
        assert torch.equal(found, mask)


def test_slices_of_stacks_grow() -> None:
    torch.manual_seed(0)
    stack = nn.Parameter(torch.randn(3, 4, 5))
    optimizer = SGD([stack], lr=0.1, momentum=0.9)
    model = nn.ParameterDict({"experts": stack})
    sparsities = lampfast.layerwise_sparsity(model, 0.5, method="uniform", stacked="experts")
    assert len(sparsities) == 3
    masks = lampfast.masks(model, method=sparsities, stacked="experts")
    kept = keep_zeros(model, optimizer, stacked="experts", masks=masks)
    importance = {"experts": torch.rand(3, 4, 5)}
    grown = lampfast.masks(model, method=sparsities, importance=importance, stacked="experts")
    kept.update(grown)
    stack.grad = torch.ones_like(stack)
    optimizer.step()
    assert torch.equal(stack != 0, grown["experts"])
