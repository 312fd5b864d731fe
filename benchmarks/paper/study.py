"""The paper's comparison on Fashion-MNIST: `python benchmarks/paper/study.py`.

It may be interrupted at any moment: the next call goes on with the runs that are missing.
"""

import multiprocessing
import signal
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeAlias

import data
import protocols
import provenance
import torch
import typer
from data import Dataset
from models import ARCHITECTURES
from progress import Estimate
from protocols import METHODS, PROTOCOLS, Start
from records import Outcome, Records, Run
from rich.console import Console
from rich.markup import escape
from settings import QUICK, STUDY, Settings

HERE = Path(__file__).parent

Each: TypeAlias = Callable[[Callable[[Any], Outcome], Iterable[Any]], Iterable[Outcome]]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Study(NamedTuple):
    """What every worker needs to know.

    Attributes:
        settings: Of all runs.
        place: The folder of the dataset.
        work: Where trained networks are kept for other runs, and for another day.
        started: When this call of study.py did.
    """

    settings: Settings
    place: Path
    work: Path
    started: str


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
        go_on(runs, settings, place, folder, workers, console)
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


def go_on(
    runs: Sequence[Run],
    settings: Settings,
    place: Path,
    folder: Path,
    workers: int,
    console: Console,
) -> None:
    """Make the runs that are missing in a folder.

    Raises:
        FileNotFoundError: The dataset is not there.
        ValueError: The folder has results of other settings, or of other trained networks.
    """
    (folder / "work").mkdir(parents=True, exist_ok=True)
    records = Records(folder)
    records.check(settings)
    rounds = {name: len(protocols.sparsities(name, settings)) for name in PROTOCOLS}
    missing = [run for run in runs if not records.finished(run, rounds[run.protocol])]
    console.print(f"{len(runs) - len(missing)} of {len(runs)} runs are there.")
    if not missing:
        return
    call = provenance.call(workers)
    study = Study(settings, place, folder / "work", call["started"])
    with (
        Estimate(missing, records.rows, settings, console) as estimate,
        _workers(workers) as each,
    ):
        for outcome in each(partial(_dense, study), _nets(missing)):
            _keep_dense(outcome, records, settings, call)
            estimate.advance(outcome)
        for outcome in each(partial(_perform, study), missing):
            records.add(outcome, settings, call)
            estimate.advance(outcome)


def _nets(runs: Iterable[Run]) -> list[tuple[str, int]]:
    """The models and seeds whose trained networks the runs start from."""
    return list(dict.fromkeys((run.model, run.seed) for run in runs))


def _dense(study: Study, net: tuple[str, int]) -> Outcome:
    model, seed = net
    start = _start(study, model, seed)
    row = protocols.dense_row(model, seed, start, study.settings, study.started)
    return Outcome([row], [], [])


def _perform(study: Study, run: Run) -> Outcome:
    start = _start(study, run.model, run.seed)
    return protocols.perform(run, start, _dataset(study), study.settings, study.started)


def _start(study: Study, model: str, seed: int) -> Start:
    return protocols.prepare(model, seed, _dataset(study), study.settings, study.work)


def _dataset(study: Study) -> Dataset:
    whole = _load(study.place)
    settings = study.settings
    return Dataset(whole.train.first(settings.train_images), whole.test.first(settings.test_images))


_load = cache(data.load)  # once a process


def _keep_dense(
    outcome: Outcome, records: Records, settings: Settings, call: dict[str, Any]
) -> None:
    """Keep the row of a trained network; where there is one, it has to be of the same network.

    Raises:
        ValueError: It is of another one.
    """
    (row,) = outcome.rows
    known = records.dense(row.model, row.seed)
    if known is None:
        records.add(outcome, settings, call)
    elif known != row.dense:
        raise ValueError(
            f"results.csv has runs of {row.model!r}, seed {row.seed}, that start from the trained "
            f"network {known}; here the training gives {row.dense}, as another processor or torch "
            "may. Its runs would not be comparable: copy the folder work from where they were "
            "made, or choose other seeds with --seeds"
        )


@contextmanager
def _workers(count: int) -> Iterator[Each]:
    """Gives a function that applies a job to items, in so many processes of one thread each."""
    if count == 1:
        threads = torch.get_num_threads()
        try:
            _prepare_worker()
            yield map
        finally:
            torch.set_num_threads(threads)
        return
    ignore = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)  # it is the parent's to handle
    with multiprocessing.get_context("spawn").Pool(count, _prepare_worker, (ignore,)) as pool:
        yield pool.imap_unordered


def _prepare_worker(first: Callable[[], object] = lambda: None) -> None:
    first()
    torch.set_num_threads(1)  # small networks train no faster with more
    protocols.warm_up()


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
