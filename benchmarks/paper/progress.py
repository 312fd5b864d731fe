"""How far the study is: a progress bar with the time that is left, and a line for every run."""

from collections import defaultdict
from collections.abc import Iterable
from datetime import timedelta
from statistics import fmean

from models import ARCHITECTURES
from protocols import DENSE, sparsities
from records import Outcome, Row, Run, run_of
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text
from settings import Settings


class Estimate:
    """Weighs runs by the seconds of training that those of their model have taken so far.

    Args:
        runs: What is still to be done.
        nets: The models and seeds that are still to be trained for it.
        rows: What has been done, on this machine or another.
        settings: Of both.
        console: Where to draw; where it is no terminal, there are only the lines.
    """

    def __init__(
        self,
        runs: Iterable[Run],
        nets: Iterable[tuple[str, int]],
        rows: Iterable[Row],
        settings: Settings,
        console: Console,
    ) -> None:
        self._settings = settings
        self._step = _seconds_a_step(rows, settings)
        self._nets = set(nets)
        self._progress = Progress(
            BarColumn(None),
            TextColumn("{task.percentage:.1f} %"),
            _TimeLeft(),
            console=console,
            disable=not console.is_terminal,
        )
        training = sum(self._dense(model) for model, _ in self._nets)
        self._task = self._progress.add_task("", total=training + sum(map(self._seconds, runs)))
        self._console = console

    def __enter__(self) -> "Estimate":
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def advance(self, outcome: Outcome) -> None:
        """Count a run that is done, or a network that is trained."""
        run = run_of(outcome.rows[0] if outcome.rows else outcome.left_out[0])
        if run.protocol != DENSE:
            self._progress.advance(self._task, self._seconds(run))
        elif (run.model, run.seed) in self._nets:
            self._progress.advance(self._task, self._dense(run.model))
        else:
            return
        task = self._progress.tasks[0]
        name = f"{run.model} {run.seed}: {run.protocol}"
        method = "" if run.protocol == DENSE else f" {run.method}"
        end = f", {outcome.rows[-1].accuracy:.2%} after its last round" if outcome.rows else ""
        self._console.print(f"{name}{method}{end} ({task.percentage:.1f} %, {_time_left(task)})")

    def _seconds(self, run: Run) -> float:
        rounds = len(sparsities(run.protocol, self._settings))
        return self._step[run.model] * self._settings.retrain_steps * rounds

    def _dense(self, model: str) -> float:
        return self._step[model] * self._settings.dense_steps


class _TimeLeft(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(_time_left(task))


def _time_left(task: Task) -> str:
    """By the pace since the start; rich's own looks at half a minute, and a run takes longer."""
    if not task.completed or task.elapsed is None or task.total is None:
        return "no estimate yet"
    seconds = task.elapsed * (task.total - task.completed) / task.completed
    return f"{timedelta(seconds=round(seconds))} left"


def _seconds_a_step(rows: Iterable[Row], settings: Settings) -> dict[str, float]:
    measured = defaultdict(list)
    for row in rows:
        if row.protocol != DENSE:
            measured[row.model].append(row.seconds_training / settings.retrain_steps)
    return {
        model: fmean(measured[model]) if model in measured else architecture.milliseconds / 1000
        for model, architecture in ARCHITECTURES.items()
    }
