"""From tensors to addresses: everything is checked here, once, and trusted below."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain, repeat
from operator import add, attrgetter, ge, is_not, le
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.parameter import Parameter, is_lazy

from lampfast._core import Dtype
from lampfast._engine import copies, gpus, memory, protection, tracing, ways_out

if TYPE_CHECKING:
    from lampfast._engine.scales import Scales

Weight: TypeAlias = torch.Tensor | npt.NDArray[Any]
Pointer: TypeAlias = tuple[int, Dtype, tuple[int, ...], tuple[int, ...], int]

_DTYPES: dict[object, Dtype] = {
    torch.float32: Dtype.float32,
    torch.float16: Dtype.float16,
    torch.bfloat16: Dtype.bfloat16,
    torch.float64: Dtype.float64,
    torch.float8_e4m3fn: Dtype.float8_e4m3fn,
    torch.float8_e5m2: Dtype.float8_e5m2,
    np.dtype(np.float32): Dtype.float32,
    np.dtype(np.float16): Dtype.float16,
    np.dtype(np.float64): Dtype.float64,
}

_BOOLEAN = Dtype.boolean
_MASKS: dict[object, Dtype] = {torch.bool: _BOOLEAN}
_OUTPUTS = _DTYPES | _MASKS

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes

_KINDS = (torch.Tensor, np.ndarray)
_PLAIN = frozenset((torch.Tensor, Parameter))  # classes of tensors that have memory of their own

OF_THE_LAYERS = "choose the layers that they are of with include= and exclude="

MOST_DIMENSIONS = 64  # numpy's, which answers what shares memory

_device_of, _dtype_of, _shape_of = map(attrgetter, ("device", "dtype", "shape"))
_strides_of = torch.Tensor.stride
_storage_of, _address_of = torch.Tensor.untyped_storage, torch.Tensor.data_ptr

# View(...) itself takes twice as long, as it goes through a function in Python.
_new_view = tuple.__new__


class View(NamedTuple):
    """A checked weight, as the engine reads or writes it; keeps its memory alive.

    Attributes:
        name: Its name in the model.
        weight: The tensor or array itself.
        size: How many elements it has.
        pointer: What the engine sees of it: address, dtype, shape, strides in elements, device.
        space: Which addresses its own is one of: None for those of the host and the GPUs, or the
            storage in which its device counts.
        start: The first of the addresses that its elements lie in.
        stop: The one behind the last of them.
        dense: Whether they lie there in row-major order, without a gap.
        remote: The weight, if it is a tensor whose memory the engine cannot reach.
        storage: What a tensor's memory belongs to. Another thread may give the tensor new memory
            during a call, as `model.to(...)` does, and would free what the engine works on.
        scales: Of float8 codes that are ranked by their products with scales.
    """

    name: str
    weight: Weight
    size: int
    pointer: Pointer
    space: int | None
    start: int
    stop: int
    dense: bool
    remote: torch.Tensor | None
    storage: torch.UntypedStorage | None
    scales: Scales | None

    def holding(self, storage: torch.UntypedStorage | None) -> View:
        """The same view with another storage."""
        fields = (*self[:-2], storage, self.scales)
        return _new_view(View, fields)  # _replace takes four times as long

    def scaled(self, scales: Scales | None) -> View:
        """The same view with scales, which the engine for GPUs does not know."""
        return self.through_host()._replace(scales=scales)

    def through_host(self) -> View:
        """The same view, as of a weight that the engine cannot reach if it is on a GPU."""
        if self.device == gpus.HOST:
            return self
        remote = cast(torch.Tensor, self.weight)
        return self._replace(pointer=(*self.pointer[:-1], gpus.HOST), remote=remote)

    @property
    def dtype(self) -> Dtype:
        """How its elements are stored."""
        return self.pointer[1]

    @property
    def ranked_dtype(self) -> Dtype:
        """How what is ranked is stored: its elements, or their products with scales."""
        return self.dtype if self.scales is None else Dtype.float64

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape when it was checked."""
        return self.pointer[2]

    @property
    def strides(self) -> tuple[int, ...]:
        """Its strides, in elements."""
        return self.pointer[3]

    @property
    def device(self) -> int:
        """The engine's number for its device."""
        return self.pointer[4]

    @property
    def span(self) -> tuple[int, int]:
        """The addresses [start, stop) that its elements lie in."""
        return self.start, self.stop


class Views(Sequence[View]):
    """Views, as a column of each of their fields.

    The verbs ask all layers for one thing after the other. With thousands of layers that takes a
    fraction of the time of making a view of each and asking these.
    """

    def __init__(self, *columns: Sequence[Any]) -> None:
        self._columns = columns
        self.names: Sequence[str] = columns[0]
        self.weights: Sequence[Weight] = columns[1]
        self.sizes: Sequence[int] = columns[2]
        self.pointers: Sequence[Pointer] = columns[3]
        self.spaces: Sequence[int | None] = columns[4]
        self.starts: Sequence[int] = columns[5]
        self.stops: Sequence[int] = columns[6]
        self.dense: Sequence[bool] = columns[7]
        self.remotes: Sequence[torch.Tensor | None] = columns[8]
        self.storages: Sequence[torch.UntypedStorage | None] = columns[9]
        self.scales: Sequence[Scales | None] = columns[10]

    @classmethod
    def of(cls, views: Sequence[View]) -> Views:
        """The columns of views."""
        if isinstance(views, cls):
            return views
        return cls(*zip(*views, strict=True)) if views else cls(*[()] * len(View._fields))

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Their shapes."""
        return [pointer[2] for pointer in self.pointers]

    def joined(self, *others: Sequence[View]) -> Views:
        """These views, and others behind them."""
        every = (self, *map(Views.of, others))
        return Views(*map(list, map(chain, *(views._columns for views in every))))

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[View]:
        return map(_new_view, repeat(View), zip(*self._columns, strict=True))

    @overload
    def __getitem__(self, i: int) -> View: ...
    @overload
    def __getitem__(self, i: slice) -> Views: ...
    def __getitem__(self, i: int | slice) -> View | Views:
        fields = [column[i] for column in self._columns]
        return Views(*fields) if isinstance(i, slice) else _new_view(View, fields)


def layers(
    weights: Mapping[str, Weight],
    *,
    write: bool = False,
    wholes: Mapping[str, Weight] | None = None,
) -> Views:
    """Check the weights of a model and find their addresses.

    Example:
        >>> encoder = torch.ones(3)
        >>> [view.name for view in layers({"encoder": encoder, "decoder": encoder.detach()})]
        ['encoder']

    Args:
        weights: Tensors or arrays of any shape and strides, by name.
        write: Whether they are to be changed in place.
        wholes: The parameters that they are or are slices of, where there are slices: those of one
            parameter lie apart, which need not be checked of each if the parameters do.

    Returns:
        The distinct weights: one that is tied counts once, under its first name.

    Raises:
        TypeError: A weight's type, dtype, layout or device is not one that is pruned.
        ValueError: Two weights share part of their memory; or one that is to be written is
            read-only, or has elements that share memory.
        RuntimeError: torch traces or transforms the call.
    """
    tracing.refuse()
    views = _plain_views(weights, _DTYPES)
    if views is None:
        views = Views.of([_checked("layer", name, weight) for name, weight in weights.items()])
    if write and not _are_owned(views):
        for view in views:
            _check_writable("layer", view, "prune a copy of it")
    if wholes is not None and _are_apart(views, wholes):
        return views
    tied = _tied(views)
    return Views.of([view for i, view in enumerate(views) if i not in tied]) if tied else views


def importances(
    importance: Mapping[str, Weight], layers: Sequence[View], *, write: bool = False
) -> list[View]:
    """Check the importances of layers and put them in the layers' order.

    Args:
        importance: For the name of every layer, a tensor or array of its shape and of any
            floating-point dtype that is pruned.
        layers: What they are the importances of.
        write: Whether the layers are to be changed in place.

    Returns:
        The importances.

    Raises:
        TypeError: It is not a mapping, or an importance is what a weight may not be.
        ValueError: A name is missing or unknown, a shape differs, or writing the layers would
            change an importance.
    """
    way_out = "take the names from lampfast.report(model).layers"
    check_names("importance", importance, [layer.name for layer in layers], way_out)
    views = [_checked("importance of layer", view.name, importance[view.name]) for view in layers]
    for view, layer in zip(views, layers, strict=True):
        if view.weight.shape != layer.weight.shape:
            raise ValueError(
                f"importance of layer {layer.name!r} has shape {tuple(view.weight.shape)}, the "
                f"layer has shape {tuple(layer.weight.shape)}; pass one value for every weight"
            )
    if write:
        _check_apart(views, layers)
    return views


def check_names(
    argument: str, given: Mapping[str, object], names: Sequence[str], way_out: str
) -> None:
    """Check that what was given by name is there for every layer and for nothing else.

    Args:
        argument: What the caller calls it.
        given: By name.
        names: Those of the layers that it is to name.
        way_out: How to get the names right.

    Raises:
        TypeError: It is not a mapping.
        ValueError: A name is missing or unknown.
    """
    if not isinstance(given, Mapping):
        raise TypeError(
            f"{argument} is a {type(given).__name__}; pass a mapping {{name: tensor}} that names "
            "the layers"
        )
    missing = [name for name in names if name not in given]
    unknown = given.keys() - names
    if missing or unknown:
        raise ValueError(
            f"{argument} must name exactly the layers, tied ones by the first name (missing: "
            f"{_some(missing)}, unknown: {_some(sorted(unknown, key=str))}); {way_out}"
        )


def whole(name: str, weight: Weight) -> View:
    """The view of a parameter whose slices have been checked as layers."""
    return _checked("parameter", name, weight)


def part(name: str, weight: Weight, dtype: Dtype) -> View:
    """The view of a part of a mask or of scores that are known to be good."""
    return _view(name, weight, dtype)


def parts(weights: Mapping[str, Weight], dtype: Dtype) -> Views:
    """The views of parts of masks or of scores that are known to be good, by name."""
    found = _plain_views(weights, dict.fromkeys(_OUTPUTS, dtype))
    return found or Views.of([_view(name, weight, dtype) for name, weight in weights.items()])


@contextmanager
def row_major(parts: Sequence[View]) -> Iterator[Sequence[View]]:
    """The parts of outputs, those that do not lie together replaced by tensors that are copied."""
    parts = list(parts)
    together = [
        view
        if view.dense
        else _view(
            view.name,
            torch.empty_like(
                cast(torch.Tensor, view.weight), memory_format=torch.contiguous_format
            ),
            view.dtype,
        )
        for view in parts
    ]
    yield together
    for view, copy in zip(parts, together, strict=True):
        if copy is not view:
            cast(torch.Tensor, view.weight).copy_(cast(torch.Tensor, copy.weight))


def empty_masks(layers: Sequence[View]) -> Views:
    """New bool tensors or arrays of the layers' shapes, where the engine writes masks to."""
    layers = Views.of(layers)
    if not (layers and _are_plain(layers)):
        return Views.of([_empty_mask(layer) for layer in layers])
    # As there, but in less time: dense masks have the very shapes and strides of their layers.
    first: dict[object, torch.Tensor] = {}  # of each shape, strides and device
    masks = []
    for pointer, weight in zip(layers.pointers, layers.weights, strict=True):
        like = first.get(key := pointer[2:])
        if like is None:
            device = cast(torch.Tensor, weight).device
            like = first[key] = torch.empty_strided(*key[:2], dtype=torch.bool, device=device)
            masks.append(like)
        else:
            masks.append(torch.empty_like(like))
    starts = list(map(_address_of, masks))
    pointers = [
        (start, _BOOLEAN, shape, strides, device)
        for start, (_, _, shape, strides, device) in zip(starts, layers.pointers, strict=True)
    ]
    stops = list(map(add, starts, layers.sizes))
    # Nobody else has these tensors yet, so that they keep their memory.
    return _dense_views(layers.names, masks, layers.sizes, pointers, starts, stops)


def given_masks(
    given: Mapping[str, Weight],
    wholes: Sequence[View],
    layers: Sequence[View],
    sources: Sequence[View],
) -> Views:
    """Check masks that the caller wants written, and put them in the parameters' order.

    Args:
        given: For the name of every parameter, a bool tensor of its shape on its device, or a bool
            array where it is one.
        wholes: What they are the masks of.
        layers: The layers, which are these parameters or slices of them.
        sources: What is scored: the layers' importances, or the layers themselves.

    Returns:
        The masks.

    Raises:
        TypeError: It is not a mapping, or a mask has another type, dtype or layout.
        ValueError: A name is missing or unknown, a shape or a device differs; or a mask cannot be
            written, or shares memory with another mask or with what is read.
    """
    wholes = Views.of(wholes)
    check_names("out", given, wholes.names, "pass what lampfast.masks returned for the same layers")
    masks = _plain_views({name: given[name] for name in wholes.names}, _MASKS)
    if masks is None or not _are_fit(masks, wholes):
        masks = Views.of([_checked_mask(whole, given[whole.name]) for whole in wholes])
    _check_masks_apart(masks, layers, sources)
    return masks


def masks_of_layers(given: Mapping[str, Weight], layers: Sequence[View]) -> list[View]:
    """Check the masks by which layers are to be pruned, and put them in the layers' order.

    Args:
        given: For the name of every layer, a bool tensor or array of its shape, on any device.
        layers: What they are the masks of.

    Returns:
        The masks, as `readable_mask` gives them.

    Raises:
        TypeError: It is not a mapping, or a mask has another type, dtype or layout.
        ValueError: A name is missing or unknown, a shape differs, or a mask shares memory with a
            layer.
    """
    names = [layer.name for layer in layers]
    check_names("masks", given, names, OF_THE_LAYERS)
    masks = [readable_mask(layer.name, given[layer.name]) for layer in layers]
    for view, layer in zip(masks, layers, strict=True):
        check_mask_shape(layer.name, view.shape, layer.shape)
    for i in sharing(masks, layers):
        raise ValueError(
            f"mask of layer {masks[i].name!r} may share memory with a layer that it is to prune; "
            "pass a copy of it"
        )
    return masks


def check_mask_shape(name: str, found: Sequence[int], wanted: Sequence[int]) -> None:
    """Check that the mask of a layer has its shape.

    Raises:
        ValueError: It has another one.
    """
    if tuple(found) != tuple(wanted):
        raise ValueError(
            f"mask of layer {name!r} has shape {tuple(found)}, the layer has shape "
            f"{tuple(wanted)}; pass one value for every weight"
        )


def readable_mask(name: str, mask: Weight) -> View:
    """The view of a mask that is only read.

    As float8 the engine takes it for a layer in which False is zero and True the smallest number.

    Raises:
        TypeError: It is no bool tensor or array, or does not lie in memory as one.
    """
    if not isinstance(mask, _KINDS):
        raise TypeError(
            f"mask of layer {name!r} is a {type(mask).__name__}; pass a bool tensor or array, for "
            "example numpy.asarray(mask)"
        )
    is_tensor = isinstance(mask, torch.Tensor)
    if (mask.dtype is not torch.bool) if is_tensor else (mask.dtype != np.bool_):
        raise TypeError(
            f"mask of layer {name!r} has dtype {mask.dtype}; pass a bool one, True where a weight "
            "is kept, for example (mask != 0)"
        )
    return _in_memory("mask of layer", name, mask, Dtype.float8_e5m2)


def empty_scores(layers: Sequence[View], sources: Sequence[View]) -> list[View]:
    """New tensors or arrays of the layers' shapes, where the engine writes `sources`' scores to.

    They are float64 where the source is, else float32.
    """
    views = []
    for layer, source in zip(layers, sources, strict=True):
        dtype = Dtype.float64 if source.ranked_dtype == Dtype.float64 else Dtype.float32
        like, shape = layer.weight, layer.weight.shape
        scores: Weight
        if isinstance(like, torch.Tensor):
            scores = torch.empty(shape, dtype=getattr(torch, dtype.name), device=_device(layer))
        else:
            scores = np.empty(shape, dtype.name)
        views.append(_view(layer.name, scores, dtype))
    return views


def is_wrapper(tensor: torch.Tensor) -> bool:
    """Whether a tensor wraps others, and so has no memory of its own."""
    return type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__


def extent(tensor: torch.Tensor) -> View | None:
    """Where a tensor of any kind and dtype lies in memory; None if it has none of its own."""
    try:
        return None if is_wrapper(tensor) else _view("", tensor, Dtype.boolean)
    except (RuntimeError, ValueError):  # sparse, or not initialised yet
        return None


def lacks_memory(tensor: torch.Tensor) -> bool:
    """Whether a plain tensor's storage was freed or made too small, so that it has no values."""
    return _storage_problem(_tensor_view("", tensor, Dtype.boolean), tensor) is not None


def as_integers(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's own memory as integers, for which -0, subnormals and NaN are nothing special."""
    return tensor.detach().view(_INTEGERS[tensor.itemsize])


def local(views: Sequence[View]) -> Sequence[View]:
    """The views, those of remote weights replaced by views of copies that the engine can reach."""
    if are_none(Views.of(views).remotes):
        return views
    return [
        view
        if (remote := view.remote) is None
        else _view(view.name, copies.to_host(remote), view.dtype).scaled(view.scales)
        for view in views
    ]


def beside(sources: Sequence[View], targets: Sequence[View]) -> Sequence[View]:
    """The sources, each on its target's device: a copy where it was on another one."""
    return [
        source
        if source.device == target.device and source.remote is None
        else _view(source.name, copies.to_device(source.weight, _device(target)), source.dtype)
        for source, target in zip(sources, targets, strict=True)
    ]


def sharing(views: Sequence[View], others: Sequence[View]) -> list[int]:
    """Positions of the views that may share memory with one of the others."""
    n = len(views)
    every = Views.of(views).joined(others)
    clusters = [cluster for cluster in _clusters(every) if cluster[-1] >= n]
    return sorted(i for cluster in clusters for i in cluster if i < n)


def overlap(one: View, other: View) -> bool:
    """Whether two views have an element in common, or part of one."""
    is_apart = one.span[1] <= other.span[0] or other.span[1] <= one.span[0]
    is_near = one.space == other.space and not is_apart
    return is_near and bool(np.shares_memory(_array(one), _array(other)))


def write_back(views: Sequence[View], targets: Sequence[View]) -> None:
    """Give remote weights the values of the copies that the engine changed in their place."""
    if targets is views:
        return  # as none is remote
    for view, copy in zip(views, targets, strict=True):
        if (remote := view.remote) is not None:
            copies.write_back(remote, cast(torch.Tensor, copy.weight))


def delivered(outputs: Sequence[View], layers: Sequence[View]) -> dict[str, Any]:
    """The tensors or arrays of outputs by name, each on its layer's device."""
    outputs, layers = Views.of(outputs), Views.of(layers)
    found: dict[str, Any] = dict(zip(outputs.names, outputs.weights, strict=True))
    if not are_none(layers.remotes):
        for layer in layers:
            if layer.remote is not None:
                found[layer.name] = found[layer.name].to(layer.remote.device)
    return found


def _some(names: Sequence[object]) -> str:
    """The first of the names, and how many there are more."""
    return f"{list(names[:5])}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _empty_mask(layer: View) -> View:
    weight = layer.weight
    if isinstance(weight, np.ndarray):
        return _view(layer.name, np.empty_like(weight, dtype=bool, subok=False), Dtype.boolean)
    mask = torch.empty_like(weight, dtype=torch.bool, device=_device(layer))
    return _view(layer.name, mask, Dtype.boolean)


def _device(view: View) -> torch.device:
    """The torch device on which the engine works for a view: the host for a remote one."""
    weight = view.weight
    if isinstance(weight, torch.Tensor) and view.remote is None:
        return weight.device
    return torch.device("cpu")


def _plain_views(weights: Mapping[str, Weight], dtypes: Mapping[object, Dtype]) -> Views | None:
    """The views of dense tensors that the engine reaches, as most are; None if one is not.

    They are asked for one property after the other, all at a time: with thousands of layers that
    takes a fraction of the time of asking each of them for all that `_checked` looks at.
    """
    tensors = cast(list[torch.Tensor], list(weights.values()))
    if not tensors or not _PLAIN.issuperset(map(type, tensors)):
        return None
    try:
        storages = list(map(_storage_of, tensors))  # before the addresses
        starts = list(map(_address_of, tensors))
        # From one answer each, as another thread may give a tensor other memory meanwhile.
        shapes, strides = list(map(_shape_of, tensors)), list(map(_strides_of, tensors))
        types = list(map(_dtype_of, tensors))
        found = list(map(dtypes.__getitem__, types))
        sizes, lengths = zip(*map(_extent, shapes, strides, types), strict=True)
        stops = list(map(add, starts, lengths))
        begins = list(map(torch.UntypedStorage.data_ptr, storages))
        ends = map(add, begins, map(torch.UntypedStorage.nbytes, storages))
        are_there = all(begins) and all(map(le, begins, starts)) and all(map(ge, ends, stops))
        devices = _devices(tensors)
        if devices is None or not are_there or any(map(torch.Tensor.is_neg, tensors)):
            return None
    except (KeyError, RuntimeError, ValueError):  # of another dtype or layout, or without memory
        return None
    pointers = list(zip(starts, found, shapes, strides, devices, strict=False))
    return _dense_views(list(weights), tensors, sizes, pointers, starts, stops, storages)


@lru_cache(maxsize=1024)  # as the layers of a model have few shapes
def _extent(
    shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype
) -> tuple[int, int]:
    """The elements and the bytes of a tensor that is row-major, without a gap.

    Raises:
        ValueError: It is not, or has too many dimensions.
    """
    size = 1
    for n, step in zip(reversed(shape), reversed(strides), strict=True):
        if step != size and n != 1:
            raise ValueError
        size *= n
    if len(shape) > MOST_DIMENSIONS:
        raise ValueError
    return size, size * dtype.itemsize


def _devices(tensors: Sequence[torch.Tensor]) -> Iterable[int] | None:
    """The engine's numbers for the devices of tensors; None if it cannot reach one."""
    if gpus.are_in_host(tensors):
        return repeat(gpus.HOST)
    first = tensors[0]
    if first.is_cuda and len(set(map(_device_of, tensors))) == 1:
        return repeat(gpus.index(first)) if copies.is_local(first) else None
    return list(map(gpus.index, tensors)) if all(map(copies.is_local, tensors)) else None


def _dense_views(
    names: Sequence[str],
    tensors: Sequence[torch.Tensor],
    sizes: Sequence[int],
    pointers: Sequence[Pointer],
    starts: Sequence[int],
    stops: Sequence[int],
    storages: Sequence[torch.UntypedStorage] | None = None,
) -> Views:
    """Views of dense tensors that the engine can reach."""
    none, dense = [None] * len(names), [True] * len(names)
    return Views(
        names, tensors, sizes, pointers, none, starts, stops, dense, none, storages or none, none
    )


def are_none(column: Sequence[object]) -> bool:
    """Whether there is nothing in a column."""
    return column.count(None) == len(column)


def _are_plain(views: Views) -> bool:
    """Whether all are dense tensors that the engine can reach."""
    return (
        all(views.dense)
        and are_none(views.remotes)
        and all(map(is_not, views.storages, repeat(None)))  # of arrays there is none
    )


def _are_owned(views: Views) -> bool:
    """Whether all can be written, since they are what torch itself has allocated."""
    storages = cast(Sequence[torch.UntypedStorage], views.storages)
    return _are_plain(views) and all(map(torch.UntypedStorage.resizable, storages))


def _are_fit(masks: Views, wholes: Views) -> bool:
    """Whether dense masks can be written for parameters; if not, `_checked_mask` tells why."""
    return (
        _are_plain(wholes)
        and _are_owned(masks)
        and [mask[2::2] for mask in masks.pointers] == [whole[2::2] for whole in wholes.pointers]
    )


def _checked(what: str, name: str, weight: Weight) -> View:
    """The view of a weight that the caller gave."""
    if not isinstance(weight, _KINDS):
        raise TypeError(f"{what} {name!r} {_kind_problem(weight)}")
    dtype = _DTYPES.get(weight.dtype)
    if dtype is None:
        dtype = _dtype_by_name(weight.dtype)
    if dtype is None:
        raise TypeError(f"{what} {name!r} {_dtype_problem(weight.dtype)}")
    return _in_memory(what, name, weight, dtype)


def _in_memory(what: str, name: str, weight: Weight, dtype: Dtype) -> View:
    """The view of a weight or mask, if its memory is there and can be taken by its address."""
    if isinstance(weight, np.ndarray):
        problem = _array_problem(weight)
        if problem is None:
            return _view(name, weight, dtype)
    else:
        try:
            problem = _tensor_problem(weight)
            if problem is None:
                view = _tensor_view(name, weight, dtype)
                problem = _storage_problem(view, weight)
                if problem is None:
                    return view
        except (RuntimeError, ValueError):  # tensors without memory do not have all properties
            problem = _absence(weight)
    raise TypeError(f"{what} {name!r} {problem}")


def _checked_mask(layer: View, mask: Weight) -> View:
    """The view of a mask that the caller gave for a layer."""
    name, like, found = layer.name, layer.weight, getattr(mask, "dtype", None)
    if isinstance(like, torch.Tensor):
        is_bool = isinstance(mask, torch.Tensor) and found is torch.bool
    else:
        is_bool = isinstance(mask, np.ndarray) and found == np.bool_
    if not is_bool:
        wanted = "tensor" if isinstance(like, torch.Tensor) else "numpy array, as the layer is one"
        of_dtype = f" of dtype {found}" if found else ""
        raise TypeError(
            f"out of layer {name!r} is a {type(mask).__name__}{of_dtype}; pass a bool {wanted}"
        )
    if mask.shape != layer.shape:
        raise ValueError(
            f"out of layer {name!r} has shape {tuple(mask.shape)}, the layer has shape "
            f"{tuple(layer.shape)}; pass one value for every weight"
        )
    device = mask.device if isinstance(mask, torch.Tensor) else None
    if isinstance(like, torch.Tensor) and device != like.device:
        raise ValueError(
            f"out of layer {name!r} is on {device}, the layer is on {like.device}; pass a mask on "
            "its device"
        )
    view = _in_memory("out of layer", name, mask, Dtype.boolean)
    _check_writable("out of layer", view, "pass a mask with memory of its own")
    return view if layer.remote is None else view.through_host()


def _view(name: str, weight: Weight, dtype: Dtype) -> View:
    """The view of a weight that is known to be good."""
    if isinstance(weight, torch.Tensor):
        return _tensor_view(name, weight, dtype)
    address, itemsize = weight.__array_interface__["data"][0], weight.itemsize
    strides, dense = tuple(step // itemsize for step in weight.strides), weight.flags.c_contiguous
    pointer = address, dtype, weight.shape, strides, gpus.HOST
    start, stop = address, address + weight.nbytes
    if not dense:
        start, stop = _span(address, itemsize, weight.shape, strides)
    return View(name, weight, weight.size, pointer, None, start, stop, dense, None, None, None)


def _tensor_view(name: str, tensor: torch.Tensor, dtype: Dtype) -> View:
    """The same of a tensor."""
    storage = tensor.untyped_storage()  # before the address, which has to lie in it
    address, shape, strides = tensor.data_ptr(), tensor.shape, tensor.stride()
    size, dense, itemsize = tensor.numel(), tensor.is_contiguous(), tensor.itemsize
    space, remote, device = None, None, gpus.HOST
    if copies.is_local(tensor):
        device = gpus.index(tensor)
    else:
        remote = tensor
        if not copies.has_address(tensor):
            space = storage._cdata
            # The offset within the storage, plus a page: for numpy address 0 is no memory.
            address = (1 << 12) + int(tensor.storage_offset()) * itemsize
    start, stop = address, address + size * itemsize
    if not dense:
        start, stop = _span(address, itemsize, shape, strides)
    pointer = address, dtype, shape, strides, device
    fields = (name, tensor, size, pointer, space, start, stop, dense, remote, storage, None)
    return _new_view(View, fields)


def _span(
    address: int, itemsize: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> tuple[int, int]:
    """The addresses [start, stop) that elements lie in."""
    first, last = memory.reach(shape, strides)
    return address + first * itemsize, address + (last + 1) * itemsize


def _tensor_problem(tensor: torch.Tensor) -> str | None:
    """Why the engine cannot take a tensor by its address, and what to do."""
    kind = type(tensor)
    if kind not in _PLAIN:
        if is_lazy(tensor):
            return "is not initialised yet; run its lazy module once first"
        if is_wrapper(tensor):
            return f"is a {kind.__name__}, which wraps other tensors; pass plain tensors"
    if tensor.is_neg():
        return "is a lazily negated view; call .resolve_neg() first"
    if tensor.ndim > MOST_DIMENSIONS:
        return (
            f"has {tensor.ndim} dimensions, and at most {MOST_DIMENSIONS} can be pruned; pass a "
            "view of it that has fewer, such as .flatten()"
        )
    return None


def _storage_problem(view: View, tensor: torch.Tensor) -> str | None:
    """What is wrong with the memory that a tensor is a view of, and what to do."""
    _, _, size, _, space, first, last, _, _, storage, _ = view
    if space is not None:  # its device does not count in addresses
        return _absence(tensor) if tensor.is_meta else None
    assert storage is not None
    start, length = storage.data_ptr(), storage.nbytes()
    if (start and start <= first and last <= start + length) or not size:
        return None
    if not start + length:
        return "has no memory, its storage was freed; restore it first"
    return (
        f"has elements beyond its memory, as its storage was resized to {length} bytes; "
        "restore it, or pass a copy of what is left"
    )


def _absence(tensor: torch.Tensor) -> str:
    """Why a tensor has no memory that could be taken by its address, and what to do."""
    if tensor.layout is not torch.strided or tensor.is_nested:
        return "is sparse or nested, not strided; convert it with .to_dense() first"
    if tensor.is_meta:
        return "is on the meta device and has no values; load them first"
    return (
        "has no memory of its own, as a tensor of torch.func (vmap, grad, jvp, functionalize) or "
        "one whose zeros are implied; pass a plain copy of it"
    )


def _kind_problem(weight: object) -> str:
    """What was passed in a weight's place, and what to pass instead."""
    problem = f"is a {type(weight).__name__}; pass "
    match weight:
        case nn.Module():
            return problem + 'the module by itself, or [(module, "weight")] for its parameter'
        case (str(), torch.Tensor() | np.ndarray()):
            return problem + "dict(pairs) for pairs of a name and a tensor"
        case _ if hasattr(weight, "__dlpack__") or hasattr(weight, "__array__"):
            return problem + (
                "numpy.asarray(x) to have it read, numpy.array(x), a copy, to have it pruned; or "
                "torch.from_dlpack(x) in place, but only if its library lets x change"
            )
        case _:
            return problem + f"a torch tensor or a numpy array, or {ways_out.leaving_out()}"


def _array_problem(array: npt.NDArray[Any]) -> str | None:
    """Why the engine cannot take an array by its address, and what to do."""
    if isinstance(array, np.ma.MaskedArray):
        return "is a masked array, whose mask would be ignored; pass .data or .filled(0) of it"
    steps = zip(array.shape, array.strides, strict=True)
    # The step of a dimension of size 1 leads nowhere, whatever it is.
    if not array.flags.aligned or any(step % array.itemsize for n, step in steps if n > 1):
        return "does not lie in memory as whole, aligned elements; pass a copy of it"
    return None


def _dtype_by_name(dtype: object) -> Dtype | None:
    """The dtype that an array of ml_dtypes, as from JAX, has by its name; None if it has none."""
    if not isinstance(dtype, np.dtype) or dtype.type.__module__ != "ml_dtypes":
        return None
    names = {good.name: good for good in _DTYPES.values()}
    if dtype.isnative and (found := names.get(dtype.name)) is not None:
        _DTYPES[dtype] = found
        return found
    return None


def _dtype_problem(dtype: object) -> str:
    good = ", ".join(dict.fromkeys(good.name for good in _DTYPES.values()))
    if isinstance(dtype, np.dtype) and not dtype.isnative:
        return (
            f"has dtype {dtype.str!r}, its bytes are in another order than this machine's; convert "
            f"it first, with .astype({dtype.newbyteorder('=').str!r})"
        )
    return (
        f"has dtype {dtype}, not one that is pruned ({good}); convert it first, or "
        + ways_out.with_patterns("choose the layers with include= or exclude=", "leave it out")
    )


def _check_writable(what: str, view: View, way_out: str) -> None:
    """Check that a weight or mask can be changed in place, each element by itself."""
    weight = view.weight
    if isinstance(weight, np.ndarray):
        if not weight.flags.writeable:
            raise ValueError(f"{what} {view.name!r} is a read-only array; {way_out}")
    # What torch can resize it has allocated itself, so that it can be written.
    elif not cast(torch.UntypedStorage, view.storage).resizable() and protection.refuses(
        view.pointer[0], weight
    ):
        raise ValueError(
            f"{what} {view.name!r} lies in read-only memory, as torch.from_numpy of a read-only "
            f"memmap does; {way_out}"
        )
    if view.dense or memory.are_nested(view.shape, view.strides):
        return
    if memory.repeats(_array(view)):
        raise ValueError(
            f"{what} {view.name!r} has elements that share memory, as an expanded tensor does; "
            f"{way_out}"
        )


def _are_apart(views: Views, wholes: Mapping[str, Weight]) -> bool:
    """Whether no two of the parameters that views are of share memory."""
    known = {name: i for i, name in enumerate(views.names) if name in wholes}
    parameters = [
        views[known[name]] if name in known else whole(name, weight)
        for name, weight in wholes.items()
    ]
    return next(_clusters(Views.of(parameters)), None) is None


def _tied(views: Views) -> set[int]:
    """Positions of views of the same memory as an earlier one, elements and dtype alike.

    Raises:
        ValueError: Two views share memory in any other way.
    """
    tied = set()
    for cluster in _clusters(views):
        distinct: dict[object, int] = {}
        arrays = {i: _array(views[i]) for i in cluster}
        for i in cluster:
            same = views[i].dtype, views[i].span, memory.merged_dimensions(arrays[i])
            if same in distinct:
                tied.add(i)
                continue
            for j in distinct.values():
                if np.shares_memory(arrays[i], arrays[j]):
                    raise ValueError(
                        f"layers {views[j].name!r} and {views[i].name!r} share part of their "
                        f"memory; copy one of them first, or {ways_out.leaving_out()}"
                    )
            distinct[same] = i
    return tied


def _check_apart(sources: Sequence[View], layers: Sequence[View]) -> None:
    """Check that no importance changes while the layers are pruned in place.

    A layer's own weight may be its importance: each element is read before it is written.
    """
    n = len(layers)
    views = Views.of(layers).joined(sources)
    for cluster in _clusters(views):
        arrays = {i: _array(views[i]) for i in cluster}
        for i, j in itertools.product(cluster, repeat=2):
            if not i < n <= j:
                continue
            layer, source = views[i], views[j]
            own = i == j - n and (layer.dtype, layer.span) == (source.dtype, source.span)
            if own and arrays[i].strides == arrays[j].strides:
                continue
            if np.shares_memory(arrays[i], arrays[j]):
                raise ValueError(
                    f"importance of layer {source.name!r} shares memory with layer {layer.name!r}, "
                    "which is pruned in place; pass a copy of it"
                )


def _check_masks_apart(masks: Views, layers: Sequence[View], sources: Sequence[View]) -> None:
    """Check that writing a mask changes neither another one nor what is read meanwhile."""
    n, m = len(masks), len(masks) + len(layers)
    views = masks.joined(layers) if sources is layers else masks.joined(layers, sources)
    for cluster in _clusters(views):
        arrays = {i: _array(views[i]) for i in cluster}
        for i, j in itertools.combinations(cluster, 2):
            if i < n and np.shares_memory(arrays[i], arrays[j]):
                other = "out of layer" if j < n else "layer" if j < m else "importance of layer"
                raise ValueError(
                    f"out of layer {views[i].name!r} shares memory with {other} "
                    f"{views[j].name!r}; pass a mask with memory of its own"
                )


def _clusters(views: Views) -> Iterator[list[int]]:
    """Positions of views that may share memory."""
    if are_none(views.spaces):  # as nearly always
        yield from memory.clusters(views.starts, views.stops)
        return
    spaces: dict[int | None, list[int]] = {}
    for i, space in enumerate(views.spaces):
        spaces.setdefault(space, []).append(i)
    for positions in spaces.values():
        starts, stops = ([ends[i] for i in positions] for ends in (views.starts, views.stops))
        for cluster in memory.clusters(starts, stops):
            yield [positions[i] for i in cluster]


def _array(view: View) -> npt.NDArray[Any]:
    """The weight's memory for the questions of `memory`."""
    address, _, shape, strides, _ = view.pointer
    return memory.array(address, view.weight.itemsize, shape, strides)
