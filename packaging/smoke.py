"""Prunes with the installed lampfast, away from any source folder, and compares with the oracle.

Usage: python packaging/smoke.py
"""

import torch
from torch import nn

import lampfast
from lampfast import reference


def main() -> None:
    """Fails by an exception; otherwise says what was tried."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(32, 10))
    weights = {name: value for name, value in model.state_dict().items() if value.ndim > 1}
    expected = reference.masks(weights, 0.9)
    masks = lampfast.masks(model, 0.9)
    assert all(torch.equal(masks[name], expected[name]) for name in weights)
    report = lampfast.prune(model, 0.9)
    assert report.numel - report.kept == round(0.9 * report.numel), report
    print(f"The masks are right: {lampfast.config()}")


main()
