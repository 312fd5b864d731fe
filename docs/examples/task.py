"""A small task that the examples share: a network learns what a sparse random one answers."""

import sys
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

QUICK = "--quick" in sys.argv  # a few steps, to see that everything runs

_INPUTS, _HIDDEN, _CLASSES, _BATCH = 100, 10, 10, 128
_CONNECTED = 0.05  # of the inputs, with each hidden unit: most weights of a network are not needed


class Task:
    """Training batches and an accuracy, the same for every seed."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)
        is_connected = torch.rand(_INPUTS, _HIDDEN, generator=self._generator) < _CONNECTED
        self._first = self._normal(_INPUTS, _HIDDEN) * is_connected
        self._second = self._normal(_HIDDEN, _CLASSES)
        self._test = self._labelled(5000)

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs of shape (batch, 100), and their classes."""
        return self._labelled(_BATCH)

    def accuracy(self, model: nn.Module) -> float:
        """How many of 5,000 inputs that were not trained on a model gets right."""
        inputs, classes = self._test
        with torch.no_grad():
            return float((model(inputs).argmax(1) == classes).float().mean())

    def _labelled(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = self._normal(count, _INPUTS)
        return inputs, ((inputs @ self._first).relu() @ self._second).argmax(1)

    def _normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self._generator)


def network() -> nn.Module:
    """Three linear layers, 61,000 weights."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(_INPUTS, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, _CLASSES)
    )


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    task: Task,
    steps: int,
    after_step: Callable[[], None] = lambda: None,
) -> None:
    """Train a model, and call `after_step` after every step of its optimizer."""
    for _ in range(steps):
        inputs, classes = task.batch()
        functional.cross_entropy(model(inputs), classes).backward()
        optimizer.step()
        after_step()
        optimizer.zero_grad()
