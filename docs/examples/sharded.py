"""A model sharded by FSDP2: pruned while it trains, saved half way and resumed.

Usage: torchrun --nproc-per-node 2 sharded.py [--quick]
"""

import tempfile

import torch
from task import QUICK, Task, network, train
from torch import distributed
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import lampfast

STEPS = 20 if QUICK else 2000

distributed.init_process_group("gloo")
torch.manual_seed(0)
mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
schedule = lampfast.schedules.cubic(0.9, 2 * STEPS)


def made():
    """A model, its optimizer and its Pruner, as every rank makes them."""
    model = fully_shard(network(), mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return model, optimizer, lampfast.Pruner(model, optimizer, schedule, every=STEPS // 5)


def state(model, optimizer, pruner):
    """What a checkpoint holds: DTensors, each rank's part of which it writes and reads itself."""
    weights, moments = get_state_dict(model, optimizer)
    return {"model": weights, "optimizer": moments, "pruner": pruner.state_dict()}


task = Task()
model, optimizer, pruner = made()
train(model, optimizer, task, STEPS, pruner.step)
folder = [tempfile.mkdtemp()]
distributed.broadcast_object_list(folder)
checkpoint.save(state(model, optimizer, pruner), checkpoint_id=folder[0])

model, optimizer, pruner = made()  # in another run, on any number of ranks
saved = state(model, optimizer, pruner)
checkpoint.load(saved, checkpoint_id=folder[0])
set_state_dict(
    model, optimizer, model_state_dict=saved["model"], optim_state_dict=saved["optimizer"]
)
pruner.load_state_dict(saved["pruner"])
train(model, optimizer, task, STEPS, pruner.step)

report = pruner.report
if distributed.get_rank() == 0:
    print(f"resumed at step {STEPS}, ends at sparsity {report.sparsity:.1%}")
distributed.destroy_process_group()
