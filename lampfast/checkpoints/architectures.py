"""Where in its files a model's parameters lie: transformers loads the model without its weights.

The model is built on the meta device and loaded from meta tensors, one for each tensor of the
checkpoint. Whatever transformers does to names, it has then done; and a parameter whose storage is
that of a meta tensor, or was stacked or concatenated from such, is known to lie there in the file.
"""

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from math import prod
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from lampfast.checkpoints import headers
from lampfast.checkpoints.headers import Tensor
from lampfast.checkpoints.reading import Checkpoint


class Place(NamedTuple):
    """Where a layer lies: a view of a tensor of the checkpoint.

    Attributes:
        tensor: That it is, or is a part of.
        offset: Of its first element from the tensor's, in elements.
        shape: Of the view.
        strides: In elements.
    """

    tensor: Tensor
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def numel(self) -> int:
        """How many elements it has."""
        return prod(self.shape)

    @property
    def itemsize(self) -> int:
        """How many bytes an element has."""
        dtype = headers.DTYPES[self.tensor.dtype]
        assert dtype is not None  # only such are layers
        return dtype.itemsize

    def is_row_major(self) -> bool:
        """Whether its elements lie one after the other, in the order of their indices."""
        dense = headers.row_major(self.shape)
        pairs = zip(self.shape, self.strides, dense, strict=True)
        return all(n == 1 or stride == step for n, stride, step in pairs)


class Unknown(Exception):  # noqa: N818  # no error: the layers are then chosen by their names
    """Why the architecture of a checkpoint is not known."""


class Model(NamedTuple):
    """A model on the meta device, and where its parameters come from.

    Attributes:
        module: The model.
        missing: The names of what is not in the checkpoint.
        origins: What the storages of its parameters are.
    """

    module: nn.Module
    missing: frozenset[str]
    origins: "Origins"


class Origins:
    """What the storages of meta tensors are: a checkpoint's tensors, or several put together."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.state: dict[str, torch.Tensor] = {}
        self._tensors: dict[int, Tensor] = {}
        self._made: dict[int, tuple[torch.Tensor, Sequence[torch.Tensor], int, bool]] = {}
        self._used: set[str] = set()  # tensors that others were made of
        for name, tensor in tensors.items():
            is_float = tensor.dtype in headers.FLOATS
            dtype = torch.float32 if is_float else headers.DTYPES[tensor.dtype] or torch.uint8
            meta = torch.empty_strided(tensor.shape, tensor.strides, dtype=dtype, device="meta")
            self.state[name] = meta
            self._tensors[_storage(meta)] = tensor

    def note(self, made: torch.Tensor, parts: Sequence[torch.Tensor], dim: int, new: bool) -> None:
        """Note what a tensor was stacked (along a new dimension) or concatenated from."""
        self._made[_storage(made)] = made, tuple(parts), dim % made.ndim, new
        found = (self._tensors.get(_storage(part)) for part in parts)
        self._used |= {tensor.name for tensor in found if tensor is not None}

    def unused(self, module: nn.Module) -> list[Tensor]:
        """The tensors of the checkpoint that no parameter or buffer of a module comes from."""
        every = [*module.parameters(), *module.buffers()]
        found = (self._tensors.get(_storage(tensor)) for tensor in every)
        used = self._used | {tensor.name for tensor in found if tensor is not None}
        return [tensor for tensor in self._tensors.values() if tensor.name not in used]

    def place(self, view: torch.Tensor) -> Place | None:
        """Where a parameter, or a slice of one, lies; None if that is nowhere or in several."""
        sizes = tuple(view.shape)
        steps = tuple(step if n > 1 else 0 for n, step in zip(sizes, view.stride(), strict=True))
        offset, storage = int(view.storage_offset()), _storage(view)
        while storage in self._made:
            made, parts, dim, is_new = self._made[storage]
            box = _box(made, offset, sizes, steps)
            if box is None:
                return None
            first, moves = box
            last = first[dim] + sum(
                (n - 1) * move[dim] for n, move in zip(sizes, moves, strict=True)
            )
            ends = list(accumulate(1 if is_new else part.shape[dim] for part in parts))
            i = next(i for i, end in enumerate(ends) if first[dim] < end)
            if last >= ends[i]:
                return None
            begin, part = ends[i] - (1 if is_new else parts[i].shape[dim]), parts[i]
            first[dim] -= begin
            strides = list(part.stride())
            if is_new:
                strides.insert(dim, 0)
            offset = int(part.storage_offset()) + _dot(first, strides)
            steps = tuple(_dot(move, strides) for move in moves)
            storage = _storage(part)
        if storage not in self._tensors:
            return None
        return Place(self._tensors[storage], offset, sizes, steps)


def load(checkpoint: Checkpoint) -> Model:
    """Load a checkpoint's model without its weights.

    Raises:
        Unknown: Its architecture is not known.
        ValueError: Its tensors are not those that its config.json describes.
    """
    if checkpoint.config is None:
        raise Unknown("the checkpoint has no config.json")
    names = checkpoint.config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise Unknown("config.json names no architecture")
    try:
        import transformers
    except ModuleNotFoundError:
        raise Unknown(
            f"transformers is not installed, which would tell the layers of {names[0]}, experts "
            "included (extra 'transformers')"
        ) from None
    cls: Any = getattr(transformers, names[0], None)
    is_model = isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)
    if not is_model:
        raise Unknown(f"transformers {transformers.__version__} does not know {names[0]}")
    origins = Origins(checkpoint.tensors)
    with _quiet(transformers):
        try:
            config = transformers.AutoConfig.from_pretrained(
                os.fspath(checkpoint.path), local_files_only=True, trust_remote_code=False
            )
            if hasattr(config, "quantization_config"):
                del config.quantization_config  # which would replace the layers by its own
        except Exception as error:
            raise Unknown(f"transformers cannot read config.json ({_first_line(error)})") from None
        try:
            with _Recording(origins):
                module, info = cls.from_pretrained(
                    None,
                    config=config,
                    state_dict=dict(origins.state),
                    device_map="meta",
                    dtype=torch.float32,
                    output_loading_info=True,
                )
        except Exception as error:
            raise ValueError(
                f"transformers cannot load {names[0]} from {str(checkpoint.path)!r}: "
                f"{_first_line(error)}; repair config.json, or remove it to choose layers by name"
            ) from None
    _tie(checkpoint, module, origins)
    return Model(module, frozenset(info["missing_keys"]), origins)


def _tie(checkpoint: Checkpoint, module: nn.Module, origins: Origins) -> None:
    """Tie what is stored once for each name: transformers does so only if it sees equal values."""
    for target, source in getattr(module, "all_tied_weights_keys", {}).items():
        first, second = module.get_parameter(source), module.get_parameter(target)
        ours, theirs = origins.place(first), origins.place(second)
        if first is second or ours is None or theirs is None:
            continue
        if checkpoint.are_equal(ours.tensor, theirs.tensor):
            parent, _, name = target.rpartition(".")
            setattr(module.get_submodule(parent), name, first)


class _Recording(TorchFunctionMode):
    """Notes what is stacked and concatenated."""

    def __init__(self, origins: Origins) -> None:
        super().__init__()
        self._origins = origins

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        if func in (torch.stack, torch.cat, torch.concat, torch.concatenate):
            parts = args[0] if args else kwargs["tensors"]
            dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
            if made.is_meta:
                self._origins.note(made, parts, dim, func is torch.stack)
        return made


def _box(
    made: torch.Tensor, offset: int, sizes: Sequence[int], steps: Sequence[int]
) -> tuple[list[int], list[list[int]]] | None:
    """The indices of a view's first element in a row-major tensor, and how each step moves them.

    None if a step of the view is not a step along the dimensions of the tensor.
    """
    first = _indices(made, offset)
    moves = [_indices(made, step) for step in steps]
    for dim, length in enumerate(made.shape):
        last = first[dim] + sum((n - 1) * move[dim] for n, move in zip(sizes, moves, strict=True))
        if last >= length and all(sizes):
            return None
    return first, moves


def _indices(made: torch.Tensor, offset: int) -> list[int]:
    found = []
    for stride in headers.row_major(made.shape):
        index, offset = divmod(offset, stride)
        found.append(index)
    return found


def _dot(left: Sequence[int], right: Sequence[int]) -> int:
    return sum(a * b for a, b in zip(left, right, strict=True))


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300].rstrip(".")


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep transformers from telling of a model that nobody will use."""
    logging = transformers.utils.logging
    level, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if has_bars:
            logging.enable_progress_bar()
