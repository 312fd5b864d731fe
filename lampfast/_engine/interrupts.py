"""Sections that no signal interrupts, so that what they have begun to change they also finish.

A signal may reach any thread, but Python runs its handlers in the main thread, between any two of
its instructions, and a handler may raise: that of Ctrl-C does.
"""

from __future__ import annotations

import os
import signal

# What `signal` wraps: its own functions look for an enum in every answer, at ten times the cost.
from _signal import getsignal  # type: ignore[import-not-found]
from _signal import signal as set_handler
from collections.abc import Callable
from itertools import compress
from threading import get_ident, main_thread
from types import FrameType, TracebackType

_SIGNALS = sorted(map(int, signal.valid_signals()))


class _StandIn:
    """Takes a handler's place: calls it, or notes while a section runs that it is to be called.

    One that has not been taken away again, as another handler raised meanwhile, does no harm.
    """

    def __init__(self, number: int, handler: Callable[[int, FrameType | None], object]) -> None:
        self.number, self.handler = number, handler

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if _state.depth:
            _state.came[self] = frame
        else:
            self.handler(number, frame)


class _State:
    """Of the main thread; no other one touches it."""

    def __init__(self) -> None:
        self.depth = 0  # how many sections it is in
        self.thread = 0  # which one it is; after a fork it may be another
        self.standing_in: list[_StandIn] = []
        self.came: dict[_StandIn, FrameType | None] = {}

    def leave_to_parent(self) -> None:
        """End, in the new process, the sections of a thread that has stayed in the old one."""
        if self.thread != get_ident():
            self.depth, self.standing_in, self.came = 0, [], {}


_state = _State()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_state.leave_to_parent)


class Deferred:
    """A section at whose end handlers run for the signals that came meanwhile.

    Sections nest. In other threads than the main one there is nothing to defer.

    Example:
        >>> import signal
        >>> before = signal.signal(signal.SIGINT, lambda number, frame: print("interrupted"))
        >>> with Deferred():
        ...     signal.raise_signal(signal.SIGINT)
        ...     print("finished")
        finished
        interrupted
        >>> _ = signal.signal(signal.SIGINT, before)
    """

    def __enter__(self) -> None:
        """Let handlers wait from now on."""
        self._defers = get_ident() == main_thread().ident
        if self._defers:
            if _state.depth == 0:
                _state.thread = get_ident()
                try:
                    _stand_in()
                except BaseException:  # what a handler raises that has a stand-in already
                    _hand_back()
                    raise
            _state.depth += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the handlers back, and call those that had to wait; they may raise."""
        if not self._defers:
            return
        if _state.depth > 1:
            _state.depth -= 1
        else:
            _hand_back()


def _stand_in() -> None:
    # The others are ignored, have their default action, or a handler that is not Python's.
    for number in compress(_SIGNALS, map(callable, map(getsignal, _SIGNALS))):
        handler = getsignal(number)
        standing_in = handler if isinstance(handler, _StandIn) else _StandIn(number, handler)
        try:
            set_handler(number, standing_in)
        except ValueError:  # only the main interpreter has handlers
            return
        _state.standing_in.append(standing_in)


def _hand_back() -> None:
    standing_in = _state.standing_in
    try:
        _state.depth, _state.standing_in = 0, []  # what came before this is noted
        _restore(standing_in)
    finally:  # and what comes after it may raise, on any line
        try:
            _restore(standing_in)
        finally:
            _call_noted()


def _restore(standing_in: list[_StandIn]) -> None:
    for each in standing_in:
        if getsignal(each.number) is each:  # else it is back, or somebody has set another one
            set_handler(each.number, each.handler)


def _call_noted() -> None:
    """Call the handlers that had to wait, all of them even if some raise."""
    if not _state.came:
        return
    standing_in = next(iter(_state.came))  # the one that came first
    frame = _state.came.pop(standing_in)
    try:
        standing_in.handler(standing_in.number, frame)
    finally:
        _call_noted()
