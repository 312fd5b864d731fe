"""What is kept of a run until it is done, so that the next one can finish it after a kill."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lampfast import _files
from lampfast.checkpoints.deciding import Decision
from lampfast.checkpoints.headers import Tensor
from lampfast.checkpoints.places import Place
from lampfast.checkpoints.reading import Identity
from lampfast.reports import LayerReport, LeftOut, Report

_FORMAT = 3


class State:
    """A small file beside the output: what was asked for, what was decided, what is finished.

    Attributes:
        fingerprint: What the decision depends on: the files' headers, sizes and times, the
            arguments and the version of lampfast.
        decisions: What is pruned of each layer.
        finished: By name the identity of each output file that is, or is about to be, in its place.
        report: The report, as JSON.
    """

    def __init__(
        self,
        path: Path,
        fingerprint: dict[str, Any],
        decisions: list[Decision],
        report: dict[str, Any],
        finished: dict[str, Identity] | None = None,
    ) -> None:
        self._path = path
        self.fingerprint = fingerprint
        self.decisions = decisions
        self.report = report
        self.finished = finished or {}

    @classmethod
    def load(cls, path: Path) -> "State | None":
        """The state that a run has left; None if there is none.

        Raises:
            ValueError: It cannot be read.
        """
        try:
            found = json.loads(path.read_bytes())
            if found["format"] != _FORMAT:
                raise ValueError(f"it has format {found['format']}")
            decisions = [_decision(fields) for fields in found["decisions"]]
            finished = {name: Identity(*of) for name, of in found["finished"].items()}
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{str(path)!r} cannot be read ({error}), and without it a run that was stopped "
                "cannot be finished; remove the output and run again"
            ) from None
        return cls(path, found["fingerprint"], decisions, found["report"], finished)

    def save(self) -> None:
        """Have the state on the disk."""
        content = {
            "format": _FORMAT,
            "fingerprint": self.fingerprint,
            "decisions": self.decisions,
            "report": self.report,
            "finished": self.finished,
        }
        with _files.replacing(self._path) as beside:
            with open(beside, "w", encoding="utf-8") as file:
                json.dump(content, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, self._path)
        _files.keep_entries(self._path.parent)

    def reported(self) -> Report:
        """The report."""
        layers = [
            LayerReport(it["name"], tuple(it["shape"]), it["numel"], it["kept"], it["threshold"])
            for it in self.report["layers"]
        ]
        left = [
            LeftOut(it["name"], tuple(it["shape"]), it["numel"], it["reason"])
            for it in self.report["left_out"]
        ]
        return Report(layers, left)

    def remove(self) -> None:
        """Forget the run, which is done."""
        with suppress(FileNotFoundError):
            self._path.unlink()

    def check(self, fingerprint: Mapping[str, Any], *, is_replaced: bool) -> None:
        """Check that a run is the one that this state is of.

        Args:
            fingerprint: Of the run.
            is_replaced: Whether the output takes the place of the source.

        Raises:
            ValueError: It is not; says what differs.
        """
        differing = []
        for key in sorted(fingerprint.keys() | self.fingerprint.keys()):
            ours, theirs = fingerprint.get(key), self.fingerprint.get(key)
            if key == "files" and isinstance(ours, Mapping) and isinstance(theirs, Mapping):
                for name in sorted(ours.keys() | theirs.keys()):
                    mine, its = ours.get(name), theirs.get(name)
                    is_done = is_replaced and mine and self._is_finished(name, mine)
                    if mine != its and not is_done:
                        differing.append(f"file {name!r}")
            elif ours != theirs:
                differing.append(f"{key} ({theirs!r} then, {ours!r} now)")
        if differing:
            raise ValueError(
                f"{str(self._path)!r} is of a run that was stopped, and this one differs from it: "
                f"{', '.join(differing[:5])}; run that one again to finish it, or remove its output"
            )

    def _is_finished(self, name: str, found: Mapping[str, Any]) -> bool:
        finished = self.finished.get(name)
        return finished is not None and list(finished) == list(found["identity"])


def _decision(fields: list[Any]) -> Decision:
    layer, (tensor, offset, shape, strides), *rest = fields
    found = Decision(layer, Place(_tensor(tensor), offset, tuple(shape), tuple(strides)), *rest)
    groups, tiles = (None if it is None else tuple(it) for it in (found.pattern, found.block))
    return found._replace(start=tuple(found.start), pattern=groups, block=tiles)  # type: ignore[arg-type]


def _tensor(fields: list[Any]) -> Tensor:
    name, dtype, shape, strides, file, start, stop = fields
    return Tensor(name, dtype, tuple(shape), tuple(strides), file, start, stop)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keep other runs from writing the same output meanwhile.

    Raises:
        ValueError: One does.
    """
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ValueError(
            f"another run holds {str(path)!r} and writes the same output; wait until it is done"
        ) from None
    try:
        yield
    finally:
        with suppress(FileNotFoundError):
            path.unlink()
        os.close(descriptor)
