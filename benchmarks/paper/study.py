"""The paper's comparison on Fashion-MNIST: `python benchmarks/paper/study.py`.

It may be interrupted at any moment: the next call goes on with the runs that are missing.
"""

import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import data
import execution
import page
import protocols
import typer
from models import ARCHITECTURES
from protocols import METHODS, PROTOCOLS, RIVALS
from rich.console import Console
from rich.markup import escape
from settings import QUICK, STUDY

HERE = Path(__file__).parent
_GOES_ON = " The same command goes on; finished runs are kept."

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Everything tiny, one seed: only shows that all works."),
    ] = False,
    models: Annotated[str, typer.Option(help="With commas.")] = ",".join(ARCHITECTURES),
    chosen_protocols: Annotated[str, typer.Option("--protocols", help="With commas.")] = ",".join(
        PROTOCOLS
    ),
    methods: Annotated[
        str, typer.Option(help=f"With commas; also {', '.join(RIVALS)}: rate_distortion.py.")
    ] = ",".join(METHODS),
    seeds: Annotated[
        str, typer.Option(help="With commas; usually 0,1,2,3,4 for mlp and 0,1,2 for the others.")
    ] = "",
    place: Annotated[Path, typer.Option("--data", help="The folder of the dataset.")] = data.PLACE,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes, each of one thread: one a core is best.")
    ] = 1,
    results: Annotated[
        Path | None,
        typer.Option(help="Where results are kept; with --quick a temporary folder."),
    ] = None,
) -> None:
    """Make the runs that are missing, then write the page of what there is."""
    settings = QUICK if quick else STUDY
    runs = protocols.plan(
        _chosen("--models", models, ARCHITECTURES),
        _chosen("--protocols", chosen_protocols, PROTOCOLS),
        _chosen("--methods", methods, (*METHODS, *RIVALS)),
        _seeds(seeds or ("0" if quick else "")),
    )
    folder = results or (Path(tempfile.mkdtemp(prefix="lampfast-study-")) if quick else HERE)
    console = Console(highlight=False)
    with _stopping_with_a_word(console):
        execution.go_on(runs, settings, place, folder, workers, console)
    try:
        console.print(f"The page: {page.write(folder)}", soft_wrap=True)
    except ValueError as error:
        console.print(f"No page: {escape(str(error))}", soft_wrap=True)


@contextmanager
def _stopping_with_a_word(console: Console) -> Iterator[None]:
    """Say why the runs have stopped, and end the program."""
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        console.print(f"[red]{escape(str(error))}[/]", soft_wrap=True)
        raise typer.Exit(1) from None
    except BrokenProcessPool:
        console.print("[red]A worker was killed, perhaps for want of memory.[/]" + _GOES_ON)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        console.print("Interrupted." + _GOES_ON)
        raise typer.Exit(130) from None


def _chosen(option: str, names: str, known: Iterable[str]) -> list[str]:
    chosen = list(dict.fromkeys(names.split(",")))
    for name in chosen:
        if name not in known:
            raise typer.BadParameter(
                f"{name!r} is not one of {', '.join(known)}", param_hint=option
            )
    return chosen


def _seeds(text: str) -> list[int] | None:
    try:
        return [*dict.fromkeys(map(int, text.split(",")))] if text else None
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no list of integers such as 0,1,2", param_hint="--seeds"
        ) from None


if __name__ == "__main__":
    app()
