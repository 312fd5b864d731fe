"""One of several ranks fails, anywhere in a call: all of them raise, and no weight has changed.

Ranks are threads here, of a group whose time-out ends the test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from torch.distributed.tensor import Shard
from virtual_ranks import Group, Placed, Rank, can_place, here, joined

import lampfast
from lampfast import _core, _coverage, methods, parameters
from lampfast._engine import gpus, pieces, sharded, views

pytestmark = pytest.mark.skipif(not can_place, reason="needs meshes without process groups")

RANKS = 3
FAILING = 1
WHERE = Placed(torch.arange(RANKS), (Shard(0),))
Call = Callable[[dict[str, Any]], object]
CALLS: dict[str, Call] = {
    "prune": lambda model: lampfast.prune(model, 0.6),
    "uniform": lambda model: lampfast.prune(model, 0.6, method="uniform"),
    "masks": lambda model: lampfast.masks(model, 0.6),
    "report": lambda model: lampfast.report(model, 0.6),
    "what there is": lampfast.report,
    "importance": lambda model: lampfast.prune(
        model, 0.6, importance={name: torch.ones(weight.shape) for name, weight in model.items()}
    ),
}


class BrokenError(Exception):
    """What goes wrong."""


def wholes() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(40, 9, generator=generator) for name in ("a", "b")}
    return weights | {"c": weights["a"].round()}


class Outcome:
    """What a call gave or raised on each rank, and whether each rank's weights are as they were."""

    def __init__(self, call: Call, make: Callable[[Group, int], Rank] = Rank) -> None:
        self.group = Group(RANKS)
        self.ranks = [make(self.group, rank) for rank in range(RANKS)]

        def run(given: Rank) -> tuple[object, bool]:
            here.rank = self.ranks[given.rank]
            model = {name: WHERE.dtensor(given.rank, it) for name, it in wholes().items()}
            result: object = None
            try:
                result = call(dict(model))
            except BaseException as error:
                result = error
            return result, all(
                torch.equal(model[name].to_local(), WHERE.local(given.rank, it))
                for name, it in wholes().items()
            )

        with joined():
            self.results = self.group.run(run)

    def all_failed(self, message: str) -> bool:
        """Whether all ranks raise because one does, and are as before."""
        for rank, result in enumerate(self.results):
            assert not isinstance(result, BaseException), result
            error, is_unchanged = result
            assert isinstance(error, BaseException), f"rank {rank} returns {error}"
            assert is_unchanged, rank
            assert message in str(error), (rank, error)
            if rank != FAILING:
                assert f"rank {FAILING}" in str(error), (rank, error)
        return True


def is_failing() -> bool:
    """Whether the thread is the rank that is to fail."""
    rank: int = here.rank.rank
    return rank == FAILING


@contextmanager
def raising(where: Any, name: str, fails: Callable[[], bool] = is_failing) -> Iterator[None]:
    """A section in which a function raises on the ranks that fail."""
    original = getattr(where, name)

    def replaced(*args: Any, **named: Any) -> Any:
        if fails():
            raise BrokenError("it broke")
        return original(*args, **named)

    with mock.patch.object(where, name, replaced):
        yield


PLACES: dict[str, tuple[Any, str]] = {
    "finding layers": (parameters, "find"),
    "what is left out": (_coverage, "left_out"),
    "views": (views, "layers"),
    "boxes": (pieces, "boxes"),
    "merging what is held": (sharded, "_merged"),
    "pieces": (sharded.Sharded, "_pointers"),
    "for the engine": (sharded.Sharded, "_machine_part"),
    "lending GPUs": (gpus, "machine"),
    "counts": (methods, "selection_spec"),
    "counts of methods": (methods, "spec_beside_zeros"),
    "the engine at once": (_core, "prune"),
    "the engine's report": (_core, "zero_thresholds"),
    "the report": (lampfast.pruning, "reported"),
}
UNUSED = {  # by calls that do not come there
    "what is left out": {"masks"},
    "counts": {"uniform", "what there is"},
    "counts of methods": set(CALLS) - {"uniform"},
    "the engine at once": {"masks", "report", "what there is"},
    "the engine's report": set(CALLS) - {"uniform", "what there is"},
    "the report": {"masks", "report", "what there is"},  # nobody waits for that any more
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("call", CALLS)
def test_python_fails_on_one_rank(call: str, place: str) -> None:
    if call in UNUSED.get(place, set()):
        pytest.skip("the call does not come there")
    sharded._known.clear()
    with raising(*PLACES[place]):
        outcome = Outcome(CALLS[call])
    assert outcome.all_failed("it broke")


def failing_after(collective: int, error: type[BaseException]) -> Callable[[Group, int], Rank]:
    """Ranks of which one fails once it has taken part in so many collectives."""

    class Failing(Rank):
        def _complete(self, *args: Any) -> str:
            note = super()._complete(*args)
            if self.rank == FAILING and self.collectives == collective:
                raise error("it broke")
            return note

    return Failing


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("call", CALLS)
def test_one_rank_fails_between_exchanges(call: str, error: type[BaseException]) -> None:
    sharded._known.clear()
    count = Outcome(CALLS[call]).group.collectives
    assert count > 3
    for collective in range(count):  # after the last one all have what they need
        sharded._known.clear()
        if collective:
            assert Outcome(CALLS[call], failing_after(collective, error)).all_failed("it broke")


def test_group_is_as_good_as_before() -> None:
    outcome = Outcome(CALLS["prune"], failing_after(4, MemoryError))
    again = Group(RANKS)
    again.store, again.boards = outcome.group.store, outcome.group.boards

    def run(rank: Rank) -> Any:
        here.rank = rank
        model = {name: WHERE.dtensor(rank.rank, it) for name, it in wholes().items()}
        return lampfast.prune(dict[str, Any](model), 0.6).kept

    with joined():
        assert again.run(run) == [432] * RANKS


def test_nobody_waits_where_all_fail() -> None:
    with raising(sharded, "_merged", lambda: True):
        sharded._known.clear()
        outcome = Outcome(CALLS["prune"])
    assert [str(error) for error, _ in outcome.results] == ["it broke"] * RANKS
    assert len({board.next() for board in outcome.group.boards}) == 1  # they are still in step


def test_a_rank_that_leaves_takes_the_others_with_it() -> None:
    """It fails once more while it waits for them, or they do not come."""

    class Impatient(Rank):
        most_wait = 0.05
        first_look = 0.5

        def _start_gather(self, received: torch.Tensor, sent: torch.Tensor) -> Any:
            if self.rank == FAILING:
                raise BrokenError("it broke")
            return super()._start_gather(received, sent)

    assert Outcome(CALLS["prune"], Impatient).all_failed("it broke")


def test_without_a_store_a_failure_is_not_told() -> None:
    class Alone(Rank):
        def __init__(self, group: Group, rank: int) -> None:
            super().__init__(group, rank)
            self._board.store = None

    outcome = Outcome(CALLS["prune"], Alone)
    assert [report.kept for report, _ in outcome.results] == [432] * RANKS
