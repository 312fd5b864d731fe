"""What the engine needs of a process group: sums and maxima of integers, and everyone's bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import numpy as np
import torch
from torch import distributed


class GroupCommunicator:
    """Communicates for the engine in a process group of torch (csrc/communicator.h).

    Attributes:
        rank: The rank of this process in the group.
        size: How many ranks there are.
        collectives: How many collectives there were.
        sent: How many bytes this rank has passed to them.
    """

    def __init__(self, group: distributed.ProcessGroup) -> None:
        self.rank, self.size = distributed.get_rank(group), distributed.get_world_size(group)
        self.collectives, self.sent = 0, 0
        self._group = group
        self._device = _device(group)

    def sum(self, numbers: memoryview) -> None:
        """Add up numbers of 64 bits over all ranks, in place and modulo 2^64."""
        self._reduce(numbers, distributed.ReduceOp.SUM)

    def max(self, numbers: memoryview) -> None:
        """Take the maxima of numbers of 64 bits over all ranks, in place."""
        self._reduce(numbers, distributed.ReduceOp.MAX)

    def gather(self, own: bytes, expected: int) -> list[bytes]:
        """The bytes of every rank; one collective if none has more than expected, else two."""
        head = len(own).to_bytes(8, "little") + own[:expected]
        heads = self._gather(head, 8 + expected)
        sizes = [int.from_bytes(each[:8], "little") for each in heads]
        found = [each[8 : 8 + size] for each, size in zip(heads, sizes, strict=True)]
        rest = max(sizes) - expected
        if rest > 0:
            tails = self._gather(own[expected:], rest)
            found = [
                each + tail[: max(size - expected, 0)]
                for each, tail, size in zip(found, tails, sizes, strict=True)
            ]
        return found

    def anywhere(self, flags: Sequence[bool]) -> list[bool]:
        """Which flags are set on any rank."""
        numbers = np.array(flags, np.int64)
        if len(flags):
            self.max(numbers.data)
        return [bool(number) for number in numbers]

    @contextmanager
    def together(self, question: object = None) -> Iterator[list[str]]:
        """A section that fails on all ranks if it does on one; all must have the same question."""
        told: list[str] = []
        error: Exception | None = None
        try:
            yield told
        except Exception as raised:
            error = raised
        asked = hashlib.sha256(repr(question).encode()).hexdigest()
        own = {"asked": asked, "error": None if error is None else str(error)}
        answers = self.gather(json.dumps(own).encode(), 512)
        if error is not None:
            raise error
        everyone = [json.loads(answer) for answer in answers]
        for rank, each in enumerate(everyone):
            if each["error"] is not None:
                raise RuntimeError(
                    f"rank {rank} has failed, so that no rank has changed a weight: {each['error']}"
                )
        others = [rank for rank, each in enumerate(everyone) if each["asked"] != asked]
        if others:
            raise ValueError(
                f"ranks {others} have called with other arguments than rank "
                f"{self.rank}; make the same call on all ranks"
            )

    def _reduce(self, numbers: memoryview, how: distributed.ReduceOp.RedOpType) -> None:
        here = torch.frombuffer(numbers, dtype=torch.int64)
        there = here.to(self._device)
        self._count(there)
        distributed.all_reduce(there, how, self._group)
        if there is not here:
            here.copy_(there)

    def _gather(self, own: bytes, size: int) -> list[bytes]:
        sent = torch.frombuffer(bytearray(own.ljust(size, b"\0")), dtype=torch.uint8)
        sent = sent.to(self._device)
        received = torch.empty(self.size * size, dtype=torch.uint8, device=self._device)
        self._count(sent)
        distributed.all_gather_into_tensor(received, sent, self._group)
        everything = received.cpu().numpy().tobytes()
        return [everything[i * size : (i + 1) * size] for i in range(self.size)]

    def _count(self, sent: torch.Tensor) -> None:
        self.collectives += 1
        self.sent += sent.nbytes


def group_of(ranks: Iterable[int]) -> distributed.ProcessGroup:
    """The process group of these ranks of the world, all of which ask for it."""
    wanted = tuple(sorted(ranks))
    if wanted == tuple(range(distributed.get_world_size())):
        return cast(distributed.ProcessGroup, distributed.group.WORLD)
    if wanted not in _groups:
        _groups[wanted] = distributed.new_group(list(wanted), use_local_synchronization=True)
    return _groups[wanted]


_groups: dict[tuple[int, ...], distributed.ProcessGroup] = {}


def _device(group: distributed.ProcessGroup) -> torch.device:
    """Where a group's tensors have to be: in host memory where it can, as for gloo."""
    backends = distributed.get_backend_config(group)
    if "cpu" in backends or distributed.get_backend(group) in ("gloo", "mpi"):
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())
