"""Tells autograd, and those who keep zeros, that weights were changed in place."""

from collections.abc import Callable, Iterable, Sequence
from threading import Lock
from typing import Protocol
from weakref import WeakSet

import torch
from torch.autograd.graph import increment_version
from torch.optim import Optimizer

from lampfast._engine.views import View, Weight


class Listener(Protocol):
    """Is told which layers were pruned, and which optimizers have stepped.

    It learns of both twice. `pruned` comes when nothing can be undone any more, and may fail, as
    where memory runs out; what was noted in `pruning` must then suffice for the zeros to be known
    by the next step, before which `stepping` is called.
    """

    def pruning(self, layers: Sequence[View]) -> None:
        """Called before these layers are given new zeros; if it raises, they are not."""

    def pruned(self, layers: Sequence[View]) -> None:
        """Called after these layers were given new zeros."""

    def stepping(self, optimizer: Optimizer) -> None:
        """Called before a step of any optimizer; if it raises, there is no step."""

    def stepped(self, optimizer: Optimizer) -> None:
        """Called after a step of any optimizer."""


_listeners: WeakSet[Listener] = WeakSet()
_lock = Lock()  # listeners may come and go in one thread while another copies the set


def listen(listener: Listener) -> None:
    """Tell a listener of every pruning and step from now on; it is held weakly."""
    with _lock:
        _listeners.add(listener)


def stop_listening(listener: Listener) -> None:
    """Tell a listener of nothing any more."""
    with _lock:
        _listeners.discard(listener)


def listening() -> list[Listener]:
    """Who listens now."""
    with _lock:
        return list(_listeners)


def mark(weights: Iterable[Weight]) -> None:
    """Count new versions of weights, so that autograd refuses to use values saved before."""
    tensors = [weight for weight in weights if isinstance(weight, torch.Tensor)]
    try:
        increment_version(tensors)
    except RuntimeError:  # older versions of torch take one at a time
        for tensor in tensors:
            if not tensor.is_inference():
                increment_version(tensor)


def tell(message: Callable[[Listener], None]) -> None:
    """Tell all listeners something, also if one of them raises; the first error is raised then."""
    errors: list[BaseException] = []
    for listener in listening():
        try:
            message(listener)
        except BaseException as error:  # the others have zeros to keep, whatever it is
            errors.append(error)
    if errors:
        raise errors[0]
