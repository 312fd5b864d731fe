"""How near masks and prune come to what the memory allows: `python benchmarks/speed.py`.

A call and its floor are timed in turns in one run, since both take as long as the memory lets them;
results are checked before they are timed. Slow results never fail the run.
"""

import json
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, TypeAlias

import contenders
import machine
import stages
import typer
from outcome import Goal
from rich import box
from rich.console import Console
from rich.table import Table
from shapes import MODELS, shrunk
from weights import KINDS, Weights

from lampfast._cli.measure import median_seconds

Record: TypeAlias = dict[str, str | float]
Row: TypeAlias = Callable[[bool, int], Iterator[Record]]

_SPARSITIES = (0.5, 0.9, 0.99)
_ROUNDS, _QUICK_ROUNDS = 21, 2
_BIG, _QUICK_BIG = 2**27, 2**20  # elements whose reading and copying is timed
_WIDTH = 120  # columns, where there is no terminal

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def masks(quick: bool, rounds: int) -> Iterator[Record]:
    """`lampfast.masks` over writing the masks when every threshold is known.

    The floor writes new masks, as `masks` does; the strict one writes into masks that are there.
    """
    for case, weights in _all_weights(quick):
        for s in _SPARSITIES:
            contenders.check_masks(weights, s)
            calls = contenders.masks(weights, s), *contenders.masks_floors(weights, s)
            ours, floor, strict = median_seconds(calls, rounds)
            found = _compared(case, s, contenders.numel(weights), ours, floor)
            yield found | {"over strict floor": ours / strict}


def prune(quick: bool, rounds: int) -> Iterator[Record]:
    """`lampfast.prune` over a copy of the weights."""
    for case, weights in _all_weights(quick):
        targets = contenders.clone(weights)
        for s in _SPARSITIES:
            contenders.check_prune(weights, targets, s)
            floor = contenders.copy_floor(weights, targets)
            times = median_seconds([contenders.prune(weights, targets, s), floor], rounds)
            yield _compared(case, s, contenders.numel(weights), *times)


ROWS: dict[str, Row] = {"masks": masks, "prune": prune, "stages": stages.stages}
_GOALS = {"masks": Goal(3, 1.7), "prune": Goal(3.2, 2)}  # of the time over the floor's


@app.command()
def measure(
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny sizes: only shows that everything works.")
    ] = False,
    rows: Annotated[
        str, typer.Option(help=f"The rows to measure, with commas: {', '.join(ROWS)}.")
    ] = ",".join(ROWS),
    rounds: Annotated[
        int | None, typer.Option(min=1, help=f"How often each call is timed, usually {_ROUNDS}.")
    ] = None,
    keep: Annotated[
        Path | None, typer.Option("--json", help="A file to keep the figures in.")
    ] = None,
) -> None:
    """Measure lampfast on this machine; it should have nothing else to do."""
    chosen = _chosen(rows)
    if keep:
        keep.touch()  # better to fail now than when all is measured
    rounds = rounds or (_QUICK_ROUNDS if quick else _ROUNDS)
    this = machine.inspect(_QUICK_BIG if quick else _BIG, rounds)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    console.print(str(this))
    found: dict[str, list[Record]] = {}
    for name, row in chosen.items():
        found[name] = list(_told(name, row(quick, rounds)))
        console.print(_table((row.__doc__ or "").splitlines()[0], found[name]))
        if name in _GOALS:
            console.print(_summary(name, found[name]))
    if quick:
        console.print("[red]Quick: everything was shrunk, the figures mean nothing.[/]")
    if keep:
        keep.write_text(json.dumps({"machine": asdict(this), "rows": found}, indent=1) + "\n")


def _chosen(rows: str) -> dict[str, Row]:
    names = rows.split(",")
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        raise typer.BadParameter(
            f"no row is called {', '.join(map(repr, unknown))}; there are: {', '.join(ROWS)}",
            param_hint="--rows",
        )
    return {name: ROWS[name] for name in names}


def _all_weights(quick: bool) -> Iterator[tuple[str, Weights]]:
    for model, shapes in MODELS.items():
        for kind, generate in KINDS.items():
            yield f"{model}, {kind}", generate(shrunk(shapes()) if quick else shapes())


def _compared(case: str, s: float, numel: int, ours: float, floor: float) -> Record:
    times = {"ms": ours * 1e3, "ns/weight": ours / numel * 1e9, "floor ms": floor * 1e3}
    return {"weights": case, "sparsity": str(s), **times, "over floor": ours / floor}


def _summary(name: str, records: list[Record]) -> str:
    """The worst case and the median, and which goals they reach."""
    ratios = {f"{each['weights']}, {each['sparsity']}": each["over floor"] for each in records}
    worst, goal = max(ratios, key=lambda case: float(ratios[case])), _GOALS[name]
    median = statistics.median(map(float, ratios.values()))
    found = {f"worst: {worst}": float(ratios[worst]), f"median of {len(ratios)} cases": median}
    return "\n".join(
        f"{name}, {what}: {goal.form.format(ratio)}, {goal.verdict(ratio)} "
        f"(must {goal.write(goal.must)}, aim {goal.write(goal.aim)})"
        for what, ratio in found.items()
    )


def _told(name: str, records: Iterator[Record]) -> Iterator[Record]:
    """Says on stderr what has been measured; no spinner, whose thread would take its share."""
    for record in records:
        texts = [value for value in record.values() if isinstance(value, str)]
        print(f"{name}: {', '.join(texts)}", file=sys.stderr, flush=True)
        yield record


def _table(title: str, records: list[Record]) -> Table:
    """A row for each record; numbers are set to the right."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_style="bold", title_justify="left")
    for heading, value in records[0].items():
        table.add_column(heading, justify="left" if isinstance(value, str) else "right")
    for record in records:
        table.add_row(*(v if isinstance(v, str) else f"{v:,.3f}" for v in record.values()))
    return table


if __name__ == "__main__":
    app()
