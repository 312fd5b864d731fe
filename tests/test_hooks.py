"""Optimizers that write weights where torch's hooks do not see it."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import StepLR

import lampfast
from lampfast._training import hooks


class Lookahead(Optimizer):
    """As in several libraries: slow weights are drawn to the fast ones; torch did not set it up."""

    def __init__(self, inner: Optimizer, has_hooks: bool = True) -> None:
        self.inner, self.param_groups, self.defaults = inner, inner.param_groups, inner.defaults
        self.state = inner.state
        if has_hooks:
            self._optimizer_step_pre_hooks: Any = {}
            self._optimizer_step_post_hooks: Any = {}
        self.slow = [p.detach().clone() + 1 for group in self.param_groups for p in group["params"]]

    def step(self, closure: Any = None) -> Any:
        """Step, and write to the weights afterwards."""
        result = self.inner.step(closure)
        parameters = [p for group in self.param_groups for p in group["params"]]
        with torch.no_grad():
            for parameter, slow in zip(parameters, self.slow, strict=True):
                slow.lerp_(parameter, 0.5)
                parameter.copy_(slow)
        return result


class Like:
    """What wraps an optimizer without being one, as schedule-free's wrapper does."""

    def __init__(self, inner: Optimizer) -> None:
        self.inner = inner

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of the inner one."""
        return self.inner.param_groups

    def step(self) -> None:
        """Step, and write to the weights afterwards."""
        self.inner.step()
        self._write()

    def eval(self) -> None:
        """Write to the weights."""
        self._write()

    def train(self) -> None:
        """Write to the weights."""
        self._write()

    @torch.no_grad()
    def _write(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.add_(1)


class ScheduleFree(SGD):
    """Has the step that torch hooks, and two more methods that write."""

    eval, train, _write = Like.eval, Like.train, Like._write


def schedule_free(name: str) -> Callable[[Any], Any]:
    def make(parameters: Any) -> Any:
        optimizer = getattr(pytest.importorskip("schedulefree"), name)(parameters, lr=0.1)
        optimizer.train()
        return optimizer

    return make


MAKERS: dict[str, Callable[[Any], Any]] = {
    "lookahead": lambda p: Lookahead(SGD(p, lr=0.1)),
    "lookahead without hooks": lambda p: Lookahead(SGD(p, lr=0.1), has_hooks=False),
    "like an optimizer": lambda p: Like(SGD(p, lr=0.1)),
    "schedule-free": lambda p: ScheduleFree(p, lr=0.1),
    "AdamWScheduleFree": schedule_free("AdamWScheduleFree"),
    "SGDScheduleFree": schedule_free("SGDScheduleFree"),
    "RAdamScheduleFree": schedule_free("RAdamScheduleFree"),
    "ScheduleFreeWrapper": lambda p: schedule_free_wrapper(p),
}


def schedule_free_wrapper(parameters: Any) -> Any:
    wrapper = pytest.importorskip("schedulefree").ScheduleFreeWrapper(SGD(parameters, lr=0.1))
    wrapper.train()
    return wrapper


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_zeros_last_through_all_that_writes(make: Callable[[Any], Any]) -> None:
    torch.manual_seed(0)
    model = nn.Linear(10, 10)
    lampfast.prune(model, 0.9)
    before = model.weight.detach().clone()
    optimizer = make(model.parameters())
    kept = lampfast.keep_zeros(model, optimizer)
    for _ in range(8):  # RAdam is slow to start
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        assert lampfast.report(model).kept == 10
        if hasattr(optimizer, "eval"):
            optimizer.eval()
            assert lampfast.report(model).kept == 10
            optimizer.train()
            assert lampfast.report(model).kept == 10
    assert not torch.equal(model.weight, before)
    kept.remove()
    assert not {"step", "eval", "train"} & vars(optimizer).keys()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert lampfast.report(model).kept == 100


def test_a_pruner_of_a_wrapped_optimizer() -> None:
    model = nn.Linear(10, 10)
    optimizer = Lookahead(SGD(model.parameters(), lr=0.1))
    pruner = lampfast.Pruner(model, optimizer, lampfast.schedules.constant(0.9))
    for _ in range(3):
        model.weight.grad = torch.ones(10, 10)
        optimizer.step()
        pruner.step()
        assert pruner.report.kept == 10
    optimizer.step()
    assert pruner.report.kept == 10


def test_restoring_what_something_else_has_written() -> None:
    model = nn.Linear(4, 4)
    lampfast.prune(model, 0.5)
    kept = lampfast.keep_zeros(model, SGD(model.parameters()))
    state = {name: torch.ones_like(value) for name, value in model.state_dict().items()}
    loss = (model.weight * model.weight).sum()
    model.load_state_dict(state)
    kept.restore()
    assert lampfast.report(model).kept == 8
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()  # type: ignore[no-untyped-call]
    kept.remove()
    with pytest.raises(RuntimeError, match="removed"):
        kept.restore()


@pytest.mark.parametrize("scheduled", ["before", "after"])
def test_schedulers_of_learning_rates_wrap_steps_too(scheduled: str) -> None:
    model = nn.Linear(4, 4)
    lampfast.prune(model, 0.5)
    optimizer = Lookahead(SGD(model.parameters(), lr=0.1))
    scheduler = StepLR(optimizer, 1) if scheduled == "before" else None
    kept = lampfast.keep_zeros(model, optimizer)
    scheduler = scheduler or StepLR(optimizer, 1)
    model.weight.grad = torch.ones(4, 4)
    optimizer.step()
    scheduler.step()
    assert lampfast.report(model).kept == 8
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
    kept.remove()
    optimizer.step()
    assert lampfast.report(model).kept == 16


def test_a_copy_of_a_wrapped_optimizer_trains_its_own_weights() -> None:
    weight = nn.Parameter(torch.tensor([0.0, 1.0]))
    optimizer = Like(SGD([weight], lr=0.1))
    kept = lampfast.keep_zeros([weight], optimizer)  # type: ignore[arg-type]
    copied = copy.deepcopy(optimizer)
    copied.step()
    assert weight.tolist() == [0.0, 1.0]
    assert copied.param_groups[0]["params"][0].tolist() == [1.0, 2.0]
    assert kept


def test_two_handles_of_one_optimizer() -> None:
    weights = [nn.Parameter(torch.tensor([0.0, 1.0])) for _ in range(2)]
    optimizer = Like(SGD(weights, lr=0.1))
    first, second = (lampfast.keep_zeros([w], optimizer) for w in weights)  # type: ignore[arg-type]
    optimizer.step()
    assert [w.tolist() for w in weights] == [[0.0, 2.0]] * 2
    first.remove()
    optimizer.step()
    assert [w.tolist() for w in weights] == [[1.0, 3.0], [0.0, 3.0]]
    second.remove()
    optimizer.step()
    assert [w.tolist() for w in weights] == [[2.0, 4.0], [1.0, 4.0]]


def test_steps_that_torch_hooks() -> None:
    weight = nn.Parameter(torch.ones(2))
    assert hooks.has_hooked_step(SGD([weight]))
    assert hooks.has_hooked_step(ScheduleFree([weight]))
    assert not hooks.has_hooked_step(Lookahead(SGD([weight])))
