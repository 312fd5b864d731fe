"""Zeroes weights in place: either nothing has changed, or the weights have and all know of it."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar, cast

from lampfast import _core
from lampfast._engine import changes, views
from lampfast._engine.interrupts import Deferred
from lampfast._engine.views import View, Weight

Thresholds = list[_core.LayerThreshold]
Result = TypeVar("Result")


def zero(
    weights: Iterable[Weight],
    layers: Sequence[View],
    targets: Sequence[View],
    write: Callable[[Callable[[Thresholds], None]], None],
    result: Callable[[Thresholds], Result],
) -> Result:
    """Call the engine to zero weights, and tell autograd and those who keep zeros.

    Args:
        weights: Those whose versions count.
        layers: Those that are given zeros.
        targets: The layers where the engine can reach them.
        write: Calls the engine for the targets with a function that it calls once all is done that
            may fail, and before it writes.
        result: Makes what is returned of the thresholds, last of all that may keep the weights
            from changing.

    Returns:
        What `result` has made.
    """
    made: list[Result | None] = [None]

    def before_writing(thresholds: Thresholds) -> None:
        changes.mark(weights)
        changes.tell(lambda listener: listener.pruning(layers))
        made[0] = result(thresholds)

    with Deferred():
        try:
            write(before_writing)
            views.write_back(layers, targets)
        finally:
            if made[0] is not None:  # else nothing was written
                changes.tell(lambda listener: listener.pruned(layers))
    return cast(Result, made[0])
