"""Masks in files: `lampfast.save_masks` and `lampfast.load_masks`.

A file is in the safetensors format and holds one bit a weight. By the name of each layer there is a
uint8 tensor: bit i % 8, counted from the lowest, of byte i // 8 is that of the i-th weight in
row-major order, 1 where it is kept; the last byte's other bits are 0. The metadata has

- `lampfast.masks`: the version of this format, "1";
- `bit_order`: "little", as `numpy.packbits` calls it;
- `shapes`: a JSON object with the shape of every layer.
"""

from __future__ import annotations  # so that help() shows Model, not all that it may be

import json
import os
import secrets
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch

from lampfast import _extras, _files, parameters
from lampfast._engine import collector, packed_masks, placed, shards, tracing, views
from lampfast._engine.stacks import Layers
from lampfast._engine.views import Weight
from lampfast.parameters import Model, Patterns

_VERSION_KEY = "lampfast.masks"
_VERSION = "1"
_RESERVED = "__metadata__"  # what safetensors calls the metadata among the tensors
_MOST_HEADER_BYTES = 100_000_000  # what safetensors itself reads


@collector.paused
def save_masks(masks: Mapping[str, Weight], path: str | os.PathLike[str]) -> None:
    """Write masks to a safetensors file, at one bit a weight.

    The file is written beside its place and moved there when it is whole and on the disk: whatever
    fails, an earlier file of that name is still there.

    Example:
        >>> import lampfast, tempfile, torch
        >>> weights = {"a": torch.tensor([3.0, 1.0, -2.0])}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     lampfast.save_masks(lampfast.masks(weights, 1), f"{folder}/masks.safetensors")
        ...     lampfast.load_masks(f"{folder}/masks.safetensors", weights)
        {'a': tensor([ True, False,  True])}

    Args:
        masks: By layer name a bool tensor or array of any shape, memory format and device, True
            where a weight is kept, as from `lampfast.masks`. Where some are DTensors, every rank
            makes the call: one mask at a time is gathered, and the first rank writes the file.
        path: Of the file; one that exists is replaced.

    Raises:
        TypeError: The masks are not a mapping of names to bool tensors or arrays.
        ValueError: A name is one that the file has another use for.
        OSError: The file cannot be written.
        ModuleNotFoundError: safetensors (the extra `safetensors`) is not installed.

    Source:
        The format: https://github.com/huggingface/safetensors. In it each mask is a uint8 tensor:
        bit i % 8, counted from the lowest, of byte i // 8 is that of the i-th weight in row-major
        order, and the last byte's other bits are 0. The metadata has the version of this format as
        `lampfast.masks`, the `bit_order` "little", and all `shapes` as JSON.
    """
    safetensors = _safetensors("lampfast.save_masks")
    tracing.refuse()
    _check_named(masks)
    ranks = shards.ranks_of(masks)
    with shards.together(ranks, ("save_masks", placed.described(masks))):
        for name, mask in masks.items():
            views.readable_mask(name, shards.part(mask))
    is_writer = ranks is None or ranks.rank == 0
    packed = {}
    for name, mask in masks.items():
        whole = placed.whole(mask)  # which all ranks ask for
        if is_writer:
            packed[name] = _packed(whole)
    with shards.together(ranks):
        if is_writer:
            shapes = {name: list(mask.shape) for name, mask in masks.items()}
            _save(safetensors, packed, shapes, path)


def _save(
    safetensors: Any,
    packed: Mapping[str, npt.NDArray[np.uint8]],
    shapes: Mapping[str, list[int]],
    path: str | os.PathLike[str],
) -> None:
    metadata = {_VERSION_KEY: _VERSION, "bit_order": "little", "shapes": json.dumps(shapes)}

    def write(place: Path) -> None:
        try:
            safetensors.numpy.save_file(packed, place, metadata)
        except safetensors.SafetensorError as error:
            raise OSError(f"{path} cannot be written: {error}") from None

    _replace(path, write)


@collector.paused
def load_masks(
    path: str | os.PathLike[str],
    model: Model | None = None,
    *,
    include: Patterns = None,
    exclude: Patterns = None,
    stacked: Patterns = None,
) -> dict[str, torch.Tensor]:
    """Read the masks that `lampfast.save_masks` has written.

    Example:
        >>> import lampfast, tempfile, torch
        >>> model, other = torch.nn.Linear(64, 10), torch.nn.Linear(64, 10)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     lampfast.save_masks(lampfast.masks(model, 0.9), f"{folder}/masks.safetensors")
        ...     masks = lampfast.load_masks(f"{folder}/masks.safetensors", other)
        >>> lampfast.apply(other, masks)
        Report(numel=640, kept=64, sparsity=0.9000, layers=1)

    Args:
        path: Of the file.
        model: The model that the masks are for, in any form that `lampfast.masks` takes: names and
            shapes are compared with its layers. None to compare with nothing. Of one that is
            sharded, every rank makes the call and reads the file.
        include: Glob pattern or patterns over the parameters' names: these are the layers, in the
            place of those by default; used only with a model.
        exclude: Glob pattern or patterns over the same names: these are left out; used only with
            a model.
        stacked: Glob pattern or patterns over the names of parameters that hold several layers, one
            in each slice along the first dimension; used only with a model.

    Returns:
        By layer name a bool tensor of the layer's shape, True where a weight is kept: torch tensors
        in host memory, row-major, also where numpy arrays, other devices or memory formats were
        saved. In the order of the model's layers, or as they were saved. For a layer that is a
        DTensor one that is placed as it is.

    Raises:
        TypeError: The model, a layer or an argument has a type, dtype, layout or device that is not
            taken.
        ValueError: The file is not whole, or not one that `lampfast.save_masks` has written; or
            its names or shapes are not those of the model's layers.
        OSError: The file cannot be read.
        ModuleNotFoundError: safetensors (the extra `safetensors`) is not installed.
    """
    safetensors = _safetensors("lampfast.load_masks")
    tracing.refuse()
    if model is None and not (include is exclude is stacked is None):
        raise ValueError(
            "include, exclude and stacked choose layers of a model, but none is given; pass it"
        )
    layers: dict[str, Weight] = {}
    if model is not None:
        layers = _distinct(parameters.find(model, include, exclude, stacked).layers)
    with shards.together(shards.ranks_of(layers), ("load_masks", list(layers))):
        packed, shapes = _read(safetensors, path)
        if model is not None:
            _check_fits(path, shapes, layers)
            shapes = {name: shapes[name] for name in layers}
        made: dict[str, torch.Tensor] = {}
        for name, shape in shapes.items():
            mask = packed_masks.unpacked(packed.pop(name), shape)
            made[name] = placed.cut(layers[name], mask) if name in layers else mask
    return made


def _distinct(layers: Layers) -> dict[str, Weight]:
    """The parameters of layers that can be pruned, tied ones once."""
    if shards.are_sharded(layers.wholes.values()):
        found = views.layers({name: shards.part(whole) for name, whole in layers.wholes.items()})
    else:
        found = views.Views.of(layers.views(layers.checked()))
    return {name: layers.wholes[name] for name in found.names}


def _read(
    safetensors: Any, path: str | os.PathLike[str]
) -> tuple[dict[str, npt.NDArray[np.uint8]], dict[str, tuple[int, ...]]]:
    """The bits and the shapes that a file has."""
    with open(path, "rb") as file:
        shapes = _shapes(path, file)
        file.seek(0)
        try:
            packed = safetensors.numpy.load(file.read())
        except safetensors.SafetensorError as error:
            raise _not_ours(path, f"it is not whole: {error}") from None
    _check_packed(path, shapes, packed)
    return packed, shapes


def _packed(mask: Weight) -> npt.NDArray[np.uint8]:
    if isinstance(mask, torch.Tensor):
        mask = mask.detach().cpu().numpy()
    return packed_masks.packed(mask)


def _safetensors(verb: str) -> Any:
    with _extras.needed(verb, "safetensors", "safetensors"):
        import safetensors.numpy
    return safetensors


def _check_named(masks: Mapping[str, Weight]) -> None:
    if not isinstance(masks, Mapping):
        raise TypeError(f"masks is a {type(masks).__name__}; pass a mapping {{name: bool tensor}}")
    for name in masks:
        if not isinstance(name, str):
            raise TypeError(f"masks has the key {name!r}; a layer's name is a str")
        if name == _RESERVED:
            raise ValueError(
                f"a layer is named {name!r}, which safetensors needs for itself; rename it"
            )


def _replace(path: str | os.PathLike[str], write: Callable[[Path], None]) -> None:
    """Have a file written beside its place, and move it there once it is whole and on the disk."""
    place = Path(os.fsdecode(os.path.realpath(path)))  # what a link leads to is replaced, not it
    if place.exists() and not place.is_file():
        kind = "a folder" if place.is_dir() else "no regular file, as a device or a pipe"
        name = os.fsdecode(path)
        raise OSError(f"{name!r} is {kind}, and would be replaced; pass the path of a file")
    beside = place.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with open(beside, "xb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)  # what new files are to have here
        write(beside)
        os.chmod(beside, mode)
        with open(beside, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(beside, place)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise
    _files.keep_entries(place.parent)


def _shapes(path: str | os.PathLike[str], file: BinaryIO) -> dict[str, tuple[int, ...]]:
    """The shapes that a file's metadata has: read before all else, as the file may be a huge one.

    Raises:
        ValueError: It has none, or not such as `save_masks` writes.
    """
    metadata = _metadata(path, file)
    version = metadata.get(_VERSION_KEY)
    if version is None:
        raise _not_ours(path, "it is a safetensors file without masks, such as a checkpoint")
    if version != _VERSION or metadata.get("bit_order") != "little":
        raise _not_ours(
            path,
            f"it has version {version!r} and bit order {metadata.get('bit_order')!r}, and this "
            f"lampfast reads version {_VERSION!r} with 'little'",
        )
    try:
        shapes = json.loads(metadata.get("shapes", ""))
    except (TypeError, ValueError, RecursionError):
        shapes = None
    if not isinstance(shapes, dict) or not all(map(_is_shape, shapes.values())):
        raise _not_ours(path, "its metadata has no shapes")
    return {name: tuple(shape) for name, shape in shapes.items()}


def _metadata(path: str | os.PathLike[str], file: BinaryIO) -> dict[str, str]:
    """The metadata in the header, before anything else is read."""
    length = int.from_bytes(file.read(8), "little")
    try:
        header = json.loads(file.read(length)) if length <= _MOST_HEADER_BYTES else None
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise _not_ours(path, "it does not begin with a header of safetensors")
    metadata = header.get(_RESERVED, {})
    return metadata if isinstance(metadata, dict) else {}


def _is_shape(value: Any) -> bool:
    """Whether a tensor may have it: numpy and torch count bytes in 63 bits."""
    if not isinstance(value, list) or len(value) > views.MOST_DIMENSIONS:
        return False
    return all(type(n) is int and n >= 0 for n in value) and prod(n or 1 for n in value) < 1 << 63


def _check_fits(
    path: str | os.PathLike[str],
    shapes: Mapping[str, tuple[int, ...]],
    layers: Mapping[str, Weight],
) -> None:
    """Check that a file has the masks of these layers, and no others."""
    name = str(path)
    views.check_names(name, shapes, list(layers), "choose the layers with include= and exclude=")
    for layer, weight in layers.items():
        if shapes[layer] != tuple(weight.shape):
            raise ValueError(
                f"mask of layer {layer!r} in {name} has shape {shapes[layer]}, the layer has shape "
                f"{tuple(weight.shape)}; pass the model that the masks were made for"
            )


def _check_packed(
    path: str | os.PathLike[str],
    shapes: Mapping[str, tuple[int, ...]],
    packed: Mapping[str, npt.NDArray[Any]],
) -> None:
    """Check that there are bits for every shape, and no others."""
    if shapes.keys() != packed.keys():
        odd = sorted(shapes.keys() ^ packed.keys())
        raise _not_ours(path, f"of {len(odd)} layers it has either bits or a shape only: {odd[:5]}")
    for name, shape in shapes.items():
        bits, size = packed[name], prod(shape)
        wanted = ((size + 7) // 8,)
        if bits.dtype != np.uint8 or bits.shape != wanted:
            raise _not_ours(
                path,
                f"layer {name!r} has {bits.dtype} of shape {bits.shape}, and its {size} weights "
                f"need uint8 of shape {wanted}",
            )
        if size % 8 and int(bits[-1]) >> size % 8:
            raise _not_ours(path, f"layer {name!r} has bits behind its {size} weights")


def _not_ours(path: str | os.PathLike[str], found: str) -> ValueError:
    return ValueError(
        f"{path} is not a file of masks: {found}; pass one that lampfast.save_masks has written"
    )
