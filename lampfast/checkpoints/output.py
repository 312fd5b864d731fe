"""Where a pruned checkpoint goes, and what is done there, step by step."""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lampfast import _files
from lampfast.checkpoints import converting, resuming, torch_files, writing
from lampfast.checkpoints.deciding import Decision
from lampfast.checkpoints.reading import Checkpoint, Identity, Source
from lampfast.checkpoints.resuming import State
from lampfast.checkpoints.zeroing import Rule

_SPARE = 1 << 20  # bytes for the state and the file system's own


class Written(NamedTuple):
    """What an output got.

    Attributes:
        bytes: How many bytes were written.
        carried: How files without a layer came there, and how many: copied, linked or reflinked.
        weights: Carried files that hold weights of their own, and which are not pruned.
    """

    bytes: int = 0
    carried: Mapping[str, int] = {}
    weights: Sequence[str] = ()


class Output:
    """The files of an output, in a new place or in that of the source.

    Attributes:
        state: Where the state of a run is kept.
    """

    def __init__(self, checkpoint: Checkpoint, out: Path | None) -> None:
        """Check the place.

        Args:
            checkpoint: What is pruned.
            out: The new file or folder; None to replace the checkpoint's own.

        Raises:
            ValueError: It lies in the checkpoint, or the other way round, or is a link.
        """
        self._checkpoint = checkpoint
        self._in_place = out is None
        self._place = checkpoint.path if out is None else out
        self._converts = out is not None and _is_converted(checkpoint, out)
        self._is_folder = checkpoint.is_folder and not self._converts
        if out is not None:
            _check_apart(checkpoint, out)
            _ = checkpoint.others  # finds links that lead out of it, before anything is written
        else:
            _check_no_links(checkpoint)
        self.state = self._private("state")
        self._lock = self._private("lock")

    def earlier(self, fingerprint: Mapping[str, Any]) -> State | None:
        """The state of the same run, if one was stopped.

        Raises:
            ValueError: The output is there already, or was begun by another run.
        """
        state = State.load(self.state)
        if state is not None:
            state.check(fingerprint, is_replaced=self._in_place)
            return state
        if not self._in_place and self._place.exists():
            ours = {self._lock.name, _files.temporary(self.state).name}
            is_begun = self._place.is_dir() and {it.name for it in self._place.iterdir()} <= ours
            if not is_begun:
                raise ValueError(
                    f"{str(self._place)!r} is there already; remove it, or name another place"
                )
        return None

    @property
    def home(self) -> Path:
        """A folder that is there, on the disk of the output."""
        home = self._place.absolute()
        while not home.is_dir():
            home = home.parent
        return home

    def check(self, decisions: Sequence[Decision]) -> None:
        """Check that what will be written can be, and that the disk has room for it.

        Raises:
            ValueError: It cannot, or the disk has not.
        """
        pruned = {it.place.tensor.file for it in decisions if it.pruned}
        sizes = [self._checkpoint.sources[name].identity.size for name in pruned]
        needed = max(sizes, default=0) if self._in_place else sum(sizes)
        if self._converts:
            converting.check(self._checkpoint, decisions)
            needed = converting.size_of(self._checkpoint)
        home = self.home
        free = shutil.disk_usage(home).free
        if free < needed + _SPARE:
            raise ValueError(
                f"{str(home)!r} has {free:,} bytes free, and {needed + _SPARE:,} are needed for "
                f"{str(self._place)!r}; free some, or name a place on another disk"
            )

    def write(
        self,
        state: State,
        rule: Callable[[Decision], Rule],
        progress: Callable[[str, int, int], None] | None,
    ) -> Written:
        """Write all files that are not finished, the index last, and forget the state.

        Args:
            state: What is decided, and what is finished.
            rule: What a decision means for the place that it is for.
            progress: Is told how much is written.
        """
        folder = self._place if self._is_folder else self._place.absolute().parent
        folder.mkdir(parents=True, exist_ok=True)
        carried: Counter[str] = Counter()
        with resuming.alone(self._lock):
            state.save()
            if self._converts:
                written = self._convert(state, rule, progress)
            else:
                written = self._write_weights(state, rule, carried, progress)
                if not self._in_place:
                    self._carry_others(carried)
            _files.keep_entries(folder)
            state.remove()
        is_alone = self._in_place or self._converts
        weights = () if is_alone else self._checkpoint.other_weights
        return Written(written, carried, weights)

    def _convert(
        self,
        state: State,
        rule: Callable[[Decision], Rule],
        progress: Callable[[str, int, int], None] | None,
    ) -> int:
        """Write all tensors to one file of another format."""
        checkpoint, total, done = self._checkpoint, converting.size_of(self._checkpoint), 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if progress is not None:
                progress("writing", done, total)

        if not self._is_finished(state, self._place.name):
            with _files.replacing(self._place) as beside:
                converting.write(checkpoint, beside, state.decisions, rule, advance)
                for source in checkpoint.sources.values():
                    source.check_unchanged()
                state.finished[self._place.name] = Identity.of(beside)
                state.save()
                os.replace(beside, self._place)
        return total

    def _write_weights(
        self,
        state: State,
        rule: Callable[[Decision], Rule],
        carried: Counter[str],
        progress: Callable[[str, int, int], None] | None,
    ) -> int:
        by_file: dict[str, list[Decision]] = {}
        for decision in state.decisions:
            if decision.pruned:
                by_file.setdefault(decision.place.tensor.file, []).append(decision)
        sources = self._checkpoint.sources
        total = sum(sources[name].identity.size for name in by_file)
        done = written = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if progress is not None:
                progress("writing", done, total)

        for name, source in sources.items():
            if name not in by_file:
                if not self._in_place:
                    carried[self._carry(source.path, name)] += 1
            elif self._is_finished(state, name):
                advance(source.identity.size)
            else:
                plan = writing.FilePlan(by_file[name], rule)
                self._write_file(state, source, plan, by_file[name], advance)
                written += source.identity.size
        return written

    def _write_file(
        self,
        state: State,
        source: Source,
        plan: writing.FilePlan,
        decisions: Sequence[Decision],
        progress: Callable[[int], None],
    ) -> None:
        final = self._final(source.name)
        final.parent.mkdir(parents=True, exist_ok=True)
        with _files.replacing(final) as beside:
            writing.copy_zeroed(source.path, beside, plan, progress)
            if source.path.suffix in torch_files.SUFFIXES:
                torch_files.renew_checksums(beside)
            elif archives := self._checkpoint.archives.get(source.name):
                starts = {it.place.tensor.start for it in decisions}
                changed = [it for it in archives if any(0 <= at - it[0] < it[1] for at in starts)]
                torch_files.renew_checksums(beside, changed)
            source.check_unchanged()
            # In this order: a file in its place is either the source's or one that is noted.
            state.finished[source.name] = Identity.of(beside)
            state.save()
            os.replace(beside, final)
        _files.keep_entries(final.parent)

    def _carry_others(self, carried: Counter[str]) -> None:
        index = self._checkpoint.index
        for name in [*self._checkpoint.others, *([index] if index else [])]:
            carried[self._carry(self._checkpoint.path / name, name)] += 1

    def _carry(self, source: Path, name: str) -> str:
        final = self._final(name)
        final.parent.mkdir(parents=True, exist_ok=True)
        with _files.replacing(final) as beside:
            return writing.carry_over(source, final, beside)

    def _is_finished(self, state: State, name: str) -> bool:
        final, finished = self._final(name), state.finished.get(name)
        return finished is not None and final.exists() and Identity.of(final) == finished

    def _final(self, name: str) -> Path:
        return self._place / name if self._is_folder else self._place

    def _private(self, what: str) -> Path:
        """A file of a run's own: in the output folder, or beside the output file."""
        if self._is_folder:
            return self._place / f".lampfast-{what}"
        return self._place.with_name(f".{self._place.name}.lampfast-{what}")


def _check_apart(checkpoint: Checkpoint, out: Path) -> None:
    source, target = (Path(os.path.realpath(path)) for path in (checkpoint.path, out))
    if source == target:
        raise ValueError(
            f"out is {str(out)!r}, the checkpoint itself; name another place, or prune it in place"
        )
    if checkpoint.is_folder and (target.is_relative_to(source) or source.is_relative_to(target)):
        raise ValueError(
            f"out is {str(out)!r}, and one of it and the checkpoint {str(checkpoint.path)!r} lies "
            "in the other; name a place outside"
        )
    if _is_converted(checkpoint, out):
        return
    if not checkpoint.is_folder and out.suffix != checkpoint.path.suffix:
        endings = [checkpoint.path.suffix, converting.SUFFIX]
        raise ValueError(
            f"out is {str(out)!r}, and a file keeps its format, but for one of torch, which may "
            "become safetensors; name a file that ends in "
            f"{' or '.join(map(repr, dict.fromkeys(endings)))}"
        )
    if checkpoint.is_folder and out.exists() and not out.is_dir():
        raise ValueError(f"out is {str(out)!r}, a file; a checkpoint's folder needs a new folder")


def _is_converted(checkpoint: Checkpoint, out: Path) -> bool:
    """Whether tensors of torch's own formats are to be written as safetensors."""
    is_torch = bool(checkpoint.chunks) or checkpoint.path.suffix in torch_files.SUFFIXES
    return is_torch and out.suffix == converting.SUFFIX


def _check_no_links(checkpoint: Checkpoint) -> None:
    for source in checkpoint.sources.values():
        if source.path.is_symlink():
            raise ValueError(
                f"{str(source.path)!r} is a link, as in a cache, and others may use what it leads "
                "to; prune to a new place instead of in place"
            )
