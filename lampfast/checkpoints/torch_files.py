"""Files of `torch.save`: zip archives whose tensors lie in them as they are, so they can be mapped.

Only torch's own restricted reader looks at the pickle in them (`weights_only=True`), and it makes
no tensor: what is wanted is where each lies.
"""

import hashlib
import io
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lampfast.checkpoints.headers import DTYPES, Header, Tensor

SUFFIXES = (".pt", ".pth", ".bin")

NAMES = {dtype: name for name, dtype in DTYPES.items() if dtype is not None}
STATES = ("state_dict", "model_state_dict", "model", "module", "net")  # where others keep it
_LOCAL_HEADER, _NAME_LENGTH = 30, 26  # bytes, as the zip format has them
_CENTRAL_HEADER, _CENTRAL_CRC = 46, 16
_DESCRIPTOR = b"PK\x07\x08"
_BLOCK = 1 << 23
_BROKEN = (  # what zipfile raises of archives that are not whole
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    NotImplementedError,
    RuntimeError,
    EOFError,
    StopIteration,
)


def read(path: Path, name: str) -> Header:
    """Find the tensors of a torch file.

    Args:
        path: Of the file.
        name: What the checkpoint calls it.

    Raises:
        ValueError: It is not whole, has no state dict, or would have to be executed to be read.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{str(path)!r} is no whole file of torch.save, or one in its old format, which cannot "
            "be mapped; load it with torch.load(..., weights_only=True) and torch.save it once more"
        )
    with without_values():
        content = _loaded(path, path)
    size = path.stat().st_size
    tensors = [
        _place(entry, tensor, path, name, size) for entry, tensor in _state(content, path).items()
    ]
    return Header(tuple(tensors), _digest(path))


def without_values() -> AbstractContextManager[Any]:
    """In it, what is loaded has no values but tells where they lie."""
    return cast(AbstractContextManager[Any], FakeTensorMode())


def place_of_chunk(
    file: IO[bytes], path: Path, entry: str, name: str, size: int, offset: int, length: int
) -> Tensor:
    """Where the tensor of an archive lies that is a part of a file.

    Args:
        file: The file.
        path: Of the file.
        entry: What the tensor is called.
        name: What the checkpoint calls the file.
        size: Of the file, in bytes.
        offset: Where the archive begins.
        length: How many bytes it has.

    Raises:
        ValueError: It is none, holds no tensor, or would have to be executed to be read.
    """
    if not 0 <= offset <= offset + length <= size:
        raise ValueError(f"{str(path)!r} is not whole: tensor {entry!r} lies beyond its end")
    part = _Part(file, offset, length)
    with _archive(part, path):
        pass  # it is whole, so that its checksums can be corrected
    part.seek(0)
    content = _loaded(cast(Any, part), path)
    if not isinstance(content, torch.Tensor):
        raise ValueError(
            f"{str(path)!r} holds a {type(content).__name__} where tensor {entry!r} should lie; "
            "save the checkpoint once more"
        )
    found = _place(entry, content, path, name, length)
    return found._replace(start=found.start + offset, stop=found.stop + offset)


def _loaded(source: Path, path: Path) -> object:
    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).partition("WeightsUnpickler error: ")[2].partition("\n")[0]
        raise ValueError(
            f"{str(path)!r} holds objects other than tensors, which would have to be executed to "
            f"be read ({reason or 'as torch says'}); save its state_dict() alone"
        ) from None
    except Exception as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{str(path)!r} cannot be read: {first}; save it once more") from None


class _Part(io.RawIOBase):
    """A part of a file, as a file."""

    def __init__(self, file: IO[bytes], offset: int, length: int) -> None:
        self._file, self._offset, self._length = file, offset, length
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        wanted = max(0, min(len(buffer), self._length - self._at))
        self._file.seek(self._offset + self._at)
        found = self._file.read(wanted)
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)


def renew_checksums(path: Path, parts: Sequence[tuple[int, int]] | None = None) -> None:
    """Correct the checksums of records whose bytes have changed.

    Args:
        path: Of the file.
        parts: Where archives begin in it and how many bytes each has; without it, it is one.
    """
    with open(path, "rb+") as file:
        for offset, length in parts or [(0, path.stat().st_size)]:
            with _archive(_Part(file, offset, length), path) as archive:
                _renew(file, archive, offset)
        file.flush()
        os.fsync(file.fileno())


def _renew(file: IO[bytes], archive: zipfile.ZipFile, offset: int) -> None:
    central = offset + archive.start_dir
    for record in archive.infolist():
        header = offset + record.header_offset
        file.seek(header + _NAME_LENGTH)
        lengths = struct.unpack("<2H", file.read(4))
        start = header + _LOCAL_HEADER + sum(lengths)
        checksum = _checksum(file, start, record.file_size)
        if checksum != record.CRC:
            _put(file, central + _CENTRAL_CRC, checksum)
            file.seek(start + record.file_size)
            if file.read(4) == _DESCRIPTOR:
                _put(file, start + record.file_size + 4, checksum)
            else:
                _put(file, header + 14, checksum)
        file.seek(central + 28)
        central += _CENTRAL_HEADER + sum(struct.unpack("<3H", file.read(6)))


def _checksum(file: Any, start: int, size: int) -> int:
    file.seek(start)
    checksum = 0
    while size:
        block = file.read(min(size, _BLOCK))
        checksum = zlib.crc32(block, checksum)
        size -= len(block)
    return checksum


def _put(file: Any, position: int, checksum: int) -> None:
    file.seek(position)
    file.write(struct.pack("<I", checksum))


def _state(content: object, path: Path) -> dict[str, torch.Tensor]:
    """The state dict in what was saved: itself, or what training loops keep beside other things."""
    if isinstance(content, Mapping):
        for key in STATES:
            inner = content.get(key)
            if isinstance(inner, Mapping) and any(True for _ in _tensors(inner)):
                return dict(_tensors(inner))
        found = dict(_tensors(content))
        if found:
            return found
        keys = f"a dict with the keys {[str(key) for key in content][:10]}"
    else:
        keys = f"a {type(content).__name__}"
    raise ValueError(f"{str(path)!r} holds {keys} and no state dict; save model.state_dict()")


def _tensors(state: Mapping[Any, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in state.items():
        if isinstance(name, str) and isinstance(value, torch.Tensor):
            yield name, value


def _place(entry: str, tensor: torch.Tensor, path: Path, file: str, size: int) -> Tensor:
    if tensor.layout is not torch.strided or tensor.dtype not in NAMES:
        raise ValueError(
            f"tensor {entry!r} in {str(path)!r} is {tensor.layout} of {tensor.dtype}, which is not "
            "read; save it as a plain tensor"
        )
    if tensor.is_neg() or tensor.is_conj():
        raise ValueError(
            f"tensor {entry!r} in {str(path)!r} is a lazily negated or conjugated view, whose "
            "values are not those in the file; save it after .resolve_neg().resolve_conj()"
        )
    offset = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
    if offset is None:
        raise ValueError(
            f"torch {torch.__version__} does not tell where the tensors of {str(path)!r} lie; "
            "update it, or save them with safetensors"
        )
    start = offset + int(tensor.storage_offset()) * tensor.itemsize
    reach = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    stop = start + (reach + 1) * tensor.itemsize if tensor.numel() else start
    if not 0 <= start <= stop <= size or min(tensor.stride(), default=0) < 0:
        raise ValueError(f"{str(path)!r} is not whole: tensor {entry!r} lies beyond its end")
    shape, strides = tuple(tensor.shape), tuple(tensor.stride())
    return Tensor(entry, NAMES[tensor.dtype], shape, strides, file, start, stop)


def _digest(path: Path) -> str:
    """Of what says where the tensors lie."""
    with open(path, "rb") as file, _archive(file, path) as archive:
        pickled = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        found = hashlib.sha256(archive.read(pickled))
        file.seek(archive.start_dir)
        found.update(file.read())
    return found.hexdigest()


@contextmanager
def _archive(file: Any, path: Path) -> Iterator[zipfile.ZipFile]:
    """A zip archive; one that is not whole is an error that names its file."""
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except (*_BROKEN, ValueError) as error:
        raise ValueError(
            f"{str(path)!r} is no whole file of torch.save: {error}; save it once more"
        ) from None
