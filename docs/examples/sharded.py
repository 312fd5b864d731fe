"""A model sharded by FSDP2: pruned in place, trained with its zeros kept, saved and resumed.

Usage: torchrun --nproc-per-node 2 sharded.py [--quick]
"""

import tempfile

import torch
from task import QUICK, Task, network, train
from torch import distributed
from torch.distributed import checkpoint
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import lampfast

STEPS = 20 if QUICK else 2000
SPARSITY = 0.9

distributed.init_process_group("gloo")
torch.manual_seed(0)
mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
task, model = Task(), fully_shard(network(), mesh=mesh)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
train(model, optimizer, task, STEPS)

lampfast.prune(model, SPARSITY)  # every rank makes the same call
with lampfast.keep_zeros(model, optimizer):  # each keeps those of its own shards
    train(model, optimizer, task, STEPS)
model.reshard()

folder = [tempfile.mkdtemp()]
distributed.broadcast_object_list(folder)
checkpoint.save({"model": model.state_dict()}, checkpoint_id=folder[0])
resumed = fully_shard(network(), mesh=mesh)
state = {"model": resumed.state_dict()}
checkpoint.load(state, checkpoint_id=folder[0])
resumed.load_state_dict(state["model"])

report = lampfast.report(resumed)
if distributed.get_rank() == 0:
    print(f"resumed at sparsity {report.sparsity:.1%}")
distributed.destroy_process_group()
