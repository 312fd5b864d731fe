"""Parameters that hold several layers, as the experts of a mixture: how they are cut, and put back.

A *stack* is cut along its first dimension. Its slices are views of it, so the engine sees ordinary
layers that lie apart in one memory; whoever asks by parameter gets one answer of its shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch

from lampfast._core import Dtype
from lampfast._engine import tracing, views
from lampfast._engine.scales import Quantised, Scales, same_scales
from lampfast._engine.views import View, Views, Weight

_HALVES = ".gate", ".up"


class Halves(NamedTuple):
    """Two layers in each slice: the gate first, then up.

    Attributes:
        dim: The dimension of the parameter in which they lie side by side.
        order: One after the other, or every second row of each.
    """

    dim: int
    order: Literal["concatenated", "interleaved"]


class Stack(NamedTuple):
    """How a parameter is cut into layers.

    Example:
        >>> stack = Stack(2, Halves(1, "concatenated"))
        >>> {name: tuple(layer.shape) for name, layer in stack.cut("w", torch.ones(2, 6, 5))}
        {'w[0].gate': (3, 5), 'w[0].up': (3, 5), 'w[1].gate': (3, 5), 'w[1].up': (3, 5)}

    Attributes:
        slices: How many slices it has, of equal size.
        halves: Where each slice holds two layers, how they lie in it.
        without: What follows the parameter's name in the names of slices that are no layers.
    """

    slices: int
    halves: Halves | None = None
    without: frozenset[str] = frozenset()

    def suffixes(self) -> Iterator[str]:
        """What follows the parameter's name in the names of its layers, in their order."""
        every = self._every()
        return (suffix for suffix in every if suffix not in self.without) if self.without else every

    def cut(self, name: str, weight: Weight) -> Iterator[tuple[str, Weight]]:
        """The layers of a parameter, or of anything of its shape, by name."""
        parts = [self._slices(part) for part in self._parts(weight)]
        layers = chain.from_iterable(zip(*parts, strict=True))
        if not self.without:
            return zip(map(name.__add__, self._every()), layers, strict=True)
        pairs = zip(self._every(), layers, strict=True)
        return ((name + suffix, layer) for suffix, layer in pairs if suffix not in self.without)

    def halves_of(self, shape: Sequence[int]) -> Iterator[tuple[str, int | None, slice]]:
        """What a slice holds: the end of a name, and where in which dimension of the parameter."""
        if self.halves is None:
            yield "", None, slice(None)
            return
        dim, order = self.halves
        length = shape[dim]
        half = length // 2
        is_whole = order == "concatenated"
        yield _HALVES[0], dim, slice(0, half) if is_whole else slice(0, length, 2)
        yield _HALVES[1], dim, slice(half, length) if is_whole else slice(1, length, 2)

    def _every(self) -> Iterator[str]:
        """The suffixes of all slices, those that are no layers too."""
        halves = _HALVES if self.halves else ("",)
        return (f"[{i}]{half}" for i in range(self.slices) for half in halves)

    def _parts(self, weight: Weight) -> Sequence[Weight]:
        if self.halves is None:
            return (weight,)
        if isinstance(weight, torch.Tensor):
            weight = weight.detach()
        dim, order = self.halves
        half = weight.shape[dim] // 2
        is_whole = order == "concatenated"
        gate = slice(0, half) if is_whole else slice(0, None, 2)
        up = slice(half, None) if is_whole else slice(1, None, 2)
        before: tuple[slice, ...] = (slice(None),) * dim
        return weight[(*before, gate)], weight[(*before, up)]

    def _slices(self, weight: Weight) -> Sequence[Weight]:
        # Of the rows of a matrix, several may make a slice. Cutting a dimension copies nothing.
        rows, has_blocks = weight.shape[1:], weight.shape[0] != self.slices
        if isinstance(weight, np.ndarray):
            return list(weight.reshape(self.slices, -1, *rows) if has_blocks else weight)
        tensor = weight.detach()
        if has_blocks:
            tensor = torch.unflatten(tensor, 0, (self.slices, -1))
        return tensor.unbind(0)


class Layers(NamedTuple):
    """The layers of a model.

    Attributes:
        wholes: The parameters that they are, or are slices of, by name.
        stacks: Those of them that hold several layers.
        quantised: Those of them that have scales, or what may be scales, beside them.
        scales: By layer name, once `ranked` has looked at them.
    """

    wholes: dict[str, Weight]
    stacks: dict[str, Stack]
    quantised: Mapping[str, Quantised] = {}
    scales: Mapping[str, Scales] = {}

    def ranked(self, importance: object) -> Layers:
        """The layers with their scales, unless importances are ranked.

        Raises:
            TypeError: As `Quantised.resolved`.
            ValueError: As `Quantised.resolved`; or tied layers have scales that differ.
        """
        if not self.quantised or importance is not None:
            return self
        found: dict[str, Scales] = {}
        resolved = {name: quantised.resolved() for name, quantised in self.quantised.items()}
        self._check_tied(resolved)
        for name, quantised in self.quantised.items():
            if (scales := resolved[name]) is None:
                continue
            if (stack := self.stacks.get(name)) is None:
                found[name] = scales
            else:
                cut = scales.cut(stack, quantised.weight.shape)
                found.update((name + suffix, part) for suffix, part in cut)
        return self._replace(scales=found)

    def _check_tied(self, scales: Mapping[str, Scales | None]) -> None:
        """Check that what has several names has the same scales beside each of them."""
        first: dict[int, str] = {}
        for name, whole in self.wholes.items():
            if not isinstance(whole, torch.Tensor) or not whole.numel():
                continue
            other = first.setdefault(whole.data_ptr(), name)
            if other != name and not same_scales(scales.get(other), scales.get(name)):
                raise ValueError(
                    f"layer {name!r} is tied to {other!r}, but not with the same scales beside "
                    "it, so that its magnitudes are not known; give both the same scales, or "
                    "untie them by a copy"
                )

    def named(self) -> dict[str, Weight]:
        """The layers themselves, by name."""
        if not self.stacks:
            return self.wholes
        layers: dict[str, Weight] = {}
        for name, whole in self.wholes.items():
            if (stack := self.stacks.get(name)) is None:
                layers[name] = whole
            else:
                layers.update(stack.cut(name, whole))
        return layers

    def checked(self, *, write: bool = False) -> Sequence[View]:
        """The distinct layers, checked as `views.layers` does."""
        if not self.stacks:
            found = views.layers(self.wholes, write=write)
        else:
            tracing.refuse()  # before it records how the stacks are cut
            found = views.layers(self.named(), write=write, wholes=self.wholes)
        if not self.scales:
            return found
        scales = self.scales
        return [view.scaled(scales[view.name]) if view.name in scales else view for view in found]

    def names(self, name: str) -> list[str]:
        """The names of the layers of a parameter."""
        stack = self.stacks.get(name)
        return [name] if stack is None else list(map(name.__add__, stack.suffixes()))

    def slices(self) -> set[str]:
        """The names of the layers that are slices of a parameter."""
        return {layer for name in self.stacks for layer in self.names(name)}

    def partial(self) -> dict[str, Stack]:
        """The stacks of which some slices are no layers."""
        return {name: stack for name, stack in self.stacks.items() if stack.without}

    def views(self, layers: Sequence[View]) -> Sequence[View]:
        """Views of the distinct parameters, for those of their layers.

        Raises:
            ValueError: A slice is tied to a layer that is not the same slice of a tied parameter.
        """
        if not self.stacks:
            return layers
        found = {name: i for i, name in enumerate(Views.of(layers).names)}
        wholes = []
        for name, whole in self.wholes.items():
            if name not in self.stacks:
                if name in found:
                    wholes.append(layers[found[name]])
                continue
            names = self.names(name)
            tied = [layer for layer in names if layer not in found]
            if tied and len(tied) < len(names):
                raise ValueError(
                    f"layer {tied[0]!r} is tied to another one, and the rest of {name!r} is not; "
                    "leave one of them out with exclude="
                )
            if not tied:
                view = views.whole(name, whole)
                has_scales = any(layer in self.scales for layer in names[:1])
                wholes.append(view.through_host() if has_scales else view)
        return wholes

    def importances(self, importance: Mapping[str, Any]) -> Mapping[str, Any]:
        """Importances by layer, where some were given by parameter.

        Raises:
            ValueError: One has not the shape of its parameter.
        """
        if not self.stacks or not isinstance(importance, Mapping):
            return importance
        by_layer = dict(importance)
        for name in self.stacks.keys() & importance.keys():
            given, shape = by_layer.pop(name), tuple(self.wholes[name].shape)
            found = getattr(given, "shape", None)
            if found is None or tuple(found) != shape:
                raise ValueError(
                    f"importance of {name!r} has shape {found and tuple(found)}, the parameter has "
                    f"shape {shape}; pass one value for every weight, or one importance a slice"
                )
            for layer, values in self.stacks[name].cut(name, given):
                if layer in by_layer:
                    raise ValueError(
                        f"importance has both {name!r} and its slice {layer!r}; pass one of them"
                    )
                by_layer[layer] = values
        return by_layer

    def scored(
        self, wholes: Sequence[View], layers: Sequence[View], sources: Sequence[View]
    ) -> Sequence[View]:
        """A source for each parameter, which has the dtype of all that its layers have.

        Raises:
            ValueError: Some of its layers' sources are float64, and others are not.
        """
        if not self.stacks:
            return sources
        by_name = {layer.name: source for layer, source in zip(layers, sources, strict=True)}
        found = []
        for whole in wholes:
            first, *others = [by_name[name] for name in self.names(whole.name)] or [whole]
            is_double = first.ranked_dtype == Dtype.float64
            for other in others:
                if (other.ranked_dtype == Dtype.float64) != is_double:
                    raise ValueError(
                        f"importances of {first.name!r} and {other.name!r}, slices of one "
                        "parameter, are float64 and not; pass both in one dtype"
                    )
            found.append(first)
        return found

    def spread(self, outputs: Sequence[View]) -> Sequence[View]:
        """Outputs by parameter as outputs by layer: in the same memory and the same order."""
        if not self.stacks:
            return outputs
        parts: list[Sequence[View]] = []
        for output in outputs:
            if (stack := self.stacks.get(output.name)) is None:
                parts.append([output])
            else:
                cut = dict(stack.cut(output.name, output.weight))
                parts.append(views.parts(cut, output.dtype))
        return Views.of([]).joined(*parts)

    def fill_uncovered(self, outputs: Sequence[View], value: float) -> None:
        """Give the outputs of parameters a value where no slice of them is a layer."""
        partial = self.partial()
        for output in outputs if partial else ():
            if output.name in partial:
                output.weight[...] = value


def uncovered(stack: Stack, whole: torch.Tensor) -> torch.Tensor:
    """Where a parameter has no layer, as a bool tensor."""
    found = torch.ones(whole.shape, dtype=torch.bool, device=whole.device)
    for _, part in stack.cut("", found):
        cast(torch.Tensor, part).fill_(False)
    return found
