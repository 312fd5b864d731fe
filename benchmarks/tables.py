"""How the figures look in a terminal, and how they are kept in a file."""

from collections.abc import Sequence
from dataclasses import asdict

from machine import Machine
from outcome import Cell, Grid, Line, Outcome
from rich import box
from rich.table import Table

_STYLES = {"aim met": "green", "must met": "yellow", "MISSED": "bold red"}


def summary(lines: Sequence[Line]) -> Table:
    """The table of all figures that have a bar."""
    headings = ["", "median", "beside", "figure", "must", "aim"]
    table = _table("lampfast beside its goals", headings, 1)
    table.add_column("", no_wrap=True)
    for line in lines:
        goal, verdict = line.goal, line.goal.verdict(line.figure)
        table.add_row(
            line.what,
            "" if line.median is None else f"{line.median * 1e3:,.2f} ms",
            line.beside,
            goal.form.format(line.figure),
            goal.write(goal.must),
            goal.write(goal.aim),
            f"[{_STYLES[verdict]}]{verdict}[/]",
        )
    return table


def details(grid: Grid) -> Table:
    """One of the tables behind the summary."""
    texts = [heading for heading, form in grid.columns.items() if not form]
    table = _table(grid.title, list(grid.columns), len(texts))
    for row in grid.rows:
        table.add_row(*(map(_text, row, grid.columns.values())))
    return table


def figures(machine: Machine, outcomes: dict[str, Outcome]) -> dict[str, object]:
    """Everything as numbers, times in seconds where no unit says otherwise, to keep as JSON."""
    return {
        "machine": asdict(machine),
        "rows": {
            name: {
                "summary": [
                    asdict(line) | {"verdict": line.goal.verdict(line.figure)}
                    for line in outcome.lines
                ],
                "details": {
                    grid.title: [dict(zip(grid.columns, row, strict=True)) for row in grid.rows]
                    for grid in outcome.grids
                },
            }
            for name, outcome in outcomes.items()
        },
    }


def _text(cell: Cell, form: str) -> str:
    if cell is None:
        return ""
    return cell if isinstance(cell, str) else format(cell, form)


def _table(title: str, headings: Sequence[str], texts: int) -> Table:
    """An empty table; all but its first columns are numbers, and only texts may be wrapped."""
    table = Table(
        title=title, box=box.SIMPLE_HEAD, pad_edge=False, title_style="bold", title_justify="left"
    )
    for i, heading in enumerate(headings):
        text = i < texts
        table.add_column(heading, justify="left" if text else "right", no_wrap=not text)
    return table
