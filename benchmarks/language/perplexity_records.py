"""The results on disk: results.csv, which at any moment has whole runs only, and results.json."""

import csv
import json
from collections.abc import Iterable, Mapping
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple


class Run(NamedTuple):
    """A pruning, and the training after it where there is one.

    Attributes:
        importance: "magnitude" or "wanda", |W|·‖x‖; "none" where nothing is pruned.
        method: lampfast's, or "rows" for uniform by rows, or "dense".
        sparsity: The fraction that is pruned.
        is_trained: Whether it is trained afterwards.
    """

    importance: str
    method: str
    sparsity: float
    is_trained: bool


class Row(NamedTuple):
    """A line of results.csv: a run, or the state of a training after some steps.

    Attributes:
        step: Of the training, 0 without one.
        perplexity: On the held-out text.
        zeros: How many of the prunable weights are zero.
        seconds: That the whole run took.
    """

    importance: str
    method: str
    sparsity: float
    is_trained: bool
    step: int
    perplexity: float
    zeros: int
    seconds: float

    @property
    def run(self) -> Run:
        """What it is a line of."""
        return Run(*self[:4])


def read(folder: Path) -> list[Row]:
    """The rows that there are."""
    file = folder / "results.csv"
    if not file.exists():
        return []
    with open(file, newline="") as lines:
        return [
            Row(
                row["importance"],
                row["method"],
                float(row["sparsity"]),
                row["is_trained"] == "True",
                int(row["step"]),
                float(row["perplexity"]),
                int(row["zeros"]),
                float(row["seconds"]),
            )
            for row in csv.DictReader(lines)
        ]


def append(folder: Path, rows: Iterable[Row]) -> None:
    """Add the rows of a run, all in one piece."""
    file = folder / "results.csv"
    text = StringIO()
    lines = csv.writer(text, lineterminator="\n")
    if not file.exists():
        lines.writerow(Row._fields)
    lines.writerows(rows)
    with open(file, "a") as out:
        out.write(text.getvalue())


def describe(folder: Path, conditions: Mapping[str, Any]) -> None:
    """Note what the results depend on, or check that it is what it was.

    Raises:
        ValueError: The settings or the text are others.
    """
    file = folder / "results.json"
    if file.exists():
        before = described(folder)
        for name in ("settings", "text"):
            if json.loads(json.dumps(conditions[name])) != before[name]:
                raise ValueError(
                    f"{file} says that {name} was {before[name]}, and now it is "
                    f"{conditions[name]}; install the versions of constraints.txt, or choose "
                    "another folder with --results"
                )
        return
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(conditions, indent=1) + "\n")


def described(folder: Path) -> dict[str, Any]:
    """What was noted."""
    conditions: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return conditions
