"""Short trainings with optimizers of every kind: as by hand, and averages have the same zeros."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from test_hooks import Lookahead
from torch import nn
from torch.optim import SGD, Adafactor, AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import lampfast
from lampfast import schedules

STEPS, EVERY = 14, 3
SCHEDULE = schedules.cubic(0.9, 9)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Tensors this small are not worth a second one; tests/conftest.py puts it back."""
    torch.set_num_threads(1)


def _schedule_free(name: str) -> Callable[[nn.Module], list[Any]]:
    def make(model: nn.Module) -> list[Any]:
        cls = getattr(pytest.importorskip("schedulefree"), name)
        optimizer = cls(model.parameters(), lr=0.05, warmup_steps=2)
        optimizer.train()
        return [optimizer]

    return make


def _muon(model: nn.Module) -> list[Optimizer]:
    """Muon for the matrices, another one for the rest, as it is used."""
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    matrices = [weight for weight in model.parameters() if weight.ndim == 2]
    others = [weight for weight in model.parameters() if weight.ndim != 2]
    return [torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1), AdamW(others, 0.01)]


def _others_lookahead(model: nn.Module) -> list[Any]:
    module = pytest.importorskip("pytorch_optimizer")
    return [module.Lookahead(AdamW(model.parameters(), 0.01), k=2)]


OPTIMIZERS: dict[str, Callable[[nn.Module], Sequence[Any]]] = {
    "AdamW": lambda model: [AdamW(model.parameters(), 0.01)],
    "Adafactor": lambda model: [Adafactor(model.parameters(), 0.05, weight_decay=0.01)],
    "Muon": _muon,
    "Lookahead": lambda model: [Lookahead(SGD(model.parameters(), 0.1, momentum=0.9))],
    "pytorch_optimizer's Lookahead": _others_lookahead,
    "SGDScheduleFree": _schedule_free("SGDScheduleFree"),
    "AdamWScheduleFree": _schedule_free("AdamWScheduleFree"),
}


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4))


def _backward(model: nn.Module, step: int) -> None:
    model.zero_grad()
    data = torch.randn(4, 12, generator=torch.Generator().manual_seed(step))
    (model(data) - 1).square().mean().backward()


def _average(model: nn.Module) -> AveragedModel:
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))  # type: ignore[no-untyped-call]


def _weights(model: nn.Module) -> list[torch.Tensor]:
    return [weight for weight in model.parameters() if weight.ndim == 2]


class _ByHand:
    """Multiplies the weights by masks wherever they may have been written."""

    def __init__(self, model: nn.Module) -> None:
        self._model, self._weights, self._step = model, _weights(model), 0
        self._masks = [torch.ones_like(weight) for weight in self._weights]

    @torch.no_grad()
    def keep(self) -> None:
        for weight, mask in zip(self._weights, self._masks, strict=True):
            weight.mul_(mask)

    @torch.no_grad()
    def step(self) -> None:
        self._step += 1
        if self._step % EVERY == 0 and self._step <= 9:
            lampfast.prune(self._model, SCHEDULE(self._step))
            self._masks = [weight != 0 for weight in self._weights]


def _validate(optimizers: Sequence[Any], look: Callable[[], None]) -> None:
    """What schedule-free optimizers ask for around a validation."""
    for way in ("eval", "train"):
        for optimizer in optimizers:
            if hasattr(optimizer, way):
                getattr(optimizer, way)()
                look()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_training_equals_one_by_hand(name: str) -> None:
    model, plain = _model(), _model()
    optimizers, others = OPTIMIZERS[name](model), OPTIMIZERS[name](plain)
    average = _average(model)
    pruner = lampfast.Pruner(model, list(optimizers), SCHEDULE, every=EVERY, copies=average)
    by_hand = _ByHand(plain)

    def look() -> None:
        by_hand.keep()
        pairs = zip(_weights(model), _weights(plain), _weights(average), strict=True)
        for weight, expected, averaged in pairs:
            assert torch.equal(weight, expected)
            assert torch.equal(averaged == 0, weight == 0)

    for step in range(STEPS):
        _backward(model, step)
        _backward(plain, step)
        for optimizer in (*optimizers, *others):
            optimizer.step()
        average.update_parameters(model)
        look()
        pruner.step()
        by_hand.step()
        look()
        if step % 4 == 3:
            _validate([*optimizers, *others], by_hand.keep)
            look()
    assert [step for step, _ in pruner.history] == [3, 6, 9]
    assert lampfast.report(model).kept == lampfast.report(average).kept == 26


def test_swa_swapped_into_the_model_has_its_zeros() -> None:
    model = _model()
    optimizer = SGD(model.parameters(), 0.1, momentum=0.9)
    scheduler = torch.optim.swa_utils.SWALR(optimizer, swa_lr=0.05, anneal_epochs=2)
    average = AveragedModel(model)
    pruner = lampfast.Pruner(model, optimizer, SCHEDULE, every=EVERY, copies=average)
    for step in range(STEPS):
        _backward(model, step)
        optimizer.step()
        pruner.step()
        scheduler.step()
        if step > 4:
            average.update_parameters(model)
    kept = [weight != 0 for weight in _weights(model)]
    model.load_state_dict(average.module.state_dict())
    assert all(torch.equal(w != 0, mask) for w, mask in zip(_weights(model), kept, strict=True))
