"""What a call on a sharded model costs: collectives, bytes that a rank sends, and time.

Real ranks are processes of gloo on this machine. Virtual ones are counted by one process, which has
what every rank has: all shards of a layer are equal, so what the ranks add up is a multiple of its
own, and it can stand for any number of them. Shards have the shapes that a transformer of 70
billion weights has on 1,024 ranks (80 blocks, hidden size 8,192, intermediate size 28,672, 8 heads
of keys and values, cut along the first dimension); of fewer ranks the model is smaller by as much.
For weights that are hard to prune, ranks are threads.

Usage:
    python benchmarks/sharded.py virtual [--ranks 8 64 1024] [--blocks 80] [--dtype bfloat16]
    python benchmarks/sharded.py gloo [--ranks 1 2 4] [--layers 8] [--side 1024]
    python benchmarks/sharded.py hard [--ranks 3] [--layers 4] [--side 256]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import lampfast
from lampfast import _core
from lampfast._engine import sharded, views
from lampfast._engine.communicator import GroupCommunicator

HIDDEN, INTERMEDIATE, KEYS = 8192, 28672, 1024
FULL = 1024  # ranks of the model of 70 billion weights


class Echo:
    """The communicator of one rank of many that all have the same.

    Args:
        size: How many there are.
    """

    def __init__(self, size: int) -> None:
        self.rank, self.size = 0, size
        self.collectives, self.sent = 0, 0

    def sum(self, numbers: memoryview) -> None:
        """Add up the numbers of all ranks."""
        self._count(numbers.nbytes)
        words = np.frombuffer(numbers, np.uint64)
        words *= np.uint64(self.size)

    def max(self, numbers: memoryview) -> None:
        """Take the maxima, which there are already."""
        self._count(numbers.nbytes)

    def gather(self, own: bytes, expected: int) -> list[bytes]:
        """The bytes of all ranks."""
        self._count(8 + expected)
        if len(own) > expected:
            self._count(len(own) - expected)
        return [own] * self.size

    def _count(self, size: int) -> None:
        self.collectives += 1
        self.sent += size


def block_shapes() -> list[tuple[int, int]]:
    """What a rank of 1,024 has of the matrices of one block."""
    outputs = [HIDDEN, KEYS, KEYS, HIDDEN, INTERMEDIATE, INTERMEDIATE]
    rows = [(max(n // FULL, 1), HIDDEN) for n in outputs]
    return [*rows, (HIDDEN // FULL, INTERMEDIATE)]


def virtual(ranks: Sequence[int], blocks: int, dtype: torch.dtype) -> None:
    """Count what calls of the engine send, and time them beside those of one process."""
    generator = torch.Generator().manual_seed(0)
    shards = [
        torch.randn(shape, generator=generator).to(dtype)
        for _ in range(blocks)
        for shape in block_shapes()
    ]
    pointers = [views.part("", it, getattr(_core.Dtype, str(dtype)[6:])).pointer for it in shards]
    weights = sum(it.numel() for it in shards)
    print(f"{len(shards)} layers, {weights / 1e6:.1f} million weights a rank, {dtype}")
    threads = torch.get_num_threads()
    print(f"{'ranks':>6} collectives  sent/KiB  a layer/KiB  time/ms  of one process")
    for count in ranks:
        communicator = Echo(count)
        own = sharding(communicator, shards)
        decide(pointers, weights * count, (threads, [], own))
        calls, sent = communicator.collectives, communicator.sent / 1024
        alone, took = seconds(
            partial(decide, pointers, weights, (threads, [])),
            partial(decide, pointers, weights * count, (threads, [], own)),
        )
        print(
            f"{count:6} {calls:11} {sent:9.0f} {sent / len(shards):12.1f} {took * 1e3:8.0f} "
            f"{took / alone:15.2f}"
        )


def decide(pointers: Sequence[Any], weights: int, machine: Any) -> None:
    """Find what pruning 90% would zero."""
    _core.thresholds(
        pointers, _core.SelectionSpec(_core.Ranking.lamp, [weights * 9 // 10]), machine
    )


def sharding(communicator: Echo, shards: Sequence[torch.Tensor]) -> tuple[Any, ...]:
    """Every rank has some rows of each layer, this one the first."""
    dtype = getattr(_core.Dtype, str(shards[0].dtype)[6:])
    size = communicator.size
    layers = [(dtype, [it.shape[0] * size, it.shape[1]]) for it in shards]
    pieces = [(i, True, 0, [it.shape[1], 1]) for i, it in enumerate(shards)]
    begins = [[rank * it.numel() for rank in range(size)] for it in shards]
    return communicator, layers, pieces, begins


def seconds(*calls: Callable[[], object], rounds: int = 5) -> list[float]:
    """The median times of calls, made in turns."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, taken in zip(calls, times, strict=True):
            begin = time.perf_counter()
            call()
            taken.append(time.perf_counter() - begin)
    return [statistics.median(taken) for taken in times]


def gloo(ranks: Sequence[int], layers: int, side: int) -> None:
    """Count and time whole calls on ranks that are processes."""
    print(f"{layers} float32 layers of {side} x {side} in all, sharded by rows")
    print(f"{'ranks':>6} collectives  a layer/KiB  time/ms  of the plain model, one thread")
    for count in ranks:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "rank", folder, str(count), str(layers), str(side)]
            environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
            processes = [
                subprocess.Popen([*command, str(rank)], env=environment) for rank in range(count)
            ]
            assert not any(process.wait() for process in processes)
            found = json.loads((Path(folder) / "0.json").read_text())
        calls, sent, took, plain = found
        kib = sent / layers / 1024
        print(f"{count:6} {calls:11} {kib:12.1f} {took * 1e3:8.1f} {plain * 1e3:8.1f}")


def one_rank(folder: Path, ranks: int, layers: int, side: int, rank: int) -> None:
    """What one of the processes does."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=(folder / "meeting").as_uri(), rank=rank, world_size=ranks
    )
    mesh = init_device_mesh("cpu", (ranks,))
    torch.manual_seed(0)
    whole = {str(i): torch.randn(side, side) for i in range(layers)}
    model = {name: distribute_tensor(it, mesh, [Shard(0)]) for name, it in whole.items()}
    lampfast.report(model, 0.9)
    made: list[GroupCommunicator] = []

    def recorded(group: Any) -> GroupCommunicator:
        made.append(GroupCommunicator(group))
        return made[-1]

    with mock.patch.object(sharded, "GroupCommunicator", recorded):
        [took] = seconds(lambda: lampfast.report(model, 0.9))
    [plain] = seconds(lambda: lampfast.report(whole, 0.9)) if rank == 0 else [0.0]
    result = made[-1].collectives, made[-1].sent, took, plain
    (folder / f"{rank}.json").write_text(json.dumps(result))
    distributed.barrier()
    distributed.destroy_process_group()


def hard(ranks: int, layers: int, side: int) -> None:
    """Count what calls on hard weights send, on ranks that are threads."""
    found = sorted(hard_calls(ranks, layers, side), reverse=True)
    counts = [collectives for collectives, _, _ in found]
    print(f"{len(found)} calls on {ranks} ranks, {layers} layers of {side} x {side}")
    print(f"median {statistics.median(counts):.0f} collectives, at most {counts[0]}")
    for most in (8, 12, 14):
        print(f"at most {most}: {sum(count <= most for count in counts)} calls")
    print(f"at most {max(kib for _, kib, _ in found):.1f} KiB a layer that a rank sends")
    print("collectives  a layer/KiB")
    for collectives, kib, call in found[:12]:
        print(f"{collectives:11} {kib:12.1f}  {call}")


def hard_calls(ranks: int, layers: int, side: int) -> Iterator[tuple[int, float, str]]:
    """The collectives, the KiB that a rank sends for a layer, and what the call was."""
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    from hard_weights import DTYPES, HARD, hard_layers
    from virtual_ranks import Group, held, pointers
    from virtual_ranks import cut as cut_along
    from virtual_ranks import sharding as pieces_of

    rankings = {"lamp": _core.Ranking.lamp, "magnitude": _core.Ranking.magnitude}
    for kind, dtype, ranking in itertools.product(HARD, DTYPES, rankings):
        whole = hard_layers(kind, dtype, layers, side)
        boxes = cut_along(whole, 1, ranks)
        for sparsity in (0.3, 0.5, 0.9, 0.99):
            wanted = _core.SelectionSpec(rankings[ranking], [round(sparsity * layers * side**2)])

            def run(rank: Any, whole: Any = whole, boxes: Any = boxes, wanted: Any = wanted) -> Any:
                parts = [part.clone() for part in held(rank.rank, whole, boxes)]
                machine: Any = (1, [], pieces_of(rank, whole, boxes))
                return _core.thresholds(pointers(parts), wanted, machine)

            group = Group(ranks)
            expected = _core.thresholds(pointers(whole), wanted, (1, []))
            assert group.run(run) == [expected] * ranks
            call = f"{kind}, {str(dtype)[6:]}, {ranking}, {sparsity}"
            yield group.collectives, max(group.sent) / layers / 1024, call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    counted = kinds.add_parser("virtual")
    counted.add_argument("--ranks", type=int, nargs="+", default=[8, 64, 1024])
    counted.add_argument("--blocks", type=int, default=80)
    counted.add_argument("--dtype", default="bfloat16")
    real = kinds.add_parser("gloo")
    real.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    real.add_argument("--layers", type=int, default=8)
    real.add_argument("--side", type=int, default=1024)
    adverse = kinds.add_parser("hard")
    adverse.add_argument("--ranks", type=int, default=3)
    adverse.add_argument("--layers", type=int, default=4)
    adverse.add_argument("--side", type=int, default=256)
    rank = kinds.add_parser("rank")
    rank.add_argument("folder", type=Path)
    rank.add_argument("numbers", type=int, nargs=4)
    asked = parser.parse_args()
    if asked.kind == "virtual":
        virtual(asked.ranks, asked.blocks, getattr(torch, asked.dtype))
    elif asked.kind == "gloo":
        gloo(asked.ranks, asked.layers, asked.side)
    elif asked.kind == "hard":
        hard(asked.ranks, asked.layers, asked.side)
    else:
        one_rank(asked.folder, *asked.numbers)


if __name__ == "__main__":
    main()
