"""One-shot pruning: train, prune once, train what remains."""

import torch
from task import QUICK, Task, network, train

import lampfast

STEPS = 20 if QUICK else 2000
SPARSITY = 0.9

task, model = Task(), network()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
train(model, optimizer, task, STEPS)
print(f"trained:    accuracy {task.accuracy(model):.1%}")

print(lampfast.prune(model, SPARSITY))
print(f"pruned:     accuracy {task.accuracy(model):.1%}")

with lampfast.keep_zeros(model, optimizer):
    train(model, optimizer, task, STEPS)
sparsity = lampfast.report(model).sparsity
print(f"retrained:  accuracy {task.accuracy(model):.1%} at sparsity {sparsity:.1%}")
