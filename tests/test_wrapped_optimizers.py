"""Optimizers that a trainer has wrapped: what is kept and counted is what the inner one does."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import lampfast
from lampfast import schedules
from lampfast._training import hooks

STEPS = 7


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4))


def _backward(model: nn.Module, step: int) -> None:
    data = torch.randn(4, 12, generator=torch.Generator().manual_seed(step))
    (model(data) - 1).square().mean().backward()


def _zeros(model: nn.Module) -> list[torch.Tensor]:
    return [weight == 0 for weight in model.parameters() if weight.ndim == 2]


def _accelerated(steps: int, **settings: Any) -> Any:
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()
    return accelerate.Accelerator(cpu=True, gradient_accumulation_steps=steps, **settings)


def _by_lightning(optimizer: torch.optim.Optimizer) -> Any:
    return pytest.importorskip("lightning.pytorch.core.optimizer").LightningOptimizer(optimizer)


def _by_fabric(optimizer: torch.optim.Optimizer) -> Any:
    fabric = pytest.importorskip("lightning.fabric")
    wrapped = fabric.Fabric(accelerator="cpu", devices=1).setup_optimizers(optimizer)
    assert type(wrapped) is not type(optimizer)
    return wrapped


def _by_accelerate(optimizer: torch.optim.Optimizer) -> Any:
    return _accelerated(1).prepare(optimizer)


@pytest.mark.parametrize("wrap", [_by_accelerate, _by_lightning, _by_fabric])
def test_zeros_are_kept_by_the_inner_optimizer(wrap: Callable[..., Any]) -> None:
    model = _model()
    lampfast.prune(model, 0.8)
    before = _zeros(model)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    wrapped = wrap(optimizer)
    kept = lampfast.keep_zeros(model, [wrapped, optimizer])
    assert len(optimizer._optimizer_step_post_hooks) == 1
    for step in range(STEPS):
        _backward(model, step)
        (wrapped if wrap is _by_accelerate else optimizer).step()
        wrapped.zero_grad()
        assert all(map(torch.equal, _zeros(model), before))
    kept.remove()
    assert not optimizer._optimizer_step_post_hooks
    assert "step" not in vars(wrapped)


@pytest.mark.parametrize("accumulated", [1, 3])
def test_a_prepared_training_equals_a_plain_one(accumulated: int) -> None:
    accelerator, schedule = _accelerated(accumulated), schedules.linear(0.9, 4)
    model, plain = _model(), _model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model, optimizer = accelerator.prepare(model, optimizer)
    pruner = lampfast.Pruner(model, optimizer, schedule, every=2)
    for step in range(6 * accumulated):
        with accelerator.accumulate(model):
            data = torch.randn(4, 12, generator=torch.Generator().manual_seed(step))
            accelerator.backward((model(data) - 1).square().mean())
            optimizer.step()
            pruner.step()
            optimizer.zero_grad()

    optimizer = torch.optim.SGD(plain.parameters(), 0.1, momentum=0.9)
    other = lampfast.Pruner(plain, optimizer, schedule, every=2)
    for step in range(6 * accumulated):
        data = torch.randn(4, 12, generator=torch.Generator().manual_seed(step))
        ((plain(data) - 1).square().mean() / accumulated).backward()
        if (step + 1) % accumulated == 0:
            optimizer.step()
            other.step()
            optimizer.zero_grad()
    assert pruner.history == other.history == [(2, 0.45), (4, 0.9)]
    assert repr(pruner) == repr(other)
    for weight, expected in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(weight, expected)


def test_steps_that_its_scaler_skips_count() -> None:
    accelerator, model = _accelerated(1), _model()
    inner = torch.optim.SGD(model.parameters(), 0.1)
    model, optimizer = accelerator.prepare(model, inner)
    optimizer.scaler = torch.amp.GradScaler("cpu")
    optimizer.__setstate__({})  # as it does when it is made with one
    pruner = lampfast.Pruner(model, optimizer, schedules.constant(0.5), every=2)
    for step in range(4):
        data = torch.randn(4, 12, generator=torch.Generator().manual_seed(step))
        optimizer.scaler.scale((model(data) - 1).square().mean()).backward()
        if step == 1:
            next(model.parameters()).grad[0, 0] = torch.inf
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
        assert optimizer.step_was_skipped == (step == 1)
        assert lampfast.report(model).sparsity == (0.5 if step else 0.0)
    assert pruner.history == [(2, 0.5)]


class _Lookahead(torch.optim.Optimizer):
    """Wraps an optimizer, writes weights itself, and has a step without torch's hooks."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.optimizer, self.taken = inner, 0
        self.slow = [weight.detach().clone() for weight in self._weights()]

    def _weights(self) -> list[torch.Tensor]:
        return [weight for group in self.optimizer.param_groups for weight in group["params"]]

    @property
    def param_groups(self) -> Any:  # type: ignore[override]
        return self.optimizer.param_groups

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.optimizer.step(closure)
        self.taken += 1
        if self.taken % 2 == 0:
            for weight, slow in zip(self._weights(), self.slow, strict=True):
                slow.lerp_(weight, 0.5)
                weight.copy_(slow)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    def state_dict(self) -> Any:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: Any) -> None:
        self.optimizer.load_state_dict(state)


def test_lookahead_that_is_prepared_stays_wrapped() -> None:
    model = _model()
    lookahead = _Lookahead(torch.optim.AdamW(model.parameters(), 0.01))
    wrapped = _by_accelerate(lookahead)
    assert hooks.unwrapped(wrapped) is wrapped
    lampfast.prune(model, 0.8)  # what it holds is not pruned
    before = _zeros(model)
    kept = lampfast.keep_zeros(model, wrapped)
    for step in range(STEPS):
        _backward(model, step)
        wrapped.step()
        wrapped.zero_grad()
        assert all(map(torch.equal, _zeros(model), before))
    kept.remove()
    assert "step" not in vars(wrapped)
