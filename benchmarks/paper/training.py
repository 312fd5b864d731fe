"""Training and testing a network: AdamW at a constant rate, cross-entropy."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from data import Batch, Images
from settings import Settings
from torch import nn
from torch.nn import functional

_TEST_BATCH = 1000


class Score(NamedTuple):
    """How a network does on the test images: the fraction it gets right, the mean loss."""

    accuracy: float
    loss: float


def new_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """AdamW that has made no step yet."""
    return torch.optim.AdamW(
        model.parameters(),
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def train(model: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterable[Batch]) -> None:
    """One step of the optimizer for every batch."""
    model.train()
    for pixels, classes in batches:
        optimizer.zero_grad()
        torch.autograd.backward(functional.cross_entropy(model(pixels), classes))
        optimizer.step()


def test(model: nn.Module, images: Images) -> Score:
    """Accuracy and loss over all the images."""
    model.eval()
    right, loss = 0, 0.0
    with torch.no_grad():
        for start in range(0, len(images.classes), _TEST_BATCH):
            classes = images.classes[start : start + _TEST_BATCH]
            answers = model(images.pixels[start : start + _TEST_BATCH])
            right += int((answers.argmax(1) == classes).sum())
            loss += float(functional.cross_entropy(answers, classes, reduction="sum"))
    return Score(right / len(images.classes), loss / len(images.classes))
