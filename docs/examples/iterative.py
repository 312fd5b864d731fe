"""Iterative pruning with rewinding: rounds that train, prune and go back to an early step.

Each round prunes a fifth of what remains. What then remains starts again from the values that it
had early in training, with a new optimizer (Renda, Frankle, Carbin, ICLR 2020).
"""

import copy

import torch
from task import QUICK, Task, network, train

import lampfast

EARLY, STEPS, ROUNDS = (5, 10, 3) if QUICK else (100, 1000, 10)

task, model = Task(), network()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
train(model, optimizer, task, EARLY)
early = copy.deepcopy(model.state_dict())
train(model, optimizer, task, STEPS)
print(f"round  0: accuracy {task.accuracy(model):.1%}, dense")

schedule = lampfast.schedules.geometric(fraction=0.2)
for number in range(1, ROUNDS + 1):
    lampfast.prune(model, schedule(number))
    lampfast.rewind(model, early)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with lampfast.keep_zeros(model, optimizer):
        train(model, optimizer, task, STEPS)
    sparsity = lampfast.report(model).sparsity
    print(f"round {number:2}: accuracy {task.accuracy(model):.1%} at sparsity {sparsity:.1%}")
