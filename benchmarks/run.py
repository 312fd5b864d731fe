"""One run of the benchmark: what every row is told."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from contenders import Prepare
from machine import Machine
from outcome import Outcome
from shapes import MODELS, Shapes, shrunk

from lampfast._cli import measure

SPARSITIES = (0.5, 0.9, 0.99)
USUAL = 0.9  # where only one sparsity is measured


@dataclass(frozen=True)
class Run:
    """How to measure.

    Attributes:
        machine: What is measured on.
        rounds: How often everything is called.
        quick: Whether to shrink all shapes: it shows that everything works, and no more.
        progress: Told what is measured next.
    """

    machine: Machine
    rounds: int
    quick: bool
    progress: Callable[[str], None]

    def model(self, name: str) -> Shapes:
        """The shapes of the model of that name, or in a quick run a small part of them."""
        shapes = MODELS[name]()
        return shrunk(shapes) if self.quick else shapes

    def medians(self, *prepare: Prepare) -> list[float]:
        """The median seconds of several calls, called in turns."""
        return measure.median_seconds(prepare, self.rounds)


Row: TypeAlias = Callable[[Run], Outcome]
