"""Which layers an optimizer trains: those that lie in the memory of its parameters.

A layer may be a slice of a parameter, or tied to one by its memory, and need not be that object.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple, TypeAlias, cast
from weakref import WeakKeyDictionary

import torch
from torch.optim import Optimizer

from lampfast._engine import shards, views
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

    def __init__(self, layers: Sequence[View]) -> None:
        self._names = [layer.name for layer in layers]
        self._weights = [cast(torch.Tensor, layer.weight) for layer in layers]
        self._index = _Index(layers, self._weights)
        self._found: WeakKeyDictionary[Optimizer, tuple[list[int], Trained]] = WeakKeyDictionary()

    def first(self, optimizers: Iterable[Optimizer]) -> list[Trained]:
        """What each optimizer trains, while the layers are where they were a moment ago."""
        return [self._of(optimizer, self._index) for optimizer in optimizers]

    def within(self, tensor: torch.Tensor) -> list[int]:
        """Positions of the layers in the memory of a parameter."""
        self._index = self._index.now()
        return sorted(self._index.sharing(tensor))

    def of(self, optimizer: Optimizer) -> Trained:
        """What an optimizer trains, by the parameters that are in its groups now.

        Raises:
            ValueError: A parameter has moved, and a layer that was a view of its memory has not.
        """
        return self._of(optimizer, None)

    def _of(self, optimizer: Optimizer, index: _Index | None) -> Trained:
        groups = optimizer.param_groups
        parameters = [parameter for group in groups for parameter in group["params"]]
        where = list(map(_address, parameters))
        if (known := self._found.get(optimizer)) is not None and known[0] == where:
            return known[1]
        self._index = index or self._index.now()
        found = self._index.trained(parameters)
        if known is not None:
            self._check_none_is_left_behind(known[1], found, parameters)
        self._found[optimizer] = where, found
        return found

    def _check_none_is_left_behind(
        self, before: Trained, found: Trained, parameters: Sequence[torch.Tensor]
    ) -> None:
        """Check that parameters which have moved have taken the layers in their memory along."""
        lost = sorted({*before.positions} - {*found.positions})
        if not lost:
            return
        given, layers = {*map(id, parameters)}, list(map(id, self._weights))
        are_there = {*map(id, before.tensors)} <= given.union(layers)
        for position in lost:
            if not are_there or layers[position] in given:
                continue
            raise ValueError(
                f"layer {self._names[position]!r} is a view of the memory that its parameter had "
                "when keep_zeros was called, and not of what it has now, so its zeros are not "
                "kept; remove() the handle, and call keep_zeros for views of what there is now"
            )


class _Index:
    """Layers by their addresses, to find those that share some with a parameter."""

    def __init__(self, layers: Sequence[View | None], weights: Sequence[torch.Tensor]) -> None:
        self._weights = weights
        self._where = [weight.data_ptr() for weight in weights]
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

    def now(self) -> _Index:
        """This index, or a new one if a layer has moved since."""
        if self._where == [weight.data_ptr() for weight in self._weights]:
            return self
        return _Index([views.extent(weight) for weight in self._weights], self._weights)

    def trained(self, parameters: Sequence[torch.Tensor]) -> Trained:
        """What an optimizer trains that has these parameters."""
        positions: set[int] = set()
        tensors: dict[int, torch.Tensor] = {}
        for parameter in parameters:
            if within := set(self.sharing(parameter)):
                positions |= within
                tensors[id(parameter)] = parameter
        for position in positions:
            weight = self._weights[position]
            if weight.is_leaf:
                tensors[id(weight)] = weight
        return Trained(sorted(positions), list(tensors.values()))

    def sharing(self, parameter: torch.Tensor) -> Iterator[int]:
        """Positions of the layers whose span of addresses overlaps a parameter's."""
        extent = views.extent(shards.part(parameter))
        if extent is None or extent.space not in self._spans:
            return
        spans, reach = self._spans[extent.space], self._reach[extent.space]
        start, stop = extent.span
        i = bisect_left(spans, (stop,)) - 1
        while i >= 0 and reach[i] > start:
            if spans[i][1] > start:
                yield spans[i][2]
            i -= 1


def _address(parameter: torch.Tensor) -> int:
    """What changes when a parameter is given other memory."""
    parameter = shards.part(parameter)
    if not views.is_wrapper(parameter):
        try:
            return parameter.data_ptr()
        except (RuntimeError, ValueError):  # sparse, or not initialised yet
            pass
    return id(parameter)
