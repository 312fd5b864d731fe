"""RigL: sparse from start to end; the smallest weights go, and others grow by their gradients.

Evci, Gale, Menick, Castro, Elsen: Rigging the Lottery, ICML 2020, arXiv 1911.11134.
"""

from math import cos, pi

import torch
from task import QUICK, Task, network
from torch.nn import functional

import lampfast

STEPS, EVERY = (40, 10) if QUICK else (3000, 100)
SPARSITY, FIRST = 0.9, 0.3  # FIRST: the share of what is kept that goes at first

task, model = Task(), network()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

# Every layer has its share from the beginning ("erk", or "uniform"), and of random weights.
sparsities = lampfast.layerwise_sparsity(model, SPARSITY, method="erk")
chance = {name: torch.rand(model.get_parameter(name).shape) for name in sparsities}
masks = lampfast.masks(model, method=sparsities, importance=chance)
kept = lampfast.keep_zeros(model, optimizer, masks=masks, mask_gradients=True)


def regrown(share: float) -> dict[str, torch.Tensor]:
    """Masks without a share of the weights of each layer, and with as many others."""
    sparser = {name: 1 - (1 - sparsity) * (1 - share) for name, sparsity in sparsities.items()}
    importance = {}
    for name, stays in lampfast.masks(model, method=sparser).items():
        gradient = model.get_parameter(name).grad.abs()
        importance[name] = torch.where(stays, gradient.max() + 1, gradient)
    return lampfast.masks(model, method=sparsities, importance=importance)


for step in range(1, STEPS + 1):
    inputs, classes = task.batch()
    loss = functional.cross_entropy(model(inputs), classes)
    optimizer.zero_grad()
    if step % EVERY == 0 and step <= STEPS * 3 // 4:
        with kept.dense_gradients():  # those of pruned weights too, which choose what grows
            loss.backward()
        kept.update(regrown(FIRST / 2 * (1 + cos(pi * step / (STEPS * 3 // 4)))))
    else:
        loss.backward()
    optimizer.step()
sparsity = lampfast.report(model).sparsity
print(f"accuracy {task.accuracy(model):.1%} at sparsity {sparsity:.1%}")
