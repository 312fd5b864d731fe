"""Scales beside float8 codes in a checkpoint, found by name in whichever file they lie."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lampfast import _scales
from lampfast._engine.scales import Scales
from lampfast.checkpoints import headers, origins
from lampfast.checkpoints.headers import Tensor
from lampfast.checkpoints.places import Pieces
from lampfast.checkpoints.reading import Checkpoint


def of_layers(checkpoint: Checkpoint, views: Mapping[str, Pieces]) -> dict[str, Scales]:
    """The scales of a checkpoint's layers, by layer name; of those that have some.

    Args:
        checkpoint: Where the layers lie.
        views: By layer name, of which tensors it is a view.

    Raises:
        TypeError: As `Quantised.resolved`.
        ValueError: As `Quantised.resolved`; or a layer is put together of tensors with scales.
    """
    beside = _Beside(checkpoint)
    found = {}
    for name, view in views.items():
        for place in (piece.place for piece in view):
            if (scales := beside.resolved(place.tensor)) is None:
                continue
            if len(view) > 1:
                raise ValueError(
                    f"layer {name!r} is put together of {len(view)} tensors, of which "
                    f"{place.tensor.name!r} has scales of its own, which are not put together; "
                    "leave it out with exclude="
                )
            found[name] = _of_view(name, scales, *place)
    return found


class _Beside:
    """What lies beside the codes of a checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._known: dict[str, Scales | None] = {}
        self._groups: dict[str, dict[str, Tensor]] = {}
        for name, tensor in checkpoint.tensors.items():
            prefix, _, attribute = name.rpartition(".")
            self._groups.setdefault(prefix, {})[attribute] = tensor
        method: Any = (checkpoint.config or {}).get("quantization_config")
        self._method = method if isinstance(method, dict) else {}

    def resolved(self, tensor: Tensor) -> Scales | None:
        """The scales of a tensor's codes, or None if they are its values."""
        if tensor.name not in self._known:
            self._known[tensor.name] = self._resolved(tensor)
        return self._known[tensor.name]

    def _resolved(self, tensor: Tensor) -> Scales | None:
        if not _is_coded(tensor):
            return None
        prefix, dot, attribute = tensor.name.rpartition(".")
        names = _scales.names_beside(attribute, self._groups[prefix])
        group = {
            prefix + dot + other: self._read(beside)
            for other, beside in self._groups[prefix].items()
            if other in names or _is_coded(beside)
        }
        found = _scales.beside(group, {tensor.name: group[tensor.name]}).get(tensor.name)
        if found is None:
            return None
        size = self._method.get("weight_block_size")
        by_row = self._method.get("quant_method") == "compressed-tensors"
        return found._replace(block_size=_scales.integers(size), by_row=by_row).resolved()

    def _read(self, tensor: Tensor) -> torch.Tensor:
        """A scale with its values; codes without."""
        if _is_coded(tensor):
            return torch.empty(tensor.shape, dtype=headers.DTYPES[tensor.dtype], device="meta")
        return self._checkpoint.whole(tensor)


def _is_coded(tensor: Tensor) -> bool:
    return headers.DTYPES[tensor.dtype] in _scales.CODES


def _of_view(
    name: str,
    scales: Scales,
    tensor: Tensor,
    offset: int,
    sizes: Sequence[int],
    steps: Sequence[int],
) -> Scales:
    """The scales of a view of a tensor."""
    selection = origins.selected(tensor.shape, offset, sizes, steps)
    row_major = headers.row_major(tensor.shape)
    if selection is None or tensor.strides != row_major:
        raise ValueError(
            f"layer {name!r} is a view of {tensor.name!r}, which has scales, that is not followed; "
            "leave it out with exclude="
        )
    order: list[int | None] = []
    for dim, first in enumerate(selection.first):
        along = [v for v, move in enumerate(selection.moves) if move[dim] and sizes[v] > 1]
        if len(along) > 1:
            raise ValueError(f"layer {name!r} is cut in a way that its scales do not follow")
        step = selection.moves[along[0]][dim] if along else 1
        count = sizes[along[0]] if along else 1
        scales = picked(scales, dim, range(first, first + count * step, step))
        order.append(along[0] if along else None)
    values, block = scales
    taken = [order.index(v) if v in order else None for v in range(len(sizes))]
    kept = [dim for dim in taken if dim is not None]
    rest = [dim for dim in range(values.ndim) if dim not in kept]  # of one index each
    values = values.permute(*kept, *rest).reshape([values.shape[dim] for dim in kept])
    blocks = [1 if dim is None else block[dim] for dim in taken]
    for v, at in enumerate(taken):
        if at is None:
            values = values.unsqueeze(v)
    return Scales(values, tuple(blocks))


def picked(scales: Scales, dim: int, indices: range) -> Scales:
    """The scales of some indices along a dimension of their layer."""
    values, block = scales
    if values.shape[dim] == 1:
        extent = max(len(indices), 1)
        return Scales(values, (*block[:dim], extent, *block[dim + 1 :]))
    size = block[dim]
    if indices.step == 1 and indices.start % size == 0:
        blocks = range(indices.start // size, -(-indices.stop // size))
        chosen = torch.tensor(list(blocks), dtype=torch.int64)
    else:
        chosen, size = torch.tensor(list(indices), dtype=torch.int64) // size, 1
    return Scales(values.index_select(dim, chosen), (*block[:dim], size, *block[dim + 1 :]))


def of_piece(scales: Scales, start: Sequence[int], shape: Sequence[int]) -> Scales:
    """The scales of a box of their layer."""
    for dim, (first, n) in enumerate(zip(start, shape, strict=True)):
        scales = picked(scales, dim, range(first, first + n))
    return scales
