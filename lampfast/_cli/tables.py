"""Tables of layers that fit the terminal: names give way first, and keep their ends."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from lampfast.reports import Report

MOST_ROWS = 400  # more are told of, and in the files for programs
_LEAST_NAME = 12  # columns, below which other columns give way


def layers(report: Report, width: int) -> Table:
    """A report's layers.

    Args:
        report: Of whatever was pruned.
        width: Of the terminal, in columns.
    """
    rows = [
        ("×".join(map(str, it.shape)), f"{it.numel:,}", f"{it.kept:,}", f"{it.sparsity:.2%}")
        for it in report.layers
    ]
    total = ("", f"{report.numel:,}", f"{report.kept:,}", f"{report.sparsity:.2%}")
    names = [it.name for it in report.layers]
    return _table(names, ("shape", "weights", "kept", "pruned"), rows, total, width)


def compared(reports: Mapping[str, Report], width: int) -> Table:
    """The sparsities of the same layers by several methods, side by side."""
    first, *others = reports.values()
    columns = [[it.sparsity for it in report.layers] for report in (first, *others)]
    rows = [
        (f"{it.numel:,}", *(f"{column[i]:.2%}" for column in columns))
        for i, it in enumerate(first.layers)
    ]
    total = (f"{first.numel:,}", *(f"{it.sparsity:.2%}" for it in reports.values()))
    names = [it.name for it in first.layers]
    return _table(names, ("weights", *reports), rows, total, width)


def with_its_end(name: str, columns: int) -> str:
    """A name of at most so many columns: layers' names differ in their ends.

    Example:
        >>> with_its_end("model.layers.11.mlp.down_proj.weight", 20)
        '…lp.down_proj.weight'
    """
    return name if len(name) <= columns else "…" + name[len(name) - max(columns - 1, 0) :]


def _table(
    names: Sequence[str],
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    total: Sequence[str],
    width: int,
) -> Table:
    widths = [max(map(len, column)) for column in zip(heads, total, *rows, strict=True)]
    last = f"all {len(names):,} layers"
    longest = max([len(last), *map(len, names)])
    kept = list(range(len(heads)))
    while kept and width - sum(widths[i] + 2 for i in kept) < min(_LEAST_NAME, longest):
        kept.pop(0)  # the shape first, as the last columns are what is asked for
    room = max(_LEAST_NAME, width - sum(widths[i] + 2 for i in kept))
    if heads[0] == "shape" and 0 in kept and longest > room:
        kept.remove(0)
        room = max(_LEAST_NAME, width - sum(widths[i] + 2 for i in kept))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    table.add_column("layer", no_wrap=True)
    for i in kept:
        table.add_column(heads[i], justify="right", no_wrap=True)
    for name, row in list(zip(names, rows, strict=True))[:MOST_ROWS]:
        table.add_row(Text(with_its_end(name, room)), *(row[i] for i in kept))
    if len(names) > MOST_ROWS:
        table.add_row(f"… {len(names) - MOST_ROWS:,} more (--csv)", *("" for _ in kept))
    table.add_section()
    table.add_row(Text(with_its_end(last, room)), *(total[i] for i in kept), style="bold")
    return table
