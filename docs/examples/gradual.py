"""Gradual pruning: the sparsity rises while the model trains, and a checkpoint resumes it."""

import io

import torch
from task import QUICK, Task, network, train

import lampfast

STEPS, EVERY = (30, 5) if QUICK else (3000, 100)

task, model = Task(), network()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
schedule = lampfast.schedules.cubic(0.95, STEPS * 2 // 3)
pruner = lampfast.Pruner(model, optimizer, schedule, every=EVERY)
train(model, optimizer, task, STEPS // 2, pruner.step)
print(f"half-way: accuracy {task.accuracy(model):.1%} at sparsity {pruner.report.sparsity:.1%}")

checkpoint = io.BytesIO()  # or a file
state = {"model": model, "optimizer": optimizer, "pruner": pruner}
torch.save({name: part.state_dict() for name, part in state.items()}, checkpoint)

# Another process would go on from here: everything is made anew, and then loaded.
model = network()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
pruner = lampfast.Pruner(model, optimizer, schedule, every=EVERY)
checkpoint.seek(0)
for name, part in {"model": model, "optimizer": optimizer, "pruner": pruner}.items():
    part.load_state_dict(torch.load(checkpoint, weights_only=True)[name])
    checkpoint.seek(0)
train(model, optimizer, task, STEPS - STEPS // 2, pruner.step)
print(f"finished: accuracy {task.accuracy(model):.1%} at sparsity {pruner.report.sparsity:.1%}")
print("step and sparsity of each pruning:")
print(", ".join(f"{step}: {sparsity:.1%}" for step, sparsity in pruner.history))
