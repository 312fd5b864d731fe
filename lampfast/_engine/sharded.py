"""Layers that are sharded over processes: what each rank has of them, and the engine's calls.

Ranks tell each other first what they were asked and what they hold; from then on the engine merges
what they find (csrc/exchange.h). A rank that fails takes the others with it, before any write.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from math import prod
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
import torch
from torch import distributed
from torch.distributed.tensor import DTensor

from lampfast import _core
from lampfast._engine import calls, gpus, pieces, shards, tracing, views
from lampfast._engine.communicator import (
    Communicator,
    GroupCommunicator,
    Told,
    digest_of,
    group_of,
)
from lampfast._engine.stacks import Layers
from lampfast._engine.views import Pointer, View, Weight


class Whole(NamedTuple):
    """A layer as all ranks together have it, for reports and counts.

    Attributes:
        name: Its name.
        shape: Its shape.
        dtype: How its elements are stored.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """How many elements it has."""
        return prod(self.shape)


class Cuts(NamedTuple):
    """Where a layer is cut into the pieces that ranks hold.

    Attributes:
        shape: The layer's shape.
        positions: By dimension, where a piece begins that is not the first, ascending.
        why: Its placements, for an error.
    """

    shape: tuple[int, ...]
    positions: list[list[int]]
    why: str


_Key: TypeAlias = tuple[int, tuple[int, ...]]  # of a box: its first index, and its shape


class _Cut(NamedTuple):
    """A piece of a layer in this rank's part of a parameter."""

    layer: str
    parameter: str
    box: pieces.Box


class _Directory(NamedTuple):
    """What all ranks hold.

    Attributes:
        layers: The layers.
        stacks: By parameter, the names of the layers that are its slices.
        owners: By layer, which rank counts each box: the first that holds it.
        copied: By layer, the boxes that several ranks hold.
        begins: By layer, where boxes begin, if each ends before the next one begins.
        cuts: By layer and dimension, the positions behind 0 at which boxes begin.
    """

    layers: list[Whole]
    stacks: dict[str, list[str]]
    owners: list[dict[_Key, int]]
    copied: list[set[_Key]]
    begins: list[list[int]]
    cuts: list[list[list[int]]]


class Sharded:
    """The layers of a model that is sharded, as this rank and as all of them have it.

    Args:
        found: The layers, of which some are DTensors, or all lie on some ranks only.
        question: What is asked, which must be the same on all ranks.
        write: Whether they are to be changed in place.
        through_host: Whether the engine for GPUs does not know what is asked, so that layers are
            copied to host memory and back.
        importance: What is scored in their place, by name.
        group: The ranks; without it, those of the DTensors' meshes.
        communicator: That of the ranks, from a section of its `failing_together` in which all that
            is done here and later belongs; without it, a failure is told at exchanges only.
    """

    def __init__(
        self,
        found: Layers,
        question: object,
        *,
        write: bool = False,
        through_host: bool = False,
        importance: Mapping[str, Weight] | None = None,
        group: distributed.ProcessGroup | None = None,
        communicator: Communicator | None = None,
    ) -> None:
        self._found = found
        self._distinct = {id(weight): name for name, weight in reversed(found.wholes.items())}
        self.communicator = communicator or communicator_of(found.wholes, group)
        self._scored = importance
        with self.together(question) as told:
            tracing.refuse()
            self._check(write, through_host)
            held = json.dumps(self._held())
            told.own.update(held=digest_of(held), known=list(_known))
        self._directory = _learned(self.communicator, held, told.everyone)
        self.layers, self.stacks = self._directory.layers, self._directory.stacks
        if group is not None:  # else the copies are those of DTensors, which torch keeps alike
            self._compare_copies()

    # --- what this rank has ---

    def _check(self, write: bool, through_host: bool) -> None:
        wholes = self._found.wholes
        for name, weight in wholes.items():
            if isinstance(weight, DTensor) and any(it.is_partial() for it in weight.placements):
                raise ValueError(
                    f"layer {name!r} is a DTensor with placements {weight.placements}, of which a "
                    "partial one is yet to be added up; call .redistribute() with Replicate or "
                    "Shard placements first"
                )
        own = {
            name: shards.part(weight)
            for name, weight in wholes.items()
            if self._distinct[id(weight)] == name
        }
        found = views.layers(own, write=write)
        self._views = [view.through_host() for view in found] if through_host else found
        self.wholes = {view.name: wholes[view.name] for view in self._views}
        self._local = {view.name: view for view in views.local(self._views)}
        self._cuts = list(self._cut())

    def _cut(self) -> Iterator[_Cut]:
        for name, weight in self.wholes.items():
            held = pieces.layout(weight)
            shape = tuple(sum(count for _, count in along) for along in held)
            local = self._local[name]
            is_empty = 0 in shape and not local.size  # with any shape
            if shape != local.shape and not is_empty:
                raise ValueError(
                    f"layer {name!r} has a local tensor of shape {local.shape}, where "
                    f"its placements {cast(DTensor, weight).placements} say {shape}; distribute it "
                    "by torch.distributed.tensor.distribute_tensor"
                )
            for part in pieces.parts(weight.shape, self._found.stacks.get(name)):
                for box in pieces.boxes(part, held):
                    if prod(box.shape):
                        yield _Cut(name + part.suffix, name, box)

    def _held(self) -> list[Any]:
        """What this rank tells of itself: its layers, with the boxes that it has of each."""
        by_layer: dict[str, list[Any]] = {}
        for cut in self._cuts:
            by_layer.setdefault(cut.layer, []).append((cut.box.first, cut.box.shape))
        held = []
        for name, weight in self.wholes.items():
            dtype = self._local[name].dtype.name
            stack = self._found.stacks.get(name)
            for part in pieces.parts(weight.shape, stack):
                layer = name + part.suffix
                of = None if stack is None or stack.without else name
                held.append((layer, part.shape, dtype, by_layer.get(layer, []), of))
        return held

    def _compare_copies(self) -> None:
        """Check that what several ranks hold is the same on all of them.

        Raises:
            ValueError: It is not.
        """
        with self.together():
            positions = {layer.name: i for i, layer in enumerate(self.layers)}
            digests = {
                f"{cut.layer} {cut.box.first} {cut.box.shape}": (cut.layer, _digest(piece))
                for cut in self._cuts
                if (cut.box.first, cut.box.shape) in self._directory.copied[positions[cut.layer]]
                for piece in [self._piece(cut)]
            }
        seen: dict[str, tuple[str, int]] = {}
        for rank, answer in enumerate(self.communicator.gather(json.dumps(digests).encode(), 0)):
            for key, (layer, digest) in json.loads(answer).items():
                known, first = seen.setdefault(key, (digest, rank))
                if known != digest:
                    raise ValueError(
                        f"layer {layer!r} has other values on rank {rank} than on rank {first}, "
                        "though both hold the same part of it; load the same weights on both, or "
                        "give different layers different names"
                    )

    # --- what all of them have ---

    def cuts(self) -> Iterator[Cuts]:
        """Where each layer is cut; the same on all ranks."""
        placements = {
            name: f"placements {weight.placements}"
            for parameter, weight in self.wholes.items()
            if isinstance(weight, DTensor)
            for name in self._found.names(parameter)
        }
        for layer, positions in zip(self.layers, self._directory.cuts, strict=True):
            yield Cuts(layer.shape, positions, placements.get(layer.name, "parts on other ranks"))

    # --- calls ---

    def together(self, question: object = None) -> AbstractContextManager[Told]:
        """A section that fails on all ranks if it does on one; all must have the same question."""
        return self.communicator.together(question)

    def zeros(self) -> list[_core.LayerThreshold]:
        """The thresholds that prune what is zero already."""
        with self._calling() as (pointers, machine):
            return _core.zero_thresholds(pointers, machine)

    def sizes_of_zero_blocks(self, shapes: Sequence[tuple[int, int, int]]) -> list[int]:
        """How many weights of each layer are in blocks that are zero throughout."""
        with self._calling() as (pointers, machine):
            return _core.sizes_of_zero_blocks(pointers, shapes, machine)

    def thresholds(self, spec: calls.Selection) -> list[_core.LayerThreshold]:
        """Those by which `prune` would prune."""
        with self._calling() as (pointers, machine):
            return calls.thresholds_by(pointers, spec, machine)

    def masks(self, spec: calls.Selection) -> dict[str, torch.Tensor]:
        """By parameter, True where a weight is kept; placed as the parameters are."""
        masks = {
            name: torch.ones(view.shape, dtype=torch.bool, device=_device(view))
            for name, view in self._local.items()
        }
        with self._calling() as (pointers, machine):
            targets = self._pointers(masks, _core.Dtype.boolean)
            calls.masks_by(pointers, targets, spec, machine)
        self.communicator.finish()
        return {
            name: pieces.like(
                cast(torch.Tensor, weight), masks[name].to(shards.part(weight).device)
            )
            for name, weight in self.wholes.items()
        }

    def prune(
        self,
        spec: calls.Selection,
        before_writing: Callable[[list[_core.LayerThreshold]], None],
    ) -> None:
        """Zero the weights that the spec selects, in place."""
        with self._calling() as (pointers, machine):
            targets = self._pointers(self._weights())
            calls.prune_by(pointers, targets, spec, machine, before_writing)
        self.communicator.finish()
        views.write_back(self._views, list(self._local.values()))

    def wait(self) -> None:
        """Wait for all ranks; raise if one has failed."""
        self.communicator.sum(memoryview(bytearray(8)))

    def prune_zeros(
        self,
        masks: Mapping[str, torch.Tensor],
        before_writing: Callable[[list[_core.LayerThreshold]], None],
    ) -> None:
        """Zero the weights where masks, which lie as this rank's parts do, are False."""
        here = {name: masks[name].to(_device(view)) for name, view in self._local.items()}
        given = self._pointers(here, _core.Dtype.float8_e5m2)  # in which True is not zero
        part = self._machine_part(["float8_e5m2"] * len(self.layers))
        try:
            with _lent(given, part) as machine:
                _core.prune_zeros(given, self._pointers(self._weights()), machine, before_writing)
        except _core.NotFiniteError as error:  # of the bytes as float8
            position = 0 if error.element is None else error.element.layer
            raise calls.no_mask(self.layers[position].name) from None
        self.communicator.finish()
        views.write_back(self._views, list(self._local.values()))

    def local_views(self) -> Sequence[View]:
        """Views of what this rank has of each parameter."""
        return self._views

    # --- to the engine ---

    def _weights(self) -> dict[str, Any]:
        return {
            name: weight.detach() if isinstance(weight := view.weight, torch.Tensor) else weight
            for name, view in self._local.items()
        }

    def _pointers(
        self, tensors: Mapping[str, Any], dtype: _core.Dtype | None = None
    ) -> list[Pointer]:
        """The pieces of tensors that lie as the local parts of the parameters do."""
        return [
            views.part(
                cut.layer,
                tensors[cut.parameter][cut.box.local],
                dtype or self._local[cut.parameter].dtype,
            ).pointer
            for cut in self._cuts
        ]

    def _machine_part(self, dtypes: Sequence[str]) -> tuple[Any, ...]:
        """What the engine is told of the sharding."""
        directory, rank = self._directory, self.communicator.rank
        positions = {layer.name: i for i, layer in enumerate(self.layers)}
        counted: set[tuple[int, _Key]] = set()
        own = []
        for cut in self._cuts:
            i, (first, shape, *_) = positions[cut.layer], cut.box
            key = first, shape
            counts = directory.owners[i][key] == rank and (i, key) not in counted
            counted.add((i, key))
            own.append((i, counts, first, _index_steps(self.layers[i].shape)))
        layers = [
            (getattr(_core.Dtype, dtype), layer.shape)
            for dtype, layer in zip(dtypes, self.layers, strict=True)
        ]
        return self.communicator, layers, own, directory.begins

    @contextmanager
    def _calling(self) -> Iterator[tuple[list[Pointer], Any]]:
        """Pointers to what is scored, and the machine; names what is not finite."""
        dtypes = [layer.dtype for layer in self.layers]
        weights = self._pointers(self._weights())
        if self._scored is None:
            with self._naming("layer"), _lent(weights, self._machine_part(dtypes)) as machine:
                yield weights, machine
            return
        with self.together():
            scored = self._importances()
        with _lent(weights, self._machine_part(dtypes)) as machine:
            element = _core.first_not_finite(weights, machine)
        if element is not None:
            raise self._not_finite("layer", element)
        by_name = {cut.layer: view.dtype.name for cut, view in zip(self._cuts, scored, strict=True)}
        answers = self.communicator.gather(json.dumps(by_name).encode(), 64 * len(self.layers))
        for answer in answers:
            by_name |= json.loads(answer)
        dtypes = [by_name.get(layer.name, layer.dtype) for layer in self.layers]
        pointers = [view.pointer for view in scored]
        part = self._machine_part(dtypes)
        with self._naming("importance of layer"), _lent(pointers, part) as machine:
            yield pointers, machine

    def _importances(self) -> list[View]:
        """What is scored in the place of each piece."""
        given = cast(Mapping[str, Weight], self._scored)
        if not isinstance(given, Mapping) or given.keys() != self.wholes.keys():
            raise ValueError(
                "importance must name exactly the parameters that are layers or hold them, "
                f"{list(self.wholes)[:5]}...; where a model is sharded, pass one for each parameter"
            )
        scored = []
        for cut in self._cuts:
            weight = self.wholes[cut.parameter]
            scored.append(self._scored_piece(cut, weight, given[cut.parameter]))
        targets = [views.part(cut.layer, self._piece(cut), self._dtype(cut)) for cut in self._cuts]
        return list(views.beside(views.local(scored), targets))

    def _piece(self, cut: _Cut) -> Any:
        weight = self._local[cut.parameter].weight
        own = weight.detach() if isinstance(weight, torch.Tensor) else weight
        return own[cut.box.local]

    def _dtype(self, cut: _Cut) -> _core.Dtype:
        return self._local[cut.parameter].dtype

    def _scored_piece(self, cut: _Cut, weight: Weight, values: Any) -> View:
        if tuple(getattr(values, "shape", ())) != tuple(weight.shape):
            raise ValueError(
                f"importance of layer {cut.parameter!r} has shape "
                f"{tuple(getattr(values, 'shape', ()))}, the layer has shape "
                f"{tuple(weight.shape)}; pass one value for every weight"
            )
        if not isinstance(values, DTensor):
            return views.layers({cut.layer: values[cut.box.whole]})[0]
        if isinstance(weight, DTensor) and values.placements == weight.placements:
            return views.layers({cut.layer: shards.part(values)[cut.box.local]})[0]
        raise ValueError(
            f"importance of layer {cut.parameter!r} is a DTensor with placements "
            f"{values.placements}; pass one that is placed as the layer is, or a plain tensor"
        )

    @contextmanager
    def _naming(self, what: str) -> Iterator[None]:
        try:
            yield
        except _core.NotFiniteError as error:
            if error.element is None:
                raise
            raise self._not_finite(what, error.element) from None

    def _not_finite(self, what: str, element: _core.ElementIndex) -> ValueError:
        layer = self.layers[element.layer]
        index, rest = [], element.index
        for length in reversed(layer.shape):
            rest, at = divmod(rest, length)
            index.append(at)
        return ValueError(
            f"{what} {layer.name!r} has a value at index {tuple(reversed(index))}, on rank "
            f"{element.rank}, that is NaN or infinite, and only finite values can be ordered; "
            "repair it first, or leave the layer out with exclude="
        )


@contextmanager
def _lent(pointers: list[Pointer], part: tuple[Any, ...]) -> Iterator[Any]:
    with gpus.machine(pointers, _core.cuda_needs) as (threads, lent):
        yield threads, lent, part


def _device(view: View) -> torch.device:
    weight = view.weight
    return weight.device if isinstance(weight, torch.Tensor) else torch.device("cpu")


def _digest(piece: Any) -> str:
    """A digest of the bytes of a tensor or an array, in row-major order."""
    tensor = piece if isinstance(piece, torch.Tensor) else torch.from_numpy(np.asarray(piece))
    whole = hashlib.sha256()
    for block in torch.split(tensor.detach().flatten(), 1 << 20):
        whole.update(block.contiguous().view(torch.uint8).cpu().numpy().tobytes())
    return whole.hexdigest()


def _index_steps(shape: Sequence[int]) -> list[int]:
    return [prod(shape[axis + 1 :]) for axis in range(len(shape))]


def communicator_of(
    wholes: Mapping[Any, object], group: distributed.ProcessGroup | None
) -> Communicator:
    """That of a group or, without one, of all ranks that the meshes of DTensors have."""
    return GroupCommunicator(group or group_of_meshes(wholes))


def group_of_meshes(wholes: Mapping[Any, object]) -> distributed.ProcessGroup:
    """The group of all ranks that the meshes of DTensors have."""
    meshes = [weight.device_mesh for weight in wholes.values() if isinstance(weight, DTensor)]
    if meshes and meshes[0].ndim == 1 and all(mesh == meshes[0] for mesh in meshes):
        return meshes[0].get_group()
    return group_of({rank for mesh in meshes for rank in mesh.mesh.flatten().tolist()})


_known: OrderedDict[str, _Directory] = OrderedDict()  # by digest of what all ranks hold


def _learned(
    communicator: Communicator, own: str, everyone: Sequence[Mapping[str, Any]]
) -> _Directory:
    """What all ranks hold; known from the last calls if that is so on all of them."""
    key = digest_of(" ".join(each["held"] for each in everyone))
    if not all(key in each["known"] for each in everyone):
        held = communicator.gather(own.encode(), 0)
        _known[key] = _merged([json.loads(each) for each in held])
        while len(_known) > 4:
            _known.popitem(last=False)
    return _known[key]


def _merged(everyone: Sequence[Sequence[Any]]) -> _Directory:
    """Layers in the order of the first rank that has them; each box counts where it comes first.

    Raises:
        ValueError: Ranks differ about a layer, or do not have all of it.
    """
    layers: dict[str, Whole] = {}
    owners: dict[str, dict[_Key, int]] = {}
    copied: dict[str, set[_Key]] = {}
    holders: dict[str, list[int]] = {}
    stacks: dict[str, dict[str, None]] = {}
    for rank, held in enumerate(everyone):
        for name, shape, dtype, boxes, stack in held:
            if stack is not None:
                stacks.setdefault(stack, {})[name] = None
            here = Whole(name, tuple(shape), dtype)
            if layers.setdefault(name, here) != here:
                raise ValueError(
                    f"layer {name!r} has shape {here.shape} and dtype {here.dtype} on rank {rank}, "
                    f"and shape {layers[name].shape} and dtype {layers[name].dtype} on rank "
                    f"{holders[name][0]}; give different layers different names"
                )
            holders.setdefault(name, []).append(rank)
            of_layer = owners.setdefault(name, {})
            for first, extents in boxes:
                key = first, tuple(extents)
                if of_layer.setdefault(key, rank) != rank:
                    copied.setdefault(name, set()).add(key)
    begins, cuts = [], []
    for name, layer in layers.items():
        there = sum(prod(shape) for _, shape in owners[name])
        if there != layer.size:
            raise ValueError(
                f"layer {name!r} has {layer.size} elements, and ranks {holders[name]} hold {there} "
                "of them; pass a group= of all ranks that have a part of it, each part once"
            )
        begins.append(_begins(layer.shape, owners[name]))
        cuts.append(_cuts(layer.shape, owners[name]))
    return _Directory(
        list(layers.values()),
        {name: list(slices) for name, slices in stacks.items()},
        [owners[name] for name in layers],
        [copied.get(name, set()) for name in layers],
        begins,
        cuts,
    )


def _begins(shape: Sequence[int], boxes: Mapping[_Key, int]) -> list[int]:
    """Where boxes begin, if each ends before the next one begins."""
    steps = _index_steps(shape)
    extents = sorted(
        (first, first + sum((n - 1) * step for n, step in zip(lengths, steps, strict=True)))
        for first, lengths in boxes
    )
    follow = all(a[1] < b[0] for a, b in itertools.pairwise(extents))
    return [first for first, _ in extents] if follow else []


def _cuts(shape: Sequence[int], boxes: Mapping[_Key, int]) -> list[list[int]]:
    """By dimension, where boxes begin behind 0. As they fill the layer, others end there."""
    steps = _index_steps(shape)
    return [
        sorted({first // step % length for first, _ in boxes} - {0})
        for length, step in zip(shape, steps, strict=True)
    ]
