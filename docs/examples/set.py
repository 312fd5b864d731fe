"""SET: sparse from start to end; the smallest weights go, and others grow by chance.

Mocanu, Mocanu, Stone, Nguyen, Gibescu, Liotta: Scalable training of artificial neural networks with
adaptive sparse connectivity inspired by network science, Nature Communications 2018, arXiv
1707.04780.
"""

import torch
from task import QUICK, Task, network, train

import lampfast

STEPS, EVERY = (40, 10) if QUICK else (3000, 100)
SPARSITY, SHARE = 0.9, 0.3  # SHARE: how much of what is kept goes each time

task, model = Task(), network()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

# Every layer has its share from the beginning ("erk", or "uniform"), and of random weights.
sparsities = lampfast.layerwise_sparsity(model, SPARSITY, method="erk")
sparser = {name: 1 - (1 - sparsity) * (1 - SHARE) for name, sparsity in sparsities.items()}


def chance() -> dict[str, torch.Tensor]:
    """A random number from 0 to 1 for every weight."""
    return {name: torch.rand(model.get_parameter(name).shape) for name in sparsities}


masks = lampfast.masks(model, method=sparsities, importance=chance())
kept = lampfast.keep_zeros(model, optimizer, masks=masks)
for _ in range(STEPS // EVERY):
    train(model, optimizer, task, EVERY)
    stays = lampfast.masks(model, method=sparser)
    importance = {name: values + 2 * stays[name] for name, values in chance().items()}
    masks = lampfast.masks(model, method=sparsities, importance=importance)
    kept.update(masks)
train(model, optimizer, task, EVERY)
connected = sum(int(mask.sum()) for mask in masks.values())  # some of them may be zero by chance
print(f"accuracy {task.accuracy(model):.1%} with {connected:,} weights")
