"""The commands of `lampfast` and how they look in a terminal."""

import sys
from collections.abc import Iterator
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

import lampfast
from lampfast import _extras
from lampfast._cli import checkpoints, demo

app = typer.Typer(
    name="lampfast",
    help="Exact LAMP pruning of torch models at the speed of memory.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_BAR = 7  # columns

app.command("prune")(checkpoints.prune)
app.command("report")(checkpoints.report)


@app.callback(invoke_without_command=True)
def _lampfast(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(lampfast.__version__)
        raise typer.Exit


@app.command("demo")
def run_demo(
    sparsity: Annotated[
        float, typer.Option("--sparsity", "-s", min=0, max=1, help="The fraction to prune.")
    ] = 0.9,
) -> None:
    """Prune the ImageNet weights of EfficientNet-Lite0 and compare with the usual torch code."""
    console = Console(highlight=False)
    try:
        weights = demo.imagenet_weights()
    except _extras.MissingExtraError as error:
        sys.exit(str(error))
    try:
        report = lampfast.prune(
            {name: weight.clone() for name, weight in weights.items()}, sparsity
        )
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--sparsity") from None
    console.print(_layers(report))
    with console.status("Measuring against the textbook torch implementation ..."):
        comparison = demo.compare(weights, sparsity)
    console.print(_comparison(comparison))
    for line in _verdict(comparison):
        console.print(line)
    if comparison.contenders["lampfast"].pruned != comparison.count:
        raise typer.Exit(1)


def _layers(report: lampfast.Report) -> Table:
    table = Table(
        title=f"EfficientNet-Lite0, trained on ImageNet, pruned by LAMP to {report.sparsity:.1%}",
        box=box.SIMPLE,
        padding=0,
        show_edge=False,
        show_footer=True,
        title_style="bold",
    )
    table.add_column("layer", "all layers")
    table.add_column("shape", f"{len(report.layers)}", justify="right", style="dim")
    table.add_column("weights", f"{report.numel:,}", justify="right")
    table.add_column("kept", f"{report.kept:,}", justify="right")
    table.add_column("pruned", f"{report.sparsity:.1%}", justify="right")
    table.add_column("remain", _bar(1 - report.sparsity), style="green", min_width=_BAR)
    for layer in report.layers:
        table.add_row(
            layer.name,
            "×".join(map(str, layer.shape)),
            f"{layer.numel:,}",
            f"{layer.kept:,}",
            f"{layer.sparsity:.1%}",
            _bar(1 - layer.sparsity),
        )
    return table


def _bar(fraction: float) -> str:
    eighths = round(fraction * _BAR * 8)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _comparison(comparison: demo.Comparison) -> Table:
    table = Table(
        title=f"{comparison.count:,} weights to prune", box=box.SIMPLE_HEAD, title_style="bold"
    )
    table.add_column("")
    for header in ("pruned", "off by", "time", "extra memory"):
        table.add_column(header, justify="right")
    for name, contender in comparison.contenders.items():
        off = contender.pruned - comparison.count
        table.add_row(
            name,
            f"{contender.pruned:,}",
            f"[red]{off:+,}[/]" if off else "[green]0[/]",
            _milliseconds(contender.seconds),
            _mebibytes(contender.extra_bytes),
        )
    return table


def _verdict(comparison: demo.Comparison) -> Iterator[str]:
    ours, theirs = comparison.contenders.values()
    off = theirs.pruned - comparison.count
    if ours.pruned == comparison.count:
        yield "lampfast pruned exactly the number asked for."
    else:
        yield f"[red]lampfast missed its target, {comparison.count:,}: please report this bug.[/]"
    if off:
        yield f"The textbook missed it: it pruned {abs(off):,} too {'many' if off > 0 else 'few'}."
    else:
        yield "The textbook pruned that number as well."
    if comparison.differing:
        yield (
            f"Their masks differ in {comparison.differing:,} places, by the textbook's rounding; "
            "lampfast's is the one\nthat exact arithmetic gives."
        )
    else:
        yield "Their masks are the same."
    speed = f"lampfast was {theirs.seconds / ours.seconds:,.0f} times as fast"
    if ours.extra_bytes and theirs.extra_bytes:
        speed += f", with {ours.extra_bytes / theirs.extra_bytes:.0%} of the extra memory"
    yield f"{speed}."
    yield (
        "[dim]Time: median of in-place prunes in turns. Memory: peak beyond what was resident,\n"
        "each in a fresh process.[/]"
    )


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms"


def _mebibytes(size: int | None) -> str:
    return "not measured" if size is None else f"{size / 2**20:,.1f} MiB"
