"""One rank of a run of test_sharded_killed: another one is killed while they prune.

Usage: killed_ranks.py FOLDER RANK RANKS
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from ranks import join
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import lampfast
from lampfast._engine.communicator import GroupCommunicator

KILLED = 1


def kill_after(collectives: int) -> None:
    """Let this process die in the middle of a call."""
    original = GroupCommunicator._complete

    def last(self: GroupCommunicator, *args: Any) -> str:
        if self.collectives == collectives:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *args)

    setattr(GroupCommunicator, "_complete", last)  # noqa: B010


def main(folder: Path, rank: int, ranks: int) -> None:
    join(folder, rank, ranks, seconds=30)
    torch.manual_seed(0)
    mesh = init_device_mesh("cpu", (ranks,))
    weights: dict[str, Any] = {
        name: nn.Parameter(distribute_tensor(torch.randn(31, 17), mesh, [Shard(0)]))
        for name in ("a", "b")
    }
    lampfast.prune(weights, 0.3)
    before = {name: weight.to_local().detach().clone() for name, weight in weights.items()}
    if rank == KILLED:
        kill_after(4)
    error = ""
    try:
        lampfast.prune(weights, 0.6)
    except RuntimeError as raised:
        error = str(raised) or "no words"
    same = all(torch.equal(weight.to_local(), before[name]) for name, weight in weights.items())
    (folder / f"{rank}.json").write_text(json.dumps([error, same]))
    os._exit(0)  # the group is broken


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
