"""Word of weights that were changed in place: to autograd, and to whoever keeps their zeros."""

from collections.abc import Iterable, Sequence
from threading import Lock
from typing import Protocol
from weakref import WeakSet

import torch
from torch.autograd.graph import increment_version
from torch.optim import Optimizer

from lampfast._engine.views import View, Weight


class Listener(Protocol):
    """Wants to know which layers were pruned, and which weights an optimizer has moved."""

    def pruned(self, layers: Sequence[View]) -> None:
        """Called after these layers were given new zeros."""

    def stepped(self, optimizer: Optimizer) -> None:
        """Called after a step of any optimizer."""


_listeners: WeakSet[Listener] = WeakSet()
_lock = Lock()  # others may come and go while one thread tells them all


def listen(listener: Listener) -> None:
    """Tell a listener of every pruning from now on, for as long as it lives."""
    with _lock:
        _listeners.add(listener)


def stop_listening(listener: Listener) -> None:
    """Tell a listener of none any more."""
    with _lock:
        _listeners.discard(listener)


def listening() -> list[Listener]:
    """Who listens now."""
    with _lock:
        return list(_listeners)


def mark(weights: Iterable[Weight]) -> None:
    """Let autograd catch a backward that the change of weights made stale."""
    tensors = [weight for weight in weights if isinstance(weight, torch.Tensor)]
    try:
        increment_version(tensors)
    except RuntimeError:  # older versions of torch take one at a time
        for tensor in tensors:
            if not tensor.is_inference():
                increment_version(tensor)


def announce(layers: Sequence[View]) -> None:
    """Tell all listeners that layers were given new zeros."""
    for listener in listening():
        listener.pruned(layers)
