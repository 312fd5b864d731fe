"""What is trained is found by memory: slices, chunks, columns, and one optimizer a parameter."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

import lampfast
from lampfast._training import trained

Slices = Callable[[torch.Tensor], dict[str, torch.Tensor]]
SLICES: dict[str, Slices] = {
    "experts": lambda p: {f"e{i}": p.data[i] for i in range(4)},
    "detached": lambda p: {f"e{i}": p.detach()[i] for i in range(4)},
    "under autograd": lambda p: {f"e{i}": p[i] for i in range(4)},
    "chunks": lambda p: dict(zip("qkv", p.data.chunk(3, 1), strict=True)),
    "columns": lambda p: {"even": p.data[..., ::2], "odd": p.data[..., 1::2]},
    "transposed": lambda p: {f"e{i}": p.data[i].T for i in range(4)},
    "all but the first": lambda p: {f"e{i}": p.data[i] for i in range(1, 4)},
    "whole": lambda p: {"p": p.data},
}


def zeros_of(layers: dict[str, torch.Tensor]) -> list[int]:
    return [int((layer == 0).sum()) for layer in layers.values()]


@pytest.mark.parametrize("slices", SLICES.values(), ids=SLICES)
def test_slices_of_a_parameter(slices: Slices) -> None:
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(4, 9, 8))
    optimizer = AdamW([nn.Parameter(torch.ones(3)), parameter], lr=0.1)
    layers = slices(parameter)
    lampfast.prune(layers, 0.5)
    before = zeros_of(layers)
    kept = lampfast.keep_zeros(layers, optimizer)
    for _ in range(3):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        assert zeros_of(layers) == before
    kept.remove()
    optimizer.step()
    assert zeros_of(layers) == [0] * len(before)


def test_a_pruner_of_slices() -> None:
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(4, 8, 8))
    optimizer = SGD([parameter], lr=0.1)
    layers = {f"e{i}": parameter.data[i] for i in range(4)}
    pruner = lampfast.Pruner(layers, optimizer, lampfast.schedules.linear(0.8, 4))
    for step in range(1, 7):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        pruner.step()
        assert pruner.report.sparsity == pytest.approx(min(0.2 * step, 0.8), abs=1 / 256)


def test_parameters_that_are_slices_of_a_layer() -> None:
    flat = torch.randn(6, 4)
    parts = [nn.Parameter(flat[:3]), nn.Parameter(flat[3:])]
    lampfast.prune([flat], 0.5)
    zero = flat == 0
    optimizers = [SGD([part], lr=0.1) for part in parts]
    kept = lampfast.keep_zeros([flat], optimizers)
    for part, optimizer in zip(parts, optimizers, strict=True):
        part.grad = torch.ones_like(part)
        optimizer.step()
        assert torch.equal(flat == 0, zero)
    assert kept


def test_neighbours_in_memory_are_not_trained() -> None:
    flat = torch.ones(4, 6)
    parameter = nn.Parameter(flat[2:])
    with pytest.raises(ValueError, match="SGD has none of the layers"):
        lampfast.keep_zeros([flat[:2]], SGD([parameter]))


def test_a_stale_backward_through_a_slice_is_noticed() -> None:
    parameter = nn.Parameter(torch.randn(2, 3))
    optimizer = SGD([parameter], lr=0.1)
    loss = parameter[0].square().sum()
    parameter.grad = torch.ones_like(parameter)
    kept = lampfast.keep_zeros({"0": parameter.detach()[0]}, optimizer)
    version = parameter._version
    optimizer.step()
    assert parameter._version >= version + 2  # the step's, and that of the zeros
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()  # type: ignore[no-untyped-call]
    assert kept


def test_parameters_that_move_are_found_again() -> None:
    model = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
    lampfast.prune(model, 0.5)
    optimizers = [SGD(layer.parameters(), lr=0.1) for layer in model]
    kept = lampfast.keep_zeros(model, optimizers)
    for move in (model.double, model.float, lambda: model):
        move()
        for optimizer, layer in zip(optimizers, model, strict=True):
            for parameter in layer.parameters():
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
        assert lampfast.report(model).kept == 25
    assert kept


def test_one_optimizer_a_parameter_is_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in addresses that are asked for, not in seconds."""
    asked = 0
    address, now = trained._address, trained._Index.now

    def counting(parameter: torch.Tensor) -> int:
        nonlocal asked
        asked += 1
        return address(parameter)

    def counting_all(index: Any) -> Any:
        nonlocal asked
        asked += len(index._weights)
        return now(index)

    def asked_in_a_round(n: int) -> int:
        nonlocal asked
        parameters = [nn.Parameter(torch.ones(2)) for _ in range(n)]
        optimizers = [SGD([parameter], lr=0.1) for parameter in parameters]
        kept = lampfast.keep_zeros(parameters, optimizers)
        asked = 0
        for optimizer in optimizers:
            optimizer.step()
        kept.remove()
        return asked

    monkeypatch.setattr(trained, "_address", counting)
    monkeypatch.setattr(trained._Index, "now", counting_all)
    assert asked_in_a_round(64) == 2 * asked_in_a_round(32) == 64


@pytest.mark.parametrize("name", ["experts", "chunks", "columns"])
def test_a_parameter_that_leaves_its_slices_behind(name: str) -> None:
    parameter = nn.Parameter(torch.randn(4, 9, 8))
    optimizer = SGD([nn.Parameter(torch.ones(3)), parameter], lr=0.1)
    layers = SLICES[name](parameter)
    lampfast.prune(layers, 0.5)
    kept = lampfast.keep_zeros(layers, optimizer)
    parameter.data = parameter.data.double()  # as model.double() does
    for _ in range(2):
        with pytest.raises(ValueError, match=f"layer '{next(iter(layers))}' is a view of"):
            optimizer.step()
    kept.remove()
    kept = lampfast.keep_zeros(SLICES[name](parameter), optimizer)
    optimizer.step()
    assert kept


def test_a_parameter_that_an_optimizer_no_longer_has() -> None:
    parameters = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = SGD(parameters, lr=0.1)
    kept = lampfast.keep_zeros({"slice": parameters[0].data[:1]}, optimizer)
    optimizer.param_groups[0]["params"] = parameters[1:]
    optimizer.step()
    assert kept
