"""Which layers an optimizer trains: those that lie in the memory of its parameters.

A layer may be a slice of a parameter, or tied to one by its memory, and need not be that object.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import accumulate
from typing import Any, NamedTuple, TypeAlias, cast
from weakref import WeakKeyDictionary

import torch
from torch.optim import Optimizer

from lampfast._engine import views
from lampfast._engine.views import View

_Space: TypeAlias = "int | None"


class Trained(NamedTuple):
    """What an optimizer trains of some layers.

    Attributes:
        positions: Those of the layers that it trains, ascending.
        tensors: The parameters that hold them, and the layers that are leaves of autograd: they
            have gradients, and versions that count.
    """

    positions: list[int]
    tensors: list[torch.Tensor]


class TrainedLayers:
    """Finds the layers of each optimizer; in time linear in its parameters while nothing moves."""

    def __init__(self) -> None:
        self._index = _Index([])
        self._found: WeakKeyDictionary[Optimizer, tuple[list[int], Trained]] = WeakKeyDictionary()

    def of(self, optimizer: Optimizer, layers: Callable[[], Sequence[View]]) -> Trained:
        """What an optimizer trains of the layers, by the parameters that are in its groups now.

        Args:
            optimizer: Any; it is held weakly.
            layers: Gives the layers, always the same tensors. It is asked only where parameters
                are new or have moved.
        """
        groups = optimizer.param_groups
        parameters = [parameter for group in groups for parameter in group["params"]]
        where = list(map(_address, parameters))
        if (known := self._found.get(optimizer)) is not None and known[0] == where:
            return known[1]
        found = self._find(parameters, layers())
        self._found[optimizer] = where, found
        return found

    def _find(self, parameters: Sequence[torch.Tensor], layers: Sequence[View]) -> Trained:
        self._index = self._index.now(layers)
        positions: set[int] = set()
        tensors: dict[int, torch.Tensor] = {}
        for parameter in parameters:
            if within := set(self._index.sharing(parameter)):
                positions |= within
                tensors[id(parameter)] = parameter
        for position in positions:
            weight = cast(torch.Tensor, layers[position].weight)
            if weight.is_leaf:
                tensors[id(weight)] = weight
        return Trained(sorted(positions), list(tensors.values()))


class _Index:
    """Layers by their addresses, to find those that share some with a parameter."""

    def __init__(self, layers: Sequence[View | None]) -> None:
        self._where = [
            0 if layer is None else _address(cast(torch.Tensor, layer.weight)) for layer in layers
        ]
        spans: dict[_Space, list[tuple[int, int, int]]] = {}
        for position, layer in enumerate(layers):
            if layer is not None and layer.size:
                spans.setdefault(layer.space, []).append((*layer.span, position))
        self._spans = {space: sorted(found) for space, found in spans.items()}
        # Spans may reach beyond later ones, as those of columns do: the furthest end so far.
        self._reach = {
            space: list(accumulate((stop for _, stop, _ in found), max))
            for space, found in self._spans.items()
        }

    def now(self, layers: Sequence[View]) -> _Index:
        """This index, or a new one if a layer has moved since."""
        weights = [layer.weight for layer in layers]
        if self._where == list(map(_address, weights)):
            return self
        return _Index([views.extent(cast(torch.Tensor, weight)) for weight in weights])

    def sharing(self, parameter: torch.Tensor) -> Iterator[int]:
        """Positions of the layers whose span of addresses overlaps a parameter's."""
        extent = views.extent(parameter)
        if extent is None or extent.space not in self._spans:
            return
        spans, reach = self._spans[extent.space], self._reach[extent.space]
        start, stop = extent.span
        i = bisect_left(spans, (stop,)) - 1
        while i >= 0 and reach[i] > start:
            if spans[i][1] > start:
                yield spans[i][2]
            i -= 1


def _address(tensor: Any) -> int:
    """What changes when a tensor is given other memory."""
    if not views.is_wrapper(tensor):
        with suppress(RuntimeError, ValueError):  # sparse, or not initialised yet
            return int(tensor.data_ptr())
    return id(tensor)
