"""Makes the runs that are missing, in one process or several."""

import fcntl
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import data
import protocols
import provenance
import torch
from data import Dataset
from progress import Estimate
from protocols import PROTOCOLS, Start
from records import RESULTS, Outcome, Records, Run
from rich.console import Console
from settings import Settings

Each: TypeAlias = Callable[[Callable[[Any], Outcome], Iterable[Any]], Iterable[Outcome]]


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
        ValueError: The folder has results of other settings, or of other trained networks; or
            another study is at work in it.
        BrokenProcessPool: A worker was killed.
    """
    (folder / "work").mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        records = Records(folder)
        records.check(settings)
        rounds = {name: len(protocols.sparsities(name, settings)) for name in PROTOCOLS}
        missing = [run for run in runs if not records.finished(run, rounds[run.protocol])]
        console.print(f"{len(runs) - len(missing)} of {len(runs)} runs are there.")
        if not missing:
            return
        call = provenance.call(workers)
        study = Study(settings, place, folder / "work", call["started"])
        nets = _nets(missing)
        with (
            Estimate(missing, _untrained(study, nets), records.rows, settings, console) as estimate,
            _workers(workers) as each,
        ):
            for outcome in each(partial(_dense, study), nets):
                _keep_dense(outcome, records, settings, call)
                estimate.advance(outcome)
            for outcome in each(partial(_perform, study), missing):
                records.add(outcome, settings, call)
                estimate.advance(outcome)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps other studies out of a folder, whose files are replaced as a whole."""
    with (folder / "work" / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another study is at work in {folder}; wait for it, give it more --workers "
                "instead, or choose another folder with --results"
            ) from None
        yield


def _nets(runs: Iterable[Run]) -> list[tuple[str, int]]:
    """The models and seeds whose trained networks the runs start from."""
    return list(dict.fromkeys((run.model, run.seed) for run in runs))


def _untrained(study: Study, nets: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    return [
        (model, seed)
        for model, seed in nets
        if not protocols.trained(model, seed, study.settings, study.work).exists()
    ]


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
            f"{RESULTS} has runs of {row.model!r}, seed {row.seed}, that start from the trained "
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
            _prepare()
            yield map
        finally:
            torch.set_num_threads(threads)
        return
    executor = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _prepare_worker)
    try:
        yield partial(_as_completed, executor)
    except BaseException:  # an interruption, too, does not wait for runs of some minutes
        executor.shutdown(wait=False, cancel_futures=True)
        for worker in multiprocessing.active_children():
            worker.terminate()
        raise
    executor.shutdown()


def _as_completed(
    executor: Executor, job: Callable[[Any], Outcome], items: Iterable[Any]
) -> Iterator[Outcome]:
    for future in as_completed([executor.submit(job, item) for item in items]):
        yield future.result()


def _prepare_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is the parent's to handle
    _prepare()


def _prepare() -> None:
    torch.set_num_threads(1)  # small networks train no faster with more
    protocols.warm_up()
