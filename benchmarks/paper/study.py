"""The paper's comparison on Fashion-MNIST: `python benchmarks/paper/study.py`.

It may be interrupted at any moment: the next call goes on with the runs that are missing.
"""

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import data
import execution
import typer
from models import ARCHITECTURES
from protocols import METHODS, PROTOCOLS
from records import Run
from rich.console import Console
from rich.markup import escape
from settings import QUICK, STUDY

HERE = Path(__file__).parent

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
    methods: Annotated[str, typer.Option(help="With commas.")] = ",".join(METHODS),
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
    runs = plan(
        _chosen("--models", models, ARCHITECTURES),
        _chosen("--protocols", chosen_protocols, PROTOCOLS),
        _chosen("--methods", methods, METHODS),
        _seeds(seeds or ("0" if quick else "")),
    )
    folder = results or (Path(tempfile.mkdtemp(prefix="lampfast-study-")) if quick else HERE)
    console = Console(highlight=False)
    try:
        execution.go_on(runs, settings, place, folder, workers, console)
    except (FileNotFoundError, ValueError) as error:
        console.print(f"[red]{escape(str(error))}[/]", soft_wrap=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        console.print("Interrupted; the same command goes on. Finished runs are kept.")
        raise typer.Exit(130) from None
    import page  # matplotlib takes a while, and the runs do without it

    console.print(f"The page: {page.write(folder)}", soft_wrap=True)


def plan(
    models: Sequence[str],
    chosen_protocols: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int] | None,
) -> list[Run]:
    """All runs that are asked for, seed by seed, so that an unfinished study is of use."""
    per_model = {
        model: range(ARCHITECTURES[model].seeds) if seeds is None else seeds for model in models
    }
    return [
        Run(model, seed, protocol, method)
        for seed in sorted({seed for some in per_model.values() for seed in some})
        for model in models
        if seed in per_model[model]
        for protocol in chosen_protocols
        for method in methods
    ]


def _chosen(option: str, names: str, known: Iterable[str]) -> list[str]:
    chosen = names.split(",")
    for name in chosen:
        if name not in known:
            raise typer.BadParameter(
                f"{name!r} is not one of {', '.join(known)}", param_hint=option
            )
    return chosen


def _seeds(text: str) -> list[int] | None:
    try:
        return [int(seed) for seed in text.split(",")] if text else None
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no list of integers such as 0,1,2", param_hint="--seeds"
        ) from None


if __name__ == "__main__":
    app()
