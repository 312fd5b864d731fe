"""One-shot pruning: train, prune once, train what remains; by LAMP, and uniformly to compare."""

import copy

import torch
from task import QUICK, Task, network, train

import lampfast

STEPS = 20 if QUICK else 1300
SPARSITY = 0.96

task, dense = Task(), network()
train(dense, torch.optim.AdamW(dense.parameters(), lr=1e-3), task, STEPS)
print(f"dense:    accuracy {task.accuracy(dense):.1%}")

for method in ("uniform", "lamp"):
    model = copy.deepcopy(dense)
    report = lampfast.prune(model, SPARSITY, method=method)
    print(report)
    pruned = task.accuracy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with lampfast.keep_zeros(model, optimizer):
        train(model, optimizer, task, STEPS)
    retrained = task.accuracy(model)
    sparsity = lampfast.report(model).sparsity
    print(f"{method}: accuracy {pruned:.1%}, retrained {retrained:.1%} at sparsity {sparsity:.1%}")
