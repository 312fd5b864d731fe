"""Modules with the dimension of their weight that holds the inputs."""

import torch
from torch import nn


class _Conv1D(nn.Module):
    """Stands in for transformers' linear layer with its weight transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 6))


_Conv1D.__name__, _Conv1D.__module__ = "Conv1D", "transformers.pytorch_utils"

MODULES = [
    (nn.Linear(8, 6), 1),
    (nn.Conv2d(8, 6, 3), 1),
    (nn.ConvTranspose2d(8, 6, 3), 0),
    (_Conv1D(), 0),
    (nn.LSTMCell(8, 6), 1),
]
