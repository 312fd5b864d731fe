"""How near masks and prune come to what the memory allows: `python benchmarks/speed.py`.

Every row times a call and its floor in turns in one run, since both take as long as the memory lets
them; and checks results before it times them. Slow results never fail the run.
"""

import json
import sys
from pathlib import Path
from typing import Annotated

import machine
import rows_floors
import rows_stages
import tables
import typer
from outcome import Outcome
from rich.console import Console
from run import Row, Run

ROWS: dict[str, Row] = {
    "masks": rows_floors.masks,
    "prune": rows_floors.prune,
    "stages": rows_stages.stages,
}
_ROUNDS, _QUICK_ROUNDS = 21, 2
_BIG, _QUICK_BIG = 2**27, 2**20  # elements whose reading and copying is timed
_WIDTH = 120  # columns, where there is no terminal

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


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
    _progress("the machine")
    this = machine.inspect(_QUICK_BIG if quick else _BIG, rounds)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    console.print(str(this))
    run = Run(this, rounds, quick, _progress)
    outcomes = {name: row(run) for name, row in chosen.items()}
    _progress("")
    _print(console, outcomes)
    if quick:
        console.print("[red]Quick: everything was shrunk, the figures mean nothing.[/]")
    if keep:
        keep.write_text(json.dumps(tables.figures(this, outcomes), indent=1) + "\n")


def _chosen(rows: str) -> dict[str, Row]:
    names = rows.split(",")
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        raise typer.BadParameter(
            f"no row is called {', '.join(map(repr, unknown))}; there are: {', '.join(ROWS)}",
            param_hint="--rows",
        )
    return {name: ROWS[name] for name in names}


def _print(console: Console, outcomes: dict[str, Outcome]) -> None:
    """The details first, so that the summary is what stands at the end."""
    for outcome in outcomes.values():
        for grid in outcome.grids:
            console.print(tables.details(grid))
    lines = [line for outcome in outcomes.values() for line in outcome.lines]
    if lines:
        console.print(tables.summary(lines))


def _progress(text: str) -> None:
    """Says on stderr what is measured; no spinner, whose thread would take its share of time."""
    if sys.stderr.isatty():
        print(f"\r\x1b[2K{text}", end="", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    app()
