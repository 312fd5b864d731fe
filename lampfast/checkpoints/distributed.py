"""Folders of torch.distributed.checkpoint: a pickle that says what there is, and files of ranks.

The pickle is read without torch's classes or any other code: the few that it may name are stood in
for by plain records. Each chunk in a rank's file is a small archive of torch.save.
"""

import hashlib
import io
import pickle
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lampfast.checkpoints import headers, torch_files
from lampfast.checkpoints.headers import Chunk, Tensor

METADATA = ".metadata"

_MOST_BYTES = 1 << 30
_OPTIMIZER = re.compile(r"(\w+_)?optim(izer)?s?(_states?|_state_dicts?)?(_?\d+)?")  # its keys
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in torch_files.NAMES}


class Record:
    """Stands in for an object of any class that metadata may have."""

    def __setstate__(self, state: object) -> None:
        """Keep what the pickle says of it."""
        self.state = state

    def get(self, key: str) -> Any:
        """One of its attributes, None if it has none of that name."""
        state = getattr(self, "state", None)
        return state.get(key) if isinstance(state, Mapping) else None


def _path(*parts: object) -> str:
    return "/".join(map(str, parts))


_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
_RECORDS = {
    "torch.distributed.checkpoint.metadata": (
        "Metadata",
        "TensorStorageMetadata",
        "BytesStorageMetadata",
        "TensorProperties",
        "ChunkStorageMetadata",
        "MetadataIndex",
        "StorageMeta",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.distributed._shard.sharded_tensor.metadata": ("TensorProperties", "MEM_FORMAT_ENCODING"),
    "torch.distributed._shard.metadata": ("ShardMetadata",),
}
_FUNCTIONS: dict[tuple[str, str], Callable[..., object]] = {
    ("torch", "Size"): tuple,
    ("torch.serialization", "_get_layout"): str,
    ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"): int,
    ("collections", "OrderedDict"): dict,
    **{(module, name): _path for module in ("pathlib", "pathlib._local") for name in _PATHS},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in _RECORDS.get(module, ()):
            return Record
        if (module, name) in _FUNCTIONS:
            return _FUNCTIONS[module, name]
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        raise pickle.UnpicklingError(f"it names {module + '.' + name!r}, which no metadata needs")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError(f"it refers to something outside, {pid!r}")


class Stored(NamedTuple):
    """A chunk of a tensor, as the metadata tells of it.

    Attributes:
        file: The name of its file.
        offset: Where its archive begins in the file.
        length: How many bytes the archive has.
        start: The index in the tensor of its first element.
        shape: Its shape.
    """

    file: str
    offset: int
    length: int
    start: tuple[int, ...]
    shape: tuple[int, ...]


class StoredTensor(NamedTuple):
    """A tensor, as the metadata tells of it.

    Attributes:
        name: In its state dict.
        dtype: As safetensors names it.
        shape: Its shape.
        chunks: That it consists of.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: list[Stored]

    def whole(self) -> Tensor:
        """The tensor, which lies in no file as a whole."""
        return Tensor(self.name, self.dtype, self.shape, headers.row_major(self.shape), "", 0, 0)


def read_metadata(folder: Path) -> list[StoredTensor]:
    """The tensors of the model in a folder, in the order in which they were saved.

    Raises:
        ValueError: The metadata cannot be read without executing something, or lies.
    """
    path = folder / METADATA
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{str(path)!r} has more than {_MOST_BYTES:,} bytes; save it once more")
    try:
        found = _Unpickler(io.BytesIO(path.read_bytes())).load()
    except Exception as error:  # whatever a broken pickle makes the unpickler raise
        raise ValueError(
            f"{str(path)!r} is no metadata of torch.distributed.checkpoint that can be read "
            f"without executing it: {_short(error)}; save the checkpoint once more"
        ) from None
    try:
        stored = list(_tensors(folder, found))
    except (AttributeError, TypeError, KeyError, IndexError) as error:
        raise ValueError(
            f"{str(path)!r} is not understood ({type(error).__name__}: {_short(error)}); save "
            "the checkpoint once more"
        ) from None
    if not stored:
        raise ValueError(f"{str(folder)!r} has no tensor of a model; save its state dict")
    return stored


def read_file(
    folder: Path, name: str, size: int, stored: Sequence[StoredTensor]
) -> tuple[list[tuple[str, Chunk]], str]:
    """Where the chunks of a rank's file lie, each with its tensor's name, and what tells of them.

    Raises:
        ValueError: The file is not what the metadata says.
    """
    path, found = folder / name, []
    with open(path, "rb") as file, torch_files.without_values():
        for tensor in stored:
            for chunk in tensor.chunks:
                if chunk.file != name:
                    continue
                place = torch_files.place_of_chunk(
                    file, path, tensor.name, name, size, chunk.offset, chunk.length
                )
                if (place.dtype, place.shape) != (tensor.dtype, chunk.shape):
                    raise ValueError(
                        f"tensor {tensor.name!r} in {str(path)!r} is {place.dtype} of shape "
                        f"{list(place.shape)}, and {METADATA} says {tensor.dtype} of shape "
                        f"{list(chunk.shape)}; save the checkpoint once more"
                    )
                found.append((tensor.name, Chunk(chunk.start, place)))
    digest = hashlib.sha256((folder / METADATA).read_bytes()).hexdigest()
    return found, digest


def archives(name: str, stored: Sequence[StoredTensor]) -> list[tuple[int, int]]:
    """Where the archives of a rank's file begin, and how many bytes each has."""
    return [(it.offset, it.length) for tensor in stored for it in tensor.chunks if it.file == name]


def _tensors(folder: Path, metadata: Record) -> Iterator[StoredTensor]:
    places = {
        (index.get("fqn"), _integers(index.get("offset") or ())): info
        for index, info in metadata.get("storage_data").items()
    }
    paths = metadata.get("planner_data") or {}
    entries = {
        name: (tuple(map(str, paths.get(name) or (name,))), entry)
        for name, entry in metadata.get("state_dict_metadata").items()
        if isinstance(name, str) and entry.get("chunks") is not None
    }
    for name, inner in _of_model({name: path for name, (path, _) in entries.items()}).items():
        entry = entries[name][1]
        dtype, shape = entry.get("properties").state[0], _integers(entry.get("size"))
        if dtype not in torch_files.NAMES:
            raise ValueError(f"tensor {name!r} in {str(folder)!r} is {dtype}, which is not read")
        chunks = [
            _stored(folder, name, places, _integers(it.get("offsets")), _integers(it.get("sizes")))
            for it in entry.get("chunks")
        ]
        _check_chunks(folder, name, shape, chunks)
        yield StoredTensor(inner, torch_files.NAMES[dtype], shape, chunks)


def _of_model(paths: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """The tensors of the model among those that were saved, by their names in its state dict.

    Of state dicts in one another, as of an average that has a "model" too, the outermost counts.
    """
    others = {name: path for name, path in paths.items() if not _is_of_optimizer(path)}
    depths = {
        name: next((i for i, key in enumerate(path[:-1]) if key in torch_files.STATES), None)
        for name, path in others.items()
    }
    outermost = min((at for at in depths.values() if at is not None), default=None)
    found = {
        name: ".".join(others[name][at + 1 :])
        for name, at in depths.items()
        if at is not None and at == outermost
    }
    if found and len(set(found.values())) == len(found):
        return found
    return {name: name for name in others}


def _is_of_optimizer(path: Sequence[str]) -> bool:
    """Whether a tensor's path, whose keys may be several with dots between, is of an optimizer."""
    keys = ".".join(path).split(".")[:-1]
    return any(_OPTIMIZER.fullmatch(key) for key in keys)


def _stored(
    folder: Path,
    name: str,
    places: Mapping[Any, Record],
    start: tuple[int, ...],
    shape: tuple[int, ...],
) -> Stored:
    if (info := places.get((name, start))) is None:
        raise ValueError(
            f"{METADATA} in {str(folder)!r} does not say where the chunk of {name!r} at "
            f"{list(start)} lies; save the checkpoint once more"
        )
    file, offset, length = (info.get(key) for key in ("relative_path", "offset", "length"))
    if info.get("transform_descriptors"):
        raise ValueError(
            f"tensor {name!r} in {str(folder)!r} is stored by an extension "
            f"({info.get('transform_descriptors')}), as if compressed; save it without one"
        )
    if not isinstance(file, str) or "/" in file or "\\" in file or not file.isprintable():
        raise ValueError(
            f"{METADATA} in {str(folder)!r} says that {name!r} lies in {file!r}, which is no file "
            "of the folder; save the checkpoint once more"
        )
    if not (folder / file).is_file():
        raise ValueError(f"{str(folder / file)!r} is not there, and {METADATA} names it")
    offset, length = _integers((offset, length))
    return Stored(file, offset, length, start, shape)


def _check_chunks(folder: Path, name: str, shape: tuple[int, ...], chunks: list[Stored]) -> None:
    """Check that chunks make up their tensor, and do not overlap."""
    numel = sum(prod(chunk.shape) for chunk in chunks)
    bounds = [
        (chunk.start, [at + n for at, n in zip(chunk.start, chunk.shape, strict=True)])
        for chunk in chunks
    ]
    fits = all(
        len(end) == len(shape) and all(stop <= n for stop, n in zip(end, shape, strict=True))
        for _, end in bounds
    )
    if fits and numel == prod(shape):
        starts, ends = (np.array([it[i] for it in bounds], np.int64) for i in (0, 1))
        meets = (starts[:, None] < ends[None]) & (starts[None] < ends[:, None])
        together = meets.all(-1) & (numel > 0)
        if int(together.sum()) <= sum(prod(chunk.shape) > 0 for chunk in chunks):
            return
    raise ValueError(
        f"the {len(chunks)} chunks of {name!r} in {str(folder)!r} do not make up its shape "
        f"{list(shape)}; save the checkpoint once more"
    )


def _short(error: Exception) -> str:
    """What an error says, in one line: garbage in a pickle may be long and of many."""
    return " ".join(str(error).split())[:300]


def _integers(numbers: Sequence[Any]) -> tuple[int, ...]:
    found = tuple(numbers)
    if not all(type(n) is int and 0 <= n < 1 << 62 for n in found):
        raise TypeError(f"{found} are no sizes")
    return found
