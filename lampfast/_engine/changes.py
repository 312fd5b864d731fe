"""Tells autograd, and those who keep zeros, that weights were changed in place."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Protocol
from weakref import ref

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


# By id. Listeners may come and go, in other threads or a signal's handler, while they are copied:
# the steps of a dict are whole, and need no lock, for which a handler would wait for ever.
_listeners: dict[int, ref[Listener]] = {}


def listen(listener: Listener) -> None:
    """Tell a listener of every pruning and step from now on; it is held weakly."""
    key = id(listener)
    _listeners[key] = ref(listener, partial(_forget, key))


def stop_listening(listener: Listener) -> None:
    """Tell a listener of nothing any more."""
    _forget(id(listener))


def listening() -> list[Listener]:
    """Who listens now."""
    found = [listener() for listener in list(_listeners.values())]
    return [listener for listener in found if listener is not None]


def _forget(key: int, gone: object = None) -> None:
    _listeners.pop(key, None)


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
