"""lampfast on a GPU beside its floors, the textbook and its goals: `python benchmarks/gpu.py`.

The floors are the bytes that must move at the speed of a device copy, measured in the same run.
Results are checked before they are timed. Slow results never fail the run. Every line is printed,
and kept in the file, as it comes: what follows may fail or be stopped.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import contenders
import device as gpu
import torch
import typer
from outcome import Goal, Line
from shapes import resnet50
from weights import Weights

import lampfast
from lampfast import textbook
from lampfast._cli.measure import Call, median_seconds

_LAYERS, _WIDTH, _HEIGHT = 300, 1_024, 3_256  # 1.0003e9 weights
_SPARSITY = 0.9
_MORE = "{:.0f} ×"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def measure(
    quick: Annotated[
        bool, typer.Option("--quick", help="Few weights: shows that it works.")
    ] = False,
    device: Annotated[
        str, typer.Option(help="Where to measure; cpu shows that it works.")
    ] = "cuda",
    rounds: Annotated[int, typer.Option(min=1, help="How often each call is timed.")] = 11,
    keep: Annotated[
        Path | None, typer.Option("--json", help="A file to keep the figures in.")
    ] = None,
) -> None:
    """Measure lampfast on this GPU; it should have nothing else to do."""
    bench = Bench(torch.device(device), quick, rounds)
    _say(bench.heading())
    if quick or device == "cpu":
        _say("Not a measurement: the figures mean nothing.")
    stages = gpu.stages(bench.weights, _SPARSITY, rounds)
    listed = ", ".join(f"{name} {1e3 * time:.2f} ms" for name, time in stages.items())
    _say(f"Stages of masks, as the host sees them: {listed}")
    figures: dict[str, Any] = {"heading": bench.heading(), "stages": stages, "lines": []}
    for line in bench.lines():
        _say(_written(line))
        figures["lines"].append(asdict(line) | {"verdict": line.goal.verdict(line.figure)})
        if keep:
            keep.write_text(json.dumps(figures, indent=1) + "\n")


def _written(line: Line) -> str:
    """One line of a table whose columns are as wide as this benchmark's texts."""
    goal = line.goal
    median = "" if line.median is None else f"{line.median * 1e3:,.2f} ms"
    bars = f"must {goal.write(goal.must):<9} aim {goal.write(goal.aim):<9}"
    figure = f"{goal.form.format(line.figure):>8}  {bars} {goal.verdict(line.figure):<8}"
    return f"{line.what:<18} {figure} {median:>12}  {line.beside}".rstrip()


def _say(text: str) -> None:
    print(text, flush=True)


class Bench:
    """One run: the weights, and the speed of a copy beside which everything is put."""

    def __init__(self, device: torch.device, quick: bool, rounds: int) -> None:
        self.device = device
        self.rounds = rounds
        height = 8 if quick else _HEIGHT
        self.weights = gpu.gaussian({str(i): (_WIDTH, height) for i in range(_LAYERS)}, device)
        self.numel = contenders.numel(self.weights)
        self.targets = contenders.clone(self.weights)
        self.copy_speed = self._copy_speed()

    def heading(self) -> str:
        """What is measured, on what."""
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else "the CPU"
        return (
            f"{name}; lampfast {lampfast.__version__}, torch {torch.__version__}\n"
            f"{self.numel:,} float32 weights in {_LAYERS} layers; "
            f"copy {self.copy_speed / 1e9:,.0f} GB/s (read + written)"
        )

    def lines(self) -> Iterator[Line]:
        """All figures."""
        yield self.masks("masks, float32", self.weights, 5, Goal(2.0, 1.3))
        yield self.prune()
        halves = {name: weight.bfloat16() for name, weight in self.weights.items()}
        yield self.masks("masks, bfloat16", halves, 3, Goal(2.5, 1.5))
        del halves
        ours, theirs = partial(lampfast.masks, self.weights, _SPARSITY), textbook.masks
        yield self.beside("masks", ours, partial(theirs, self.weights, _SPARSITY), 30, 80)
        ours = partial(lampfast.scores, self.weights)
        yield self.beside("scores", ours, partial(textbook.scores, self.weights), 4, 8)
        # What any textbook has to do first; torch sorts by CUB's radix sort.
        yield self.beside("scores", ours, self.sort, 1, 2, peer="CUB's sort")
        yield self.one_model()
        if self.device.type == "cuda":
            yield self.memory()

    def masks(self, what: str, weights: Weights, item_bytes: int, goal: Goal) -> Line:
        """`lampfast.masks` over reading the weights and writing the masks."""
        contenders.check_masks(weights, _SPARSITY)
        call = partial(lampfast.masks, weights, _SPARSITY)
        return self._over_floor(what, lambda: call, item_bytes, goal)

    def prune(self) -> Line:
        """`lampfast.prune` over reading the weights twice and writing them."""

        def prepare() -> Call:
            contenders.copy(self.weights, self.targets)
            return partial(lampfast.prune, self.targets, _SPARSITY)

        contenders.check_prune(self.weights, self.targets, _SPARSITY)
        return self._over_floor("prune, float32", prepare, 12, Goal(1.6, 1.2))

    def sort(self) -> None:
        """Sorts every layer, with the places, one result after the other."""
        for weight in self.weights.values():
            weight.flatten().sort()

    def beside(
        self,
        what: str,
        ours: Call,
        theirs: Call,
        must: float,
        aim: float,
        peer: str = "textbook",
    ) -> Line:
        """The textbook, or another peer, on the same GPU over lampfast."""
        fast, slow = self._medians(lambda: ours, lambda: theirs, rounds=2)
        goal = Goal(must, aim, _MORE, at_least=True)
        return Line(f"{what}, {peer}", slow / fast, goal, fast, f"{slow * 1e3:,.0f} ms")

    def one_model(self) -> Line:
        """A whole call of `lampfast.prune` on ResNet-50."""
        weights = gpu.gaussian(resnet50(), self.device)
        targets = contenders.clone(weights)

        def prepare() -> Call:
            contenders.copy(weights, targets)
            return partial(lampfast.prune, targets, _SPARSITY)

        (median,) = self._medians(prepare, rounds=10 * self.rounds)
        return Line("prune, ResNet-50", median * 1e3, Goal(1.0, 0.3, "{:.2f} ms"), median)

    def memory(self) -> Line:
        """What `prune` needs at its peak, beside the weights' bytes."""
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        lampfast.prune(self.targets, _SPARSITY)
        peak = torch.cuda.max_memory_allocated() - before
        return Line("prune, memory", 100 * peak / (4 * self.numel), Goal(5.0, 1.0, "{:.2f} %"))

    def _copy_speed(self) -> float:
        """Bytes read and written in a second."""
        (median,) = self._medians(lambda: partial(contenders.copy, self.weights, self.targets))
        return 8 * self.numel / median

    def _over_floor(
        self, what: str, prepare: Callable[[], Call], item_bytes: int, goal: Goal
    ) -> Line:
        (median,) = self._medians(prepare)
        floor = item_bytes * self.numel / self.copy_speed
        beside = f"{item_bytes} bytes a weight: {floor * 1e3:.2f} ms"
        return Line(what, median / floor, goal, median, beside)

    def _medians(self, *prepare: Callable[[], Call], rounds: int | None = None) -> list[float]:
        return median_seconds([gpu.idle(p, self.device) for p in prepare], rounds or self.rounds)


if __name__ == "__main__":
    app()
