"""`lampfast prune` and `lampfast report`: checkpoints from the command line."""

import csv
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from lampfast._cli import sizes, tables
from lampfast.checkpoints import verbs
from lampfast.checkpoints.verbs import Arguments, Outcome
from lampfast.reports import COLUMNS, csv_rows

_PLACES = (
    "-o names a new place, and --in-place replaces the checkpoint's own files; pass one of them, "
    "or --dry-run to write nothing"
)
_PAGE = "docs/sparse_weights.md"
_PACKAGES = ("lampfast", "torch", "numpy", "safetensors", "transformers")

Checkpoint = Annotated[
    Path,
    typer.Argument(
        help="A folder of Hugging Face or of torch.distributed.checkpoint, or a .safetensors, .pt "
        "or .bin file."
    ),
]
Sparsity = Annotated[
    str | None,
    typer.Argument(help="0.9 or 90% of the weights, or how many: 1000; none with --pattern n:m."),
]
Planned = Annotated[
    str | None, typer.Argument(help="What prune would do; without it, what there is now.")
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", help="The new folder, or file of a file; .safetensors converts torch's."
    ),
]
InPlace = Annotated[bool, typer.Option("--in-place", help="Replace the checkpoint's own files.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Decide and report; write nothing.")]
OneMethod = Annotated[str, typer.Option(help="lamp, global, uniform, uniform+ or erk.")]
Methods = Annotated[
    list[str] | None,
    typer.Option(help="lamp, global, uniform, uniform+ or erk; several are compared."),
]
Include = Annotated[
    list[str] | None,
    typer.Option("--include", help="Glob pattern of layers' names: these and no others."),
]
Exclude = Annotated[
    list[str] | None, typer.Option("--exclude", help="Glob pattern of names to leave as they are.")
]
Stacked = Annotated[
    list[str] | None,
    typer.Option("--stacked", help="Glob pattern of tensors whose slices are layers each."),
]
Pattern = Annotated[
    str | None,
    typer.Option(help="2:4 keeps 2 of every 4 weights; :8 chooses n of 8 for each layer."),
]
Dim = Annotated[
    int | None, typer.Option(help="Along which dimension the pattern lies, if not the inputs'.")
]
Block = Annotated[
    str | None,
    typer.Option(
        help="4x4 prunes whole tiles of 4 outputs by 4 inputs; row or column, whole outputs or "
        "inputs."
    ),
]
Importance = Annotated[
    Path | None,
    typer.Option(help="A .safetensors file with values that are compared instead, by layer."),
]
Plot = Annotated[
    Path | None, typer.Option(help="Draw the layers' sparsities to this .png, .svg or .pdf.")
]
Json = Annotated[Path | None, typer.Option("--json", help="Write the report to this file.")]
Csv = Annotated[Path | None, typer.Option("--csv", help="Write a row for each layer to this file.")]


def prune(
    checkpoint: Checkpoint,
    sparsity: Sparsity = None,
    out: Out = None,
    in_place: InPlace = False,
    method: OneMethod = "lamp",
    pattern: Pattern = None,
    dim: Dim = None,
    block: Block = None,
    include: Include = None,
    exclude: Exclude = None,
    stacked: Stacked = None,
    importance: Importance = None,
    dry_run: DryRun = False,
    json_file: Json = None,
    csv_file: Csv = None,
) -> None:
    """Prune a checkpoint on disk: one read that decides, one copy that writes.

    Killed or stopped, it goes on where it was when it is run again.
    """
    _check_writable(json_file, csv_file)
    _check_sparsity(sparsity, pattern)
    if not dry_run and (out is None) != in_place:
        sys.exit(f"lampfast: {_PLACES}")
    chosen = (include, exclude, stacked, importance, pattern, dim, _block(block))
    arguments = Arguments(_amount(sparsity), _method(method), *chosen)
    with _one_sentence(), _progress() as progress:
        outcome = verbs.run(
            checkpoint,
            arguments,
            out=out,
            in_place=in_place,
            dry_run=dry_run,
            progress=progress,
        )
    console = Console(highlight=False)
    console.print(tables.layers(outcome.report, console.width))
    for line in _told(outcome, dry_run, checkpoint if in_place else out):
        console.print(line)
    _write(json_file, csv_file, {method: outcome})


def report(
    checkpoint: Checkpoint,
    sparsity: Planned = None,
    method: Methods = None,
    pattern: Pattern = None,
    dim: Dim = None,
    block: Block = None,
    include: Include = None,
    exclude: Exclude = None,
    stacked: Stacked = None,
    importance: Importance = None,
    plot: Plot = None,
    json_file: Json = None,
    csv_file: Csv = None,
) -> None:
    """Report the sparsity of a checkpoint, now or as prune would leave it; change nothing."""
    _check_writable(json_file, csv_file, plot)
    if pattern is not None or block is not None:
        _check_sparsity(sparsity, pattern)
    amount = _amount(sparsity)
    chosen = (include, exclude, stacked, importance, pattern, dim, _block(block))
    outcomes: dict[str, Outcome] = {}
    with _one_sentence(), _progress() as progress:
        for name in dict.fromkeys(method or ["lamp"]):
            arguments = Arguments(amount, _method(name), *chosen)
            outcomes[name] = verbs.examine(checkpoint, arguments, progress)
    console = Console(highlight=False)
    first, *others = outcomes.values()
    if others:
        reports = {name: outcome.report for name, outcome in outcomes.items()}
        console.print(tables.compared(reports, console.width))
    else:
        console.print(tables.layers(first.report, console.width))
    for line in _told(first, True, None):
        console.print(line)
    _write(json_file, csv_file, outcomes)
    if plot is not None:
        with _one_sentence():
            figure = first.report.plot(
                *(other.report for other in others), labels=list(outcomes) if others else None
            )
            figure.savefig(plot)


def _check_sparsity(sparsity: str | None, pattern: str | None) -> None:
    """End the program if nothing says how much is to go."""
    if sparsity is None and (pattern is None or pattern.startswith(":")):
        sys.exit(
            "lampfast: the sparsity is missing; pass 0.9 or 90% of the weights, how many of them, "
            "such as 1000, or --pattern 2:4 alone"
        )


def _amount(text: str | None) -> float | None:
    """A sparsity as it is written: 0.9, 90% or a number of weights."""
    if text is None:
        return None
    try:
        if text.endswith("%"):
            return float(text[:-1]) / 100
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no sparsity; 0.9 and 90% are fractions, 1000 is a number of weights",
            param_hint="SPARSITY",
        ) from None


def _block(text: str | None) -> Any:
    """A block as it is written: 4x4, row or column."""
    if text in (None, "row", "column"):
        return text
    found = re.fullmatch(r"([0-9]+)x([0-9]+)", text)
    if found is None:
        raise typer.BadParameter(
            f"{text!r} is no block; 4x4 is tiles of 4 outputs by 4 inputs, row and column are "
            "whole outputs and inputs",
            param_hint="--block",
        )
    return tuple(map(int, found.groups()))


def _method(name: str) -> Any:
    """A method, which the verbs check."""
    return name


def _check_writable(*files: Path | None) -> None:
    """End the program before anything is done if a file cannot be written afterwards."""
    for file in files:
        if file is None:
            continue
        problem = None
        if file.is_dir():
            problem = "is a folder; name a file"
        elif not file.absolute().parent.is_dir():
            problem = "lies in a folder that is not there; make it first, or name another file"
        elif not os.access(file if file.exists() else file.absolute().parent, os.W_OK):
            problem = "cannot be written; name another file"
        if problem is not None:
            sys.exit(f"lampfast: {str(file)!r} {problem}")


def _told(outcome: Outcome, is_dry: bool, place: Path | None) -> Iterator[str]:
    """What is said below the table."""
    report, written = outcome.report, outcome.written
    for notice in outcome.notices:
        yield f"[yellow]Note:[/] {escape(notice)}."
    if report.left_out:
        yield escape(str(report).splitlines()[-1])
    if outcome.is_resumed:
        yield "A run that had been stopped was finished."
    if not is_dry:
        how = ", ".join(f"{count} {way}" for way, count in sorted(written.carried.items()))
        yield f"Wrote {_bytes(written.bytes)} to {escape(str(place))}" + (
            f"; files without a layer: {how}." if how else "."
        )
    if written.weights:
        yield (
            "[yellow]Note:[/] these were carried over as they are, and hold weights that are not "
            f"pruned: {escape(', '.join(written.weights[:5]))}."
        )
    size = sizes.of_all(report.layers, outcome.itemsizes)
    yield (
        f"[dim]The layers take {_bytes(size.dense)}; about {_bytes(size.zstd)} under zstd, "
        f"{_bytes(size.bitmask)} as bitmask and values.\nZeros alone make a dense file no smaller "
        f"and a dense kernel no faster: {_PAGE} says what does.[/]"
    )


def _bytes(count: int) -> str:
    size, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:.3g} {units[0]}" if size < 999.5 else f"{size:.0f} {units[0]}"


def _write(json_file: Path | None, csv_file: Path | None, outcomes: Mapping[str, Outcome]) -> None:
    """Write what was found for programs."""
    first = next(iter(outcomes.values()))
    with _one_sentence():
        if json_file is not None:
            content = {
                "arguments": {**first.fingerprint["arguments"], "method": list(outcomes)},
                "versions": _versions(),
                "fingerprint": first.fingerprint,
                **first.report.to_dict(),
            }
            if len(outcomes) > 1:
                content["methods"] = {name: it.report.to_dict() for name, it in outcomes.items()}
            json_file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        if csv_file is not None:
            with open(csv_file, "w", newline="", encoding="utf-8") as file:
                rows = csv.writer(file)
                rows.writerow(["method", *COLUMNS])
                for name, outcome in outcomes.items():
                    rows.writerows([name, *row] for row in csv_rows(outcome.report))


def _versions() -> dict[str, str]:
    found = {"python": python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@contextmanager
def _one_sentence() -> Iterator[None]:
    """End the program with what is wrong, in one sentence, and exit status 1."""
    try:
        yield
    except OSError as error:
        where = f"{error.filename!r}: " if error.filename else ""
        sys.exit(f"lampfast: {where}{error.strerror or error}")
    except (ValueError, TypeError, MemoryError, ImportError) as error:
        sys.exit(f"lampfast: {error or type(error).__name__}")


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A line for each pass with bytes, rate and time left; none where nobody looks."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as shown:
        tasks: dict[str, Any] = {}

        def advance(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = shown.add_task(stage, total=total)
            shown.update(tasks[stage], completed=done, total=total)

        yield advance
