"""The results on disk: tidy CSV files, compressed, that at any moment hold whole runs only."""

import csv
import gzip
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from settings import Settings

RESULTS, LAYERS, LEFT_OUT = "results.csv.gz", "layers.csv.gz", "left_out.csv.gz"


class Run(NamedTuple):
    """One network pruned by one method in one protocol."""

    model: str
    seed: int
    protocol: str
    method: str


class Row(NamedTuple):
    """A line of results.csv.gz: a network after one pruning and the training that follows.

    Attributes:
        round: 1 for the first pruning of the run, 0 for the network before any.
        sparsity: Of all prunable weights together.
        accuracy: The fraction of the test images that it gets right.
        loss: The mean cross-entropy over the test images.
        seconds_pruning: Processor time of lampfast.prune.
        seconds_pruning_textbook: Of the textbook's, on a copy of the same weights; LAMP only.
        seconds_training: Processor time of the training, pruning and testing not counted.
        dense: Identifies the trained network that all runs of a model and seed start from.
        started: When the call of study.py that made the row did; results.json has more.
        settings: Identifies the settings, which results.json has too.
    """

    dataset: str
    model: str
    method: str
    protocol: str
    seed: int
    round: int
    sparsity: float
    accuracy: float
    loss: float
    seconds_pruning: float | None
    seconds_pruning_textbook: float | None
    seconds_training: float
    dense: str
    started: str
    settings: str


class LayerRow(NamedTuple):
    """A line of layers.csv.gz: what one layer of a network has left after a round."""

    model: str
    method: str
    protocol: str
    seed: int
    round: int
    layer: str
    weights: int
    kept: int


class LeftOut(NamedTuple):
    """A line of left_out.csv.gz: a round that a method cannot do, and why."""

    model: str
    method: str
    protocol: str
    seed: int
    round: int
    sparsity: float
    reason: str


class Outcome(NamedTuple):
    """All that a finished run leaves."""

    rows: list[Row]
    layers: list[LayerRow]
    left_out: list[LeftOut]


Line = TypeVar("Line", Row, LayerRow, LeftOut)


def run_of(line: Row | LayerRow | LeftOut) -> Run:
    """The run that a line belongs to."""
    return Run(line.model, line.seed, line.protocol, line.method)


class Records:
    """The results of one folder; only one process at a time may add to them.

    Every file is replaced as a whole, results.csv.gz last: what is in it is there completely.

    Args:
        folder: Where the three CSV files and results.json are, or will be.

    Raises:
        ValueError: A file has other columns than these.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows = read(folder / RESULTS, Row)
        self.left_out = read(folder / LEFT_OUT, LeftOut)
        self.layers = read(folder / LAYERS, LayerRow)
        rounds = {(run_of(row), row.round) for row in self.rows}
        # An interruption between the files may have left more in those that were written first.
        self.layers = [line for line in self.layers if (run_of(line), line.round) in rounds]
        self._rounds = Counter(_runs(self.rows, self.left_out))

    def finished(self, run: Run, rounds: int) -> bool:
        """Whether all rounds of a run are there."""
        return self._rounds[run] == rounds

    def check(self, settings: Settings) -> None:
        """Check that all results were made with these settings.

        Raises:
            ValueError: Some were not.
        """
        others = {row.settings for row in self.rows} - {settings.identity}
        if others:
            raise ValueError(
                f"{self.folder / RESULTS} has rows of the settings {', '.join(others)}, not "
                f"{settings.identity}, which are this study's; move them away, or choose another "
                "folder with --results"
            )

    def dense(self, model: str, seed: int) -> str | None:
        """Identifies the trained network that rows of this model and seed started from."""
        return next(
            (row.dense for row in self.rows if (row.model, row.seed) == (model, seed)), None
        )

    def add(self, outcome: Outcome, settings: Settings, call: Mapping[str, Any]) -> None:
        """Keep a finished run."""
        runs = set(_runs(outcome.rows, outcome.left_out))
        self.rows = _others(self.rows, runs) + outcome.rows
        self.layers = _others(self.layers, runs) + outcome.layers
        self.left_out = _others(self.left_out, runs) + outcome.left_out
        self._rounds = Counter(_runs(self.rows, self.left_out))
        self._describe(settings, call)
        write(self.folder / LAYERS, LayerRow, self.layers)
        if self.left_out:
            write(self.folder / LEFT_OUT, LeftOut, self.left_out)
        write(self.folder / RESULTS, Row, self.rows)

    def _describe(self, settings: Settings, call: Mapping[str, Any]) -> None:
        """Write down what makes the results."""
        path = self.folder / "results.json"
        made = described(self.folder) if path.exists() else {"calls": {}}
        made["settings"] = {"identity": settings.identity, **asdict(settings)}
        made["calls"][call["started"]] = dict(call)
        _replace(path, (json.dumps(made, indent=1) + "\n").encode())


def described(folder: Path) -> dict[str, Any]:
    """What results.json says: the settings, and the calls of study.py.

    Raises:
        ValueError: It is not there, or broken.
    """
    path = folder / "results.json"
    try:
        made: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); {_AGAIN}") from None
    return made


def read(path: Path, kind: type[Line]) -> list[Line]:
    """The lines of a CSV file, none where there is no file.

    Raises:
        ValueError: It has other columns, or is broken.
    """
    if not path.exists():
        return []
    columns = list(kind._fields)
    try:
        text = gzip.decompress(path.read_bytes()).decode()
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({error}); {_AGAIN}") from None
    reader = csv.reader(StringIO(text, newline=""))
    if (heading := next(reader, [])) != columns:
        raise ValueError(f"{path} has the columns {heading}, not {columns}; {_AGAIN}")
    try:
        return [kind(*map(_value, columns, line)) for line in _whole(reader, len(columns))]
    except ValueError as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}; {_AGAIN}") from None


def write(path: Path, kind: type[Line], lines: Iterable[Line]) -> None:
    """Replace a CSV file; whoever reads it sees the old lines or the new ones."""
    file = StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(kind._fields)
    writer.writerows(map(_texts, lines))
    # The same lines give the same bytes on any day, at any place.
    _replace(path, gzip.compress(file.getvalue().encode(), mtime=0))


_AGAIN = "copy the folder again, or go back to its last commit"
_INTEGERS = {"seed", "round", "weights", "kept"}
_NUMBERS = {"sparsity", "accuracy", "loss"}


def _value(column: str, text: str) -> Any:
    if column in _INTEGERS:
        return int(text)
    if column in _NUMBERS or column.startswith("seconds"):
        return float(text) if text else None
    return text


def _whole(lines: Iterable[list[str]], columns: int) -> Iterator[list[str]]:
    for line in lines:
        if len(line) != columns:
            raise ValueError(f"{len(line)} cells instead of {columns}")
        yield line


def _texts(line: Row | LayerRow | LeftOut) -> list[object]:
    return [f"{cell:.6g}" if isinstance(cell, float) else cell for cell in line]


def _runs(rows: list[Row], left_out: list[LeftOut]) -> list[Run]:
    return [*map(run_of, rows), *map(run_of, left_out)]


def _others(lines: list[Line], runs: set[Run]) -> list[Line]:
    return [line for line in lines if run_of(line) not in runs]


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(".writing")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
