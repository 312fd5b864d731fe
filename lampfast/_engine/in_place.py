"""Zeroes weights in place: either nothing has changed, or the weights have and all know of it."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias, TypeVar, cast

from lampfast import _core
from lampfast._engine import changes
from lampfast._engine.interrupts import Deferred
from lampfast._engine.views import View, Weight

BeforeWriting: TypeAlias = Callable[[list[_core.LayerThreshold]], None]
_Result = TypeVar("_Result")


def zero(
    weights: Iterable[Weight],
    layers: Sequence[View],
    write: Callable[[BeforeWriting], None],
    result: Callable[[list[_core.LayerThreshold]], _Result],
) -> _Result:
    """Have weights zeroed, and tell autograd and those who keep zeros.

    Args:
        weights: Those whose versions count.
        layers: What listeners are told was given zeros.
        write: Zeroes weights. It calls the function that it gets once all is done that may fail,
            before it writes.
        result: Makes what is returned of the thresholds, last of all that may keep the weights
            from changing.

    Returns:
        What `result` has made.
    """
    made: list[_Result | None] = [None]

    def before_writing(thresholds: list[_core.LayerThreshold]) -> None:
        changes.mark(weights)
        changes.tell(lambda listener: listener.pruning(layers))
        made[0] = result(thresholds)

    with Deferred():
        try:
            write(before_writing)
        finally:
            if made[0] is not None:  # else nothing was written
                changes.tell(lambda listener: listener.pruned(layers))
    return cast(_Result, made[0])
