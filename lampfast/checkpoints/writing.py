"""Copies a file and zeroes on the way what is pruned; a new name is there whole or not at all."""

import fcntl
import mmap
import os
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from lampfast.checkpoints import mapped
from lampfast.checkpoints.deciding import Decision
from lampfast.checkpoints.places import Place
from lampfast.checkpoints.zeroing import Rule

Progress: TypeAlias = Callable[[int], None]  # is told how many more bytes are done

BLOCK = 1 << 23  # bytes that are read, zeroed and written together
_BUFFERS = 4
_PAGE = 4096
_DIRECT: int = getattr(os, "O_DIRECT", 0)
_FICLONE = 0x40049409  # linux/fs.h
_SMALL = 1 << 24  # bytes up to which files are copied: people edit a config in place


class _Span(NamedTuple):
    """A layer, or a piece of one, whose elements lie one after the other in a file, aligned.

    Attributes:
        start: Of its first byte.
        stop: Behind its last byte.
        dtype: Integers of its elements' size.
        rule: What is pruned of it.
    """

    start: int
    stop: int
    dtype: npt.DTypeLike
    rule: Rule


class _Scattered(NamedTuple):
    """One whose elements do not, such as every second row of a tensor."""

    place: Place
    rule: Rule


class FilePlan:
    """What is pruned of one file.

    Args:
        decisions: What is decided of it.
        rule: What each means for the place that it is for.
    """

    def __init__(self, decisions: Iterable[Decision], rule: Callable[[Decision], Rule]) -> None:
        self.spans: list[_Span] = []
        self.scattered: list[_Scattered] = []
        for decision in decisions:
            place = decision.place
            if not place.numel:
                continue
            if place.is_row_major() and place.is_aligned:
                size = place.itemsize
                start = place.tensor.start + place.offset * size
                stop = start + place.numel * size
                self.spans.append(_Span(start, stop, f"i{size}", rule(decision)))
            else:
                self.scattered.append(_Scattered(place, rule(decision)))
        self.spans.sort(key=lambda span: span.start)


def copy_zeroed(source: Path, target: Path, plan: FilePlan, progress: Progress) -> None:
    """Copy a file to a new place, with what is pruned of it zeroed, and have it on the disk.

    Raises:
        OSError: The disk is full, or cannot be read or written.
    """
    with suppress(FileNotFoundError):
        target.unlink()
    with open(source, "rb", buffering=0) as reading, _Writer(target) as writer:
        size = os.fstat(reading.fileno()).st_size
        spans = plan.spans
        for start in range(0, size, BLOCK):
            stop = min(start + BLOCK, size)
            buffer = writer.buffer()
            _fill(reading.fileno(), memoryview(buffer)[: stop - start], start, source)
            while spans and spans[0].stop <= start:
                spans = spans[1:]
            for span in spans:
                if span.start >= stop:
                    break
                _zero_part(buffer, start, stop, span)
            writer.write(buffer, start, stop - start)
            progress(stop - start)
        writer.finish(size)
        shutil.copymode(source, target)
    for layer in plan.scattered:
        _zero_scattered(target, size, layer)
    with open(target, "rb+") as file:
        os.fsync(file.fileno())


def carry_over(source: Path, target: Path, beside: Path) -> str:
    """Have a file that stays as it is in a second place; says how: reflinked, linked or copied."""
    with suppress(FileNotFoundError):
        beside.unlink()
    how = "copied"
    if source.stat().st_size > _SMALL:
        how = _link(source, beside)
    if how == "copied":
        shutil.copyfile(source, beside)
        shutil.copymode(source, beside)
        with open(beside, "rb+") as file:
            os.fsync(file.fileno())
    os.replace(beside, target)
    return how


class _Writer:
    """Writes blocks on a thread of its own, past the page cache where the system allows it.

    The page cache would copy every byte once more, and keep what nobody is going to read.
    """

    def __init__(self, target: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        try:
            self._file = os.open(target, flags | _DIRECT, 0o666)
            self._is_direct = bool(_DIRECT)
        except OSError:
            with suppress(FileNotFoundError):
                target.unlink()
            self._file = os.open(target, flags, 0o666)
            self._is_direct = False
        self._buffers = [mmap.mmap(-1, BLOCK) for _ in range(_BUFFERS)]  # aligned to pages
        self._pending: list[tuple[Future[None], mmap.mmap]] = []
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        os.close(self._file)

    def buffer(self) -> mmap.mmap:
        """A buffer that is not in use; waits for one."""
        if not self._buffers:
            future, buffer = self._pending.pop(0)
            future.result()
            return buffer
        return self._buffers.pop()

    def write(self, buffer: mmap.mmap, start: int, length: int) -> None:
        """Have a buffer written, and given back then."""
        if self._is_direct and length % _PAGE:  # the file is cut in the end
            length += -length % _PAGE
        self._pending.append((self._pool.submit(self._write, buffer, start, length), buffer))

    def finish(self, size: int) -> None:
        """Wait until all is written, and give the file its size."""
        for future, _ in self._pending:
            future.result()
        os.ftruncate(self._file, size)

    def _write(self, buffer: mmap.mmap, start: int, length: int) -> None:
        with memoryview(buffer) as view:
            done = 0
            while done < length:
                try:
                    done += os.pwrite(self._file, view[done:length], start + done)
                except OSError as error:
                    if not self._is_direct or error.errno != 22:  # EINVAL: not with these sizes
                        raise
                    flags = fcntl.fcntl(self._file, fcntl.F_GETFL)
                    fcntl.fcntl(self._file, fcntl.F_SETFL, flags & ~_DIRECT)
                    self._is_direct = False


def _fill(file: int, buffer: memoryview, start: int, source: Path) -> None:
    done = 0
    while done < len(buffer):
        found = os.preadv(file, [buffer[done:]], start + done)
        if not found:
            raise ValueError(f"{str(source)!r} has become shorter while it was read")
        done += found


def _zero_part(buffer: mmap.mmap, start: int, stop: int, span: _Span) -> None:
    """Zero what is pruned of a layer in the bytes [start, stop) of its file."""
    first, last = max(span.start, start), min(span.stop, stop)
    dtype = np.dtype(span.dtype)
    count = (last - first) // dtype.itemsize
    weights = np.frombuffer(buffer, dtype, count, first - start)
    span.rule.zero(weights, (first - span.start) // dtype.itemsize)


def _zero_scattered(target: Path, size: int, layer: _Scattered) -> None:
    raw = torch.from_file(str(target), shared=True, size=size, dtype=torch.uint8)
    layer.rule.zero(mapped.array(raw.numpy(), layer.place))


def _link(source: Path, target: Path) -> str:
    """Have a large file there without a copy, if the file system can do that."""
    with suppress(OSError), open(source, "rb") as reading, open(target, "xb") as writing:
        fcntl.ioctl(writing.fileno(), _FICLONE, reading.fileno())
        return "reflinked"
    with suppress(FileNotFoundError):
        target.unlink()
    with suppress(OSError):
        os.link(os.path.realpath(source), target)
        return "linked"
    return "copied"
