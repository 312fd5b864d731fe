"""What a checkpoint is: a file or a folder, its tensors, and the files that belong to it."""

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from lampfast.checkpoints import distributed, headers, mapped, torch_files, zeroing
from lampfast.checkpoints.headers import Chunk, Tensor
from lampfast.checkpoints.mapped import Mapped
from lampfast.checkpoints.places import Pieces

_FILES = ("model.safetensors", "pytorch_model.bin")  # what Hugging Face calls a folder's weights
_MOST_JSON_BYTES = 100_000_000
_OURS = re.compile(r"\.lampfast-(tmp|state|lock)$")  # what a run that was killed has left
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".ot")


class Identity(NamedTuple):
    """What tells that a file is still the same: its size, time of change and inode."""

    size: int
    time: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> "Identity":
        """The identity of a file that is there."""
        found = path.stat()
        return cls(found.st_size, found.st_mtime_ns, found.st_ino)


class Source(NamedTuple):
    """A file that holds tensors.

    Attributes:
        name: Its name in the checkpoint.
        path: Where it is.
        identity: What it was when its header was read.
        digest: Of its header.
    """

    name: str
    path: Path
    identity: Identity
    digest: str

    def check_unchanged(self) -> None:
        """Raise an error if another program has changed the file meanwhile."""
        if Identity.of(self.path) != self.identity:
            raise ValueError(
                f"{str(self.path)!r} has changed while it was read; run again when nobody writes it"
            )


class Checkpoint:
    """A checkpoint's files and tensors; nothing is read but headers, the index and the config.

    Attributes:
        path: Of the file or folder.
        is_folder: Whether it is a folder.
        sources: The files that hold its tensors, by name, in the order of names.
        tensors: All tensors by name, in the order of the files and their headers.
        chunks: Where those of them lie that are divided, by name; they have no file of their own.
        archives: Where the archives begin that such files consist of, and how many bytes each has.
        copies: Tensors of a name that another file has too, which is the one that the index names.
        config: What its config.json says, or None.
        index: The name of what says where all lies, if there is such, which is written last.
    """

    def __init__(
        self,
        path: Path,
        sources: Mapping[str, Source],
        tensors: Mapping[str, Tensor],
        *,
        chunks: Mapping[str, Sequence[Chunk]] | None = None,
        archives: Mapping[str, Sequence[tuple[int, int]]] | None = None,
        copies: Sequence[Tensor] = (),
        config: dict[str, Any] | None = None,
        index: str | None = None,
    ) -> None:
        self.path = path
        self.is_folder = path.is_dir()
        self.sources = dict(sources)
        self.tensors = dict(tensors)
        self.chunks = dict(chunks or {})
        self.archives = dict(archives or {})
        self.copies = tuple(copies)
        self.config = config
        self.index = index

    @cached_property
    def others(self) -> list[str]:
        """The names of a folder's other files, which are carried over; the index is none of them.

        Raises:
            ValueError: One of them is a link that leads out of the folder.
        """
        if not self.is_folder:
            return []
        return sorted(
            name
            for name in _walk(self.path)
            if name not in self.sources and name != self.index and not _OURS.search(name)
        )

    @property
    def other_weights(self) -> list[str]:
        """Those of the other files that hold weights too, by their names."""
        return [name for name in self.others if name.endswith((*_OTHER_WEIGHTS, ".safetensors"))]

    def mapped(self) -> Mapped:
        """Its files as memory."""
        return Mapped({it.name: (it.path, it.identity.size) for it in self.sources.values()})

    def whole(self, tensor: Tensor) -> torch.Tensor:
        """A tensor in memory, for small ones."""
        chunks = self.chunks.get(tensor.name, [Chunk((0,) * len(tensor.shape), tensor)])
        return mapped.whole_of(self.mapped(), tensor, chunks)

    def hold_the_same(self, left: Pieces, right: Pieces) -> bool:
        """Whether the same values lie in two places, to the bit, divided alike.

        Only parts of them are in memory at once.
        """
        if not left or len(left) != len(right):
            return False
        files = self.mapped()
        for ours, theirs in zip(left, right, strict=True):
            is_alike = ours.start == theirs.start and ours.place.shape == theirs.place.shape
            dtype = ours.place.tensor.dtype
            if not is_alike or theirs.place.tensor.dtype != dtype or not headers.DTYPES[dtype]:
                return False
            arrays = (zeroing.pieces_of(files.array(piece.place)) for piece in (ours, theirs))
            if not all(np.array_equal(a, b) for a, b in zip(*arrays, strict=True)):
                return False
        return True


def open_checkpoint(argument: str, path: object) -> Checkpoint:
    """Find the files of a checkpoint and read their headers.

    Args:
        argument: What the caller calls the path.
        path: Of a safetensors file, of a file of torch.save, of a folder with such files under the
            names that Hugging Face gives them, or with an index, or of a folder of
            torch.distributed.checkpoint.

    Raises:
        TypeError: It is no path.
        OSError: It is not there, or cannot be read.
        ValueError: It is no checkpoint, not whole, or one that is not read.
    """
    place = as_path(argument, path)
    if not place.exists():
        raise FileNotFoundError(
            f"{argument} {str(place)!r} is not there; pass a checkpoint's file or folder"
        )
    if place.is_dir():
        return _open_folder(place)
    if place.suffix not in (".safetensors", *torch_files.SUFFIXES):
        raise ValueError(
            f"{argument} {str(place)!r} is no checkpoint that is read: pass a .safetensors, "
            ".pt, .pth or .bin file, or a folder with model.safetensors or its index"
        )
    source, tensors = _read(place, place.name)
    return Checkpoint(place, {source.name: source}, {tensor.name: tensor for tensor in tensors})


def as_path(argument: str, path: Any) -> Path:
    """A path as the system has it.

    Raises:
        TypeError: It is none.
        ValueError: It is empty, or has a zero byte.
    """
    try:
        text = os.fsdecode(path)
    except TypeError:
        raise TypeError(
            f"{argument} is a {type(path).__name__}; pass the path of a file or folder"
        ) from None
    if not text or "\0" in text:
        raise ValueError(f"{argument} is {text!r}; pass the path of a file or folder")
    return Path(text)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint.

    Raises:
        ValueError: It is too long, or holds no object.
    """
    if path.stat().st_size > _MOST_JSON_BYTES:
        raise ValueError(f"{str(path)!r} has more than {_MOST_JSON_BYTES:,} bytes; repair it")
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is no JSON: {error}; download it once more") from None
    if not isinstance(found, dict):
        raise ValueError(f"{str(path)!r} holds a {type(found).__name__}, and needs an object")
    return found


def _open_folder(folder: Path) -> Checkpoint:
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else None
    there = (name for file in _FILES for name in (f"{file}.index.json", file))
    first = next((name for name in there if (folder / name).is_file()), None)
    if first is None and (folder / distributed.METADATA).is_file():
        return _open_distributed(folder, config)
    if first is None:
        raise ValueError(_no_weights(folder))
    index = first if first.endswith(".json") else None
    wanted = _weight_map(folder / index) if index else {}
    names = sorted(set(wanted.values())) if index else [first]
    sources: dict[str, Source] = {}
    tensors: dict[str, Tensor] = {}
    copies: list[Tensor] = []
    for name in names:
        _check_inside(folder, folder / name)
        sources[name], found = _read(folder / name, name)
        for tensor in found:
            if wanted.get(tensor.name, name) == name and tensor.name not in tensors:
                tensors[tensor.name] = tensor
            else:
                copies.append(tensor)
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise ValueError(
            f"{index} in {str(folder)!r} says that {wanted[missing[0]]!r} has tensor "
            f"{missing[0]!r}, and it has not ({len(missing)} such in all); download it once more"
        )
    return Checkpoint(folder, sources, tensors, copies=copies, config=config, index=index)


def _open_distributed(folder: Path, config: dict[str, Any] | None) -> Checkpoint:
    """A folder of torch.distributed.checkpoint: its tensors lie in chunks in the files of ranks."""
    stored = distributed.read_metadata(folder)
    sources: dict[str, Source] = {}
    chunks: dict[str, list[Chunk]] = {}
    archives: dict[str, list[tuple[int, int]]] = {}
    for name in sorted({chunk.file for it in stored for chunk in it.chunks}):
        _check_inside(folder, folder / name)
        identity = Identity.of(folder / name)
        found, digest = distributed.read_file(folder, name, identity.size, stored)
        sources[name] = Source(name, folder / name, identity, digest)
        for tensor, chunk in found:
            chunks.setdefault(tensor, []).append(chunk)
        archives[name] = distributed.archives(name, stored)
    tensors = {it.name: it.whole() for it in stored}
    return Checkpoint(
        folder,
        sources,
        tensors,
        chunks=chunks,
        archives=archives,
        config=config,
        index=distributed.METADATA,
    )


def _no_weights(folder: Path) -> str:
    found = sorted(entry.name for entry in folder.iterdir())
    kinds = [name for name in found if name.endswith((*_OTHER_WEIGHTS, ".safetensors"))]
    has = f"it has {', '.join(kinds[:5])}; pass one of these files" if kinds else "pass another"
    if any(name.endswith((".gguf",)) for name in kinds):
        has = f"it has {kinds[0]!r}, whose codes are packed and not pruned; pass the float weights"
    return f"{str(folder)!r} has neither {' nor '.join(_FILES)}, nor an index of such: {has}"


def _weight_map(path: Path) -> dict[str, str]:
    """Which tensor lies in which file, as an index says."""
    found = read_json(path).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{str(path)!r} has no weight_map; download it once more")
    for tensor, name in found.items():
        suffix = ".safetensors" if ".safetensors" in path.name else ".bin"
        if not isinstance(name, str) or not name.endswith(suffix) or _leads_out(name):
            raise ValueError(
                f"{str(path)!r} says that tensor {tensor!r} lies in {name!r}, which is no "
                f"{suffix} file of its folder; repair the index"
            )
        if not (path.parent / name).is_file():
            raise ValueError(f"{str(path)!r} names {name!r}, which is not there; download it")
    return found


def _leads_out(name: str) -> bool:
    return os.path.isabs(name) or ".." in Path(name).parts or not name.isprintable()


def _read(path: Path, name: str) -> tuple[Source, tuple[Tensor, ...]]:
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{str(path)!r} is no regular file; pass a checkpoint's file or folder")
    identity = Identity.of(path)
    read = torch_files.read if path.suffix in torch_files.SUFFIXES else headers.read
    header = read(path, name)
    return Source(name, path, identity, header.digest), header.tensors


def _walk(folder: Path) -> Iterator[str]:
    """The names of all files in a folder and those below it, but for hidden folders."""
    for here, folders, files in os.walk(folder, followlinks=False):
        linked = [name for name in folders if (Path(here) / name).is_symlink()]
        if linked:
            raise ValueError(
                f"{str(Path(here) / linked[0])!r} is a link to a folder, which is not followed; "
                "remove it, or put the files themselves there"
            )
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            place = Path(here) / name
            _check_inside(folder, place)
            yield place.relative_to(folder).as_posix()


def _check_inside(folder: Path, path: Path) -> None:
    """Check that a link stays in the folder, or leads to the blobs of a Hugging Face cache."""
    if not path.is_symlink():
        return
    target, home = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    if not target.exists():
        raise ValueError(f"{str(path)!r} is a link to {str(target)!r}, which is not there")
    blobs = home.parent.parent / "blobs"  # models--owner--name/snapshots/REVISION
    if not (target.is_relative_to(home) or target.parent == blobs):
        raise ValueError(
            f"{str(path)!r} is a link that leads out of the checkpoint, to {str(target)!r}; put "
            "the file itself there"
        )
