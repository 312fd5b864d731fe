"""What the engine needs of a process group: sums and maxima of integers, and everyone's bytes.

A collective ends when every rank has come to it. A rank that fails before that tells the others by
the store through which they have found each other: whoever has waited for a while looks there, and
answers what it waits for, so that the rank can take part once more, to say that it has failed. All
raise then, and the group is as good as before.
"""

from __future__ import annotations

import hashlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, NamedTuple, Protocol, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import distributed

_GIVEN_UP = 1 << 32  # what a rank that has failed gives as its first number; others give less
_HEAD = 8  # bytes before those of a rank, which say how many it has


class Store(Protocol):
    """What is needed of a torch.distributed.Store."""

    def set(self, key: str, value: str) -> None:
        """Give a key a value."""

    def get(self, key: str) -> bytes:
        """The value of a key that has one."""

    def check(self, keys: list[str]) -> bool:
        """Whether all keys have values."""

    def add(self, key: str, amount: int) -> int:
        """Count, and say how far."""


class Told(NamedTuple):
    """What ranks tell each other at the end of a section.

    Attributes:
        own: What this one does.
        everyone: What all have told, once it has ended.
    """

    own: dict[str, Any]
    everyone: list[dict[str, Any]]


class Board:
    """Where the ranks of a group leave notes about the collective that comes next.

    Args:
        store: It is shared by the ranks; None if there is none.
        name: The group's, the same on all of its ranks.
    """

    def __init__(self, store: Store | None, name: str) -> None:
        self.store = store
        self._name = name
        self._number = 0  # of collectives that have begun, the same on all ranks

    def next(self) -> str:
        """What the notes about the next collective begin with."""
        return f"lampfast/{self._name}/{self._number}/"

    def turn(self) -> None:
        """The next collective has begun, or all ranks have failed before it."""
        self._number += 1


class Communicator(ABC):
    """Communicates for the engine (csrc/communicator.h); ranks fail together.

    Attributes:
        rank: The rank of this process in the group.
        size: How many ranks there are.
        collectives: How many collectives there were.
        sent: How many bytes this rank has passed to them.
        first_look: After how many seconds of waiting it looks whether another rank has failed.
        most_wait: For how many seconds a rank that has failed waits for others to hear of it.
    """

    first_look = 0.1
    most_wait = 30.0

    def __init__(self, rank: int, size: int, device: torch.device, board: Board) -> None:
        self.rank, self.size = rank, size
        self.collectives, self.sent = 0, 0
        self._device = device
        self._board = board
        self._is_over = False

    @abstractmethod
    def _start_reduce(self, numbers: torch.Tensor, how: str) -> Any:
        """Begin to add up tensors or to take their maxima, in place."""

    @abstractmethod
    def _start_gather(self, received: torch.Tensor, sent: torch.Tensor) -> Any:
        """Begin to gather tensors."""

    def sum(self, numbers: memoryview) -> None:
        """Add up numbers of 64 bits over all ranks, in place and modulo 2^64."""
        self._reduce(numbers, "sum")

    def max(self, numbers: memoryview) -> None:
        """Take the maxima of numbers of 64 bits over all ranks, in place."""
        self._reduce(numbers, "max")

    def gather(self, own: bytes, expected: int) -> list[bytes]:
        """The bytes of every rank; one collective if none has more than expected, else two."""
        found, sizes = self._gather(len(own), own[:expected], expected)
        most = max(sizes)
        if most > expected:
            more, _ = self._gather(len(own), own[expected:], most - expected)
            found = [a + b for a, b in zip(found, more, strict=True)]
        return [each[:size] for each, size in zip(found, sizes, strict=True)]

    def anywhere(self, flags: Sequence[bool]) -> list[bool]:
        """Which flags are set on any rank."""
        numbers = np.array(flags, np.int64)
        if len(flags):
            self.max(numbers.data)
        return [bool(number) for number in numbers]

    @contextmanager
    def together(self, question: object = None) -> Iterator[Told]:
        """A section that fails on all ranks if it does on one; all must have the same question."""
        asked = digest_of(repr(question))
        told = Told({"asked": asked}, [])
        error: Exception | None = None
        try:
            yield told
        except Exception as raised:
            error = raised
            told.own["error"] = str(error)
        answers = self.gather(json.dumps(told.own).encode(), 512)
        if error is not None:
            raise error
        told.everyone.extend(json.loads(answer) for answer in answers)
        for rank, each in enumerate(told.everyone):
            if "error" in each:
                raise RuntimeError(
                    f"rank {rank} has failed, so that no rank has changed a weight: {each['error']}"
                )
        others = [rank for rank, each in enumerate(told.everyone) if each["asked"] != asked]
        if others:
            raise ValueError(
                f"ranks {others} have called with other arguments than rank "
                f"{self.rank}; make the same call on all ranks"
            )

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """A section with collectives: if it fails on one rank, it does on all."""
        try:
            yield
        except BaseException as error:
            self.give_up(error)
            raise

    def finish(self) -> None:
        """There will be no other collective: nobody waits for this rank any more."""
        self._is_over = True

    def give_up(self, error: BaseException) -> None:
        """Let those who wait for this rank, or will, fail as it has."""
        if self._is_over or self._board.store is None:
            return
        self._is_over = True
        note = self._board.next()
        self._board.turn()
        try:
            self._give_up(self._board.store, note, error)
        except Exception:  # the store or the group has gone, and with it what could be told
            return

    def _give_up(self, store: Store, note: str, error: BaseException) -> None:
        self._leave(store, note, error, is_here=True)
        store.add(note + "failures", 1)
        end = time.monotonic() + self.most_wait
        pause = 0.001
        while time.monotonic() < end:
            if store.check([note + "awaited"]):
                self._take_part(json.loads(store.get(note + "awaited")))
                return
            if store.add(note + "failures", 0) == self.size:  # nobody waits
                return
            time.sleep(pause)
            pause = min(2 * pause, 0.1)
        self._leave(store, note, error, is_here=False)

    def _leave(self, store: Store, note: str, error: BaseException, *, is_here: bool) -> None:
        what = (str(error) or type(error).__name__).split("\n")[0][:500]
        left = {"rank": self.rank, "error": what, "is_here": is_here}
        store.set(note + "failed", json.dumps(left))

    def _take_part(self, awaited: dict[str, Any]) -> None:
        """Join the collective that others are in, for them to see that this rank has failed."""
        size = awaited["size"]
        if awaited["how"] == "gather":
            sent = torch.zeros(size, dtype=torch.uint8)
            sent.view(torch.int64)[0] = _GIVEN_UP
            sent = sent.to(self._device)
            received = torch.empty(self.size * size, dtype=torch.uint8, device=self._device)
            work = self._start_gather(received, sent)
        else:
            numbers = torch.zeros(size, dtype=torch.int64)
            numbers[0] = _GIVEN_UP
            work = self._start_reduce(numbers.to(self._device), awaited["how"])
        work.wait()

    def _reduce(self, numbers: memoryview, how: str) -> None:
        here = torch.frombuffer(numbers, dtype=torch.int64)
        there = here.to(self._device)
        note = self._complete(lambda: self._start_reduce(there, how), how, there)
        if there is not here:
            here.copy_(there)
        if int(here[0]) >= _GIVEN_UP:
            self._fail(note)

    def _gather(self, size: int, own: bytes, most: int) -> tuple[list[bytes], list[int]]:
        """What each rank has, filled up to `most` bytes, and the sizes that they tell."""
        length = -(-(_HEAD + most) // _HEAD) * _HEAD
        head = size.to_bytes(_HEAD, "little")
        sent = torch.frombuffer(bytearray((head + own).ljust(length, b"\0")), dtype=torch.uint8)
        sent = sent.to(self._device)
        received = torch.empty(self.size * length, dtype=torch.uint8, device=self._device)
        note = self._complete(lambda: self._start_gather(received, sent), "gather", sent)
        everything = received.cpu().numpy().tobytes()
        each = [everything[i * length : (i + 1) * length] for i in range(self.size)]
        sizes = [int.from_bytes(it[:_HEAD], "little") for it in each]
        if _GIVEN_UP in sizes:
            self._fail(note)
        return [it[_HEAD : _HEAD + most] for it in each], sizes

    def _complete(self, start: Callable[[], Any], how: str, sent: torch.Tensor) -> str:
        """Take part in a collective; returns what notes about it begin with."""
        note = self._board.next()
        self.collectives += 1
        self.sent += sent.nbytes
        try:
            work = start()
            self._board.turn()
            pause = self.first_look
            while not self._is_done(work, pause):
                pause = min(2 * pause, 1.0)
                self._look(note, {"how": how, "size": sent.numel()})
            work.wait()
        except RuntimeError as error:  # a connection has broken, or the group's time is out
            if not self._is_over and self._board.store is not None:
                self._is_over = True
                self._leave(self._board.store, note, error, is_here=False)
            raise
        return note

    def _is_done(self, work: Any, seconds: float) -> bool:
        """Wait for a collective to end, well or not, but no longer than so."""
        with suppress(RuntimeError):
            return work.is_completed() or bool(work.wait(timedelta(seconds=seconds)))
        return bool(work.is_completed())

    def _look(self, note: str, awaited: dict[str, Any]) -> None:
        """Answer a rank that has failed; raise if it does not take part any more."""
        store = self._board.store
        if store is None or not store.check([note + "failed"]):
            return
        if not json.loads(store.get(note + "failed"))["is_here"]:
            self._fail(note)
        if not store.check([note + "awaited"]):
            store.set(note + "awaited", json.dumps(awaited))

    def _fail(self, note: str) -> None:
        """Raise what a rank that has failed has left.

        Raises:
            RuntimeError: Always.
        """
        self._is_over = True
        left = json.loads(cast(Store, self._board.store).get(note + "failed"))
        raise RuntimeError(
            f"rank {left['rank']} has failed, so that no rank has changed a weight: {left['error']}"
        )


class GroupCommunicator(Communicator):
    """Communicates in a process group of torch: by gloo in host memory, by nccl on the GPU.

    Args:
        group: The ranks.
    """

    def __init__(self, group: distributed.ProcessGroup) -> None:
        rank, size = distributed.get_rank(group), distributed.get_world_size(group)
        super().__init__(rank, size, _device(group), _board(group))
        self._group = group

    def _start_reduce(self, numbers: torch.Tensor, how: str) -> Any:
        operation = distributed.ReduceOp.SUM if how == "sum" else distributed.ReduceOp.MAX
        return distributed.all_reduce(numbers, operation, self._group, async_op=True)

    def _start_gather(self, received: torch.Tensor, sent: torch.Tensor) -> Any:
        return _gather_into(received, sent, self._group, async_op=True)

    def _is_done(self, work: Any, seconds: float) -> bool:
        if self._device.type == "cpu":
            return super()._is_done(work, seconds)
        end = time.monotonic() + seconds  # nccl would abort what it waits for no longer
        pause = 1e-5
        while not work.is_completed():
            if time.monotonic() > end:
                return False
            time.sleep(pause)
            pause = min(2 * pause, 1e-3)
        return True


# Which newer versions of torch have under another name, and warn of this one.
_gather_into = getattr(distributed, "all_gather_single", distributed.all_gather_into_tensor)


def digest_of(text: str) -> str:
    """A digest of what need not be told as a whole."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def group_of(ranks: Iterable[int]) -> distributed.ProcessGroup:
    """The process group of these ranks of the world, all of which ask for it."""
    wanted = tuple(sorted(ranks))
    world = cast(distributed.ProcessGroup, distributed.group.WORLD)
    if wanted == tuple(range(distributed.get_world_size())):
        return world
    known = _groups.setdefault(world, {})
    if wanted not in known:
        known[wanted] = distributed.new_group(list(wanted), use_local_synchronization=True)
    return known[wanted]


# Those of a world end with it.
_groups: WeakKeyDictionary[
    distributed.ProcessGroup, dict[tuple[int, ...], distributed.ProcessGroup]
] = WeakKeyDictionary()
_boards: WeakKeyDictionary[distributed.ProcessGroup, Board] = WeakKeyDictionary()


def _board(group: distributed.ProcessGroup) -> Board:
    if group not in _boards:
        _boards[group] = Board(_store(), group.group_name)
    return _boards[group]


def _store() -> Store | None:
    """The store of the world; without it, ranks hear of failures by the group's time-out only."""
    find = getattr(distributed.distributed_c10d, "_get_default_store", None)
    return None if find is None else cast(Store, find())


def _device(group: distributed.ProcessGroup) -> torch.device:
    """Where a group's tensors have to be: in host memory where it can, as for gloo."""
    backends = distributed.get_backend_config(group)
    if "cpu" in backends or distributed.get_backend(group) in ("gloo", "mpi"):
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())
